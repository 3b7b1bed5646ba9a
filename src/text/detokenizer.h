#pragma once
// Text from a stream of tokens, as it comes.

#include <memory>
#include <string>

#include "text/tokenizer.h"

namespace polar::text {

class DecoderStream;

/// Turns one sequence's tokens into text piece by piece. What push() and flush() return, put
/// together, is Tokenizer::decode() of the same tokens: text that a later token could still change
/// (half a character, a run of byte tokens that is not yet ended) waits. Not for concurrent use.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens);
  Detokenizer(Detokenizer&&) noexcept;
  Detokenizer& operator=(Detokenizer&&) noexcept;
  ~Detokenizer();

  /// The text that is settled by `id`: valid UTF-8 in whole characters, perhaps empty.
  std::string push(TokenId id);
  /// The text that still waited; the next push() begins a new sequence.
  std::string flush();

 private:
  Tokenizer tokenizer_;
  bool skip_special_tokens_;
  std::unique_ptr<DecoderStream> stream_;
};

}  // namespace polar::text
