#pragma once
// Which assignment reads the fewest bytes within a bound, found with few measurements: shapes are
// compared at equal bytes on a part of the held-out slice, and the knobs of the best are turned on
// all of it until their costs meet the bound.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "study/candidates.h"

namespace polar::study {

/// What one assignment did on the held-out slice.
struct Trial {
  std::string family;  // the shape's name
  std::string policy;  // Shape::policy()
  sparsity::OperatingPoint point;
  double part_loss = 0;  // perplexity ratio - 1 on a part of the slice, the same for all trials
  double loss = 0;       // on all of it; of a trial that is not whole, part_loss
  bool whole = false;    // measured on all of it
  double effective_density = 1;  // KV bytes read / dense, page indices included
  int needles = 0;               // retrieval prompts that it answers
  double answer_loss = 0;        // log-probability that answers lose, nats (Calibration)
};

struct SolverOptions {
  Ranking ranking;
  std::vector<Shape> shapes;  // the first is where the first search begins
  int trials = 12;  // measurements of the whole slice at most, per bound; a part counts its share
  /// What a point will read, without a measurement.
  std::function<double(const sparsity::OperatingPoint&)> expected;
  /// Measures a point on a part of the slice: fills all but family, policy, point and whole.
  std::function<Status(Trial&)> measure_part;
  /// Measures the rest of the slice too: loss and effective_density are then those of all of it.
  std::function<Status(Trial&)> measure_rest;
  /// Parts in the whole slice.
  int parts = 4;
};

/// Keeps what was measured, so that a second bound begins where the first one ended.
class Solver {
 public:
  explicit Solver(SolverOptions options) : options_(std::move(options)) {}

  /// A bound: how much of what it allows a trial uses up. At most 1: inside. Falls as bytes grow.
  using Cost = std::function<double(const Trial&)>;

  /// The whole trial with the fewest bytes among all that are inside, after a search of at most
  /// `SolverOptions::trials` new measurements. Nothing: none is inside. Deterministic: the same
  /// measurements lead to the same search.
  Result<std::optional<Trial>> solve(const Cost& cost);

  /// The whole trial that costs the least of those that are expected to read at most `bytes`, after
  /// an election there of at most `SolverOptions::trials` new measurements. Nothing: no shape reads
  /// so little.
  Result<std::optional<Trial>> solve_at(double bytes, const Cost& cost);

  /// The same as solve() among what is measured already: the search for another bound may have
  /// found better.
  std::optional<Trial> best_of(const Cost& cost);

  /// The best whole trial of each policy that reads no more than `bytes` (within a 200th) and no
  /// less than nine tenths of that; where `measure`, the best shape of each is measured there
  /// first.
  Result<std::vector<Trial>> compare(const Cost& cost, double bytes, bool measure);

  const std::vector<Trial>& trials() const { return trials_; }

 private:
  /// One trial seen from the current bound.
  struct Seen {
    double bytes = 0;  // expected
    double cost = 0;
  };

  /// How much of the slice a measurement looks at.
  enum class Slice { kPart, kWhole };

  struct Bracket {
    int outside = 0, inside = 0;  // settings
    double from = 0, to = 0;      // their bytes
  };

  int begin_search();
  int setting_at(const Shape& shape, double bytes) const;
  Result<std::optional<Seen>> measure_setting(const Shape& shape, int setting, Slice slice);
  Result<std::optional<Seen>> measure_at(const Shape& shape, double bytes, Slice slice);
  double cost_of(size_t trial) const;
  std::vector<Seen> seen_of(const Shape& shape) const;
  Bracket bracket_of(const Shape& shape, Slice slice) const;
  Status turn_knob(const Shape& shape, double first, double close, Slice slice);
  std::optional<double> crossing(const Shape& shape) const;
  Result<double> cost_at(const Shape& shape, double bytes);
  std::optional<size_t> best_inside() const;
  Status elect(Shape best, std::optional<double> at = {});
  std::optional<double> part_cost(const Shape& shape, double bytes) const;
  Status settle();

  SolverOptions options_;
  std::vector<Trial> trials_;
  std::vector<double> expected_;  // [trial] bytes
  std::vector<int> settings_;     // [trial] of its family's knob
  Cost cost_;
  int left_ = 0;  // measurements, in parts
};

}  // namespace polar::study
