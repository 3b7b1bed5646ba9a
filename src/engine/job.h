#pragma once
// A request inside the engine thread: what the scheduler knows of it, and how it samples.

#include <chrono>
#include <map>
#include <memory>
#include <vector>

#include "backend/ops.h"
#include "engine/generation.h"
#include "engine/request.h"
#include "engine/scheduler.h"

namespace polar::engine {

/// What a request changes in its logits before sampling: biases, penalties, and ends of text that
/// may not come yet.
class LogitEdits {
 public:
  LogitEdits() = default;
  /// `ends`: the tokens that may not come among the first `min_tokens`.
  LogitEdits(const GenerationRequest& request, std::vector<int32_t> ends);

  /// True if the edits of a step depend on the token of the step before it.
  bool need_tokens() const { return penalties_; }
  /// A token of the output, in order.
  void accept(int32_t token);
  /// Appends the edits for output token `output_index`; returns how many.
  int append(int output_index, std::vector<backend::LogitEdit>& edits) const;

 private:
  std::map<int32_t, backend::LogitEdit> edits_;  // by token, each at most once
  std::vector<int32_t> ends_;
  int min_tokens_ = 0;
  bool penalties_ = false;
  bool repetition_ = false;
};

struct Job : Sequence {
  GenerationRequest request;  // without its prompt, which is in `tokens`
  std::shared_ptr<Generation> generation;
  LogitEdits edits;
  std::vector<int32_t> ends;  // any of them finishes the request
  Usage usage;
  ReadTrace read;  // since the last event
  std::chrono::steady_clock::time_point submitted, started, first_token;
  int64_t taken_at_step = 0;  // steps made before the engine knew of it

  backend::SampleParams sample_params(const StepChunk& chunk) const;
};

}  // namespace polar::engine
