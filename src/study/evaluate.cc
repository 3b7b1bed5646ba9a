#include "study/evaluate.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "backend/ranges.h"
#include "core/thread_pool.h"
#include "study/sequence_cache.h"

namespace polar::study {

namespace {

/// What one row's two distributions say of each other and of the token that came.
struct RowScore {
  double dense_loss = 0, sparse_loss = 0, kl = 0;
  double agree = 1;
};

double log_sum_exp(const float* logits, int count, int* best) {
  *best = static_cast<int>(std::max_element(logits, logits + count) - logits);
  const float top = logits[*best];
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::exp(logits[i] - top);
  return top + std::log(sum);
}

/// Either side may be null: then only the other's loss is known.
RowScore compare(const float* dense, const float* sparse, int vocabulary, int target) {
  RowScore score;
  int dense_best = 0, sparse_best = 0;
  double dense_log_sum = 0, sparse_log_sum = 0;
  if (dense != nullptr) {
    dense_log_sum = log_sum_exp(dense, vocabulary, &dense_best);
    score.dense_loss = dense_log_sum - dense[target];
  }
  if (sparse != nullptr) {
    sparse_log_sum = log_sum_exp(sparse, vocabulary, &sparse_best);
    score.sparse_loss = sparse_log_sum - sparse[target];
  }
  if (dense == nullptr || sparse == nullptr) return score;
  score.agree = dense_best == sparse_best ? 1 : 0;
  for (int i = 0; i < vocabulary; ++i) {
    const double dense_log = dense[i] - dense_log_sum;
    score.kl +=
        std::exp(static_cast<float>(dense_log)) * (dense_log - (sparse[i] - sparse_log_sum));
  }
  return score;
}

/// Scores added up over rows.
struct Sums {
  int64_t tokens = 0;
  double dense_loss = 0, sparse_loss = 0, kl = 0, agreeing = 0;

  void add(const Sums& other) {
    tokens += other.tokens;
    dense_loss += other.dense_loss;
    sparse_loss += other.sparse_loss;
    kl += other.kl;
    agreeing += other.agreeing;
  }
  void add(const RowScore& row) { add({1, row.dense_loss, row.sparse_loss, row.kl, row.agree}); }
  double mean(double sum) const { return sum / static_cast<double>(tokens); }
};

constexpr int kPositionBuckets = 8;

/// One evaluation: two caches, one decoder, windows scored a few rows at a time.
class Evaluator {
 public:
  Evaluator(backend::Device& device, const model::Weights& weights, const Windows& windows,
            model::Planner* planner, const EvaluateOptions& options)
      : device_(device),
        config_(weights.config),
        windows_(windows),
        planner_(planner),
        options_(options) {}

  Status prepare(const model::Weights& weights) {
    const int rows = std::max(options_.rows_per_step, options_.batch);
    POLAR_ASSIGN(decoder_, model::Decoder::create(device_, weights, {rows, rows}));
    if (!dense_is_known()) POLAR_RETURN_IF_ERROR(make_cache(dense_cache_, nullptr));
    if (chooses_neurons()) planner_->neurons()->set_rows_alone(options_.batch == 1);
    if (planner_ != nullptr) POLAR_RETURN_IF_ERROR(make_cache(sparse_cache_, planner_));
    return {};
  }

  Evaluation run() {
    for (int window = 0; window < windows_.count; window += options_.batch) {
      const int count = std::min(options_.batch, windows_.count - window);
      score_windows(window, count);
      if (options_.progress) options_.progress(window + count, windows_.count);
    }
    Sums all;
    for (const Sums& bucket : buckets_) all.add(bucket);
    result_.tokens = all.tokens;
    result_.dense_perplexity =
        dense_is_known() ? options_.known_dense_perplexity : std::exp(all.mean(all.dense_loss));
    result_.sparse_perplexity = std::exp(all.mean(all.sparse_loss));
    result_.kl = all.mean(all.kl);
    result_.agreement = all.mean(all.agreeing);
    if (!dense_is_known()) list_positions();
    if (chooses_neurons()) result_.neuron_share = planner_->neurons()->share();
    return result_;
  }

