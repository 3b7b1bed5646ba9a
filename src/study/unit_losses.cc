#include "study/unit_losses.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace polar::study {

using backend::ReadKind;
using backend::UnitBudget;

namespace {

/// Shares of the pages that a unit may be given, per mille.
constexpr int kShares[] = {60, 90, 125, 180, 250, 350, 500, 650, 800};
/// Less than this is no loss: its logarithm would say nothing.
constexpr double kLeast = 1e-9;

/// The logarithm of a unit's loss at a share of its pages: between measured shares interpolated,
/// beyond them on the line through the nearest two.
double log_loss(const UnitLosses& losses, const std::vector<int>& levels, size_t unit, int share) {
  const auto at = [&](size_t level) {
    return std::log(std::max(losses.pages[level][unit], kLeast));
  };
  size_t upper = 1;
  while (upper + 1 < levels.size() && levels[upper] < share) ++upper;
  const double slope = (at(upper) - at(upper - 1)) / (levels[upper] - levels[upper - 1]);
  // More pages never lose more: what is measured so is noise.
  return at(upper - 1) + std::min(slope, 0.0) * (share - levels[upper - 1]);
}

struct Choice {
  UnitBudget budget;
  double bytes = 0, loss = 0;
};

/// Drops what costs more than a mix of its neighbours would, and what loses no less than something
/// cheaper: ascending bytes, each step saving less per byte than the one before.
std::vector<Choice> lower_hull(std::vector<Choice> choices) {
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return a.bytes < b.bytes; });
  std::vector<Choice> hull;
  const auto saved = [](const Choice& from, const Choice& to) {
    return (from.loss - to.loss) / (to.bytes - from.bytes);
  };
  for (const Choice& choice : choices) {
    if (!hull.empty() && choice.loss >= hull.back().loss) continue;
    while (!hull.empty() && choice.bytes <= hull.back().bytes) hull.pop_back();
    while (hull.size() > 1 &&
           saved(hull[hull.size() - 2], hull.back()) <= saved(hull.back(), choice))
      hull.pop_back();
    hull.push_back(choice);
  }
  return hull;
}

}  // namespace

std::vector<int> page_levels(int context) {
  // An eighth of a short window is hardly more than sink and newest pages.
  if (context / backend::kPageTokens < 96) return {250, 500};
  return {125, 250, 500};
}

UnitLosses add_losses(const UnitLosses& text, const UnitLosses& retrieval) {
  UnitLosses sum;
  for (const UnitLosses* losses : {&text, &retrieval}) {
    const double whole = std::accumulate(losses->window.begin(), losses->window.end(), 0.0);
    add_share(sum.window, losses->window, whole);
    sum.pages.resize(std::max(sum.pages.size(), losses->pages.size()));
    for (size_t level = 0; level < losses->pages.size(); ++level)
      add_share(sum.pages[level], losses->pages[level], whole);
  }
  return sum;
}

std::vector<Raise> best_raises(const UnitLosses& losses, const std::vector<int>& levels,
                               const std::function<double(const UnitBudget&)>& bytes) {
  struct Step {
    Raise raise;
    double saved;  // loss per byte
  };
  std::vector<UnitBudget> budgets = {{ReadKind::kWindow}};
  for (const int share : kShares)
    budgets.push_back({ReadKind::kPages, ReadKind::kWindow, static_cast<uint16_t>(share)});
  budgets.push_back({ReadKind::kFull});
  std::vector<double> bytes_of;
  for (const UnitBudget& budget : budgets) bytes_of.push_back(bytes(budget));
  std::vector<Step> steps;
  for (size_t unit = 0; unit < losses.window.size(); ++unit) {
    std::vector<Choice> choices;
    for (size_t i = 0; i < budgets.size(); ++i) {
      double loss = 0;
      if (budgets[i].kind == ReadKind::kWindow) loss = losses.window[unit];
      if (budgets[i].kind == ReadKind::kPages)
        loss = std::exp(log_loss(losses, levels, unit, budgets[i].pages_per_mille));
      choices.push_back({budgets[i], bytes_of[i], loss});
    }
    // A window is where every unit begins, so what is cheaper is no choice.
    std::erase_if(choices,
                  [&](const Choice& choice) { return choice.bytes < choices.front().bytes; });
    std::vector<Choice> hull = lower_hull(choices);
    for (size_t i = 1; i < hull.size(); ++i) {
      const double saved = (hull[i - 1].loss - hull[i].loss) / (hull[i].bytes - hull[i - 1].bytes);
      steps.push_back({{static_cast<int>(unit), hull[i].budget}, saved});
    }
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.saved > b.saved; });
  std::vector<Raise> raises;
  for (const Step& step : steps) raises.push_back(step.raise);
  return raises;
}

}  // namespace polar::study
