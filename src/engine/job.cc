#include "engine/job.h"

#include <algorithm>

namespace polar::engine {

namespace {

/// Far below any logit, and finite, so that no arithmetic on it makes a NaN.
constexpr float kForbidden = -1e9f;

}  // namespace

LogitEdits::LogitEdits(const GenerationRequest& request, std::vector<int32_t> ends)
    : ends_(std::move(ends)), min_tokens_(request.min_tokens) {
  const SamplingParams& sampling = request.sampling;
  repetition_ = sampling.repetition_penalty != 1.0f;
  penalties_ =
      repetition_ || sampling.presence_penalty != 0.0f || sampling.frequency_penalty != 0.0f;
  for (const auto& [token, bias] : sampling.logit_bias) {
    edits_[token].token = token;
    edits_[token].add += bias;
  }
  if (!repetition_) return;
  for (const int32_t token : request.prompt) {
    edits_[token].token = token;
    edits_[token].repeated = 1;
  }
}

void LogitEdits::accept(int32_t token) {
  if (!penalties_) return;
  backend::LogitEdit& edit = edits_[token];
  edit.token = token;
  edit.repeated = repetition_ ? 1 : 0;
  ++edit.output_count;
}

int LogitEdits::append(int output_index, std::vector<backend::LogitEdit>& edits) const {
  const size_t begin = edits.size();
  const bool forbid = output_index < min_tokens_;
  const auto is_end = [&](int32_t token) {
    return std::find(ends_.begin(), ends_.end(), token) != ends_.end();
  };
  for (const auto& [token, edit] : edits_) {
    edits.push_back(edit);
    if (forbid && is_end(token)) edits.back().add = kForbidden;
  }
  for (const int32_t token : ends_) {
    if (forbid && !edits_.contains(token)) edits.push_back({token, kForbidden, 0, 0});
  }
  return static_cast<int>(edits.size() - begin);
}

backend::SampleParams Job::sample_params(const StepChunk& chunk) const {
  const SamplingParams& sampling = request.sampling;
  backend::SampleParams params;
  params.temperature = sampling.temperature;
  params.top_k = sampling.top_k;
  params.top_p = sampling.top_p;
  params.min_p = sampling.min_p;
  params.repetition_penalty = sampling.repetition_penalty;
  params.presence_penalty = sampling.presence_penalty;
  params.frequency_penalty = sampling.frequency_penalty;
  params.seed = sampling.seed;
  params.step = chunk.output_index;
  params.slot = chunk.slot;
  params.logprobs = request.logprobs;
  return params;
}

}  // namespace polar::engine
