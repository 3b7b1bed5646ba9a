#include "study/candidates.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <tuple>

#include "backend/ranges.h"

namespace polar::study {

using backend::ReadKind;
using backend::UnitBudget;
using sparsity::OperatingPoint;

namespace {

constexpr int kSinkPages = 1;

/// Indices by descending value; ties: the lower one.
std::vector<int> descending(const std::vector<double>& values) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
  return order;
}

std::vector<int> places(const std::vector<double>& loss) {
  const std::vector<int> order = descending(loss);
  std::vector<int> place(loss.size());
  for (size_t i = 0; i < order.size(); ++i) place[order[i]] = static_cast<int>(i);
  return place;
}

int percent(double share) {
  return static_cast<int>(std::lround(share * 100));
}

/// The most per mille of the pages that lower units choose: then all of them read everything.
constexpr int kPagesSettings = 990;

/// Pages that a unit reads at a position, indices and summaries counted as the parts of pages that
/// they are.
double pages_read(const UnitBudget& budget, const backend::PointLimits& limits, int position,
                  double index_share) {
  constexpr double kSummaryShare = 1.0 / backend::kPageTokens;
  const int pages = position / backend::kPageTokens + 1;
  if (budget.kind != ReadKind::kPages) {
    const backend::PageRanges ranges =
        backend::fixed_ranges(budget.kind, position, 0, 0, limits, budget.summaries);
    return ranges.count + ranges.tail_count + ranges.summaries * kSummaryShare;
  }
  const backend::PageChoice choice =
      backend::page_choice(position, 0, budget, limits, backend::list_entries(pages));
  const int left = choice.count - choice.chosen;
  const bool scored = choice.chosen > 0 && left > 0;
  return pages - left + (scored ? choice.count * index_share : 0) +
         (budget.summaries ? left * kSummaryShare : 0);
}

/// Each unit's option of the least loss + price x bytes (ties: the earlier one), at the lowest
/// price at which all units together read no more than `per_mille` of what dense ones do.
OperatingPoint deal_bytes(const Deal& deal, int per_mille) {
  const size_t units = deal.loss.front().size();
  const double most = per_mille / 1000.0 * static_cast<double>(units);
  OperatingPoint point;
  point.limits = deal.limits;
  const auto at = [&](double price) {
    point.budgets.clear();
    double bytes = 0;
    for (size_t unit = 0; unit < units; ++unit) {
      size_t best = 0;
      const auto cost = [&](size_t option) {
        return deal.loss[option][unit] + price * deal.bytes[option];
      };
      for (size_t option = 1; option < deal.options.size(); ++option)
        if (cost(option) < cost(best)) best = option;
      point.budgets.push_back(deal.options[best]);
      bytes += deal.bytes[best];
    }
    return bytes;
  };
  double low = 1e-12, high = 1e6;
  constexpr int kHalvings = 80;
  for (int i = 0; i < kHalvings; ++i) {
    const double price = std::sqrt(low * high);
    (at(price) > most ? low : high) = price;
  }
  at(high);
  return point;
}

}  // namespace

uint16_t least_pages(int per_mille, double pages) {
  if (pages <= 0) return 0;
  return static_cast<uint16_t>(std::min(per_mille * pages / 1000 + 1, 65535.0));
}

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

std::vector<int> rank_by_share(const std::vector<double>& text_loss,
                               const std::vector<double>& retrieval_loss) {
  std::vector<double> worth(text_loss.size());
  for (const std::vector<double>* losses : {&text_loss, &retrieval_loss}) {
    const double whole = std::accumulate(losses->begin(), losses->end(), 0.0);
    if (whole <= 0) continue;  // nothing was measured
    for (size_t unit = 0; unit < losses->size(); ++unit) worth[unit] += (*losses)[unit] / whole;
  }
  return descending(worth);
}

std::string Shape::name() const {
  if (knob == Knob::kDealt) return "dealt";
  std::string name = policy();
  if (full > 0) name += ", " + std::to_string(percent(full)) + " % full";
  if (knob == Knob::kPages && (ratio != 1 || lower != ReadKind::kPages || routed > 0)) {
    name += ", upper " + std::to_string(percent(upper)) + " %";
    if (lower == ReadKind::kPages)
      name += " x " + std::to_string(percent(ratio) / 100) + "." +
              std::to_string(percent(ratio) % 100 / 10) + std::to_string(percent(ratio) % 10);
  }
  if (by_place) name += ", by place";
  if (steady > 0) name += ", steady " + std::to_string(percent(steady)) + " %";
  if (routed > 0) name += ", routed " + std::to_string(routed);
  if (lower != ReadKind::kPages) name += std::string(", else ") + sparsity::kind_name(lower);
  return name + ", recent " + std::to_string(recent);
}

