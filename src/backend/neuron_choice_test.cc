#include "backend/neuron_choice.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <utility>

namespace polar::backend {
namespace {

using testing::ElementsAre;

TEST(ChooseNeurons, NoRowIsCrowdedOut) {
  // Row 0 shouts, row 1 whispers: by sum row 0 takes both places, in turn each row gets its best.
  const float logits[] = {9, 8, 0, 0, 0, 0, 1, 2};
  EXPECT_THAT(choose_neurons(logits, 2, 4, 2, UnionBy::kSum), ElementsAre(0, 1));
  EXPECT_THAT(choose_neurons(logits, 2, 4, 2, UnionBy::kRows), ElementsAre(0, 3));
}

TEST(ChooseNeurons, LikelyIsByTheProbabilityThatSomeRowActivates) {
  // One row at even odds is less than three rows at a third each; a row that is sure beats both.
  const float third = std::log(1.0f / 2.0f);
  const float logits[] = {0, third, 9, -9, -9, third, -9, -9, -9, third, -9, -9};
  EXPECT_THAT(choose_neurons(logits, 3, 4, 1, UnionBy::kLikely), ElementsAre(2));
  EXPECT_THAT(choose_neurons(logits, 3, 4, 2, UnionBy::kLikely), ElementsAre(1, 2));
  EXPECT_THAT(choose_neurons(logits, 1, 4, 2, UnionBy::kLikely), ElementsAre(0, 2));
  for (const double logit : {-80.0, -3.0, 0.0, 2.5, 60.0}) {
    const double active = 1 / (1 + std::exp(-logit));
    const double want = logit > 30 ? logit : -std::log1p(-active);
    EXPECT_NEAR(off_cost(static_cast<float>(logit)), want, 1e-6 * (1 + want)) << logit;
  }
}

/// Against a plain rendering: sort all by the sum; or take the rows' best places in turn.
TEST(ChooseNeurons, EqualsTheNaiveReference) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    const int rows = 1 + static_cast<int>(random() % 5), ffn = 1 + static_cast<int>(random() % 40);
    const int count = 1 + static_cast<int>(random() % ffn);
    std::vector<float> logits(static_cast<size_t>(rows) * ffn);
    for (float& value : logits) value = static_cast<float>(static_cast<int>(random() % 15) - 8);
    std::vector<std::pair<float, int>> sums;
    for (int n = 0; n < ffn; ++n) {
      float sum = 0;
      for (int row = 0; row < rows; ++row) sum += std::max(0.0f, logits[row * ffn + n]);
      sums.emplace_back(-sum, n);
    }
    std::sort(sums.begin(), sums.end());
    std::set<int32_t> expected;
    for (int i = 0; i < count; ++i) expected.insert(sums[i].second);
    EXPECT_EQ(choose_neurons(logits.data(), rows, ffn, count, UnionBy::kSum),
              std::vector<int32_t>(expected.begin(), expected.end()));

    expected.clear();
    for (int place = 0; static_cast<int>(expected.size()) < count; ++place) {
      std::vector<std::pair<float, int>> turn;  // what the rows name at this place
      for (int row = 0; row < rows; ++row) {
        std::vector<std::pair<float, int>> order;
        for (int n = 0; n < ffn; ++n) order.emplace_back(-logits[row * ffn + n], n);
        std::sort(order.begin(), order.end());
        turn.push_back(order[place]);
      }
      std::sort(turn.begin(), turn.end());
      for (const auto& [logit, n] : turn) {
        if (static_cast<int>(expected.size()) < count) expected.insert(n);
      }
    }
    EXPECT_EQ(choose_neurons(logits.data(), rows, ffn, count, UnionBy::kRows),
              std::vector<int32_t>(expected.begin(), expected.end()));
  }
}

}  // namespace
}  // namespace polar::backend
