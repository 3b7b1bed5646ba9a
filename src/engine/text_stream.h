#pragma once
// Text of one answer as its tokens come, ended by stop strings.

#include <string>
#include <string_view>
#include <vector>

#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace polar::engine {

/// Tokens in, settled text out. Text that may be the begin of a stop string is held back until it
/// is known not to be; a stop string and all behind it is never given out. Lives with the caller:
/// the engine knows ids only. Not for concurrent use.
class TextStream {
 public:
  TextStream(const text::Tokenizer& tokenizer, std::vector<std::string> stops,
             bool skip_special_tokens = true);

  /// The text that is settled by a token.
  std::string push(text::TokenId token);
  /// The answer is over without a stop string: what was held back.
  std::string finish();
  /// True once a stop string has come: the caller cancels the request and reports "stop".
  bool stopped() const { return stopped_; }

 private:
  std::string settle(std::string_view more);

  text::Detokenizer detokenizer_;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace polar::engine
