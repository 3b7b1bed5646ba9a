#pragma once
// What a caller asks of the engine, and what comes back. Plain data in token ids: text stays with
// the caller (text_stream.h).

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace polar::engine {

/// How a request's tokens are chosen. Filters apply in the order penalties and bias, temperature,
/// top-k, top-p, min-p.
struct SamplingParams {
  float temperature = 0.0f;  // 0: greedy
  int top_k = 0;             // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // over prompt and output, as transformers defines it
  float presence_penalty = 0.0f;    // over output, as OpenAI defines it
  float frequency_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;  // token, added to its logit
  uint64_t seed = 0;  // same seed, same tokens, whatever else is in the batch
};

/// One generation. Several answers to one prompt are several requests: they share its pages.
struct GenerationRequest {
  std::vector<int32_t> prompt;  // at least one token
  SamplingParams sampling;
  int max_tokens = 16;  // 0: only scores the prompt
  int min_tokens = 0;   // no end of text before
  bool ignore_eos = false;
  std::vector<int32_t>
      stop_token_ids;        // end the output beside the model's own; reported, as eos is
  int logprobs = -1;         // alternatives per output token; -1: none, 0: the token's own alone
  int prompt_logprobs = -1;  // the same for the prompt's tokens
  int point = 0;             // operating point of the engine's profile; 0: dense
  bool trace = false;        // report what each unit reads (Event::read): a little slower
  /// Called by the engine's thread whenever the generation has news; must not block or call back.
  std::function<void()> on_news;
};

/// A token and, if wanted, its natural log-probability and the likeliest tokens in its place.
struct TokenInfo {
  int32_t token = 0;
  float logprob = 0.0f;
  std::vector<std::pair<int32_t, float>> top;
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };
/// "stop", "length", "cancelled", "error".
const char* finish_reason_name(FinishReason reason);

struct Usage {
  int prompt_tokens = 0;
  int completion_tokens = 0;
  int cached_tokens = 0;  // of the prompt, found in the prefix cache
  /// Bytes of the KV cache that the decode steps read, and what dense ones would have read.
  double kv_bytes_read = 0;
  double kv_bytes_dense = 0;
  /// Seconds, by the engine's clock: until the first step that holds the request, from then to its
  /// first token, and from there to its end.
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
  /// Steps that the engine made from taking the request to its first token.
  int64_t first_token_steps = 0;
};

/// What the units (layer, KV head) of a request's decode rows read, in pages.
struct ReadTrace {
  int rows = 0;                // decode rows that are summed up
  std::vector<int64_t> pages;  // [layer * kv_heads + kv_head]; empty before the first row
  std::vector<int64_t> dense;  // [layer] what each KV head of it would have read in full

  void add(const ReadTrace& other);
};

/// News of a generation: what came since the last event.
struct Event {
  std::vector<TokenInfo> tokens;       // of the output, in order
  std::vector<TokenInfo> prompt;       // with prompt_logprobs: of prompt tokens 1, 2, ... in order
  std::optional<FinishReason> finish;  // the last event
  std::string error;                   // with FinishReason::kError
  Usage usage;                         // so far
  ReadTrace read;                      // with GenerationRequest::trace
};

}  // namespace polar::engine
