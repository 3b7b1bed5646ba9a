#pragma once
// The answer to one completion request: its choices as their tokens come, as one JSON object or as
// a stream of them.

#include <atomic>
#include <chrono>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "engine/generation.h"
#include "engine/text_stream.h"
#include "serve/api_request.h"
#include "serve/http.h"
#include "serve/metrics.h"
#include "text/tokenizer.h"

namespace polar::serve {

/// One answer of the request: to prompt `prompt`, the `index`th of all.
struct Choice {
  std::shared_ptr<engine::Generation> generation;
  engine::TextStream stream;
  std::string echo;                               // given out before the text
  std::vector<int32_t> echo_tokens;               // with log-probabilities: the prompt's
  std::vector<engine::TokenInfo> prompt, tokens;  // not yet given out
  std::string text;                               // not yet given out
  int offset = 0;                                 // characters given out with log-probabilities
  engine::Usage usage;
  engine::ReadTrace read;  // not yet given out
  int completion_tokens = 0;
  const char* finish = nullptr;
  std::string error;
  bool begun = false;
};

/// Used, and destroyed, on the server's thread only, but for `scheduled`.
class CompletionAnswer {
 public:
  CompletionAnswer(CompletionRequest request, std::string id, std::string model,
                   const text::Tokenizer& tokenizer, ServerMetrics& metrics,
                   std::shared_ptr<HttpResponder> responder);

  /// The prompt of the next choice, for echo and log-probabilities.
  void add_choice(std::shared_ptr<engine::Generation> generation, const Prompt& prompt,
                  const std::vector<int32_t>& tokens);
  /// Everything is submitted: a stream begins.
  void begin();
  /// Takes what came; true once the answer is over.
  bool pump();
  /// Ends all generations early.
  void cancel();
  bool over() const { return over_; }
  int open_choices() const { return open_; }

  /// Whether pump() is already on its way: the engine's thread sets it, the server's clears it.
  const std::shared_ptr<std::atomic<bool>> scheduled = std::make_shared<std::atomic<bool>>(false);

 private:
  using Clock = std::chrono::steady_clock;

  void take(Choice& choice, engine::Event event);
  void count(Choice& choice, size_t tokens);
  nlohmann::ordered_json envelope(bool chunk) const;
  nlohmann::ordered_json logprobs(Choice& choice);
  nlohmann::ordered_json completion_logprobs(Choice& choice);
  nlohmann::ordered_json chat_logprobs(Choice& choice) const;
  nlohmann::ordered_json usage() const;
  nlohmann::ordered_json trace(Choice& choice) const;
  nlohmann::ordered_json choice_json(size_t index, bool chunk);
  void stream_choice(size_t index);
  void event(const nlohmann::ordered_json& json);
  void finish();
  std::string token_text(int32_t token) const;

  CompletionRequest request_;
  std::string id_, model_;
  const text::Tokenizer& tokenizer_;
  ServerMetrics& metrics_;
  std::shared_ptr<HttpResponder> responder_;
  std::vector<Choice> choices_;
  int open_ = 0;
  bool over_ = false;
  int64_t created_;
  Clock::time_point arrived_ = Clock::now();
  std::vector<Clock::time_point> last_;  // of each choice: its newest token
};

}  // namespace polar::serve
