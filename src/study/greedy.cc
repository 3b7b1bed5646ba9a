#include "study/greedy.h"

#include <algorithm>
#include <numeric>

#include "study/sequence_cache.h"

namespace polar::study {

namespace {

/// Texts [0, count) that grow in lock-step: their caches, and what their last rows predict.
class Continuations {
 public:
  Continuations(backend::Device& device, const model::ModelConfig& config, model::Decoder& decoder,
                SequenceCache& cache)
      : device_(device), config_(config), decoder_(decoder), cache_(cache) {}

  /// The token that follows a prompt, which is prefilled dense.
  int32_t prefill(int text, std::span<const int32_t> prompt, int rows_per_step) {
    const float* logits = nullptr;
    for (size_t begin = 0; begin < prompt.size(); begin += rows_per_step) {
      const size_t rows = std::min<size_t>(rows_per_step, prompt.size() - begin);
      const Chunk chunk{text, static_cast<int>(begin), prompt.subspan(begin, rows), false};
      const auto last = static_cast<int32_t>(rows - 1);
      logits = decoder_.forward(cache_.pack({&chunk, 1}, {&last, 1}), cache_.kv(), dense_, nullptr);
    }
    return likeliest(logits, 1)[0];
  }

  /// One decode step: `tokens` [texts] stand at `position`; returns what follows each.
  std::vector<int32_t> step(const std::vector<int32_t>& tokens, int position,
                            model::Planner& planner) {
    std::vector<Chunk> chunks;
    std::vector<int32_t> rows(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    for (const int32_t row : rows)
      chunks.push_back({row, position, std::span(tokens).subspan(row, 1), true});
    const float* logits =
        decoder_.forward(cache_.pack(chunks, rows), cache_.kv(), planner, nullptr);
    return likeliest(logits, static_cast<int>(tokens.size()));
  }

 private:
  std::vector<int32_t> likeliest(const float* logits, int rows) {
    const auto width = static_cast<size_t>(config_.vocabulary);
    std::vector<float> host(rows * width);
    device_.download(host.data(), logits, host.size() * sizeof(float));
    std::vector<int32_t> tokens;
    for (auto row = host.begin(); row != host.end(); row += static_cast<ptrdiff_t>(width))
      tokens.push_back(
          static_cast<int32_t>(std::max_element(row, row + static_cast<ptrdiff_t>(width)) - row));
    return tokens;
  }

  backend::Device& device_;
  const model::ModelConfig& config_;
  model::Decoder& decoder_;
  SequenceCache& cache_;
  model::DensePlanner dense_;
};

/// The dense continuations [token][text], then where the sparse ones leave them.
void continue_texts(Continuations& texts, const Windows& windows, int first, int count,
                    model::Planner& planner, const EvaluateOptions& options, GreedyResult& result) {
  std::vector<std::vector<int32_t>> dense(1);
  for (int i = 0; i < count; ++i) {
    const auto prompt = windows.at(first + i).first(options.prompt);
    dense[0].push_back(texts.prefill(i, prompt, options.rows_per_step));
  }
  model::DensePlanner everything;
  for (int t = 1; t < result.tokens; ++t)
    dense.push_back(texts.step(dense.back(), options.prompt + t - 1, everything));
  std::vector<int> same(count, result.tokens);
  for (int t = 1; t < result.tokens; ++t) {
    const std::vector<int32_t> sparse = texts.step(dense[t - 1], options.prompt + t - 1, planner);
    for (int i = 0; i < count; ++i) {
      if (sparse[i] != dense[t][i]) same[i] = std::min(same[i], t);
    }
  }
  result.same.insert(result.same.end(), same.begin(), same.end());
}

}  // namespace

double GreedyResult::mean() const {
  return std::accumulate(same.begin(), same.end(), 0.0) / static_cast<double>(same.size());
}

int GreedyResult::whole() const {
  return static_cast<int>(std::count(same.begin(), same.end(), tokens));
}

Result<GreedyResult> continue_greedily(backend::Device& device, const model::Weights& weights,
                                       const Windows& windows, model::Planner& planner, int tokens,
                                       const EvaluateOptions& options) {
  POLAR_CHECK(options.prompt > 0 && tokens > 0);
  const int texts = std::min(options.batch, windows.count);
  POLAR_ASSIGN(
      const auto decoder,
      model::Decoder::create(device, weights, {std::max(options.rows_per_step, texts), texts}));
  POLAR_ASSIGN(SequenceCache cache,
               SequenceCache::create(device, weights.config, options.kv_dtype, texts,
                                     options.prompt + tokens, 0, page_extras(&planner, texts)));
  Continuations continuations(device, weights.config, *decoder, cache);
  GreedyResult result;
  result.tokens = tokens;
  for (int window = 0; window < windows.count; window += texts) {
    const int count = std::min(texts, windows.count - window);
    continue_texts(continuations, windows, window, count, planner, options, result);
    if (options.progress) options.progress(window + count, windows.count);
  }
  return result;
}

}  // namespace polar::study
