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

}  // namespace polar::study
