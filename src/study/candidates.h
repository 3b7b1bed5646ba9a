#pragma once
// The assignments of budgets to units that calibration chooses among: families with one knob each,
// from dense to sparse.

#include <string>
#include <vector>

#include "sparsity/profile.h"

namespace polar::study {

/// Units ordered by what they are worth, the most valuable first. A unit's place is its better one
/// in the two rankings (plain text, retrieval): a unit that only retrieval needs must not be lost.
/// Ties: text first.
std::vector<int> rank_units(const std::vector<double>& text_loss,
                            const std::vector<double>& retrieval_loss);

/// One family of assignments, from the fewest bytes to the most.
struct Family {
  std::string name;  // "static, window 8"
  std::vector<sparsity::OperatingPoint> points;
};

/// static: a share of the units, by rank, reads everything, the others sink and window. One family
/// per window size (in pages).
Family static_family(const std::vector<int>& ranked, int recent_pages);

/// How the units of a pages family share what they read, by rank: the best `full` of them read
/// everything; those up to `upper` choose `upper_factor` times the knob's share of their pages, the
/// others `lower_factor` times (0: they read sink and window).
struct Tiers {
  const char* name;
  double full = 0;
  double upper = 1;
  double upper_factor = 1;
  double lower_factor = 0;
  int recent = 4;  // newest full pages that every unit reads
};
inline constexpr Tiers kEqualPages = {"pages"};
inline constexpr Tiers kHalves = {"pages, halves", 0, 0.5, 1.5, 0.5};
inline constexpr Tiers kTenthFull = {"pages, a tenth full", 0.1};
inline constexpr Tiers kAboveWindows = {"pages above windows", 0, 0.5, 1, 0, 8};
inline constexpr Tiers kFullAboveWindows = {"full and pages above windows", 0.1, 0.5, 1, 0, 8};

/// pages: units choose among their pages; the knob is their share.
Family pages_family(const std::vector<int>& ranked, const Tiers& tiers);

/// The share of KV bytes that a point reads in decode steps from `prompt` to `context` tokens, mean
/// keys included, before it is measured: no model runs. `index_share`: bytes of a page index / of a
/// block.
double expected_density(const sparsity::OperatingPoint& point, int prompt, int context,
                        double index_share);

}  // namespace polar::study