 private:
  bool dense_is_known() const { return options_.known_dense_perplexity > 0; }
  bool chooses_neurons() const { return planner_ != nullptr && planner_->neurons() != nullptr; }

  Status make_cache(std::unique_ptr<SequenceCache>& cache, const model::Planner* planner) {
    const int sequences = std::min(options_.batch, windows_.count);
    const int rows = std::max(options_.rows_per_step, options_.batch);
    POLAR_ASSIGN(auto made, SequenceCache::create(device_, config_, options_.kv_dtype, sequences,
                                                  windows_.context, 0, page_extras(planner, rows)));
    cache = std::make_unique<SequenceCache>(std::move(made));
    return {};
  }

  /// Scores `count` windows in lock-step. The last token of a window predicts nothing, so its row
  /// does not run.
  void score_windows(int first, int count) {
    const int rows = windows_.context - 1;
    const int most = std::max(1, options_.rows_per_step / count);
    for (int begin = 0; begin < rows;) {
      const bool in_prompt = begin < options_.prompt;
      const int step = chooses_neurons() && options_.batch > 1 && !in_prompt ? 1 : most;
      const int end = std::min({begin + step, rows, in_prompt ? options_.prompt : rows});
      score_rows(first, count, begin, end, in_prompt);
      begin = end;
    }
  }

  /// One step: rows [begin, end) of each window.
  void score_rows(int first, int count, int begin, int end, bool in_prompt) {
    // Row r predicts token r + 1; the prompt's last row predicts the first scored token.
    const int first_scored = std::max(begin, options_.prompt - 1);
    std::vector<Chunk> chunks;
    std::vector<int32_t> logit_rows, targets, positions;
    for (int w = 0; w < count; ++w) {
      const std::span<const int32_t> window = windows_.at(first + w);
      chunks.push_back({w, begin, window.subspan(begin, end - begin), false});
      for (int row = first_scored; row < end; ++row) {
        logit_rows.push_back(w * (end - begin) + row - begin);
        targets.push_back(window[row + 1]);
        positions.push_back(row + 1);
      }
    }
    std::vector<float> dense, sparse;
    if (!dense_is_known()) dense = step(*dense_cache_, chunks, logit_rows, dense_planner_);
    if (planner_ != nullptr) {
      for (Chunk& chunk : chunks) chunk.planned = !in_prompt;
      sparse = step(*sparse_cache_, chunks, logit_rows, *planner_);
      if (!in_prompt) count_bytes(count, begin, end);
    }
    add_scores(targets, positions, dense, sparse);
  }

  std::vector<float> step(SequenceCache& cache, std::span<const Chunk> chunks,
                          const std::vector<int32_t>& logit_rows, model::Planner& planner) {
    const backend::Batch& batch = cache.pack(chunks, logit_rows);
    const float* logits = decoder_->forward(batch, cache.kv(), planner, nullptr);
    std::vector<float> host(logit_rows.size() * static_cast<size_t>(config_.vocabulary));
    if (!host.empty()) device_.download(host.data(), logits, host.size() * sizeof(float));
    return host;
  }

  void count_bytes(int count, int begin, int end) {
    const backend::KvView& kv = sparse_cache_->kv();
    std::vector<backend::ReadCount> read(static_cast<size_t>(count) * (end - begin));
    device_.download(read.data(), decoder_->read_counts(), read.size() * sizeof(read[0]));
    for (const backend::ReadCount& row : read) result_.kv_bytes += kv.bytes(row);
    for (int layer = 0; layer < config_.layers; ++layer) {
      for (int row = begin; row < end; ++row) {
        const auto full = backend::full_ranges(row, config_.sliding_window[layer], 0);
        result_.dense_kv_bytes += count * kv.bytes({full.tail_count * config_.kv_heads, 0});
      }
    }
  }

