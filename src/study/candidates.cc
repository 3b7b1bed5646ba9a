#include "study/candidates.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/ranges.h"

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
  const std::vector<int> retrieval = retrieval_loss.empty() ? text : places(retrieval_loss);
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

Family pages_family(const std::vector<int>& ranked, const Tiers& tiers) {
  Family family{tiers.name, {}};
  const auto units = static_cast<int>(ranked.size());
  for (const int share :
       {60, 80, 100, 125, 160, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800, 900}) {
    std::vector<UnitBudget> budgets(units);
    for (int place = 0; place < units; ++place) {
      UnitBudget& budget = budgets[ranked[place]];
      if (place < std::lround(tiers.full * units)) continue;
      const bool upper = place < std::lround(tiers.upper * units);
      const long per_mille = std::lround(share * (upper ? tiers.upper_factor : tiers.lower_factor));
      if (per_mille >= 1000) continue;
      budget.kind = per_mille == 0 ? ReadKind::kWindow : ReadKind::kPages;
      budget.pages_per_mille = static_cast<uint16_t>(per_mille);
    }
    family.points.push_back(point_of(family.name + " " + std::to_string(share) + " per mille",
                                     tiers.recent, std::move(budgets)));
  }
  return family;
}

double expected_density(const OperatingPoint& point, int prompt, int context, double index_share) {
  double read = 0, dense = 0;
  for (int position = prompt; position < context; position += backend::kPageTokens) {
    for (const UnitBudget& budget : point.budgets) {
      const int pages = position / backend::kPageTokens + 1;
      if (budget.kind != ReadKind::kPages) {
        const backend::PageRanges ranges =
            backend::fixed_ranges(budget.kind, position, 0, 0, point.limits);
        read += ranges.count + ranges.tail_count;
        continue;
      }
      const backend::PageChoice choice =
          backend::page_choice(position, 0, budget, point.limits, pages);
      const bool scored = choice.chosen > 0 && choice.chosen < choice.count;
      read += pages - (choice.count - choice.chosen) + (scored ? choice.count * index_share : 0);
    }
    dense += static_cast<double>(point.budgets.size()) * (position / backend::kPageTokens + 1);
  }
  return read / dense;
}

}  // namespace polar::study
