// Sampling and scoring against distributions computed in double precision.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "backend/cpu/cpu_device.h"
#include "backend/cpu/isa.h"
#include "backend/cpu/test_values.h"

namespace polar::backend::cpu {
namespace {

class CpuSampleTest : public testing::Test {
 protected:
  CpuSampleTest() : device_(*runnable_kernels().back(), 2) {}

  /// Samples one row; the logits are copied, since sampling edits them.
  Sampled sample(std::vector<float> logits, SampleParams params,
                 const std::vector<LogitEdit>& edits = {}) {
    Sampled sampled;
    std::vector<int32_t> last_token(4, -9);
    params.slot = 2;
    params.edit_count = static_cast<int32_t>(edits.size());
    device_.ops().sample({logits.data(), 1, static_cast<int>(logits.size()), &params, edits.data(),
                          last_token.data(), &sampled});
    EXPECT_EQ(last_token, (std::vector<int32_t>{-9, -9, sampled.token, -9}));
    return sampled;
  }

  /// How often each token comes, over many steps of one seed.
  std::map<int32_t, double> shares(const std::vector<float>& logits, SampleParams params) {
    constexpr int kSteps = 20000;
    std::map<int32_t, double> found;
    for (params.step = 0; params.step < kSteps; ++params.step)
      found[sample(logits, params).token] += 1.0 / kSteps;
    return found;
  }

