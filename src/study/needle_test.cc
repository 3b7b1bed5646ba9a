#include "study/needle.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "model/small_config.h"
#include "study/greedy.h"
#include "study/policy.h"

namespace polar::study {
namespace {

constexpr int kLeading = 1;

std::vector<int32_t> encode(const std::string& text, bool special) {
  std::vector<int32_t> tokens;
  if (special) tokens.push_back(kLeading);
  for (const char c : text) tokens.push_back(c);
  return tokens;
}

std::string decode(std::span<const int32_t> tokens) {
  return {tokens.begin(), tokens.end()};
}

std::vector<int32_t> haystack(int count) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = 'a' + i * i % 23;
  return tokens;
}

std::vector<Needle> needles(int count, int length, int first = 0, int last = kNeedleWordings) {
  auto made = make_needles("t", haystack(1000), encode, kLeading, length, count, first, last, 5);
  EXPECT_TRUE(made.ok());
  return std::move(made).value();
}

TEST(MakeNeedles, HidesAFactAndAsksForItAtTheEnd) {
  const std::vector<Needle> made = needles(12, 400);
  ASSERT_EQ(made.size(), 12u);
  for (size_t i = 0; i < made.size(); ++i) {
    const Needle& needle = made[i];
    const Passage& passage = needle.passage;
    EXPECT_EQ(needle.wording, static_cast<int>(i) % kNeedleWordings);
    ASSERT_EQ(passage.tokens.size(), 400u);
    EXPECT_EQ(passage.tokens[0], kLeading);
    // The scored rows predict the last tokens of the text: a space and five digits, which stand
    // in the prompt as well, once, where the depth says.
    ASSERT_EQ(passage.scored_rows.size(), 6u);
    EXPECT_EQ(passage.scored_rows.back(), 398);
    const std::string text = decode(passage.tokens), number = text.substr(395);
    EXPECT_EQ(number.find_first_not_of("0123456789"), std::string::npos) << number;
    const size_t fact = text.find(number);
    ASSERT_LT(fact, static_cast<size_t>(passage.prompt));
    EXPECT_EQ(text.find(number, fact + 1), 395u);
    EXPECT_NEAR(static_cast<double>(fact) / 400, needle.depth, 0.25);
    EXPECT_GE(passage.scored_rows.front(), passage.prompt);
  }
}

TEST(MakeNeedles, AreTheSameForASeedAndKeepToTheirWordings) {
  const std::vector<Needle> one = needles(6, 400, kCalibrationWordings), two = needles(6, 400, 3);
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].passage.tokens, two[i].passage.tokens);
    EXPECT_GE(one[i].wording, kCalibrationWordings);
  }
  const auto other = make_needles("t", haystack(1000), encode, kLeading, 400, 6, 3, 6, 6);
  EXPECT_NE((*other)[0].passage.tokens, one[0].passage.tokens);
}

TEST(MakeNeedles, SaysThatATextIsTooShort) {
  const auto made = make_needles("f.txt", haystack(100), encode, kLeading, 400, 1, 0, 3, 1);
  ASSERT_FALSE(made.ok());
  EXPECT_THAT(made.error().message, testing::HasSubstr("f.txt: text: found 100 tokens"));
  EXPECT_FALSE(make_needles("t", haystack(1000), encode, kLeading, 60, 1, 0, 3, 1).ok());
}

class SmallModel : public testing::Test {
 protected:
  void SetUp() override {
    device_ = std::move(backend::make_cpu_device({})).value();
    weights_ = std::make_unique<model::Weights>(
        std::move(model::dummy_weights(*device_, model::small_config({0, 0}), DType::kF32, 3))
            .value());
  }

  std::unique_ptr<model::Planner> window(int recent) {
    Policy policy;
    policy.kind = PolicyKind::kWindow;
    policy.recent = recent;
    return std::move(make_planner(policy, *device_, weights_->config)).value();
  }

  std::vector<NeedleAnswers> ask(model::Planner* planner, int at_once) {
    auto answers = ask_once(*device_, *weights_, some_, planner, DType::kF32, {}, at_once);
    EXPECT_TRUE(answers.ok());
    return std::move(answers).value();
  }

  std::unique_ptr<backend::Device> device_;
  std::unique_ptr<model::Weights> weights_;
  const std::vector<Needle> some_ = needles(5, 300);
};

TEST_F(SmallModel, AWindowOverEverythingAnswersAsDense) {
  for (const NeedleAnswers& answers : ask(window(100).get(), 4)) {
    EXPECT_EQ(answers.dense.correct, answers.sparse.correct);
    EXPECT_NEAR(answers.dense.log_probability, answers.sparse.log_probability, 1e-5);
    EXPECT_LT(answers.dense.log_probability, 0);
    EXPECT_EQ(answers.length, 300);
  }
}

