// Choosing the next token, and scoring given ones. Rows are independent; a row's random number is
// named by (seed, step), so a sequence samples the same tokens whatever else is in its batch.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/cpu/cpu_ops.h"

namespace polar::backend::cpu {

namespace {

uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// Uniform in [0, 1).
double uniform(uint64_t seed, int32_t step) {
  return static_cast<double>(mix(mix(seed) + static_cast<uint64_t>(step)) >> 11) * 0x1p-53;
}

double log_of_sum(const float* logits, int count, float top) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::exp(logits[i] - top);
  return top + std::log(sum);
}

/// The lowest id of the largest logit.
int best_of(const float* logits, int count) {
  return static_cast<int>(std::max_element(logits, logits + count) - logits);
}

/// Descending by logit, ascending by id where equal.
struct ByLogit {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

void report_top(const float* logits, int vocabulary, double log_sum, int wanted, Sampled& out) {
  out.top_count = std::min({wanted, kMaxTopLogprobs, vocabulary});
  if (out.top_count <= 0) {
    out.top_count = 0;
    return;
  }
  std::vector<int32_t> ids(vocabulary);
  std::iota(ids.begin(), ids.end(), 0);
  std::partial_sort(ids.begin(), ids.begin() + out.top_count, ids.end(), ByLogit{logits});
  for (int i = 0; i < out.top_count; ++i) {
    out.top_token[i] = ids[i];
    out.top_logprob[i] = static_cast<float>(logits[ids[i]] - log_sum);
  }
}

void apply_edits(const SampleParams& params, const LogitEdit* edits, float* logits) {
  for (int i = params.edit_begin; i < params.edit_begin + params.edit_count; ++i) {
    float& logit = logits[edits[i].token];
    if (edits[i].repeated != 0) {
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    if (edits[i].output_count > 0) {
      logit -= params.presence_penalty +
               params.frequency_penalty * static_cast<float>(edits[i].output_count);
    }
    logit += edits[i].add;
  }
}

/// The most likely tokens that top-k, top-p and min-p leave, likeliest first; empty: all of them
/// are left.
std::vector<int32_t> filter(const SampleParams& params, const float* logits, int vocabulary,
                            double temperature) {
  const bool by_count = params.top_k > 0 && params.top_k < vocabulary;
  if (!by_count && params.top_p >= 1.0f && params.min_p <= 0.0f) return {};
  std::vector<int32_t> ids(vocabulary);
  std::iota(ids.begin(), ids.end(), 0);
  if (by_count) {
    std::partial_sort(ids.begin(), ids.begin() + params.top_k, ids.end(), ByLogit{logits});
    ids.resize(params.top_k);
  } else {
    std::sort(ids.begin(), ids.end(), ByLogit{logits});
  }
  std::vector<double> weight(ids.size());
  for (size_t i = 0; i < ids.size(); ++i)
    weight[i] = std::exp((logits[ids[i]] - logits[ids[0]]) / temperature);
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  size_t left = ids.size();
  if (params.top_p < 1.0f) {
    double sum = 0;
    for (left = 0; left < ids.size() && (left == 0 || sum < params.top_p * total); ++left)
      sum += weight[left];
  }
  // The likeliest token's weight is 1, so min-p is a bound on the weights themselves.
  while (left > 1 && weight[left - 1] < params.min_p) --left;
  ids.resize(left);
  return ids;
}

int draw(const SampleParams& params, const float* logits, int vocabulary) {
  if (params.temperature <= 0.0f) return best_of(logits, vocabulary);
  const double temperature = params.temperature;
  std::vector<int32_t> ids = filter(params, logits, vocabulary, temperature);
  const float top = logits[best_of(logits, vocabulary)];
  const size_t count = ids.empty() ? static_cast<size_t>(vocabulary) : ids.size();
  const auto id_at = [&](size_t i) { return ids.empty() ? static_cast<int32_t>(i) : ids[i]; };
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += std::exp((logits[id_at(i)] - top) / temperature);
  double left = uniform(params.seed, params.step) * total;
  int last = id_at(0);
  for (size_t i = 0; i < count; ++i) {
    const double weight = std::exp((logits[id_at(i)] - top) / temperature);
    if (weight == 0) continue;
    last = id_at(i);
    if (left < weight) break;
    left -= weight;
  }
  return last;
}

}  // namespace

void CpuOps::sample(const SampleArgs& args) {
  pool_.parallel_for(args.rows, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> raw;
    for (int64_t row = begin; row < end; ++row) {
      const SampleParams& params = args.params[row];
      float* logits = args.logits + row * args.vocabulary;
      Sampled& out = args.sampled[row];
      out.top_count = 0;
      out.logprob = 0.0f;
      double log_sum = 0;
      if (params.logprobs >= 0) {
        raw.assign(logits, logits + args.vocabulary);
        log_sum =
            log_of_sum(raw.data(), args.vocabulary, raw[best_of(raw.data(), args.vocabulary)]);
        report_top(raw.data(), args.vocabulary, log_sum, params.logprobs, out);
      }
      apply_edits(params, args.edits, logits);
      out.token = draw(params, logits, args.vocabulary);
      if (params.logprobs >= 0) out.logprob = static_cast<float>(raw[out.token] - log_sum);
      args.last_token[params.slot] = out.token;
    }
  });
}

void CpuOps::score(const ScoreArgs& args) {
  pool_.parallel_for(args.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const float* logits = args.logits + row * args.vocabulary;
      Sampled& out = args.scored[row];
      const double log_sum =
          log_of_sum(logits, args.vocabulary, logits[best_of(logits, args.vocabulary)]);
      out.token = args.token[row];
      out.logprob = static_cast<float>(logits[out.token] - log_sum);
      report_top(logits, args.vocabulary, log_sum, args.top, out);
    }
  });
}

}  // namespace polar::backend::cpu
