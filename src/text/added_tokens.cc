#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

bool is_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// The code point that ends before `end`.
CodePoint code_point_before(std::string_view text, size_t end, size_t& begin) {
  begin = end - 1;
  while (begin > 0 && is_continuation(text[begin])) --begin;
  return decode_utf8(text, begin);
}

bool word_ends_at(std::string_view text, size_t end) {
  if (end == 0) return false;
  size_t begin = 0;
  return is_word(code_point_before(text, end, begin).value);
}

bool word_starts_at(std::string_view text, size_t begin) {
  return begin < text.size() && is_word(decode_utf8(text, begin).value);
}

size_t spaces_before(std::string_view text, size_t end) {
  while (end > 0) {
    size_t begin = 0;
    if (!is_whitespace(code_point_before(text, end, begin).value)) break;
    end = begin;
  }
  return end;
}

size_t spaces_behind(std::string_view text, size_t at) {
  while (at < text.size()) {
    const CodePoint point = decode_utf8(text, at);
    if (!is_whitespace(point.value)) break;
    at += point.length;
  }
  return at;
}

}  // namespace

void AddedTokenMatcher::add(std::string_view content, AddedToken token) {
  if (content.empty()) return;
  uint32_t node = 0;
  for (char c : content) {
    const uint64_t edge = (uint64_t{node} << 8) | static_cast<unsigned char>(c);
    const auto [at, fresh] = edges_.try_emplace(edge, static_cast<uint32_t>(nodes_.size()));
    if (fresh) nodes_.emplace_back();
    node = at->second;
  }
  if (nodes_[node].token >= 0) return;  // the first of two with the same content counts
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(std::move(token));
  first_bytes_[static_cast<unsigned char>(content.front())] = true;
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text, size_t at,
                                                size_t& end) const {
  const AddedToken* best = nullptr;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto edge = edges_.find((uint64_t{node} << 8) | static_cast<unsigned char>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (nodes_[node].token >= 0) {
      best = &tokens_[static_cast<size_t>(nodes_[node].token)];
      end = i + 1;
    }
  }
  return best;
}

// Follows AddedVocabulary::find_matches of the package, also where a token swallows the spaces that
// another one is made of.
void AddedTokenMatcher::split(std::string_view text, std::vector<Section>& sections) const {
  sections.clear();
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    const AddedToken* token = nullptr;
    if (first_bytes_[static_cast<unsigned char>(text[at])]) token = longest_at(text, at, end);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    at = end;
    if (token->single_word && (word_ends_at(text, begin) || word_starts_at(text, end))) continue;
    if (token->lstrip) begin = std::max(spaces_before(text, begin), done);
    if (token->rstrip) end = spaces_behind(text, end);
    if (done < begin) sections.push_back({{done, begin}, -1});
    sections.push_back({{begin, std::max(begin, end)}, token->id});
    done = end;
  }
  if (done < text.size()) sections.push_back({{done, text.size()}, -1});
}

}  // namespace polar::text
