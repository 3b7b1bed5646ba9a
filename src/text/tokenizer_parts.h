#pragma once
// What a tokenizer is made of. Private to src/text: the loaders fill it, Tokenizer and Detokenizer
// read it.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"

namespace polar::text {

/// One item of a post-processing template: a token, or the text (kText).
inline constexpr TokenId kText = -1;

struct TokenizerParts {
  Vocabulary vocabulary;     // the model's own: added tokens that it lacks are only in `added`
  std::unique_ptr<Bpe> bpe;  // points into `vocabulary`
  std::unordered_map<TokenId, AddedToken> added;
  std::unordered_map<std::string, TokenId> added_ids;  // by content
  AddedTokenMatcher raw_matcher;                       // tokens with normalized = false
  AddedTokenMatcher normalized_matcher;                // tokens with normalized = true
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Decoder decoder;
  std::vector<TokenId> frame = {kText};  // what add_special_tokens puts around the text
  // SentencePiece inside GGUF puts a space in front of the text and behind every special token.
  bool space_prefix = false;

  TokenizerParts() = default;
  TokenizerParts(const TokenizerParts&) = delete;
  TokenizerParts& operator=(const TokenizerParts&) = delete;

  /// The piece of an added token or of the vocabulary, or null.
  const std::string* piece(TokenId id) const {
    if (const auto at = added.find(id); at != added.end()) return &at->second.content;
    return vocabulary.piece(id);
  }
  std::optional<TokenId> find(std::string_view piece) const {
    if (const auto at = added_ids.find(std::string(piece)); at != added_ids.end()) {
      return at->second;
    }
    return vocabulary.find(piece);
  }
  /// One more than the largest id.
  int size() const {
    int size = vocabulary.size();
    for (const auto& [id, token] : added) size = std::max(size, id + 1);
    return size;
  }
  /// Registers a token to be found in texts; the first of two with the same content counts. The
  /// normalizer must be in place.
  void add(const AddedToken& token);
  bool is_special(TokenId id) const {
    const auto at = added.find(id);
    return at != added.end() && at->second.special;
  }
};

}  // namespace polar::text
