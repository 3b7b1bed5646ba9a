#include "study/candidates.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace polar::study {

using backend::ReadKind;
using backend::UnitBudget;
using sparsity::OperatingPoint;

namespace {

constexpr int kSinkPages = 1;

std::vector<int> places(const std::vector<double>& loss) {
  std::vector<int> order(loss.size()), place(loss.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return loss[a] > loss[b]; });
  for (size_t i = 0; i < order.size(); ++i) place[order[i]] = static_cast<int>(i);
  return place;
}

OperatingPoint point_of(std::string name, int recent, std::vector<UnitBudget> budgets) {
  OperatingPoint point;
  point.name = std::move(name);
  point.limits.sink = kSinkPages;
  point.limits.recent = recent;
  point.budgets = std::move(budgets);
  return point;
}

}  // namespace

std::vector<int> rank_units(const std::vector<double>& text_loss,
                            const std::vector<double>& retrieval_loss) {
  const std::vector<int> text = places(text_loss);
  const std::vector<int> retrieval =
      retrieval_loss.size() == text.size() ? places(retrieval_loss) : text;
  std::vector<int> ranked(text.size());
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](int a, int b) {
    const int best_a = std::min(text[a], retrieval[a]), best_b = std::min(text[b], retrieval[b]);
    return best_a != best_b ? best_a < best_b : text[a] < text[b];
  });
  return ranked;
}

Family static_family(const std::vector<int>& ranked, int recent_pages) {
  Family family{"static, window " + std::to_string(recent_pages), {}};
  const int units = static_cast<int>(ranked.size());
  int previous = -1;
  for (int step = 0; step <= 20; ++step) {
    const int full = static_cast<int>(std::lround(units * step / 20.0));
    if (full == previous) continue;
    previous = full;
    std::vector<UnitBudget> budgets(units);
    for (int i = full; i < units; ++i) budgets[ranked[i]].kind = ReadKind::kWindow;
    family.points.push_back(point_of(family.name + ", " + std::to_string(full) + " units full",
                                     recent_pages, std::move(budgets)));
  }
  return family;
}

}  // namespace polar::study