TEST_F(SmallModel, APromptAnswersTheSameBesideOthersAndAlone) {
  const auto planner = window(1);
  const std::vector<NeedleAnswers> alone = ask(planner.get(), 1), together = ask(planner.get(), 4);
  ASSERT_EQ(alone.size(), 5u);
  ASSERT_EQ(together.size(), 5u);
  bool differs = false;
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(alone[i].sparse.log_probability, together[i].sparse.log_probability);
    EXPECT_EQ(alone[i].depth, some_[i].depth);
    differs |= alone[i].sparse.log_probability != alone[i].dense.log_probability;
  }
  EXPECT_TRUE(differs);
  const NeedleResult sum = sum_up(alone);
  double mean = 0;
  for (const NeedleAnswers& answers : alone) mean += answers.sparse.log_probability / 5;
  EXPECT_NEAR(sum.sparse_log_probability, mean, 1e-9);
  EXPECT_EQ(sum.count, 5);
}

/// The answer's probability as a step over the whole text gives it.
TEST_F(SmallModel, TheDenseAnswerIsThatOfOnePass) {
  const Passage& passage = some_[0].passage;
  auto decoder = model::Decoder::create(*device_, *weights_, {300, 6});
  auto cache = SequenceCache::create(*device_, weights_->config, DType::kF32, 1, 300);
  ASSERT_TRUE(decoder.ok() && cache.ok());
  model::DensePlanner dense;
  const Chunk chunk{0, 0, passage.tokens, false};
  const int width = weights_->config.vocabulary;
  std::vector<float> logits(6 * static_cast<size_t>(width));
  device_->download(logits.data(),
                    (*decoder)->forward(cache->pack({&chunk, 1}, passage.scored_rows), cache->kv(),
                                        dense, nullptr),
                    logits.size() * sizeof(float));
  double expected = 0;
  for (int i = 0; i < 6; ++i) {
    double sum = 0;
    for (int t = 0; t < width; ++t) sum += std::exp(logits[i * width + t]);
    expected += logits[i * width + passage.tokens[passage.scored_rows[i] + 1]] - std::log(sum);
  }
  EXPECT_NEAR(ask(nullptr, 1)[0].dense.log_probability, expected, 1e-4);
}

class Greedy : public SmallModel {
 protected:
  GreedyResult run(model::Planner& planner, int batch) {
    Windows windows{haystack(3 * 128), 128, 3};
    EvaluateOptions options;
    options.prompt = 100;
    options.batch = batch;
    options.kv_dtype = DType::kF32;
    auto result = continue_greedily(*device_, *weights_, windows, planner, kTokens, options);
    EXPECT_TRUE(result.ok());
    return std::move(result).value();
  }

  /// A continuation of the first window by a planner's own tokens, not by those of dense.
  std::vector<int32_t> own_continuation(model::Planner& planner) {
    auto decoder = model::Decoder::create(*device_, *weights_, {100, 1});
    auto cache = SequenceCache::create(*device_, weights_->config, DType::kF32, 1, 100 + kTokens);
    std::vector<int32_t> next = haystack(100), answer;
    for (int position = 0; answer.size() < kTokens;) {
      const bool prompt = position == 0;
      const Chunk chunk{0, position, next, !prompt};
      const auto row = static_cast<int32_t>(next.size() - 1);
      std::vector<float> logits(weights_->config.vocabulary);
      device_->download(
          logits.data(),
          (*decoder)->forward(cache->pack({&chunk, 1}, {&row, 1}), cache->kv(), planner, nullptr),
          logits.size() * sizeof(float));
      position += static_cast<int>(next.size());
      next = {
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())};
      answer.push_back(next[0]);
    }
    return answer;
  }

  static constexpr int kTokens = 40;
};

TEST_F(Greedy, WhatReadsEverythingNeverDiffers) {
  const GreedyResult result = run(*window(100), 2);
  EXPECT_THAT(result.same, testing::ElementsAre(kTokens, kTokens, kTokens));
  EXPECT_EQ(result.mean(), kTokens);
  EXPECT_EQ(result.whole(), 3);
}

TEST_F(Greedy, PartsWhereTwoContinuationsOfTheirOwnPart) {
  const auto narrow = window(0);
  model::DensePlanner dense;
  const std::vector<int32_t> one = own_continuation(dense), two = own_continuation(*narrow);
  const auto differs = std::mismatch(one.begin(), one.end(), two.begin()).first;
  const auto point = static_cast<int>(differs - one.begin());
  ASSERT_GT(point, 0);
  ASSERT_LT(point, kTokens) << "the test needs a model that parts";
  const GreedyResult alone = run(*narrow, 1), together = run(*narrow, 3);
  EXPECT_EQ(alone.same[0], point);
  EXPECT_EQ(alone.same, together.same);
}

}  // namespace
}  // namespace polar::study
