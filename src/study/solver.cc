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
/// The whole slice is taken to lose at most this many times what a part of it does, or as many
/// times less.
constexpr double kMostScale = 2.5;
/// A shape stands for election where its costs so far promise no more than this many times the
/// bound at the bytes of the best: in the first round of a search, later.
constexpr double kFarBehind = 3, kClose = 1.3;
/// Where a search begins that knows nothing.
constexpr double kFirstBytes = 0.4;
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
Result<std::optional<Solver::Seen>> Solver::measure_setting(const Shape& shape, int setting,
                                                            Slice slice) {
  Trial trial;
  trial.family = shape.name();
  trial.policy = shape.policy();
  trial.point = assign(shape, options_.ranking, setting);
  size_t at = 0;
  while (at < trials_.size() && trials_[at].point.name != trial.point.name) ++at;
  const bool known = at < trials_.size();
  const bool rest = slice == Slice::kWhole && !(known && trials_[at].whole);
  const int costs = (known ? 0 : 1) + (rest ? options_.parts - 1 : 0);
  if (left_ < costs) return std::optional<Seen>();
  left_ -= costs;
  if (!known) {
    POLAR_RETURN_IF_ERROR(options_.measure_part(trial));
    trials_.push_back(trial);
    expected_.push_back(options_.expected(trial.point));
    settings_.push_back(setting);
  }
  if (rest) {
    POLAR_RETURN_IF_ERROR(options_.measure_rest(trials_[at]));
    trials_[at].whole = true;
  }
  return std::optional<Seen>({expected_[at], cost_of(at)});
}

/// Nothing: the shape cannot read so little, or no measurement is left.
Result<std::optional<Solver::Seen>> Solver::measure_at(const Shape& shape, double bytes,
                                                       Slice slice) {
  const int setting = setting_at(shape, bytes);
  if (setting < 0) return std::optional<Seen>();
  return measure_setting(shape, setting, slice);
}

/// The cost of a whole trial; of one that is not, what it would be if the whole slice had lost as
/// many times its part as it did of the nearest whole trial: of the same family if there is one.
double Solver::cost_of(size_t trial) const {
  const Trial& seen = trials_[trial];
  if (seen.whole) return cost_(seen);
  const Trial* nearest = nullptr;
  double distance = 0;
  for (size_t i = 0; i < trials_.size(); ++i) {
    if (!trials_[i].whole || trials_[i].loss <= 0 || trials_[i].part_loss <= 0) continue;
    const double far = std::abs(std::log(expected_[i] / expected_[trial])) +
                       (trials_[i].family == seen.family ? 0 : 10);
    if (nearest != nullptr && far >= distance) continue;
    nearest = &trials_[i];
    distance = far;
  }
  if (nearest == nullptr) return cost_(seen);
  Trial estimate = seen;
  // A part that lost next to nothing says nothing.
  estimate.loss *= std::clamp(nearest->loss / nearest->part_loss, 1 / kMostScale, kMostScale);
  return cost_(estimate);
}

