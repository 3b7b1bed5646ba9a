#include "study/solver.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "backend/ranges.h"

namespace polar::study {
namespace {

using backend::kPageTokens;
using backend::page_choice;
using backend::PageChoice;
using backend::ReadKind;
using backend::UnitBudget;

constexpr int kLayers = 6, kHeads = 4, kUnits = kLayers * kHeads;
constexpr int kPrompt = 512, kContext = 2048, kParts = 4;
constexpr double kIndex = 1.0 / 16;

double expected(const sparsity::OperatingPoint& point) {
  return expected_density(point, kPrompt, kContext, kIndex, kHeads);
}

/// A model that is a formula: what each unit is worth, and how much of it is left by what it reads.
struct Formula {
  std::vector<double> worth;  // [unit]
  double page_power = 4;      // pages are chosen well: a share s leaves (1 - s)^power of the loss
  double window = 0.7;        // of a unit's worth is lost with a window
  double routed = 0.5;        // of its fallback's loss is left of a routed unit
  double answers = 0;         // answer loss, per loss
  double part = 1;            // what a part of the slice loses over what all of it loses
  int measured = 0;           // parts
  std::set<std::string> names;

  Formula() {
    for (int unit = 0; unit < kUnits; ++unit) worth.push_back(std::pow(0.8, unit * 7 % kUnits));
  }

  double lost(const UnitBudget& budget) const {
    const double share = budget.pages_per_mille / 1000.0;
    switch (budget.kind) {
      case ReadKind::kFull:
        return 0;
      case ReadKind::kWindow:
        return window;
      case ReadKind::kPages:
        return std::min(window, std::pow(1 - share, page_power));
      case ReadKind::kRouted: {
        UnitBudget fallback = budget;
        fallback.kind = budget.fallback;
        return routed * lost(fallback);
      }
      case ReadKind::kNone:
        break;
    }
    return 3;
  }

  void measure(Trial& trial, bool rest) {
    measured += rest ? kParts - 1 : 1;
    const std::string name = trial.point.name + (rest ? ", rest" : "");
    EXPECT_TRUE(names.insert(name).second) << "measured twice: " << name;
    EXPECT_TRUE(!rest || names.count(trial.point.name) == 1) << "no part of " << name;
    fill(trial);
    trial.part_loss = part * trial.loss;
    if (!rest) trial.loss = trial.part_loss;
  }

  void fill(Trial& trial) const {
    trial.loss = 0;
    for (int unit = 0; unit < kUnits; ++unit)
      trial.loss += 0.1 * worth[unit] * lost(trial.point.budgets[unit]);
    trial.answer_loss = answers * trial.loss;
    trial.effective_density = expected(trial.point);
  }

  Ranking ranking() const { return {rank_by_share(worth, {}), kHeads, kContext, {}, {}}; }

  Solver solver(bool routers, int trials = 12) {
    SolverOptions options;
    options.ranking = ranking();
    options.shapes = first_shapes(ranking(), routers);
    options.trials = trials;
    options.expected = expected;
    options.parts = kParts;
    options.measure_part = [this](Trial& trial) {
      measure(trial, false);
      return Status{};
    };
    options.measure_rest = [this](Trial& trial) {
      measure(trial, true);
      return Status{};
    };
    return Solver(std::move(options));
  }

  /// All settings of the first shapes.
  std::vector<Trial> all(bool routers) const {
    std::vector<Trial> trials;
    for (const Shape& shape : first_shapes(ranking(), routers)) {
      for (int setting = 0; setting < knob_settings(shape, ranking()); ++setting) {
        trials.emplace_back().point = assign(shape, ranking(), setting);
        fill(trials.back());
      }
    }
    return trials;
  }

