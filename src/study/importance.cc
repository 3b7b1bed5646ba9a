#include "study/importance.h"

#include <algorithm>
#include <cmath>

#include "core/thread_pool.h"
#include "study/sequence_cache.h"

namespace polar::study {

namespace {

/// Turns rows of logits into log-probabilities, in place.
void log_softmax(ThreadPool& pool, std::vector<float>& logits, int vocabulary) {
  const auto rows = static_cast<int64_t>(logits.size() / vocabulary);
  pool.parallel_for(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = logits.data() + r * vocabulary;
      const float top = *std::max_element(row, row + vocabulary);
      double sum = 0;
      for (int i = 0; i < vocabulary; ++i) sum += std::exp(row[i] - top);
      const float shift = top + static_cast<float>(std::log(sum));
      for (int i = 0; i < vocabulary; ++i) row[i] -= shift;
    }
  });
}

double mean_kl(ThreadPool& pool, const std::vector<float>& dense, const std::vector<float>& other,
               int vocabulary) {
  const auto rows = static_cast<int64_t>(dense.size() / vocabulary);
  std::vector<double> kl(rows);
  pool.parallel_for(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* p = dense.data() + r * vocabulary;
      const float* q = other.data() + r * vocabulary;
      double sum = 0;
      for (int i = 0; i < vocabulary; ++i) sum += std::exp(p[i]) * (p[i] - q[i]);
      kl[r] = sum;
    }
  });
  double sum = 0;
  for (const double row : kl) sum += row;
  return sum / static_cast<double>(rows);
}

/// Runs the rows behind a passage's prompt layer by layer: once dense, storing the state before
/// each layer, then once per unit from its layer on.
class PassageRunner {
 public:
  PassageRunner(backend::Device& device, const model::Weights& weights,
                const ImportanceOptions& options)
      : device_(device), config_(weights.config), options_(options) {}

  Status prepare(const model::Weights& weights, const Passage& passage) {
    const int length = static_cast<int>(passage.tokens.size());
    const int rows = std::max(passage.prompt, length - passage.prompt);
    const int scored = static_cast<int>(passage.scored_rows.size());
    POLAR_ASSIGN(decoder_, model::Decoder::create(device_, weights, {rows, scored}));
    POLAR_RETURN_IF_ERROR(prepare_planners());
    POLAR_ASSIGN(auto cache, SequenceCache::create(device_, config_, options_.kv_dtype, 1, length,
                                                   0, page_extras(without_.front().get(), rows)));
    cache_ = std::make_unique<SequenceCache>(std::move(cache));
    const std::span<const int32_t> tokens(passage.tokens);
    if (passage.prompt > 0) {
      const Chunk prompt{0, 0, tokens.first(passage.prompt), false};
      decoder_->forward(cache_->pack({&prompt, 1}, {}), cache_->kv(), dense_, nullptr);
    }
    std::vector<int32_t> logit_rows;
    for (const int32_t row : passage.scored_rows) logit_rows.push_back(row - passage.prompt);
    const Chunk behind{0, passage.prompt, tokens.subspan(passage.prompt), true};
    batch_ = &cache_->pack({&behind, 1}, logit_rows);
    dense_batch_ = *batch_;
    dense_batch_.prefill_rows = dense_batch_.rows;
    return {};
  }

  void run_dense() {
    decoder_->embed(dense_batch_, nullptr);
    states_.clear();
    for (int layer = 0; layer < config_.layers; ++layer) {
      states_.push_back(read_hidden());
      decoder_->attention_half(layer, dense_batch_, cache_->kv(), dense_);
      decoder_->mlp_half(layer, dense_batch_);
    }
    dense_log_probabilities_ = log_probabilities();
  }

