#include "study/policy.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "model/profile_planner.h"
#include "study/host_planner.h"

namespace polar::study {

bool Policy::is_dense(int layer) const {
  return std::find(dense_layers.begin(), dense_layers.end(), layer) != dense_layers.end();
}

const char* policy_name(PolicyKind kind) {
  switch (kind) {
    case PolicyKind::kDense:
      return "dense";
    case PolicyKind::kWindow:
      return "window";
    case PolicyKind::kPages:
      return "pages";
    case PolicyKind::kStatic:
      return "static";
    case PolicyKind::kRandom:
      return "random";
    case PolicyKind::kOracle:
      return "oracle";
    case PolicyKind::kRouted:
      return "routed";
  }
  return "unknown";
}

namespace {

/// Per mille of a unit's pages.
uint16_t fallback_pages(const Policy& policy) {
  return static_cast<uint16_t>(std::lround(policy.pages * 1000));
}

/// Dense, and a point in which the units of `full` read everything, the others their fallback.
sparsity::Profile two_points(const Policy& policy, const model::ModelConfig& config,
                             const std::vector<int>& full) {
  sparsity::Profile profile = sparsity::dense_profile(config.layers, config.kv_heads);
  profile.page_score = policy.page_score;
  sparsity::OperatingPoint point = profile.points[0];
  point.name = policy_name(policy.kind);
  point.limits = point_limits(policy);
  point.limits.routed = policy.kept(config.kv_heads);
  backend::UnitBudget budget = fallback_budget(policy);
  if (policy.kind == PolicyKind::kRouted)
    budget.fallback = std::exchange(budget.kind, backend::ReadKind::kRouted);
  for (size_t unit = 0; unit < point.budgets.size(); ++unit) {
    if (!policy.is_dense(static_cast<int>(unit) / config.kv_heads)) point.budgets[unit] = budget;
  }
  for (const int unit : full) point.budgets[unit] = {};
  profile.points.push_back(std::move(point));
  if (policy.kind == PolicyKind::kRouted) profile.routers = policy.routers;
  return profile;
}

/// The best units that the density affords, of the layers that are not dense anyhow.
std::vector<int> full_units(const Policy& policy, const model::ModelConfig& config,
                            const std::vector<int>& ranked) {
  int sparse_layers = 0;
  for (int layer = 0; layer < config.layers; ++layer) sparse_layers += !policy.is_dense(layer);
  const bool by_layer = policy.scope == Scope::kLayer;
  std::vector<int> left(config.layers, policy.kept(config.kv_heads));
  int left_in_all = static_cast<int>(std::lround(policy.density * sparse_layers * config.kv_heads));
  std::vector<int> full;
  for (const int unit : ranked) {
    const int layer = unit / config.kv_heads;
    int& budget = by_layer ? left[layer] : left_in_all;
    if (policy.is_dense(layer) || budget == 0) continue;
    full.push_back(unit);
    --budget;
  }
  return full;
}

Status validate(const Policy& policy, const model::ModelConfig& config) {
  for (const int layer : policy.dense_layers) {
    if (layer >= config.layers) {
      return bad_input("command line", "--dense-layers", std::to_string(layer),
                       "layers below " + std::to_string(config.layers));
    }
  }
  const auto check_share = [](const char* flag, double share) -> Status {
    if (share > 0 && share <= 1) return {};
    return bad_input("command line", flag, std::to_string(share), "a share in (0, 1]");
  };
  POLAR_RETURN_IF_ERROR(check_share("--density", policy.density));
  POLAR_RETURN_IF_ERROR(check_share("--pages", policy.pages));
  const bool chooses = policy.kind == PolicyKind::kPages || policy.fallback == Fallback::kPages;
  if (chooses && fallback_pages(policy) == 0)
    return bad_input("command line", "--pages", std::to_string(policy.pages),
                     "at least 0.001 where units choose pages");
  if (policy.kind == PolicyKind::kRouted && policy.kept(config.kv_heads) == 0)
    return bad_input("command line", "--density", std::to_string(policy.density),
                     "at least one of " + std::to_string(config.kv_heads) + " heads to choose");
  return {};
}

}  // namespace

backend::UnitBudget fallback_budget(const Policy& policy) {
  backend::UnitBudget budget;
  budget.kind = policy.fallback == Fallback::kNone     ? backend::ReadKind::kNone
                : policy.fallback == Fallback::kWindow ? backend::ReadKind::kWindow
                                                       : backend::ReadKind::kPages;
  budget.pages_per_mille = fallback_pages(policy);
  budget.summaries = policy.summaries && policy.fallback != Fallback::kNone;
  return budget;
}

backend::PointLimits point_limits(const Policy& policy) {
  return {policy.sink, policy.recent, 0};
}

Result<std::unique_ptr<model::Planner>> point_planner(
    backend::Device& device, const sparsity::Profile& profile, int point,
    const std::shared_ptr<const model::MlpCost>& cost) {
  sparsity::Profile one = profile;
  one.points = {profile.points[point]};
  POLAR_ASSIGN(auto planner, model::ProfilePlanner::create(device, one, cost));
  return std::unique_ptr<model::Planner>(std::move(planner));
}

Result<std::unique_ptr<model::Planner>> make_planner(const Policy& policy, backend::Device& device,
                                                     const model::ModelConfig& config,
                                                     const std::vector<int>& ranked) {
  POLAR_RETURN_IF_ERROR(validate(policy, config));
  switch (policy.kind) {
    case PolicyKind::kDense:
      return std::unique_ptr<model::Planner>(new model::DensePlanner);
    case PolicyKind::kWindow: {
      Policy all = policy;
      all.fallback = Fallback::kWindow;
      return point_planner(device, two_points(all, config, {}), 1);
    }
    case PolicyKind::kPages: {
      Policy all = policy;
      all.fallback = Fallback::kPages;
      return point_planner(device, two_points(all, config, {}), 1);
    }
    case PolicyKind::kStatic:
      if (ranked.empty()) {
        return bad_input("command line", "--policy static", "no ranking of the units",
                         "--profile with a profile that polar calibrate wrote for this model");
      }
      return point_planner(device, two_points(policy, config, full_units(policy, config, ranked)),
                           1);
    case PolicyKind::kRandom:
      if (policy.fallback == Fallback::kPages) break;
      return std::unique_ptr<model::Planner>(new RandomPlanner(policy));
    case PolicyKind::kRouted:
      if (policy.routers == nullptr || !policy.routers->routes_heads()) {
        return bad_input("command line", "--policy routed", "no head routers",
                         "--profile with a folder that polar calibrate --routers wrote");
      }
      return point_planner(device, two_points(policy, config, {}), 1);
    case PolicyKind::kOracle:
      break;
  }
  return bad_input("command line", "--policy", policy_name(policy.kind),
                   "one that needs no weights, or another --fallback");
}

Result<std::unique_ptr<model::NeuronPlanner>> make_neurons(const Policy& policy,
                                                           backend::Device& device,
                                                           const model::ModelConfig& config) {
  if (policy.neurons == NeuronChoice::kByPoint || policy.neurons == NeuronChoice::kOff)
    return std::unique_ptr<model::NeuronPlanner>();
  POLAR_RETURN_IF_ERROR(model::check_chooses_neurons(config, "command line"));
  if (policy.neurons == NeuronChoice::kOracle)
    return std::unique_ptr<model::NeuronPlanner>(new OracleNeurons);
  if (policy.routers == nullptr || !policy.routers->routes_neurons()) {
    return bad_input("command line", "--neurons routed", "no MLP routers",
                     "--profile with a folder that polar calibrate --routers wrote");
  }
  const double most = policy.routers->recalls.back();
  if (policy.recall > most + 1e-6) {  // recalls are stored as f32
    return bad_input("command line", "--recall", std::to_string(policy.recall),
                     "at most " + std::to_string(most) + ", what the profile's routers hold");
  }
  POLAR_ASSIGN(auto routed, model::RoutedNeurons::create(device, policy.routers, {policy.recall},
                                                         policy.mlp_cost));
  return std::unique_ptr<model::NeuronPlanner>(std::move(routed));
}

Result<std::unique_ptr<model::Planner>> make_planner(const Policy& policy, backend::Device& device,
                                                     const model::ModelFile& file,
                                                     const std::vector<int>& ranked) {
  if (policy.kind != PolicyKind::kOracle)
    return make_planner(policy, device, file.config(), ranked);
  if (policy.fallback == Fallback::kPages) {
    return bad_input("command line", "--fallback", "pages", "none or window with --policy oracle");
  }
  POLAR_RETURN_IF_ERROR(validate(policy, file.config()));
  std::vector<std::vector<float>> gram;
  if (policy.rank_by == RankBy::kContribution) gram = output_gram_matrices(file);
  return std::unique_ptr<model::Planner>(new OraclePlanner(policy, std::move(gram)));
}

}  // namespace polar::study