  /// The fewest bytes of all settings within a loss, and the least loss of all within some bytes.
  double fewest(double max_loss, bool routers) const {
    double best = 1;
    for (const Trial& trial : all(routers))
      if (trial.loss <= max_loss) best = std::min(best, trial.effective_density);
    return best;
  }
  double least(double bytes) const {
    double best = 1e30;
    for (const Trial& trial : all(false))
      if (trial.effective_density <= bytes) best = std::min(best, trial.loss);
    return best;
  }
};

Solver::Cost at_most(double max_loss) {
  return [max_loss](const Trial& trial) {
    return std::max(trial.loss / max_loss, trial.answer_loss / 0.1);
  };
}

Trial solved(Solver& solver, double max_loss) {
  auto best = solver.solve(at_most(max_loss));
  EXPECT_TRUE(best.ok() && best->has_value());
  return best.ok() && *best ? std::move(**best) : Trial{};
}

TEST(Solver, FindsAboutTheFewestBytesWithFewMeasurements) {
  for (const double power : {1.5, 4.0, 8.0}) {
    Formula formula;
    formula.page_power = power;
    Solver solver = formula.solver(false);
    for (const double max_loss : {0.01, 0.03, 0.1}) {
      const int before = formula.measured;
      const Trial best = solved(solver, max_loss);
      EXPECT_LE(best.loss, max_loss);
      EXPECT_LE(best.effective_density, formula.fewest(max_loss, false) + 0.02)
          << power << " " << max_loss << ": " << best.point.name;
      EXPECT_LE(formula.measured - before, 12 * kParts);
    }
  }
}

/// Parts are compared with each other; only the whole slice says what is inside.
TEST(Solver, APartThatLosesMoreOrLessThanTheWholeMisleadsNobody) {
  for (const double part : {0.6, 1.6}) {
    Formula formula;
    formula.part = part;
    Solver solver = formula.solver(false);
    for (const double max_loss : {0.01, 0.03, 0.1}) {
      const Trial best = solved(solver, max_loss);
      EXPECT_TRUE(best.whole);
      EXPECT_LE(best.loss, max_loss);
      EXPECT_LE(best.effective_density, formula.fewest(max_loss, false) + 0.02)
          << part << " " << max_loss << ": " << best.point.name;
    }
  }
}

TEST(Solver, ALooserBoundReusesWhatATighterOneMeasured) {
  Formula both, alone;
  Solver solver = both.solver(false);
  const Trial tight = solved(solver, 0.01);
  const int first = both.measured;
  const Trial loose = solved(solver, 0.02);
  EXPECT_LT(loose.effective_density, tight.effective_density);
  Solver fresh = alone.solver(false);
  EXPECT_LE(loose.effective_density, solved(fresh, 0.02).effective_density + 0.015);
  EXPECT_LE(both.measured - first, 12 * kParts);
  // The tighter bound takes what the looser one's search found.
  const auto again = solver.best_of(at_most(0.01));
  ASSERT_TRUE(again.has_value());
  EXPECT_LE(again->effective_density, tight.effective_density);
}

TEST(Solver, TakesFullUnitsAboveWindowsWherePagesAreChosenBadly) {
  Formula formula;
  formula.page_power = 0.3;
  formula.window = 0.1;
  Solver solver = formula.solver(true);
  EXPECT_EQ(solved(solver, 0.005).policy, "static");
}

TEST(Solver, TakesRoutedUnitsOnlyWhereRoutersAreWorthTheirBytes) {
  Formula good, bad;
  good.routed = 0.02;
  bad.routed = 0.9;
  for (Formula* formula : {&good, &bad}) formula->page_power = 0.5;
  Solver with_good = good.solver(true), with_bad = bad.solver(true);
  EXPECT_GT(solved(with_good, 0.01).point.limits.routed, 0);
  EXPECT_EQ(solved(with_bad, 0.01).point.limits.routed, 0);
  // Every policy stands in the comparison, at no more than the bytes of the winner.
  const auto rows = with_bad.compare(at_most(0.01), 0.5, true);
  ASSERT_TRUE(rows.ok());
  std::vector<std::string> policies;
  for (const Trial& row : *rows) {
    policies.push_back(row.policy);
    EXPECT_LE(row.effective_density, 0.5 * 1.005) << row.point.name;
  }
  EXPECT_THAT(policies, testing::ElementsAre("static", "pages", "routed", "hybrid"));
}

TEST(Solver, RetrievalBoundsWhereTheLossWouldAllowMore) {
  Formula easy, hard;
  hard.answers = 20;  // an answer loss of 0.1 is reached at a loss of 0.005
  Solver without = easy.solver(false), with = hard.solver(false);
  const Trial cheap = solved(without, 0.03), dear = solved(with, 0.03);
  EXPECT_LE(dear.answer_loss, 0.1);
  EXPECT_GT(dear.answer_loss, 0.08);
  EXPECT_GT(dear.effective_density, cheap.effective_density);
}

TEST(Solver, FindsAboutTheLeastLossWithinBytes) {
  for (const double power : {1.5, 4.0, 8.0}) {
    Formula formula;
    formula.page_power = power;
    Solver solver = formula.solver(false);
    for (const double bytes : {0.6, 0.3, 0.15}) {
      const int before = formula.measured;
      const auto best = solver.solve_at(bytes, at_most(0.03));
      ASSERT_TRUE(best.ok() && best->has_value()) << bytes;
      EXPECT_TRUE((*best)->whole);
      EXPECT_LE((*best)->effective_density, bytes);
      EXPECT_LE((*best)->loss, 1.1 * formula.least(bytes)) << power << " " << bytes;
      EXPECT_LE(formula.measured - before, 12 * kParts);
    }
  }
  Formula formula;
  Solver solver = formula.solver(false);
  const auto none = solver.solve_at(1e-4, at_most(0.03));
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
}

TEST(Solver, SaysWhenNothingIsInside) {
  Formula formula;
  formula.answers = 1e9;
  Solver solver = formula.solver(false, 10);
  const auto best = solver.solve(at_most(0.01));
  ASSERT_TRUE(best.ok());
  EXPECT_FALSE(best->has_value());
  EXPECT_LE(formula.measured, 10 * kParts);
}

TEST(Solver, AMeasurementThatFailsIsTheResult) {
  SolverOptions options;
  options.ranking = Formula().ranking();
  options.shapes = first_shapes(Formula().ranking(), false);
  options.expected = expected;
  options.measure_part = [](Trial&) -> Status { return bad_input("disk", "file", "full", "room"); };
  Solver solver(std::move(options));
  EXPECT_FALSE(solver.solve(at_most(0.01)).ok());
}

TEST(Candidates, RankByShareWeighsHowMuchNotWhere) {
  // Unit 3 is all that retrieval needs, unit 1 most of what text needs.
  EXPECT_THAT(rank_by_share({0.1, 0.6, 0.3, 0.0}, {0.0, 0.1, 0.0, 0.9}),
              testing::ElementsAre(3, 1, 2, 0));
  EXPECT_THAT(rank_by_share({0.1, 0.6, 0.3, 0.0}, {}), testing::ElementsAre(1, 2, 0, 3));
  EXPECT_THAT(rank_by_share({0.1, 0.6, 0.3, 0.0}, {0, 0, 0, 0}), testing::ElementsAre(1, 2, 0, 3));
}

TEST(Candidates, AssignmentsReadMoreWithTheKnobAndHaveNamesOfTheirOwn) {
  const Ranking ranking = Formula().ranking();
  std::set<std::string> names;
  for (Shape& shape : first_shapes(Formula().ranking(), true)) {
    std::vector<Shape> all = neighbours(shape, ranking);
    all.push_back(shape);
    for (const Shape& one : all) {
      double before = 0;
      for (int setting = 0; setting < knob_settings(one, ranking); setting += 3) {
        const auto point = assign(one, ranking, setting);
        names.insert(point.name);
        ASSERT_EQ(point.budgets.size(), static_cast<size_t>(kUnits));
        const double density = expected(point);
        // Where all pages are chosen none is scored, so that much may come off again.
        EXPECT_GE(density, before - kIndex) << point.name;
        before = std::max(before, density);
      }
    }
  }
  EXPECT_GT(names.size(), 1000u);
}

TEST(Candidates, HalvesGiveTheBetterUnitsTheirRatio) {
  const Ranking ranking = Formula().ranking();
  Shape halves;
  halves.ratio = 2.5;
  const auto point = assign(halves, ranking, 139);
  for (int place = 0; place < kUnits; ++place) {
    const UnitBudget& budget = point.budgets[ranking.units[place]];
    EXPECT_EQ(budget.kind, ReadKind::kPages);
    EXPECT_EQ(budget.pages_per_mille, place < kUnits / 2 ? 350 : 140);
    EXPECT_EQ(budget.least, 0);
  }
}

TEST(Candidates, SteadyUnitsReadAtLeastWhatTheyWouldInALongContext) {
  const Ranking ranking = Formula().ranking();
  Shape shape;
  shape.upper = 1;
  for (const double steady : {0.0, 0.5, 1.0}) {
    shape.steady = steady;
    const auto point = assign(shape, ranking, 199);  // 20 %
    for (const int position : {511, 1023, 1535, 2047}) {
      const double pages = 0.2 * std::max<double>(position + 1, steady * kContext) / kPageTokens;
      for (const UnitBudget& budget : point.budgets) {
        const PageChoice choice = page_choice(position, 0, budget, point.limits, 1000);
        const int own = position / kPageTokens, left = choice.count - choice.chosen;
        EXPECT_NEAR(own + 1 - left, pages, 1) << position << ", steady " << steady;
      }
    }
  }
}

/// Options as a model might have them: losses fall with bytes, each unit in its own way.
Deal some_deal() {
  Deal deal;
  deal.limits = {1, 1, 0};
  deal.options = {{}, {ReadKind::kWindow}};
  for (const uint16_t pages : {100, 200, 400, 700})
    deal.options.push_back({ReadKind::kPages, ReadKind::kWindow, pages, 4, pages < 300});
  for (size_t option = 0; option < deal.options.size(); ++option) {
    sparsity::OperatingPoint one;
    one.limits = deal.limits;
    one.budgets = {deal.options[option]};
    deal.bytes.push_back(expected_density(one, kPrompt, kContext, kIndex, 1));
    deal.loss.emplace_back();
    for (int unit = 0; unit < kUnits; ++unit) {
      const double left = 1 - deal.bytes.back();
      deal.loss.back().push_back(std::pow(0.7, unit) * std::pow(left, 1 + unit % 4));
    }
  }
  return deal;
}

/// Dealt bytes stay within what is asked; and no exchange of options between two units loses less
/// at no more bytes than were dealt out.
TEST(Candidates, DealtBytesCannotBeExchangedForABetterDeal) {
  Ranking ranking = Formula().ranking();
  const Deal deal = ranking.deal = some_deal();
  Shape dealt;
  dealt.knob = Shape::Knob::kDealt;
  for (const int setting : {149, 249, 399, 599, 899}) {
    const auto point = assign(dealt, ranking, setting);
    const double asked = (setting + 1) / 1000.0;
    EXPECT_LE(expected(point), asked + 1e-9);
    std::vector<size_t> chosen;
    double bytes = 0;
    for (const UnitBudget& budget : point.budgets) {
      size_t option = 0;
      while (deal.options[option].kind != budget.kind ||
             deal.options[option].pages_per_mille != budget.pages_per_mille)
        ++option;
      chosen.push_back(option);
      bytes += deal.bytes[option];
    }
    EXPECT_NEAR(bytes / kUnits, expected(point), 1e-9);
    EXPECT_GT(bytes / kUnits, asked - 0.06);
    for (int a = 0; a < kUnits; ++a) {
      for (int b = 0; b < kUnits; ++b) {
        for (size_t x = 0; x < deal.options.size(); ++x) {
          for (size_t y = 0; y < deal.options.size() && a != b; ++y) {
            const double more =
                deal.bytes[x] - deal.bytes[chosen[a]] + deal.bytes[y] - deal.bytes[chosen[b]];
            const double loss = deal.loss[x][a] - deal.loss[chosen[a]][a] + deal.loss[y][b] -
                                deal.loss[chosen[b]][b];
            ASSERT_FALSE(more <= 0 && loss < -1e-12) << a << " and " << b;
          }
        }
      }
    }
  }
}

/// What summaries and least pages are expected to read is what plans of single positions read.
TEST(Candidates, SummariesCountASixteenthOfTheirPages) {
  sparsity::OperatingPoint point;
  point.limits = {1, 2, 0};
  point.budgets = {{ReadKind::kWindow, ReadKind::kWindow, 0, 0, true},
                   {ReadKind::kPages, ReadKind::kWindow, 50, 10, true}};
  // At token 639 of page 39: 4 pages and 36 summaries; 10 pages, 30 summaries and 36 indices.
  EXPECT_NEAR(expected_density(point, 639, 640, kIndex, 2),
              (4 + 36 / 16.0 + 10 + 30 / 16.0 + 36 * kIndex) / 80, 1e-12);
}

TEST(Candidates, ARoutedUnitIsExpectedToReadWhatItsLayerAffords) {
  const Ranking ranking = Formula().ranking();
  Shape routed;
  routed.knob = Shape::Knob::kRouted;
  routed.lower = ReadKind::kNone;
  routed.routed = 1;
  // One of four heads of every layer reads everything, the others nothing.
  EXPECT_NEAR(expected(assign(routed, ranking, kUnits)), 0.25, 1e-12);
  EXPECT_EQ(expected(assign(routed, ranking, 0)), 0);
  // One routed unit alone is always chosen.
  EXPECT_NEAR(expected(assign(routed, ranking, 1)), 1.0 / kUnits, 1e-12);
}

}  // namespace
}  // namespace polar::study
