#include "backend/neuron_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace polar::backend {

namespace {

/// The best `count` of scores [ffn], in no order. Ties: the lower index.
std::vector<int32_t> best_of(const float* scores, int ffn, int count) {
  std::vector<int32_t> order(ffn);
  std::iota(order.begin(), order.end(), 0);
  const auto better = [&](int32_t a, int32_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  };
  std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), better);
  order.resize(count);
  return order;
}

/// A neuron's place is the best that any row gives it; of equal places the larger logit is first.
std::vector<int32_t> best_by_rows(const float* logits, int rows, int ffn, int count) {
  std::vector<int32_t> place(ffn, ffn), order;
  std::vector<float> logit(ffn, -INFINITY);
  for (int row = 0; row < rows; ++row) {
    const float* own = logits + static_cast<size_t>(row) * ffn;
    // No neuron behind a row's first `count` can be chosen.
    order = best_of(own, ffn, count);
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return own[a] > own[b] || (own[a] == own[b] && a < b); });
    for (int i = 0; i < count; ++i) {
      const int32_t n = order[i];
      if (i > place[n] || (i == place[n] && own[n] <= logit[n])) continue;
      place[n] = i;
      logit[n] = own[n];
    }
  }
  order.resize(ffn);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    if (place[a] != place[b]) return place[a] < place[b];
    return logit[a] > logit[b] || (logit[a] == logit[b] && a < b);
  });
  order.resize(count);
  return order;
}

}  // namespace

float off_cost(float logit) {
  return std::max(logit, 0.0f) + std::log1p(std::exp(-std::abs(logit)));
}

std::vector<float> union_scores(const float* logits, int rows, int ffn, UnionBy by) {
  POLAR_CHECK(by != UnionBy::kRows);
  // One row: by the logits themselves, which differ where the costs of the least likely do not.
  if (by == UnionBy::kLikely && rows == 1) return {logits, logits + ffn};
  std::vector<float> sum(ffn);
  for (int row = 0; row < rows; ++row) {
    for (int n = 0; n < ffn; ++n) {
      const float logit = logits[static_cast<size_t>(row) * ffn + n];
      sum[n] += by == UnionBy::kSum ? std::max(logit, 0.0f) : off_cost(logit);
    }
  }
  return sum;
}

std::vector<int32_t> choose_neurons(const float* logits, int rows, int ffn, int count, UnionBy by) {
  POLAR_CHECK(rows > 0 && count > 0 && count <= ffn);
  std::vector<int32_t> chosen =
      by == UnionBy::kRows ? best_by_rows(logits, rows, ffn, count)
                           : best_of(union_scores(logits, rows, ffn, by).data(), ffn, count);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace polar::backend
