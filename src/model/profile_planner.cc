#include "model/profile_planner.h"

#include <algorithm>

#include "model/routed_neurons.h"

namespace polar::model {

Result<std::unique_ptr<ProfilePlanner>> ProfilePlanner::create(
    backend::Device& device, const sparsity::Profile& profile,
    const std::shared_ptr<const MlpCost>& cost) {
  if (profile.page_score == backend::PageScore::kMass && !device.info().is_cpu) {
    return bad_input("profile", "page_score", backend::page_score_name(profile.page_score),
                     "mean or codes on " + device.info().name);
  }
  std::unique_ptr<ProfilePlanner> planner(new ProfilePlanner);
  planner->points_ = static_cast<int>(profile.points.size());
  planner->kv_heads_ = profile.kv_heads;
  planner->page_score_ = profile.page_score;
  planner->uses_summaries_ = profile.uses_summaries();
  for (int layer = 0; layer < profile.layers; ++layer)
    planner->layer_selects_.push_back(profile.selects_pages(layer));
  std::vector<backend::UnitBudget> budgets;
  std::vector<backend::PointLimits> limits;
  for (int layer = 0; layer < profile.layers; ++layer) {
    for (const auto& point : profile.points) {
      const auto begin = point.budgets.begin() + static_cast<ptrdiff_t>(layer) * profile.kv_heads;
      budgets.insert(budgets.end(), begin, begin + profile.kv_heads);
    }
  }
  for (const auto& point : profile.points) limits.push_back(point.limits);
  const size_t budget_bytes = budgets.size() * sizeof(budgets[0]);
  const size_t limit_bytes = limits.size() * sizeof(limits[0]);
  POLAR_ASSIGN(planner->budgets_, device.allocate(budget_bytes, "a profile"));
  POLAR_ASSIGN(planner->limits_, device.allocate(limit_bytes, "a profile"));
  device.upload(planner->budgets_.data(), budgets.data(), budget_bytes);
  device.upload(planner->limits_.data(), limits.data(), limit_bytes);
  planner->routers_ = profile.routers;
  if (planner->routers_ != nullptr)
    POLAR_RETURN_IF_ERROR(planner->prepare_routers(device, profile));
  if (!profile.routes_neurons()) return planner;
  std::vector<double> recalls;
  for (const auto& point : profile.points) recalls.push_back(point.recall);
  POLAR_ASSIGN(auto neurons,
               RoutedNeurons::create(device, profile.routers, std::move(recalls), cost));
  planner->set_neurons(std::move(neurons));
  return planner;
}

bool ProfilePlanner::selects_pages() const {
  return std::find(layer_selects_.begin(), layer_selects_.end(), 1) != layer_selects_.end();
}

Status ProfilePlanner::prepare_routers(backend::Device& device, const sparsity::Profile& profile) {
  for (int layer = 0; layer < profile.layers; ++layer) {
    router_weights_.emplace_back();
    router_biases_.emplace_back();
    if (!profile.routes_units(layer)) continue;
    const sparsity::HeadRouter& head = routers_->heads[layer];
    if (head.weight.empty()) continue;
    auto* values = const_cast<float*>(head.weight.data());
    const Tensor view{values, DType::kF32, {routers_->kv_heads, routers_->hidden, 1, 1}, 2};
    POLAR_ASSIGN(router_weights_.back(), device.prepare({"head router", {view}, false}));
    const size_t bytes = head.bias.size() * sizeof(float);
    POLAR_ASSIGN(router_biases_.back(), device.allocate(bytes, "routers"));
    device.upload(router_biases_.back().data(), head.bias.data(), bytes);
  }
  return {};
}

void ProfilePlanner::plan(const LayerContext& context) {
  backend::PlanArgs args;
  args.batch = &context.batch;
  args.kv = context.kv;
  args.layer = context.layer;
  args.window = context.config.sliding_window[context.layer];
  args.budgets = budgets_.as<backend::UnitBudget>() +
                 static_cast<ptrdiff_t>(context.layer) * points_ * kv_heads_;
  args.limits = limits_.as<backend::PointLimits>();
  args.heads = context.config.heads;
  args.scale = context.config.attention_scale();
  if (layer_selects_[context.layer]) args.query = context.query;
  if (routers_ != nullptr && router_weights_[context.layer] != nullptr) {
    args.x = context.normed;
    args.router = router_weights_[context.layer].get();
    args.router_bias = router_biases_[context.layer].as<float>();
  }
  args.plan = context.plan;
  context.device.ops().plan(args);
}

}  // namespace polar::model
