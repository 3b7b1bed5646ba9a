#pragma once
// Text to token ids and back, token for token as the `tokenizers` package does it, from a Hugging
// Face tokenizer.json (model type "BPE") or from the vocabulary inside a GGUF file.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace polar::text {

using TokenId = int32_t;

struct TokenizerParts;

/// What a GGUF file says about its tokenizer, as plain data (keys `tokenizer.ggml.*`). Views need
/// to live only during Tokenizer::from_gguf.
struct GgufVocab {
  std::string_view model;                // "gpt2" (byte-level BPE) or "llama" (SentencePiece)
  std::string_view pre;                  // pre-tokenizer of the gpt2 kind; "" counts as "default"
  std::vector<std::string_view> tokens;  // by id
  std::vector<float> scores;             // by id; the llama kind needs them
  std::vector<int32_t> types;            // by id: 1 normal, 2 unknown, 3 control, 4 user-defined,
                                         // 5 unused, 6 byte; may be empty (all normal)
  std::vector<std::string_view> merges;  // "left right"; the gpt2 kind needs them
  std::optional<int64_t> bos, eos, unknown;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

/// Immutable, cheap to copy, and safe for concurrent use.
class Tokenizer {
 public:
  /// Reads a tokenizer.json. Unigram, WordPiece and WordLevel models, and components that published
  /// models of the supported families do not use, are errors that name them.
  static Result<Tokenizer> from_json_file(const std::string& path);
  /// The same from the file's content; `where` stands for its name in errors.
  static Result<Tokenizer> from_json(std::string_view text, const std::string& where);
  /// `where` stands for the GGUF file's name in errors.
  static Result<Tokenizer> from_gguf(const GgufVocab& vocab, const std::string& where);

  /// The ids of `text`. Added tokens in the text (special ones too) become their ids;
  /// `add_special_tokens` puts in front and behind what the file's post-processor says. Text that
  /// is not UTF-8 is read with each ill-formed piece replaced by U+FFFD.
  std::vector<TokenId> encode(std::string_view text, bool add_special_tokens) const;

  /// The text of `ids`; unknown ids give nothing. Always valid UTF-8: bytes that form no character
  /// become U+FFFD.
  std::string decode(std::span<const TokenId> ids, bool skip_special_tokens) const;

  /// The bytes that one token adds to a text (a part of a character, perhaps); empty for unknown
  /// ids.
  std::string token_bytes(TokenId id) const;
  /// The token as the vocabulary spells it; empty for unknown ids.
  std::string piece(TokenId id) const;
  std::optional<TokenId> find(std::string_view piece) const;
  /// One more than the largest id.
  int vocab_size() const;
  bool is_special(TokenId id) const;
  /// The token that encode(..., true) puts in front of every text, if it puts one.
  std::optional<TokenId> leading_token() const;

  /// For the detokenizer: what the tokenizer is made of.
  const TokenizerParts& parts() const { return *parts_; }

 private:
  explicit Tokenizer(std::shared_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}

  std::shared_ptr<const TokenizerParts> parts_;
};

}  // namespace polar::text