  std::mt19937 random_{23};
  CpuDevice device_;
};

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  for (const float logit : logits) p.push_back(std::exp((logit - top) / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

void expect_shares(const std::map<int32_t, double>& found,
                   const std::map<int32_t, double>& wanted) {
  for (const auto& [token, share] : found) EXPECT_TRUE(wanted.count(token)) << token;
  for (const auto& [token, share] : wanted) {
    const auto at = found.find(token);
    // Five standard deviations of 20,000 draws.
    EXPECT_NEAR(at == found.end() ? 0.0 : at->second, share, 5 * std::sqrt(share / 20000) + 1e-9)
        << token;
  }
}

TEST_F(CpuSampleTest, GreedyTakesTheLowestOfEquals) {
  EXPECT_EQ(sample({1, 3, -2, 3, 3}, {}).token, 1);
  EXPECT_EQ(sample({-5, -5}, {}).token, 0);
  EXPECT_EQ(sample({7}, {}).token, 0);
}

TEST_F(CpuSampleTest, TemperatureGivesTheSoftmax) {
  const std::vector<float> logits = random_values(random_, 6);
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    const std::vector<double> p = softmax(logits, temperature);
    std::map<int32_t, double> wanted;
    for (int i = 0; i < 6; ++i) wanted[i] = p[i];
    SampleParams params;
    params.temperature = temperature;
    params.seed = 77;
    expect_shares(shares(logits, params), wanted);
  }
}

TEST_F(CpuSampleTest, FiltersApplyInOrder) {
  // p = 0.4, 0.3, 0.15, 0.1, 0.05 in a shuffled order.
  const std::vector<double> p = {0.1, 0.4, 0.05, 0.3, 0.15};
  std::vector<float> logits;
  for (const double value : p) logits.push_back(static_cast<float>(std::log(value)));
  SampleParams params;
  params.temperature = 1;
  params.seed = 5;
  SampleParams top_k = params;
  top_k.top_k = 2;
  expect_shares(shares(logits, top_k), {{1, 4.0 / 7}, {3, 3.0 / 7}});
  SampleParams top_p = params;
  top_p.top_p = 0.75f;  // 0.4 + 0.3 is not yet enough
  expect_shares(shares(logits, top_p), {{1, 0.4 / 0.85}, {3, 0.3 / 0.85}, {4, 0.15 / 0.85}});
  SampleParams min_p = params;
  min_p.min_p = 0.3f;  // of 0.4: below 0.12 goes
  expect_shares(shares(logits, min_p), {{1, 0.4 / 0.85}, {3, 0.3 / 0.85}, {4, 0.15 / 0.85}});
  SampleParams both = top_k;
  both.top_k = 3;  // leaves 0.4 0.3 0.15, of which 0.7 / 0.85 reaches 0.8
  both.top_p = 0.8f;
  expect_shares(shares(logits, both), {{1, 4.0 / 7}, {3, 3.0 / 7}});
}

TEST_F(CpuSampleTest, SeedAndStepNameTheRandomNumber) {
  const int vocabulary = 300, rows = 9;
  std::vector<float> logits = random_values(random_, vocabulary * rows);
  std::vector<SampleParams> params(rows);
  for (int row = 0; row < rows; ++row) {
    params[row].temperature = 1.5f;
    params[row].seed = 1000 + row % 3;
    params[row].step = row;
    params[row].slot = row;
    params[row].top_k = row % 2 == 0 ? 0 : 50;
  }
  std::vector<float> copy = logits;
  std::vector<Sampled> together(rows);
  std::vector<int32_t> last_token(rows);
  device_.ops().sample(
      {copy.data(), rows, vocabulary, params.data(), nullptr, last_token.data(), together.data()});
  for (int row = 0; row < rows; ++row) {
    const std::vector<float> alone(logits.begin() + row * vocabulary,
                                   logits.begin() + (row + 1) * vocabulary);
    EXPECT_EQ(sample(alone, params[row]).token, together[row].token);
    EXPECT_EQ(last_token[row], together[row].token);
  }
  SampleParams a = params[0], b = params[0];
  b.seed += 1;
  int differ = 0;
  const std::vector<float> flat(vocabulary, 0.0f);
  for (a.step = b.step = 0; a.step < 50; ++a.step, ++b.step)
    differ += sample(flat, a).token != sample(flat, b).token ? 1 : 0;
  EXPECT_GT(differ, 40);
}

TEST_F(CpuSampleTest, PenaltiesAndBias) {
  SampleParams params;
  params.repetition_penalty = 2;
  // Token 0: 4 / 2 = 2 < 3. Token 2 is negative, so it becomes -2.
  EXPECT_EQ(sample({4, 3, -1}, params, {{0, 0, 1, 0}}).token, 1);
  EXPECT_EQ(sample({-1, -1.5f}, params, {{0, 0, 1, 0}}).token, 1);
  SampleParams openai;
  openai.presence_penalty = 0.5f;
  openai.frequency_penalty = 0.25f;
  // 4 - 0.5 - 3 * 0.25 = 2.75
  EXPECT_EQ(sample({4, 2.8f}, openai, {{0, 0, 1, 3}}).token, 1);
  EXPECT_EQ(sample({4, 2.7f}, openai, {{0, 0, 1, 3}}).token, 0);
  EXPECT_EQ(sample({4, 2}, {}, {{1, 100, 0, 0}}).token, 1);
  EXPECT_EQ(sample({4, 2}, {}, {{0, -100, 0, 0}}).token, 1);
}

TEST_F(CpuSampleTest, LogprobsAreOfTheUnfilteredDistribution) {
  const std::vector<float> logits = random_values(random_, 1000, 3.0f);
  const std::vector<double> p = softmax(logits, 1.0);
  std::vector<int32_t> order(1000);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  SampleParams params;
  params.temperature = 0.3f;
  params.top_k = 5;
  params.logprobs = 20;
  const Sampled sampled = sample(logits, params, {{order[0], -50, 0, 0}});
  EXPECT_NE(sampled.token, order[0]);
  EXPECT_NEAR(sampled.logprob, std::log(p[sampled.token]), 1e-5);
  ASSERT_EQ(sampled.top_count, 20);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(sampled.top_token[i], order[i]);
    EXPECT_NEAR(sampled.top_logprob[i], std::log(p[order[i]]), 1e-5);
  }
  params.logprobs = 0;
  EXPECT_EQ(sample(logits, params).top_count, 0);
  EXPECT_NE(sample(logits, params).logprob, 0.0f);
}

TEST_F(CpuSampleTest, ScoreGivenTokens) {
  const int rows = 5, vocabulary = 201;
  const std::vector<float> logits = random_values(random_, rows * vocabulary, 4.0f);
  const std::vector<int32_t> token = {0, 200, 17, 17, 99};
  std::vector<Sampled> scored(rows);
  device_.ops().score({logits.data(), rows, vocabulary, token.data(), 3, scored.data()});
  for (int row = 0; row < rows; ++row) {
    const std::vector<float> own(logits.begin() + row * vocabulary,
                                 logits.begin() + (row + 1) * vocabulary);
    const std::vector<double> p = softmax(own, 1.0);
    EXPECT_EQ(scored[row].token, token[row]);
    EXPECT_NEAR(scored[row].logprob, std::log(p[token[row]]), 2e-5);
    ASSERT_EQ(scored[row].top_count, 3);
    EXPECT_EQ(scored[row].top_token[0], std::max_element(own.begin(), own.end()) - own.begin());
    EXPECT_GE(scored[row].top_logprob[0], scored[row].top_logprob[1]);
    EXPECT_GE(scored[row].top_logprob[1], scored[row].top_logprob[2]);
  }
}

}  // namespace
}  // namespace polar::backend::cpu
