#include "study/unit_losses.h"

#include <gtest/gtest.h>

#include <cmath>

namespace polar::study {
namespace {

using backend::ReadKind;
using backend::UnitBudget;

constexpr int kContext = 4096;

double bytes(const UnitBudget& budget) {
  sparsity::OperatingPoint unit;
  unit.limits.recent = 8;
  unit.budgets = {budget};
  return expected_density(unit, 1024, kContext, 1.0 / 16, 1);
}

/// Units of which pages leave exp(-rate * share) of what a window loses.
UnitLosses decaying(const std::vector<double>& window, const std::vector<double>& rates) {
  UnitLosses losses{window, {}};
  for (const int level : page_levels(kContext)) {
    losses.pages.emplace_back();
    for (size_t unit = 0; unit < window.size(); ++unit)
      losses.pages.back().push_back(window[unit] * std::exp(-rates[unit] * level / 1000.0));
  }
  return losses;
}

TEST(UnitLosses, EveryStepGivesAUnitMoreAndTheLastGivesAllOfThemEverything) {
  const std::vector<double> window = {0.5, 0.1, 0.01, 0.3};
  const auto raises = best_raises(decaying(window, {3, 8, 20, 1}), page_levels(kContext), bytes);
  std::vector<double> read(4, bytes({ReadKind::kWindow}));
  for (const Raise& raise : raises) {
    EXPECT_GT(bytes(raise.budget), read[raise.unit]);
    read[raise.unit] = bytes(raise.budget);
  }
  for (const double unit : read) EXPECT_EQ(unit, 1);
}

/// At every step no other assignment of the same shares loses less for as many bytes: against all
/// assignments of two units.
TEST(UnitLosses, StepsLieOnTheHullOfAllAssignments) {
  const std::vector<double> window = {0.4, 0.1}, rates = {4, 15};
  const auto raises = best_raises(decaying(window, rates), page_levels(kContext), bytes);
  const auto loss = [&](size_t unit, const UnitBudget& budget) {
    if (budget.kind == ReadKind::kFull) return 0.0;
    if (budget.kind == ReadKind::kWindow) return window[unit];
    return window[unit] * std::exp(-rates[unit] * budget.pages_per_mille / 1000.0);
  };
  std::vector<UnitBudget> all = {{ReadKind::kWindow}, {ReadKind::kFull}};
  for (const int share : {60, 90, 125, 180, 250, 350, 500, 650, 800})
    all.push_back({ReadKind::kPages, ReadKind::kWindow, static_cast<uint16_t>(share)});
  std::vector<UnitBudget> now(2, {ReadKind::kWindow});
  for (const Raise& raise : raises) {
    now[raise.unit] = raise.budget;
    const double spent = bytes(now[0]) + bytes(now[1]), lost = loss(0, now[0]) + loss(1, now[1]);
    for (const UnitBudget& a : all) {
      for (const UnitBudget& b : all) {
        if (bytes(a) + bytes(b) > spent + 1e-12) continue;
        EXPECT_GE(loss(0, a) + loss(1, b), lost - 1e-9) << spent;
      }
    }
  }
  EXPECT_GT(raises.size(), 6u);
}

TEST(UnitLosses, AUnitThatAWindowServesWaitsForTheOthers) {
  const auto raises =
      best_raises(decaying({1e-6, 0.2, 0.2}, {5, 5, 5}), page_levels(kContext), bytes);
  bool others_done = false;
  for (const Raise& raise : raises) {
    others_done |= raise.unit == 0;
    EXPECT_TRUE(raise.unit == 0 || !others_done);
  }
}

/// More pages that lose more, as noise has it, are never paid for.
TEST(UnitLosses, NoiseRaisesNothing) {
  UnitLosses losses{{1e-3}, {{2e-3}, {3e-3}, {2.5e-3}}};
  const auto raises = best_raises(losses, page_levels(kContext), bytes);
  ASSERT_EQ(raises.size(), 1u);
  EXPECT_EQ(raises[0].budget.kind, ReadKind::kFull);
}

TEST(UnitLosses, TextAndRetrievalCountAlike) {
  const UnitLosses text{{3, 1}, {{1, 1}}}, retrieval{{0.1, 0.3}, {{0.2, 0}}};
  const UnitLosses sum = add_losses(text, retrieval);
  EXPECT_NEAR(sum.window[0], 1, 1e-12);
  EXPECT_NEAR(sum.window[1], 1, 1e-12);
  EXPECT_NEAR(sum.pages[0][0], 0.25 + 0.5, 1e-12);
  EXPECT_NEAR(sum.pages[0][1], 0.25, 1e-12);
  EXPECT_NEAR(add_losses(text, {}).window[0], 0.75, 1e-12);
}

}  // namespace
}  // namespace polar::study