  void add_scores(const std::vector<int32_t>& targets, const std::vector<int32_t>& positions,
                  const std::vector<float>& dense, const std::vector<float>& sparse) {
    const auto rows = static_cast<int64_t>(targets.size());
    std::vector<RowScore> scores(rows);
    pool_.parallel_for(rows, 1, [&](int64_t from, int64_t to, int) {
      for (int64_t i = from; i < to; ++i) {
        const size_t offset = static_cast<size_t>(i) * config_.vocabulary;
        scores[i] = compare(dense.empty() ? nullptr : dense.data() + offset,
                            sparse.empty() ? nullptr : sparse.data() + offset, config_.vocabulary,
                            targets[i]);
      }
    });
    for (int64_t i = 0; i < rows; ++i) buckets_[bucket_of(positions[i])].add(scores[i]);
  }

  int bucket_of(int position) const {
    return static_cast<int>(static_cast<int64_t>(position) * kPositionBuckets / windows_.context);
  }

  /// The first position of a bucket.
  int begin_of(int bucket) const {
    return (bucket * windows_.context + kPositionBuckets - 1) / kPositionBuckets;
  }

  void list_positions() {
    for (int i = 0; i < kPositionBuckets; ++i) {
      const Sums& sums = buckets_[i];
      if (sums.tokens == 0) continue;
      result_.positions.push_back(
          {begin_of(i), begin_of(i + 1), sums.tokens, std::exp(sums.mean(sums.dense_loss)),
           std::exp(sums.mean(sums.sparse_loss)), sums.mean(sums.kl), sums.mean(sums.agreeing)});
    }
  }

  backend::Device& device_;
  const model::ModelConfig& config_;
  const Windows& windows_;
  model::Planner* planner_;
  const EvaluateOptions& options_;
  model::DensePlanner dense_planner_;
  std::unique_ptr<model::Decoder> decoder_;
  std::unique_ptr<SequenceCache> dense_cache_, sparse_cache_;
  ThreadPool pool_{0};
  Evaluation result_;
  std::array<Sums, kPositionBuckets> buckets_;  // by the position of the token that is predicted
};

}  // namespace

std::vector<std::string> split_documents(const std::string& text) {
  // The newline in front of a separating line belongs to the separator.
  std::vector<std::string> documents;
  size_t begin = 0;
  while (begin <= text.size()) {
    const bool at_line = text.compare(begin, 2, "\x1e\n") == 0;
    const size_t found = at_line ? begin : text.find("\n\x1e\n", begin);
    const size_t end = found == std::string::npos ? text.size() : found;
    if (end > begin) documents.push_back(text.substr(begin, end - begin));
    begin = found == std::string::npos ? text.size() + 1 : found + (at_line ? 2 : 3);
  }
  return documents;
}

Result<Windows> make_windows(const std::string& where, const std::vector<std::string>& documents,
                             const std::function<std::vector<int32_t>(const std::string&)>& encode,
                             int context, int limit) {
  Windows windows;
  windows.context = context;
  const size_t wanted = static_cast<size_t>(context) * limit;
  for (const std::string& document : documents) {
    const std::vector<int32_t> tokens = encode(document);
    windows.tokens.insert(windows.tokens.end(), tokens.begin(), tokens.end());
    if (limit > 0 && windows.tokens.size() >= wanted) break;
  }
  windows.count = static_cast<int>(windows.tokens.size() / context);
  if (limit > 0) windows.count = std::min(windows.count, limit);
  if (windows.count == 0) {
    return bad_input(where, "text", std::to_string(windows.tokens.size()) + " tokens",
                     "at least one window of " + std::to_string(context));
  }
  return windows;
}

Result<Evaluation> evaluate(backend::Device& device, const model::Weights& weights,
                            const Windows& windows, model::Planner* planner,
                            const EvaluateOptions& options) {
  Evaluator evaluator(device, weights, windows, planner, options);
  POLAR_RETURN_IF_ERROR(evaluator.prepare(weights));
  return evaluator.run();
}

}  // namespace polar::study