  double without(int layer, int unit) {
    decoder_->embed(*batch_, nullptr);  // the rotary angles; its hidden states are replaced
    const Tensor hidden = decoder_->hidden(batch_->rows);
    device_.upload(hidden.data, states_[layer].data(), states_[layer].size());
    for (int l = layer; l < config_.layers; ++l) {
      const backend::Batch& batch = l == layer ? *batch_ : dense_batch_;
      model::Planner& planner = l == layer ? *without_[unit] : dense_;
      decoder_->attention_half(l, batch, cache_->kv(), planner);
      decoder_->mlp_half(l, dense_batch_);
    }
    return mean_kl(pool_, dense_log_probabilities_, log_probabilities(), config_.vocabulary);
  }

 private:
  /// One planner per KV head, in which that head falls back in every layer: each run asks it about
  /// one layer.
  Status prepare_planners() {
    sparsity::Profile profile = sparsity::dense_profile(config_.layers, config_.kv_heads);
    profile.page_score = options_.fallback.page_score;
    const sparsity::OperatingPoint dense = profile.points[0];
    for (int head = 0; head < config_.kv_heads; ++head) {
      sparsity::OperatingPoint& point = profile.points[0] = dense;
      point.limits = point_limits(options_.fallback);
      for (int layer = 0; layer < config_.layers; ++layer)
        point.budgets[layer * config_.kv_heads + head] = fallback_budget(options_.fallback);
      POLAR_ASSIGN(auto planner, point_planner(device_, profile, 0));
      without_.push_back(std::move(planner));
    }
    return {};
  }

  std::vector<std::byte> read_hidden() {
    const Tensor hidden = decoder_->hidden(batch_->rows);
    std::vector<std::byte> bytes(dtype_bytes(hidden.dtype, hidden.values()));
    device_.download(bytes.data(), hidden.data, bytes.size());
    return bytes;
  }

  std::vector<float> log_probabilities() {
    const float* logits = decoder_->head(*batch_);
    std::vector<float> host(static_cast<size_t>(batch_->logit_rows) * config_.vocabulary);
    device_.download(host.data(), logits, host.size() * sizeof(float));
    log_softmax(pool_, host, config_.vocabulary);
    return host;
  }

  backend::Device& device_;
  const model::ModelConfig& config_;
  const ImportanceOptions& options_;
  model::DensePlanner dense_;
  std::vector<std::unique_ptr<model::Planner>> without_;  // [kv_head]
  std::unique_ptr<model::Decoder> decoder_;
  std::unique_ptr<SequenceCache> cache_;
  const backend::Batch* batch_ = nullptr;
  backend::Batch dense_batch_;  // the same rows as a prompt's, which share what they read
  ThreadPool pool_{0};
  std::vector<std::vector<std::byte>>
      states_;  // [layer] residual stream before it, as the device holds it
  std::vector<float> dense_log_probabilities_;  // [scored row][vocabulary]
};

}  // namespace

Passage make_passage(std::span<const int32_t> window, int prompt, int stride) {
  Passage passage{{window.begin(), window.end()}, prompt, {}};
  for (int row = prompt; row < static_cast<int>(window.size()); row += stride) {
    passage.scored_rows.push_back(row);
  }
  return passage;
}

Result<std::vector<double>> leave_one_out(backend::Device& device, const model::Weights& weights,
                                          std::span<const Passage> passages,
                                          const ImportanceOptions& options) {
  const int units = weights.config.layers * weights.config.kv_heads;
  std::vector<double> kl(units, 0.0);
  double rows = 0;
  int done = 0;
  for (const Passage& passage : passages) {
    PassageRunner runner(device, weights, options);
    POLAR_RETURN_IF_ERROR(runner.prepare(weights, passage));
    runner.run_dense();
    for (int unit = 0; unit < units; ++unit) {
      kl[unit] += runner.without(unit / weights.config.kv_heads, unit % weights.config.kv_heads) *
                  static_cast<double>(passage.scored_rows.size());
      if (options.progress) options.progress(++done, units * static_cast<int>(passages.size()));
    }
    rows += static_cast<double>(passage.scored_rows.size());
  }
  for (double& value : kl) value /= rows;
  return kl;
}

}  // namespace polar::study
