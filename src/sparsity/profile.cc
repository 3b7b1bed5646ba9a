#include "sparsity/profile.h"

#include <algorithm>

namespace polar::sparsity {

using backend::ReadKind;
using backend::UnitBudget;

int Profile::find(const std::string& name) const {
  const auto found = std::find_if(points.begin(), points.end(),
                                  [&](const auto& point) { return point.name == name; });
  return found == points.end() ? -1 : static_cast<int>(found - points.begin());
}

const char* kind_name(ReadKind kind) {
  static constexpr const char* kNames[] = {"none", "window", "pages", "full", "routed"};
  return kNames[static_cast<int>(kind)];
}

Result<int> find_point(const Profile& profile, const std::string& directory,
                       const std::string& name) {
  if (name.empty()) return profile.points.size() > 1 ? 1 : 0;
  if (const int point = profile.find(name); point >= 0) return point;
  std::string names;
  for (const auto& point : profile.points) names += (names.empty() ? "" : ", ") + point.name;
  return bad_input(directory, "--point", "'" + name + "'", "one of " + names);
}

bool Profile::selects_pages(int layer) const {
  for (const OperatingPoint& point : points) {
    for (int unit = layer * kv_heads; unit < (layer + 1) * kv_heads; ++unit) {
      const UnitBudget& budget = point.budgets[unit];
      const ReadKind kind = budget.kind == ReadKind::kRouted ? budget.fallback : budget.kind;
      if (kind == ReadKind::kPages) return true;
    }
  }
  return false;
}

bool Profile::uses_summaries() const {
  const auto used = [](const UnitBudget& budget) { return budget.summaries; };
  return std::any_of(points.begin(), points.end(), [&](const OperatingPoint& point) {
    return std::any_of(point.budgets.begin(), point.budgets.end(), used);
  });
}

bool Profile::routes_units(int layer) const {
  const auto routed = [](const UnitBudget& budget) { return budget.kind == ReadKind::kRouted; };
  return std::any_of(points.begin(), points.end(), [&](const OperatingPoint& point) {
    const auto begin = point.budgets.begin() + static_cast<ptrdiff_t>(layer) * kv_heads;
    return std::any_of(begin, begin + kv_heads, routed);
  });
}

bool Profile::routes_units() const {
  for (int layer = 0; layer < layers; ++layer)
    if (routes_units(layer)) return true;
  return false;
}

bool Profile::routes_neurons() const {
  return std::any_of(points.begin(), points.end(), [](const auto& p) { return p.recall > 0; });
}

Result<Profile> open_profile(const std::string& directory, const ModelShape& shape,
                             const std::string& fingerprint) {
  POLAR_ASSIGN(Profile profile, read_profile(directory));
  POLAR_RETURN_IF_ERROR(
      check_profile(profile, directory, shape.layers, shape.kv_heads, fingerprint));
  if (!profile.routes_neurons() && !profile.routes_units()) return profile;
  POLAR_ASSIGN(Routers routers,
               read_routers(directory, shape.layers, shape.hidden, shape.kv_heads, shape.ffn));
  for (int layer = 0; layer < shape.layers; ++layer) {
    if (profile.routes_units(layer) && routers.heads[layer].weight.empty()) {
      return bad_input(directory, "layers." + std::to_string(layer) + ".head_router.weight",
                       "no router", "one: the profile routes units of this layer");
    }
  }
  for (const OperatingPoint& point : profile.points) {
    if (point.recall == 0) continue;
    const double most = routers.routes_neurons() ? routers.recalls.back() : 0;
    if (point.recall <= most + 1e-6) continue;  // recalls are stored as f32
    return bad_input(directory, "points." + point.name + ".recall", std::to_string(point.recall),
                     most > 0 ? "at most " + std::to_string(most) + ", what the routers hold"
                              : "none: the profile's routers choose no neurons");
  }
  profile.routers = std::make_shared<const Routers>(std::move(routers));
  return profile;
}

Profile dense_profile(int layers, int kv_heads) {
  const std::vector<UnitBudget> full(static_cast<size_t>(layers) * kv_heads);
  Profile profile;
  profile.layers = layers;
  profile.kv_heads = kv_heads;
  profile.points.push_back({"dense", {}, full, 0, {}});
  return profile;
}

Profile window_profile(int layers, int kv_heads, int sink, int recent,
                       const std::vector<int>& dense_layers) {
  Profile profile = dense_profile(layers, kv_heads);
  OperatingPoint window = profile.points[0];
  window.name = "window";
  window.limits = {sink, recent, 0};
  for (int layer = 0; layer < layers; ++layer) {
    if (std::find(dense_layers.begin(), dense_layers.end(), layer) != dense_layers.end()) continue;
    for (int unit = 0; unit < kv_heads; ++unit)
      window.budgets[layer * kv_heads + unit].kind = ReadKind::kWindow;
  }
  profile.points.push_back(std::move(window));
  return profile;
}

}  // namespace polar::sparsity