const char* Shape::policy() const {
  if (routed > 0) return knob == Knob::kRouted ? "routed" : "hybrid";
  return knob == Knob::kFull ? "static" : "pages";
}

int knob_settings(const Shape& shape, const Ranking& ranking) {
  if (shape.knob == Shape::Knob::kPages || shape.knob == Shape::Knob::kDealt) return kPagesSettings;
  return static_cast<int>(ranking.units.size()) + 1;
}

OperatingPoint assign(const Shape& shape, const Ranking& ranking, int setting) {
  if (shape.knob == Shape::Knob::kDealt) {
    OperatingPoint point = deal_bytes(ranking.deal, setting + 1);
    point.name = shape.name() + ", " + std::to_string(setting + 1) + " per mille";
    return point;
  }
  const auto units = static_cast<int>(ranking.units.size());
  OperatingPoint point;
  point.limits = {kSinkPages, shape.recent, shape.routed};
  point.budgets.resize(units);
  const bool by_pages = shape.knob == Shape::Knob::kPages;
  const long knob = by_pages ? setting + 1 : setting;
  const char* what = by_pages                           ? " per mille"
                     : shape.knob == Shape::Knob::kFull ? " units full"
                                                        : " units routed";
  point.name = shape.name() + ", " + std::to_string(knob) + what;
  const long full = by_pages                           ? std::lround(shape.full * units)
                    : shape.knob == Shape::Knob::kFull ? knob
                                                       : 0;
  const long upper = by_pages                           ? std::lround(shape.upper * units)
                     : shape.knob == Shape::Knob::kFull ? units
                                                        : knob;
  const auto pages = [&](UnitBudget& budget, long per_mille) {
    if (per_mille >= 1000) return;  // everything
    budget.kind = ReadKind::kPages;
    budget.pages_per_mille = static_cast<uint16_t>(per_mille);
    budget.least = least_pages(static_cast<int>(per_mille),
                               shape.steady * ranking.context / backend::kPageTokens);
  };
  const bool chooses = shape.lower == ReadKind::kPages;
  for (int place = 0; place < units; ++place) {
    UnitBudget& budget = point.budgets[(shape.by_place ? ranking.by_place : ranking.units)[place]];
    if (place < full) continue;
    const bool is_upper = place < upper;
    if (by_pages && (is_upper || chooses)) {
      pages(budget,
            is_upper && chooses ? std::lround(static_cast<double>(knob) * shape.ratio) : knob);
    } else {
      budget.kind = shape.lower;
    }
    if (is_upper && shape.routed > 0 && budget.kind != ReadKind::kFull) {
      budget.fallback = budget.kind;
      budget.kind = ReadKind::kRouted;
    }
  }
  // Where no unit is left to be routed there is nothing to choose.
  if (std::none_of(point.budgets.begin(), point.budgets.end(),
                   [](const UnitBudget& budget) { return budget.kind == ReadKind::kRouted; }))
    point.limits.routed = 0;
  return point;
}

std::vector<Shape> first_shapes(const Ranking& ranking, bool routers) {
  using Knob = Shape::Knob;
  const int kv_heads = ranking.kv_heads, context = ranking.context;
  Shape steady{Knob::kPages, 0, 1, 1};  // equal, where few pages are all the same that many
  steady.steady = 0.5;
  const bool long_window = 32 * backend::kPageTokens * 2 <= context;
  std::vector<Shape> shapes = {
      {Knob::kPages, 0, 0.25, 3},   // a quarter
      {Knob::kPages, 0, 0.5, 2.4},  // unequal halves
      {Knob::kPages, 0, 1, 1},      // equal
      steady,
      {Knob::kFull, 0, 0, 1, ReadKind::kWindow, 8},        // static
      {Knob::kPages, 0.1, 0.1, 1},                         // the best tenth in full
      {Knob::kPages, 0, 0.5, 1, ReadKind::kWindow, 8},     // pages above windows
      {Knob::kPages, 0.25, 0.6, 1, ReadKind::kWindow, 8},  // full, pages, windows
  };
  if (!ranking.deal.options.empty()) {
    Shape dealt;
    dealt.knob = Knob::kDealt;
    shapes.insert(shapes.begin(), dealt);
  }
  // A tenth in full and pages to the half above windows: wins by either order where retrieval
  // counts for little, so it comes early.
  Shape tenth{Knob::kPages, 0.1, 0.5, 1, ReadKind::kWindow, 8};
  shapes.insert(shapes.begin() + 1, tenth);
  if (!ranking.by_place.empty()) {
    tenth.by_place = true;
    shapes.insert(shapes.begin() + 1, tenth);
  }
  if (32 * backend::kPageTokens <= context)
    shapes.push_back({Knob::kFull, 0, 0, 1, ReadKind::kWindow, 16});
  if (long_window) shapes.push_back({Knob::kFull, 0, 0, 1, ReadKind::kWindow, 32});
  if (routers && kv_heads > 1) {
    const int some = std::max(1, kv_heads / 4);
    shapes.push_back({Knob::kRouted, 0, 0, 1, ReadKind::kNone, 4, std::max(1, kv_heads / 2)});
    shapes.push_back({Knob::kRouted, 0, 0, 1, ReadKind::kWindow, 8, std::max(1, kv_heads / 2)});
    shapes.push_back({Knob::kFull, 0, 0, 1, ReadKind::kWindow, 8, some});
    shapes.push_back({Knob::kPages, 0, 1, 1, ReadKind::kPages, 4, some});
  }
  return shapes;
}

