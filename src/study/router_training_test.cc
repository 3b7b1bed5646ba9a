#include "study/router_training.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>

namespace polar::study {
namespace {

std::vector<float> normal_values(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

/// Inputs with a shifted mean, labels from a linear rule.
TEST(HeadRouter, LearnsALinearRuleAndIsTheSameForASeed) {
  // Few rows, so many epochs: it is the number of steps that counts.
  constexpr int kRows = 4096, kHidden = 16, kHeads = 2, kEpochs = 400;
  std::vector<float> x = normal_values(static_cast<size_t>(kRows) * kHidden, 1);
  for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] * (i % kHidden == 3 ? 8.0f : 2.0f) + 1.0f;
  std::vector<uint8_t> positive;
  for (int row = 0; row < kRows; ++row) {
    const float* in = x.data() + static_cast<size_t>(row) * kHidden;
    positive.push_back(in[0] - in[1] > 0.2f);
    positive.push_back(in[3] > 4.0f);
  }
  const auto router = fit_head_router(x, positive, kHidden, kHeads, kEpochs, 7);
  int right = 0;
  for (int row = 0; row < kRows; ++row) {
    for (int h = 0; h < kHeads; ++h) {
      float logit = router.bias[h];
      for (int i = 0; i < kHidden; ++i)
        logit += router.weight[h * kHidden + i] * x[static_cast<size_t>(row) * kHidden + i];
      right += (logit > 0) == (positive[row * kHeads + h] == 1);
    }
  }
  EXPECT_GT(right, 0.93 * kRows * kHeads);
  const auto again = fit_head_router(x, positive, kHidden, kHeads, kEpochs, 7);
  EXPECT_EQ(router.weight, again.weight);
  EXPECT_EQ(router.bias, again.bias);
}

}  // namespace
}  // namespace polar::study