/// A shape's trials by bytes; once two of them are whole, these alone.
std::vector<Solver::Seen> Solver::seen_of(const Shape& shape) const {
  const std::string name = shape.name();
  const auto whole = std::count_if(trials_.begin(), trials_.end(), [&](const Trial& trial) {
    return trial.whole && trial.family == name;
  });
  std::vector<Seen> seen;
  for (size_t i = 0; i < trials_.size(); ++i) {
    if (trials_[i].family == name && (trials_[i].whole || whole < 2))
      seen.push_back({expected_[i], cost_of(i)});
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
/// tried), the cheapest one inside (knob_settings(): none). Slice::kWhole: whole trials alone say.
Solver::Bracket Solver::bracket_of(const Shape& shape, Slice slice) const {
  Bracket bracket{-1, knob_settings(shape, options_.ranking), 0, 2};
  const std::string name = shape.name();
  for (const bool inside : {true, false}) {
    for (size_t i = 0; i < trials_.size(); ++i) {
      if (trials_[i].family != name || (cost_of(i) <= 1) != inside) continue;
      if (slice == Slice::kWhole && !trials_[i].whole) continue;
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
Status Solver::turn_knob(const Shape& shape, double first, double close, Slice slice) {
  double next = first, width = 2;
  for (int turn = 0; turn < kTurns; ++turn) {
    const Bracket bracket = bracket_of(shape, slice);
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
    POLAR_ASSIGN(const auto seen, measure_setting(shape, setting, slice));
    if (!seen) return {};
    next = *crossing(shape);
  }
  return {};
}

/// A shape's cost at some bytes: measured there, or infinite where it cannot be.
Result<double> Solver::cost_at(const Shape& shape, double bytes) {
  POLAR_ASSIGN(const auto seen, measure_at(shape, bytes, Slice::kPart));
  if (!seen) return 1e30;
  // A coarse knob may read much less than allowed: seen as if its cost fell as costs do.
  return seen->cost * std::pow(seen->bytes / bytes, kSlope);
}

/// The whole trial that is inside with the fewest bytes.
std::optional<size_t> Solver::best_inside() const {
  std::optional<size_t> best;
  for (size_t i = 0; i < trials_.size(); ++i) {
    if (!trials_[i].whole || cost_of(i) > 1 || trials_[i].effective_density > 1) continue;
    if (!best || expected_[i] < expected_[*best]) best = i;
  }
  return best;
}

/// Rounds of elections on the part: the best against all others, at these bytes or where it meets
/// the bound; then the new best, with the shapes that differ from it by a little.
Status Solver::elect(Shape best, std::optional<double> at) {
  std::vector<Shape>& shapes = options_.shapes;
  constexpr int kRounds = 5;
  for (int round = 0; round < kRounds && left_ > 0; ++round) {
    const double bytes = at ? *at : std::min(crossing(best).value_or(0.9), 0.9);
    struct Rival {
      Shape shape;
      double cost;
    };
    std::optional<Rival> winner;
    POLAR_ASSIGN(const double own, cost_at(best, bytes));
    const double best_meets = at ? crossing(best).value_or(bytes) : bytes;
    for (const Shape& shape : shapes) {
      if (shape.name() == best.name()) continue;
      // What its trials promise at these bytes; a shape that lost by far is not asked again.
      const auto meets = crossing(shape);
      if (meets && std::pow(*meets / best_meets, kSlope) > (round == 0 ? kFarBehind : kClose))
        continue;
      POLAR_ASSIGN(const double rival, cost_at(shape, bytes));
      if (rival < own && (!winner || rival < winner->cost)) winner = Rival{shape, rival};
    }
    if (winner) {
      best = winner->shape;
      if (!at) {
        POLAR_RETURN_IF_ERROR(
            turn_knob(best, crossing(best).value_or(bytes), kElected, Slice::kPart));
      }
    }
    bool more = winner.has_value();
    for (const Shape& near : neighbours(best, options_.ranking)) {
      const auto same = [&](const Shape& shape) { return shape.name() == near.name(); };
      if (std::any_of(shapes.begin(), shapes.end(), same)) continue;
      shapes.push_back(near);
      more = true;
    }
    if (!more) break;
  }
  return {};
}

/// Turns, on the whole slice, the knobs of the shapes that promise fewer bytes than the best whole
/// trial, the one that promises the fewest first.
Status Solver::settle() {
  for (const double close : {kElected, kAtLast}) {
    std::vector<std::string> turned;
    while (left_ > 0) {
      const auto inside = best_inside();
      double fewest = inside ? expected_[*inside] : 0.97;
      const Shape* next = nullptr;
      for (const Shape& shape : options_.shapes) {
        const auto at = crossing(shape);
        if (!at || *at >= fewest) continue;
        if (std::find(turned.begin(), turned.end(), shape.name()) != turned.end()) continue;
        fewest = *at;
        next = &shape;
      }
      if (next == nullptr) break;
      turned.push_back(next->name());
      POLAR_RETURN_IF_ERROR(turn_knob(*next, fewest, close, Slice::kWhole));
    }
  }
  return {};
}

/// Two thirds of the measurements may be spent on parts of the slice; returns the others, which are
/// for all of it.
int Solver::begin_search() {
  const int all = options_.trials * options_.parts;
  left_ = all * 2 / 3;
  return all - left_;
}

Result<std::optional<Trial>> Solver::solve(const Cost& cost) {
  cost_ = cost;
  const int kept = begin_search();
  // The first shape, or after another bound the one that promises most.
  Shape best = options_.shapes.front();
  for (const Shape& shape : options_.shapes) {
    const auto at = crossing(shape);
    if (at && (!crossing(best) || *at < *crossing(best))) best = shape;
  }
  const double first = crossing(best).value_or(kFirstBytes);
  POLAR_RETURN_IF_ERROR(turn_knob(best, first, kAtFirst, Slice::kPart));
  // One whole trial near the bound tells what a part says of the whole.
  POLAR_RETURN_IF_ERROR(measure_at(best, crossing(best).value_or(first), Slice::kWhole));
  POLAR_RETURN_IF_ERROR(elect(best));
  left_ += kept;
  POLAR_RETURN_IF_ERROR(settle());
  return best_of(cost);
}

/// What a shape costs at these bytes; nothing: it was not measured there.
std::optional<double> Solver::part_cost(const Shape& shape, double bytes) const {
  const int setting = setting_at(shape, bytes);
  const std::string name = shape.name();
  for (size_t i = 0; i < trials_.size(); ++i)
    if (settings_[i] == setting && trials_[i].family == name) return cost_of(i);
  return std::nullopt;
}

Result<std::optional<Trial>> Solver::solve_at(double bytes, const Cost& cost) {
  cost_ = cost;
  const int kept = begin_search();
  // The first shape that reads so little; one whole trial of it tells what a part says.
  const auto first =
      std::find_if(options_.shapes.begin(), options_.shapes.end(),
                   [&](const Shape& shape) { return setting_at(shape, bytes) >= 0; });
  if (first == options_.shapes.end()) return std::optional<Trial>();
  const Shape begin = *first;
  POLAR_RETURN_IF_ERROR(measure_at(begin, bytes, Slice::kWhole));
  POLAR_RETURN_IF_ERROR(elect(begin, bytes));
  left_ += kept;
  // The best few on the part are measured whole, the best first.
  constexpr size_t kFinalists = 3;
  std::vector<std::pair<double, const Shape*>> finalists;
  for (const Shape& shape : options_.shapes)
    if (const auto found = part_cost(shape, bytes)) finalists.emplace_back(*found, &shape);
  std::stable_sort(finalists.begin(), finalists.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  finalists.resize(std::min(finalists.size(), kFinalists));
  for (const auto& [part, shape] : finalists)
    POLAR_RETURN_IF_ERROR(measure_at(*shape, bytes, Slice::kWhole));
  std::optional<size_t> best;
  for (size_t i = 0; i < trials_.size(); ++i) {
    if (!trials_[i].whole || expected_[i] > bytes) continue;
    if (!best || cost_of(i) < cost_of(*best)) best = i;
  }
  return best ? std::optional<Trial>(trials_[*best]) : std::nullopt;
}

std::optional<Trial> Solver::best_of(const Cost& cost) {
  cost_ = cost;
  const auto inside = best_inside();
  return inside ? std::optional<Trial>(trials_[*inside]) : std::nullopt;
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
    left_ = measure ? options_.parts : 0;
    POLAR_ASSIGN(const auto seen, measure_at(*best, bytes * 1.005, Slice::kWhole));
    if (measure && !seen) continue;
    const Trial* least = nullptr;
    for (size_t i = 0; i < trials_.size(); ++i) {
      if (trials_[i].policy != policy || expected_[i] > bytes * 1.005) continue;
      if (!trials_[i].whole) continue;
      if (expected_[i] < bytes * 0.9 && trials_[i].family != best->name()) continue;
      if (least == nullptr || cost_(trials_[i]) < cost_(*least)) least = &trials_[i];
    }
    if (least != nullptr) rows.push_back(*least);
  }
  return rows;
}

}  // namespace polar::study
