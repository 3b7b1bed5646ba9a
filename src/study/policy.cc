#include "study/policy.h"

#include <algorithm>

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
    case PolicyKind::kRandom:
      return "random";
    case PolicyKind::kOracle:
      return "oracle";
  }
  return "unknown";
}

namespace {

/// Every planned row at the last point of a profile, whatever its own point says: an evaluation
/// looks at one policy at a time.
Result<std::unique_ptr<model::Planner>> last_point_planner(backend::Device& device,
                                                           sparsity::Profile profile) {
  profile.points.erase(profile.points.begin(), profile.points.end() - 1);
  POLAR_ASSIGN(auto planner, model::ProfilePlanner::create(device, profile));
  return std::unique_ptr<model::Planner>(std::move(planner));
}

Status validate(const Policy& policy, const model::ModelConfig& config) {
  for (const int layer : policy.dense_layers) {
    if (layer >= config.layers) {
      return bad_input("command line", "--dense-layers", std::to_string(layer),
                       "layers below " + std::to_string(config.layers));
    }
  }
  if (!(policy.density > 0 && policy.density <= 1)) {
    return bad_input("command line", "--density", std::to_string(policy.density),
                     "a share in (0, 1]");
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<model::Planner>> make_planner(const Policy& policy, backend::Device& device,
                                                     const model::ModelConfig& config) {
  POLAR_RETURN_IF_ERROR(validate(policy, config));
  switch (policy.kind) {
    case PolicyKind::kDense:
      return std::unique_ptr<model::Planner>(new model::DensePlanner);
    case PolicyKind::kWindow:
      return last_point_planner(
          device, sparsity::window_profile(config.layers, config.kv_heads, policy.sink,
                                           policy.recent, policy.dense_layers));
    case PolicyKind::kRandom:
      return std::unique_ptr<model::Planner>(new RandomPlanner(policy));
    case PolicyKind::kOracle:
      break;
  }
  return bad_input("command line", "--policy", policy_name(policy.kind),
                   "one that needs no weights");
}

Result<std::unique_ptr<model::Planner>> make_planner(const Policy& policy, backend::Device& device,
                                                     const model::ModelFile& file) {
  if (policy.kind != PolicyKind::kOracle) return make_planner(policy, device, file.config());
  POLAR_RETURN_IF_ERROR(validate(policy, file.config()));
  std::vector<std::vector<float>> gram;
  if (policy.rank_by == RankBy::kContribution) gram = output_gram_matrices(file);
  return std::unique_ptr<model::Planner>(new OraclePlanner(policy, std::move(gram)));
}

}  // namespace polar::study