std::vector<Shape> neighbours(const Shape& shape, const Ranking& ranking) {
  std::vector<Shape> near;
  if (shape.knob == Shape::Knob::kDealt) return near;
  const auto add = [&](auto change) {
    Shape other = shape;
    change(other);
    if (other.recent * backend::kPageTokens * 2 > ranking.context) return;
    if (other.routed >= ranking.kv_heads) return;
    if (other.name() != shape.name()) near.push_back(other);
  };
  if (shape.knob == Shape::Knob::kPages) {
    if (shape.lower == ReadKind::kPages && shape.upper < 1) {
      add([](Shape& s) { s.ratio *= 1.5; });
      add([](Shape& s) { s.ratio = std::max(1.0, s.ratio / 1.5); });
    }
    if (shape.upper < 1) {
      add([](Shape& s) { s.upper = std::min(0.9, s.upper * 1.4); });
      add([](Shape& s) { s.upper = std::max(s.full, s.upper / 1.4); });
    }
    add([](Shape& s) {
      s.full = s.full > 0 ? s.full / 2 : 0.05;
      s.upper = std::max(s.full, s.upper);
    });
    if (shape.lower != ReadKind::kPages) add([](Shape& s) { s.recent *= 2; });
    if (shape.steady > 0) add([](Shape& s) { s.steady = s.steady < 1 ? 1 : 0.5; });
  } else {
    add([](Shape& s) { s.recent *= 2; });
    add([](Shape& s) { s.recent = std::max(1, s.recent / 2); });
  }
  if (shape.routed > 0) add([](Shape& s) { ++s.routed; });
  if (shape.routed > 1) add([](Shape& s) { --s.routed; });
  return near;
}

double expected_density(const OperatingPoint& point, int prompt, int context, double index_share,
                        int kv_heads) {
  // Units of one budget read the same, so each kind of them is looked at once.
  std::map<std::tuple<ReadKind, int, int, bool>, double> kinds;  // budget without routing -> units
  const auto add = [&](ReadKind kind, const UnitBudget& budget, double units) {
    const bool pages = kind == ReadKind::kPages;
    if (units > 0)
      kinds[{kind, pages ? budget.pages_per_mille : 0, pages ? budget.least : 0,
             budget.summaries}] += units;
  };
  for (size_t layer = 0; layer * kv_heads < point.budgets.size(); ++layer) {
    const UnitBudget* budgets = point.budgets.data() + layer * kv_heads;
    const auto routed = static_cast<double>(
        std::count_if(budgets, budgets + kv_heads,
                      [](const UnitBudget& budget) { return budget.kind == ReadKind::kRouted; }));
    const double chosen = routed > 0 ? std::min(1.0, point.limits.routed / routed) : 0;
    for (int head = 0; head < kv_heads; ++head) {
      const UnitBudget& budget = budgets[head];
      const bool is_routed = budget.kind == ReadKind::kRouted;
      if (is_routed) add(ReadKind::kFull, {}, chosen);
      add(is_routed ? budget.fallback : budget.kind, budget, is_routed ? 1 - chosen : 1);
    }
  }
  double read = 0, dense = 0;
  for (int position = prompt; position < context; position += backend::kPageTokens) {
    for (const auto& [kind, units] : kinds) {
      const UnitBudget budget{std::get<0>(kind), ReadKind::kWindow,
                              static_cast<uint16_t>(std::get<1>(kind)),
                              static_cast<uint16_t>(std::get<2>(kind)), std::get<3>(kind)};
      read += units * pages_read(budget, point.limits, position, index_share);
    }
    const int pages = position / backend::kPageTokens + 1;
    dense += static_cast<double>(point.budgets.size()) * pages;
  }
  return read / dense;
}

}  // namespace polar::study
