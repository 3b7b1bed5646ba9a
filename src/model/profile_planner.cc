#include "model/profile_planner.h"

namespace polar::model {

Result<std::unique_ptr<ProfilePlanner>> ProfilePlanner::create(backend::Device& device,
                                                               const sparsity::Profile& profile) {
  std::unique_ptr<ProfilePlanner> planner(new ProfilePlanner);
  planner->points_ = static_cast<int>(profile.points.size());
  planner->kv_heads_ = profile.kv_heads;
  planner->selects_pages_ = profile.selects_pages();
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
  return planner;
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
  args.plan = context.plan;
  context.device.ops().plan(args);
}

}  // namespace polar::model
