#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <queue>

#include "text/utf8.h"

namespace polar::text {
namespace {

constexpr uint64_t kEmptySlot = ~uint64_t{0};
constexpr char32_t kLowCharacters = 0x800;
// Below this many symbols a scan for the best pair beats a queue.
constexpr size_t kFewSymbols = 24;

uint64_t pair_key(TokenId left, TokenId right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

size_t slot_of(uint64_t key, size_t mask) {
  key ^= key >> 32;
  key *= 0x9E3779B97F4A7C15u;
  return (key >> 24) & mask;
}

}  // namespace

void Vocabulary::add(std::string piece, TokenId id) {
  POLAR_CHECK(id >= 0 && static_cast<size_t>(id) < kMaxVocabulary);
  if (pieces_.size() <= static_cast<size_t>(id)) pieces_.resize(static_cast<size_t>(id) + 1);
  pieces_[static_cast<size_t>(id)] = piece;
  ids_.insert_or_assign(std::move(piece), id);
}

std::optional<TokenId> Vocabulary::find(std::string_view piece) const {
  const auto at = ids_.find(piece);
  if (at == ids_.end()) return std::nullopt;
  return at->second;
}

const std::string* Vocabulary::piece(TokenId id) const {
  if (id < 0 || static_cast<size_t>(id) >= pieces_.size()) return nullptr;
  const auto& piece = pieces_[static_cast<size_t>(id)];
  return piece ? &*piece : nullptr;
}

// A run of the word that is one token so far. Symbols form a list by index.
struct Bpe::Symbol {
  TokenId id;
  int32_t previous, next;  // -1: none
  uint32_t begin, length;  // bytes of the word; length 0: merged into its left neighbour
};

struct Bpe::Candidate {
  uint64_t priority;
  int32_t left;
  TokenId merged;
  uint32_t length;  // bytes the merge would span: tells a stale entry where texts decide

  // The lowest priority value first, then the leftmost.
  bool operator<(const Candidate& other) const {
    return priority != other.priority ? priority > other.priority : left > other.left;
  }
};

Bpe::Bpe(const Vocabulary* vocabulary, Options options, const std::vector<Merge>& merges)
    : vocabulary_(vocabulary), options_(options), low_characters_(kLowCharacters, -1) {
  table_.assign(std::bit_ceil(merges.size() * 2 + 2), Slot{kEmptySlot, 0, 0});
  const size_t mask = table_.size() - 1;
  for (const Merge& merge : merges) {
    const uint64_t key = pair_key(merge.left, merge.right);
    size_t at = slot_of(key, mask);
    while (table_[at].key != kEmptySlot && table_[at].key != key) at = (at + 1) & mask;
    table_[at] = {key, merge.rank, merge.merged};
  }
  for (char32_t value = 0; value < kLowCharacters; ++value) {
    std::string character;
    append_utf8(character, value);
    low_characters_[value] = vocabulary->find(character).value_or(-1);
  }
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", static_cast<unsigned>(byte));
    byte_tokens_[byte] = vocabulary->find(name).value_or(-1);
  }
}

Bpe::Bpe(const Vocabulary* vocabulary, Options options, std::vector<float> scores)
    : Bpe(vocabulary, options, std::vector<Merge>{}) {
  scores_ = std::move(scores);
  scores_.resize(static_cast<size_t>(vocabulary->size()), 0.0f);
  for (TokenId id = 0; id < vocabulary->size(); ++id) {
    if (const std::string* piece = vocabulary->piece(id)) {
      longest_piece_ = std::max(longest_piece_, piece->size());
    }
  }
}

std::optional<TokenId> Bpe::byte_token(unsigned char value) const {
  if (byte_tokens_[value] < 0) return std::nullopt;
  return byte_tokens_[value];
}

void Bpe::add_unknown(std::string_view character, std::vector<Symbol>& symbols,
                      std::optional<Symbol>& pending) const {
  if (options_.byte_fallback) {
    const bool all = std::all_of(character.begin(), character.end(), [this](char c) {
      return byte_tokens_[static_cast<unsigned char>(c)] >= 0;
    });
    if (all) {
      for (char c : character) {
        symbols.push_back({byte_tokens_[static_cast<unsigned char>(c)], -1, -1, 0, 1});
      }
      return;
    }
  }
  if (!options_.unknown) return;
  if (pending && options_.fuse_unknown) {
    pending->length += static_cast<uint32_t>(character.size());
    return;
  }
  if (pending) symbols.push_back(*pending);
  pending = Symbol{*options_.unknown, -1, -1, 0, static_cast<uint32_t>(character.size())};
}

// One symbol a character. An unknown token waits until the next known character, so that
// neighbours can fuse; byte tokens do not end the wait (as in the package).
void Bpe::start(std::string_view word, std::vector<Symbol>& symbols) const {
  std::optional<Symbol> pending;
  for (size_t at = 0; at < word.size();) {
    const CodePoint point = decode_utf8(word, at);
    const std::string_view character = word.substr(at, point.length);
    TokenId id = -1;
    if (point.valid && point.value < kLowCharacters) {
      id = low_characters_[point.value];
    } else {
      id = vocabulary_->find(character).value_or(-1);
    }
    if (id >= 0 ||
        !scores_.empty()) {  // by score, an unknown character may still grow into a token
      if (pending) symbols.push_back(*pending);
      pending.reset();
      symbols.push_back({id, -1, -1, 0, static_cast<uint32_t>(point.length)});
    } else {
      add_unknown(character, symbols, pending);
    }
    at += point.length;
  }
  if (pending) symbols.push_back(*pending);
  uint32_t begin = 0;
  for (size_t i = 0; i < symbols.size(); ++i) {
    symbols[i].begin = begin;
    begin += symbols[i].length;
    symbols[i].previous = static_cast<int32_t>(i) - 1;
    symbols[i].next = i + 1 < symbols.size() ? static_cast<int32_t>(i) + 1 : -1;
  }
}

Bpe::Found Bpe::merge_of(std::string_view word, const Symbol& left, const Symbol& right) const {
  if (!scores_.empty()) {
    const size_t length = size_t{left.length} + right.length;
    if (length > longest_piece_) return std::nullopt;
    const auto id = vocabulary_->find(word.substr(left.begin, length));
    if (!id) return std::nullopt;
    // Orders floats descending as unsigned integers ascending.
    uint32_t bits = 0;
    const float score = -scores_[static_cast<size_t>(*id)];
    std::memcpy(&bits, &score, sizeof(bits));
    bits ^= (bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u;
    return std::pair<uint64_t, TokenId>{bits, *id};
  }
  const uint64_t key = pair_key(left.id, right.id);
  const size_t mask = table_.size() - 1;
  for (size_t at = slot_of(key, mask); table_[at].key != kEmptySlot; at = (at + 1) & mask) {
    if (table_[at].key == key) {
      return std::pair<uint64_t, TokenId>{table_[at].rank, table_[at].merged};
    }
  }
  return std::nullopt;
}

void Bpe::merge_few(std::string_view word, std::vector<Symbol>& symbols) const {
  Found merges[kFewSymbols];
  size_t count = symbols.size();
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = merge_of(word, symbols[i], symbols[i + 1]);
  while (count > 1) {
    size_t best = count;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (merges[i] && (best == count || merges[i]->first < merges[best]->first)) best = i;
    }
    if (best == count) break;
    symbols[best].id = merges[best]->second;
    symbols[best].length += symbols[best + 1].length;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      merges[i] = merges[i + 1];
    }
    --count;
    if (best > 0) merges[best - 1] = merge_of(word, symbols[best - 1], symbols[best]);
    merges[best] = best + 1 < count ? merge_of(word, symbols[best], symbols[best + 1]) : Found{};
  }
  symbols.resize(count);
}

