// Which settings of which policies make the curve of quality against bytes.

#include "study/calibrate.h"

namespace polar::study {

namespace {

/// Up to `most` counts from 1 to `units` - 1, evenly.
std::vector<int> counts_below(int units, int most) {
  std::vector<int> counts;
  const int steps = std::min(most, units - 1);
  for (int i = 1; i <= steps; ++i) counts.push_back((i * (units - 1) + steps - 1) / steps);
  return counts;
}

/// One line of the curve: a policy with 1 to `units` - 1 of `units` read in full.
void add_heads(std::vector<CurveSetting>& curve, const std::string& name, Policy policy, int units,
               const char* of, int most) {
  for (const int full : counts_below(units, most)) {
    policy.density = static_cast<double>(full) / units;
    curve.push_back({name, std::to_string(full) + " of " + std::to_string(units) + of, policy});
  }
}

}  // namespace

std::vector<CurveSetting> curve_settings(const model::ModelConfig& config,
                                         std::shared_ptr<const sparsity::Routers> routers,
                                         uint64_t seed, int settings) {
  std::vector<CurveSetting> curve;
  const int heads = config.kv_heads;
  Policy paper;
  paper.seed = seed;
  paper.fallback = Fallback::kNone;
  paper.rank_by = RankBy::kNorm;
  paper.dense_layers = {0};
  if (routers != nullptr && routers->routes_heads()) {
    paper.kind = PolicyKind::kRouted;
    paper.routers = std::move(routers);
    add_heads(curve, "routed, else nothing (the paper)", paper, heads, " heads", settings);
  }
  paper.kind = PolicyKind::kOracle;
  add_heads(curve, "oracle by norm, else nothing", paper, heads, " heads", settings);

  Policy window;
  window.seed = seed;
  window.kind = PolicyKind::kOracle;
  add_heads(curve, "oracle, else window", window, heads, " heads", settings);
  window.kind = PolicyKind::kRandom;
  add_heads(curve, "random, else window", window, heads, " heads", settings);
  window.kind = PolicyKind::kStatic;
  window.scope = Scope::kModel;
  window.recent = 8;
  add_heads(curve, "static, else window", window, config.layers * heads, " units", settings);
  window.kind = PolicyKind::kWindow;
  curve.push_back({"static, else window", "no unit", window});

  Policy pages;
  pages.seed = seed;
  pages.kind = PolicyKind::kPages;
  for (int i = 1; i <= settings; ++i) {
    const int percent = 80 * i / settings;
    pages.pages = percent / 100.0;
    curve.push_back({"pages", std::to_string(percent) + " % of the pages", pages});
  }
  return curve;
}

}  // namespace polar::study
