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

/// Inputs of very unequal scale and a shifted mean, labels from a linear rule.
TEST(HeadRouter, LearnsALinearRuleAndIsTheSameForASeed) {
  // Few rows, so many epochs: it is the number of steps that counts.
  constexpr int kRows = 4096, kHidden = 16, kHeads = 2, kEpochs = 400;
  std::vector<float> x = normal_values(static_cast<size_t>(kRows) * kHidden, 1);
  for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] * (i % kHidden == 3 ? 40.0f : 0.5f) + 2.0f;
  std::vector<uint8_t> positive;
  for (int row = 0; row < kRows; ++row) {
    const float* in = x.data() + static_cast<size_t>(row) * kHidden;
    positive.push_back(in[0] - in[1] > 0.2f);
    positive.push_back(in[3] > 20.0f);
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
  EXPECT_GT(right, 0.97 * kRows * kHeads);
  const auto again = fit_head_router(x, positive, kHidden, kHeads, kEpochs, 7);
  EXPECT_EQ(router.weight, again.weight);
  EXPECT_EQ(router.bias, again.bias);
}

/// Inputs that lie in three directions: rank 3 loses nothing, so a logit is the activation over a
/// neuron's unit, two units up.
TEST(MlpRouter, IsExactWhereTheInputsHaveItsRank) {
  constexpr int kHidden = 12, kFfn = 20, kRank = 3, kRows = 500;
  const std::vector<float> up = normal_values(kFfn * kHidden, 2), bias = normal_values(kFfn, 3);
  const std::vector<float> basis = normal_values(kRank * kHidden, 4);
  const std::vector<float> places = normal_values(kRows * kRank, 5);
  std::vector<float> x(static_cast<size_t>(kRows) * kHidden);
  std::vector<double> moments(kHidden * kHidden);
  for (int row = 0; row < kRows; ++row) {
    float* in = x.data() + static_cast<size_t>(row) * kHidden;
    for (int r = 0; r < kRank; ++r) {
      for (int i = 0; i < kHidden; ++i) in[i] += places[row * kRank + r] * basis[r * kHidden + i];
    }
    for (int i = 0; i < kHidden; ++i) {
      for (int j = 0; j < kHidden; ++j)
        moments[i * kHidden + j] += static_cast<double>(in[i]) * in[j] / kRows;
    }
  }
  const auto router = fit_mlp_router(up, bias, moments, kHidden, kFfn, kRank);
  ASSERT_EQ(router.rank, kRank);
  for (int row = 0; row < kRows; ++row) {
    const float* in = x.data() + static_cast<size_t>(row) * kHidden;
    std::vector<double> narrow(kRank);
    for (int r = 0; r < kRank; ++r) {
      for (int i = 0; i < kHidden; ++i) narrow[r] += router.a[r * kHidden + i] * in[i];
    }
    for (int n = 0; n < kFfn; ++n) {
      double logit = router.bias[n], activation = bias[n];
      for (int r = 0; r < kRank; ++r) logit += router.b[n * kRank + r] * narrow[r];
      for (int i = 0; i < kHidden; ++i) activation += up[n * kHidden + i] * in[i];
      const double unit = bias[n] / (router.bias[n] - 2.0);
      EXPECT_GT(unit, 0);
      EXPECT_NEAR((logit - 2.0) * unit, activation, 2e-2 * (1 + std::abs(activation)))
          << row << " " << n;
    }
  }
}

}  // namespace
}  // namespace polar::study