void Bpe::merge_many(std::string_view word, std::vector<Symbol>& symbols) const {
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  const auto candidate = [&](int32_t left) -> std::optional<Candidate> {
    const Symbol& a = symbols[static_cast<size_t>(left)];
    if (a.next < 0) return std::nullopt;
    const Symbol& b = symbols[static_cast<size_t>(a.next)];
    const Found found = merge_of(word, a, b);
    if (!found) return std::nullopt;
    return Candidate{found->first, left, found->second, a.length + b.length};
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    if (auto one = candidate(static_cast<int32_t>(i))) storage.push_back(*one);
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>{}, std::move(storage));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(top.left)];
    if (left.length == 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    // By score, the text decides whether a neighbour has grown since; by list, the pair does.
    if (!scores_.empty() && left.length + right.length != top.length) continue;
    const Found now = merge_of(word, left, right);
    if (!now || now->second != top.merged) continue;
    left.id = top.merged;
    left.length += right.length;
    right.length = 0;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.left;
    if (left.previous >= 0) {
      if (auto one = candidate(left.previous)) queue.push(*one);
    }
    if (auto one = candidate(top.left)) queue.push(*one);
  }
  std::erase_if(symbols, [](const Symbol& symbol) { return symbol.length == 0; });
}

void Bpe::encode(std::string_view word, std::vector<TokenId>& out) const {
  if (word.empty()) return;
  if (options_.ignore_merges) {
    if (const auto whole = vocabulary_->find(word)) {
      out.push_back(*whole);
      return;
    }
  }
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  start(word, symbols);
  if (symbols.size() <= kFewSymbols) {
    merge_few(word, symbols);
  } else {
    merge_many(word, symbols);
  }
  if (scores_.empty()) {
    for (const Symbol& symbol : symbols) out.push_back(symbol.id);
  } else {
    emit_by_score(word, symbols, out);
  }
}

// Characters that never became a token are spelled in bytes, or are unknown.
void Bpe::emit_by_score(std::string_view word, const std::vector<Symbol>& symbols,
                        std::vector<TokenId>& out) const {
  std::vector<Symbol> spelled;
  for (const Symbol& symbol : symbols) {
    if (symbol.id >= 0) {
      out.push_back(symbol.id);
      continue;
    }
    spelled.clear();
    std::optional<Symbol> unknown;
    add_unknown(word.substr(symbol.begin, symbol.length), spelled, unknown);
    for (const Symbol& byte : spelled) out.push_back(byte.id);
    if (unknown) out.push_back(unknown->id);
  }
}

}  // namespace polar::text
