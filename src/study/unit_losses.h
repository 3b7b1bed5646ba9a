#pragma once
// From what each unit alone loses at a few budgets to the order in which units are given more.

#include <functional>
#include <vector>

#include "study/candidates.h"

namespace polar::study {

/// What the model loses when one unit alone reads less (KL, any unit of measure), [units] each.
struct UnitLosses {
  std::vector<double> window;              // sink and window
  std::vector<std::vector<double>> pages;  // [page_levels()]
};

/// Shares of the pages, per mille, at which units are measured for windows of `context` tokens:
/// ascending, all of them more than the pages that every unit reads.
std::vector<int> page_levels(int context);

/// Sums losses, each divided by its sum over all units with a window, so that text and retrieval
/// count alike. Either may hold nothing.
UnitLosses add_losses(const UnitLosses& text, const UnitLosses& retrieval);

/// The way from windows alone to everything in full: each step gives the unit more for which that
/// saves the most loss per byte. Losses of several units are taken to add up; between measured
/// shares, logarithms of losses are interpolated. `bytes`: what a unit reads with a budget.
std::vector<Raise> best_raises(const UnitLosses& losses, const std::vector<int>& levels,
                               const std::function<double(const backend::UnitBudget&)>& bytes);

}  // namespace polar::study
