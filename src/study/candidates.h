#pragma once
// The assignments of budgets to units that calibration chooses among: shapes with one knob each,
// from few bytes to many.

#include <string>
#include <vector>

#include "sparsity/profile.h"

namespace polar::study {

/// Units ordered by what they are worth, the most valuable first. A unit's place is its better one
/// in the two rankings (plain text, retrieval): a unit that only retrieval needs must not be lost.
/// Ties: text first. For classes that are read in full or not at all.
std::vector<int> rank_units(const std::vector<double>& text_loss,
                            const std::vector<double>& retrieval_loss);

/// Units ordered by the sum of their shares of either loss (each loss divided by its sum). For
/// splits of page budgets: a place in a ranking says nothing of how much a unit is worth.
std::vector<int> rank_by_share(const std::vector<double>& text_loss,
                               const std::vector<double>& retrieval_loss);

/// What single units may read and what that would cost: from this, bytes are dealt out unit by
/// unit.
struct Deal {
  backend::PointLimits limits;
  std::vector<backend::UnitBudget> options;
  std::vector<double> bytes;              // [option] read, over what a dense unit reads
  std::vector<std::vector<double>> loss;  // [option][unit] what the answers would lose
};

/// UnitBudget::least for as many pages as `per_mille` of `pages`, and one more for what is cut off;
/// no pages: 0.
uint16_t least_pages(int per_mille, double pages);

/// How units share what they read, by rank: classes from the best unit down, and one knob that says
/// how much is read in all.
struct Shape {
  /// What the knob moves.
  enum class Knob {
    kPages,   // per mille of the pages that the lower units choose
    kFull,    // units that are read in full
    kRouted,  // units that a router may choose among
    kDealt    // per mille of the bytes, dealt out by Ranking::deal; no class is cut
  };
  Knob knob = Knob::kPages;
  /// kPages: this share of the units is read in full, then come the upper ones.
  double full = 0;
  double upper = 0.5;  // share of the units, those in full included, that are upper
  double ratio = 1;    // pages of an upper unit over those of a lower one
  /// What lower units read. Where they choose no pages, the knob is the upper units' share. kFull,
  /// kRouted: what the units read that are not counted by the knob (and routed ones, not chosen).
  backend::ReadKind lower = backend::ReadKind::kPages;
  int recent = 4;  // newest full pages that every unit reads
  /// Upper units (kPages), units not in full (kFull) or counted ones (kRouted) are routed: this
  /// many of a layer's are full for a row. 0: no router.
  int routed = 0;
  bool by_place = false;  // classes are cut from Ranking::by_place
  /// kPages: pages read at least, of those that the knob means at the longest context. 0: a share
  /// of the pages wherever a sequence stands; 1: as many wherever it stands.
  double steady = 0;

  /// Says all of the above; two shapes of one name are the same.
  std::string name() const;
  /// "pages", "static", "routed" (no unit is full but by its router's choice) or "hybrid".
  const char* policy() const;
};

/// The units of a model for which assignments are made.
struct Ranking {
  std::vector<int> units;  // the most valuable first
  int kv_heads = 1;
  int context = 0;  // the longest, in tokens
  /// The units by rank_units(), for shapes with by_place. Empty: there are none.
  std::vector<int> by_place;
  /// For shapes that deal bytes out. No options: there are none.
  Deal deal;
};

/// Settings of a shape's knob: 0 .. knob_settings() - 1, from few bytes to many.
int knob_settings(const Shape& shape, const Ranking& ranking);

/// The assignment of one setting. Its name holds the shape's name and the setting.
sparsity::OperatingPoint assign(const Shape& shape, const Ranking& ranking, int setting);

/// Shapes to begin a search with, the likeliest first. `routers`: there are head routers.
std::vector<Shape> first_shapes(const Ranking& ranking, bool routers);

/// Shapes that differ from this one by a little.
std::vector<Shape> neighbours(const Shape& shape, const Ranking& ranking);

/// The share of KV bytes that a point reads in decode steps from `prompt` to `context` tokens,
/// page indices included, before it is measured: no model runs. `index_share`: bytes of a page
/// index / of a block.
double expected_density(const sparsity::OperatingPoint& point, int prompt, int context,
                        double index_share, int kv_heads);

}  // namespace polar::study
