#include "study/solver.h"

#include <algorithm>
#include <cmath>

namespace polar::study {

namespace {

/// How fast costs fall as bytes grow, until two trials of a shape say better: cost ~ bytes^-slope.
constexpr double kSlope = 3;
/// A knob is turned until the bytes around the crossing are this close: of the shape that a search
/// begins with, which others will beat; of those that win an election; of the last winner.
constexpr double kAtFirst = 0.06, kElected = 0.02, kAtLast = 0.006;
constexpr int kTurns = 6;
/// Beyond its trials a knob is turned to this many times the bytes at most.
constexpr double kFar = 1.6;

double clamped_log(double cost) {
  return std::log(std::max(cost, 0.02));
}

}  // namespace

/// The dearest setting that is expected to read no more than `bytes`; -1: none.
int Solver::setting_at(const Shape& shape, double bytes) const {
  int low = -1, high = knob_settings(shape, options_.ranking) - 1;
  while (low < high) {
    const int middle = low + (high - low + 1) / 2;
    if (options_.expected(assign(shape, options_.ranking, middle)) <= bytes) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// Nothing: no measurement is left.
Result<std::optional<Solver::Seen>> Solver::measure_setting(const Shape& shape, int setting) {
  Trial trial;
  trial.family = shape.name();
  trial.policy = shape.policy();
  trial.point = assign(shape, options_.ranking, setting);
  for (size_t i = 0; i < trials_.size(); ++i) {
    if (trials_[i].point.name == trial.point.name)
      return std::optional<Seen>({expected_[i], cost_(trials_[i])});
  }
  if (left_ == 0) return std::optional<Seen>();
  --left_;
  POLAR_RETURN_IF_ERROR(options_.measure(trial));
  trials_.push_back(trial);
  expected_.push_back(options_.expected(trial.point));
  settings_.push_back(setting);
  return std::optional<Seen>({expected_.back(), cost_(trial)});
}

/// Nothing: the shape cannot read so little, or no measurement is left.
Result<std::optional<Solver::Seen>> Solver::measure_at(const Shape& shape, double bytes) {
  const int setting = setting_at(shape, bytes);
  if (setting < 0) return std::optional<Seen>();
  return measure_setting(shape, setting);
}

/// A shape's trials by bytes.
std::vector<Solver::Seen> Solver::seen_of(const Shape& shape) const {
  std::vector<Seen> seen;
  for (size_t i = 0; i < trials_.size(); ++i) {
    if (trials_[i].family == shape.name()) seen.push_back({expected_[i], cost_(trials_[i])});
  }
  std::stable_sort(seen.begin(), seen.end(),
                   [](const Seen& a, const Seen& b) { return a.bytes < b.bytes; });
  return seen;
}

/// The bytes at which a shape's cost is expected to be 1: between its trials on both sides where
/// there are such, else beyond the nearest one. Nothing: it was never tried.
std::optional<double> Solver::crossing(const Shape& shape) const {
  const std::vector<Seen> seen = seen_of(shape);
  if (seen.empty()) return std::nullopt;
  const auto inside =
      std::find_if(seen.begin(), seen.end(), [](const Seen& trial) { return trial.cost <= 1; });
  const auto beyond = [&](const Seen& from, const Seen* other) {
    double slope = kSlope;
    if (other != nullptr && other->bytes != from.bytes) {
      slope = -(clamped_log(other->cost) - clamped_log(from.cost)) /
              (std::log(other->bytes) - std::log(from.bytes));
      slope = std::clamp(slope, 1.0, 10.0);
    }
    // Two trials that are close together say little of what is far away.
    return from.bytes * std::clamp(std::exp(clamped_log(from.cost) / slope), 1 / kFar, kFar);
  };
  if (inside == seen.begin()) return beyond(seen[0], seen.size() > 1 ? &seen[1] : nullptr);
  const Seen& below = *(inside - 1);
  if (inside == seen.end())
    return beyond(below, seen.size() > 1 ? &seen[seen.size() - 2] : nullptr);
  const double from = clamped_log(below.cost), to = clamped_log(inside->cost);
  // A little to the side that is inside, or the bracket would close from one side alone.
  const double part = std::clamp((from + 0.03) / std::max(from - to, 1e-9), 0.1, 0.9);
  return std::exp(std::log(below.bytes) + part * (std::log(inside->bytes) - std::log(below.bytes)));
}

/// Between which settings a shape meets the bound: the dearest one that is outside (-1: none was
/// tried), the cheapest one inside (knob_settings(): none).
Solver::Bracket Solver::bracket_of(const Shape& shape) const {
  Bracket bracket{-1, knob_settings(shape, options_.ranking), 0, 2};
  const std::string name = shape.name();
  for (const bool inside : {true, false}) {
    for (size_t i = 0; i < trials_.size(); ++i) {
      if (trials_[i].family != name || (cost_(trials_[i]) <= 1) != inside) continue;
      if (inside && settings_[i] < bracket.inside) {
        bracket.inside = settings_[i];
        bracket.to = expected_[i];
      } else if (!inside && settings_[i] < bracket.inside && settings_[i] > bracket.outside) {
        bracket.outside = settings_[i];
        bracket.from = expected_[i];
      }
    }
  }
  return bracket;
}

/// Measures a shape at ever better guesses of where it meets the bound, the first of them at
/// `first` bytes, until the bytes around it are `close`.
Status Solver::turn_knob(const Shape& shape, double first, double close) {
  double next = first, width = 2;
  for (int turn = 0; turn < kTurns; ++turn) {
    const Bracket bracket = bracket_of(shape);
    const double now = bracket.to - bracket.from;
    if (bracket.inside - bracket.outside <= 1 || now < close) return {};
    if (bracket.from > 0.9) return {};  // as dear as dense
    // A guess that moved one end by little: the middle moves either by half.
    if (bracket.from > 0 && bracket.to <= 1 && now > width / 2)
      next = std::sqrt(bracket.from * bracket.to);
    width = now;
    // Where the knob is coarse a guess may be what is known already.
    const int setting = std::clamp(setting_at(shape, std::min(next, 0.97)), bracket.outside + 1,
                                   bracket.inside - 1);
    POLAR_ASSIGN(const auto seen, measure_setting(shape, setting));
    if (!seen) return {};
    next = *crossing(shape);
  }
  return {};
}

/// A shape's cost at some bytes: measured there, or infinite where it cannot be.
Result<double> Solver::cost_at(const Shape& shape, double bytes) {
  POLAR_ASSIGN(const auto seen, measure_at(shape, bytes));
  if (!seen) return 1e30;
  // A coarse knob may read much less than allowed: seen as if its cost fell as costs do.
  return seen->cost * std::pow(seen->bytes / bytes, kSlope);
}

const Trial* Solver::best_inside() const {
  const Trial* best = nullptr;
  for (const Trial& trial : trials_) {
    if (cost_(trial) > 1 || trial.effective_density > 1) continue;
    if (best == nullptr || trial.effective_density < best->effective_density) best = &trial;
  }
  return best;
}

Result<std::optional<Trial>> Solver::solve(const Cost& cost) {
  cost_ = cost;
  left_ = options_.trials;
  std::vector<Shape>& shapes = options_.shapes;
  // The first shape, or after another bound the one that promises most.
  Shape best = shapes.front();
  double first = 0.35;
  for (const Shape& shape : shapes) {
    const auto at = crossing(shape);
    if (at && (!crossing(best) || *at < *crossing(best))) best = shape;
  }
  if (const auto at = crossing(best)) first = *at;
  POLAR_RETURN_IF_ERROR(turn_knob(best, first, kAtFirst));
  const auto bytes_now = [&] {
    const Trial* inside = best_inside();
    return inside != nullptr ? options_.expected(inside->point) : 0.9;
  };
  // Rounds: the others at the bytes of the best; then, from the new best, those that were close;
  // then what differs from it by a little.
  std::vector<Shape> rivals;
  for (const Shape& shape : shapes) {
    if (shape.name() != best.name()) rivals.push_back(shape);
  }
  // Some measurements are kept for the last turns of the winner's knob.
  const int kept = std::min(left_, options_.trials / 3);
  left_ -= kept;
  constexpr int kRounds = 5;
  constexpr double kClose[kRounds] = {1e30, 1.3, 1.3, 1.3, 1.15};
  for (int round = 0; round < kRounds && left_ > 0 && !rivals.empty(); ++round) {
    const double bytes = bytes_now();
    struct Rival {
      Shape shape;
      double cost;
    };
    std::vector<Rival> measured;
    POLAR_ASSIGN(const double own, cost_at(best, bytes));
    for (const Shape& shape : rivals) {
      // What its trials promise at these bytes; a shape that lost by far is not asked again.
      const auto at = crossing(shape);
      if (at && std::pow(*at / bytes, kSlope) > 2 * kClose[round]) continue;
      POLAR_ASSIGN(const double rival, cost_at(shape, bytes));
      measured.push_back({shape, rival});
    }
    std::stable_sort(measured.begin(), measured.end(),
                     [](const Rival& a, const Rival& b) { return a.cost < b.cost; });
    if (!measured.empty() && measured[0].cost < own) {
      std::vector<Shape> close = {best};
      best = measured[0].shape;
      for (size_t i = 1; i < measured.size() && i < 3; ++i) {
        if (measured[i].cost < 1.3 * measured[0].cost) close.push_back(measured[i].shape);
      }
      const auto at = crossing(best);
      POLAR_RETURN_IF_ERROR(turn_knob(best, at ? *at : bytes, kElected));
      rivals = std::move(close);
    } else {
      rivals.clear();
    }
    // Its neighbours stand for election in every later round.
    for (const Shape& near : neighbours(best, options_.context, options_.ranking.kv_heads)) {
      const auto same = [&](const Shape& shape) { return shape.name() == near.name(); };
      if (std::any_of(shapes.begin(), shapes.end(), same)) continue;
      shapes.push_back(near);
      rivals.push_back(near);
    }
  }
  // The knobs of those that promise the fewest bytes, whether they have won an election or not.
  left_ += kept;
  for (const double close : {kElected, kAtLast}) {
    std::vector<std::string> turned;
    while (left_ > 0) {
      const Shape* next = nullptr;
      double fewest = bytes_now();
      for (const Shape& shape : shapes) {
        const auto at = crossing(shape);
        if (!at || *at >= fewest) continue;
        if (std::find(turned.begin(), turned.end(), shape.name()) != turned.end()) continue;
        fewest = *at;
        next = &shape;
      }
      if (next == nullptr) break;
      turned.push_back(next->name());
      POLAR_RETURN_IF_ERROR(turn_knob(*next, fewest, close));
    }
  }
  return best_of(cost);
}

std::optional<Trial> Solver::best_of(const Cost& cost) {
  cost_ = cost;
  const Trial* inside = best_inside();
  return inside != nullptr ? std::optional<Trial>(*inside) : std::nullopt;
}

Result<std::vector<Trial>> Solver::compare(const Cost& cost, double bytes, bool measure) {
  cost_ = cost;
  std::vector<Trial> rows;
  for (const char* policy : {"static", "pages", "routed", "hybrid"}) {
    // The shape of this policy that promises most.
    const Shape* best = nullptr;
    for (const Shape& shape : options_.shapes) {
      if (shape.policy() != std::string_view(policy)) continue;
      if (setting_at(shape, bytes * 1.005) < 0) continue;
      if (best == nullptr || crossing(shape).value_or(2) < crossing(*best).value_or(2))
        best = &shape;
    }
    if (best == nullptr) continue;
    left_ = measure ? 1 : 0;
    POLAR_ASSIGN(const auto seen, measure_at(*best, bytes * 1.005));
    if (measure && !seen) continue;
    const Trial* least = nullptr;
    for (size_t i = 0; i < trials_.size(); ++i) {
      if (trials_[i].policy != policy || expected_[i] > bytes * 1.005) continue;
      if (expected_[i] < bytes * 0.9 && trials_[i].family != best->name()) continue;
      if (least == nullptr || cost_(trials_[i]) < cost_(*least)) least = &trials_[i];
    }
    if (least != nullptr) rows.push_back(*least);
  }
  return rows;
}

}  // namespace polar::study
