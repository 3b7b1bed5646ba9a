#pragma once
// Byte pair encoding of one word: from characters to tokens, by merging neighbours.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/error.h"

namespace polar::text {

using TokenId = int32_t;

/// A file's claim beyond this many tokens or merges is absurd (the largest published vocabulary has
/// 260,000).
inline constexpr size_t kMaxVocabulary = size_t{1} << 22;

/// Pieces of text and their ids, both ways. Pieces may be fewer than ids (holes are empty).
class Vocabulary {
 public:
  /// Binds `piece` to `id`; a later binding of the same piece replaces the earlier one, as in a
  /// dictionary.
  void add(std::string piece, TokenId id);
  std::optional<TokenId> find(std::string_view piece) const;
  /// The piece of `id`, or null.
  const std::string* piece(TokenId id) const;
  /// One more than the largest id.
  int size() const { return static_cast<int>(pieces_.size()); }
  /// Number of distinct pieces (what the package calls the vocabulary's size).
  size_t count() const { return ids_.size(); }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  std::unordered_map<std::string, TokenId, Hash, std::equal_to<>> ids_;
  std::vector<std::optional<std::string>> pieces_;
};

/// How a pair of neighbours merges: `rank` orders the merges, the lowest first.
struct Merge {
  TokenId left, right, merged;
  uint32_t rank;
};

/// The model of a tokenizer.json of type "BPE", of GGUF's "gpt2" kind (both merge by a list of
/// pairs) and of GGUF's "llama" kind (SentencePiece: any two neighbours whose text is a token
/// merge, the highest score first).
class Bpe {
 public:
  struct Options {
    bool byte_fallback = false;  // unknown characters become their bytes' tokens <0x00>..<0xFF>
    bool fuse_unknown = false;   // neighbouring unknown characters become one unknown token
    bool ignore_merges = false;  // a word that is a token is that token
    std::optional<TokenId> unknown;
  };

  /// Merging by a list. Of two entries for the same pair the later counts, as in the package.
  Bpe(const Vocabulary* vocabulary, Options options, const std::vector<Merge>& merges);
  /// Merging by score (`scores[id]`, higher first), for SentencePiece vocabularies.
  Bpe(const Vocabulary* vocabulary, Options options, std::vector<float> scores);

  /// Appends the tokens of `word` (valid UTF-8, one piece of the pre-tokenizer). O(n log n).
  void encode(std::string_view word, std::vector<TokenId>& out) const;

  /// The token of byte `value` under byte fallback, if the vocabulary has it.
  std::optional<TokenId> byte_token(unsigned char value) const;

 private:
  struct Symbol;
  struct Candidate;
  using Found = std::optional<std::pair<uint64_t, TokenId>>;  // priority (lower first), merged id

  void start(std::string_view word, std::vector<Symbol>& symbols) const;
  void add_unknown(std::string_view character, std::vector<Symbol>& symbols,
                   std::optional<Symbol>& pending) const;
  Found merge_of(std::string_view word, const Symbol& left, const Symbol& right) const;
  void merge_few(std::string_view word, std::vector<Symbol>& symbols) const;
  void emit_by_score(std::string_view word, const std::vector<Symbol>& symbols,
                     std::vector<TokenId>& out) const;
  void merge_many(std::string_view word, std::vector<Symbol>& symbols) const;

  const Vocabulary* vocabulary_;
  Options options_;
  // Open addressing, keyed by (left, right): the hottest look-up of the tokenizer.
  struct Slot {
    uint64_t key;
    uint32_t rank;
    TokenId merged;
  };
  std::vector<Slot> table_;
  std::vector<float> scores_;  // not empty: merging by score
  size_t longest_piece_ = 0;
  std::vector<TokenId> low_characters_;  // token of each code point below 0x800, or -1
  TokenId byte_tokens_[256];
};

}  // namespace polar::text
