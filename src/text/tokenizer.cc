#include "text/tokenizer.h"

#include <algorithm>

#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

// Encodes normalised text without added tokens in it.
void encode_plain(const TokenizerParts& parts, std::string_view text, bool at_start,
                  std::vector<TokenId>& out) {
  Words words{std::string(text), {{0, text.size()}}, at_start};
  parts.pre_tokenizer.apply(words);
  for (const Span& word : words.spans) {
    parts.bpe->encode(std::string_view(words.text).substr(word.begin, word.end - word.begin), out);
  }
}

// Encodes text between two added tokens: normalises it, looks for the added tokens that are meant
// in normalised text, and encodes what lies between those.
void encode_section(const TokenizerParts& parts, std::string_view text, bool at_start,
                    std::vector<TokenId>& out) {
  const std::string normal = parts.normalizer.apply(text);
  std::vector<AddedTokenMatcher::Section> sections;
  parts.normalized_matcher.split(normal, sections);
  for (const auto& section : sections) {
    if (section.id >= 0) {
      out.push_back(section.id);
    } else {
      const Span span = section.span;
      encode_plain(parts, std::string_view(normal).substr(span.begin, span.end - span.begin),
                   at_start && span.begin == 0, out);
    }
  }
}

}  // namespace

void TokenizerParts::add(const AddedToken& token) {
  if (token.content.empty() || !added_ids.try_emplace(token.content, token.id).second) return;
  added.try_emplace(token.id, token);
  if (token.normalized) {
    normalized_matcher.add(normalizer.apply(token.content), token);
  } else {
    raw_matcher.add(token.content, token);
  }
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  const TokenizerParts& parts = *parts_;
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = to_valid_utf8(text);
    text = repaired;
  }
  std::vector<TokenId> ids;
  std::vector<AddedTokenMatcher::Section> sections;
  parts.raw_matcher.split(text, sections);
  bool after_special = true;
  for (const auto& section : sections) {
    if (section.id >= 0) {
      ids.push_back(section.id);
      after_special = true;
      continue;
    }
    const Span span = section.span;
    const auto part = text.substr(span.begin, span.end - span.begin);
    if (parts.space_prefix && after_special) {
      encode_section(parts, " " + std::string(part), span.begin == 0, ids);
    } else {
      encode_section(parts, part, span.begin == 0, ids);
    }
    after_special = false;
  }
  if (!add_special_tokens) return ids;
  std::vector<TokenId> framed;
  for (TokenId item : parts.frame) {
    if (item == kText) {
      framed.insert(framed.end(), ids.begin(), ids.end());
    } else {
      framed.push_back(item);
    }
  }
  return framed;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special_tokens) const {
  DecoderStream stream(parts_->decoder);
  std::string text;
  for (TokenId id : ids) {
    const std::string* piece = parts_->piece(id);
    if (piece == nullptr || (skip_special_tokens && parts_->is_special(id))) continue;
    text += stream.push(*piece);
  }
  text += stream.finish();
  return text;
}

std::string Tokenizer::token_bytes(TokenId id) const {
  const std::string* piece = parts_->piece(id);
  return piece == nullptr ? std::string() : parts_->decoder.bytes_of(*piece);
}

std::string Tokenizer::piece(TokenId id) const {
  const std::string* piece = parts_->piece(id);
  return piece == nullptr ? std::string() : *piece;
}

std::optional<TokenId> Tokenizer::find(std::string_view piece) const {
  return parts_->find(piece);
}

int Tokenizer::vocab_size() const {
  return parts_->size();
}

bool Tokenizer::is_special(TokenId id) const {
  return parts_->is_special(id);
}

std::optional<TokenId> Tokenizer::leading_token() const {
  const TokenId first = parts_->frame.empty() ? kText : parts_->frame.front();
  if (first == kText) return std::nullopt;
  return first;
}

}  // namespace polar::text
