#pragma once
// What the planned rows of an evaluation read, where no profile says it: controls, oracles, and the
// paper's policy.

#include <memory>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "sparsity/profile.h"
#include "study/neurons.h"

namespace polar::study {

enum class PolicyKind { kDense, kWindow, kPages, kStatic, kRandom, kOracle, kRouted };
enum class RankBy { kNorm, kContribution };
enum class Fallback { kNone, kWindow, kPages };
enum class Scope { kLayer, kModel };

/// See CONTRACT.md, `polar eval`. Units are KV heads.
struct Policy {
  PolicyKind kind = PolicyKind::kDense;
  double density =
      1.0;  // share of a layer's units that are read in full: floor(density * units) of them
  RankBy rank_by = RankBy::kContribution;
  Fallback fallback = Fallback::kWindow;
  Scope scope = Scope::kLayer;  // kStatic: the units that share the density
  double pages = 0.25;          // Fallback::kPages, kPages: share of a unit's pages
  backend::PageScore page_score = backend::PageScore::kMean;
  int sink = 1;            // pages
  int recent = 4;          // pages; the page being filled comes on top
  bool summaries = false;  // pages that windows and choices leave out are seen by their summaries
  std::vector<int> dense_layers;
  uint64_t seed = 1;
  NeuronChoice neurons = NeuronChoice::kByPoint;
  double recall = 0.99;                              // NeuronChoice::kRouted
  std::shared_ptr<const sparsity::Routers> routers;  // kRouted, NeuronChoice::kRouted
  std::shared_ptr<const model::MlpCost>
      mlp_cost;  // NeuronChoice::kRouted: dense where it does not pay

  bool is_dense(int layer) const;
  /// Units of a layer that are read in full.
  int kept(int units) const { return static_cast<int>(density * units + 1e-9); }
};

const char* policy_name(PolicyKind kind);

/// What a unit that is not read in full reads under a policy, and within which limits.
backend::UnitBudget fallback_budget(const Policy& policy);
backend::PointLimits point_limits(const Policy& policy);

/// The planner of a policy. `file` must outlive it (the oracle by contribution reads the output
/// projections). `ranked`: units by what they are worth, for kStatic. Errors: a dense layer that
/// the model does not have, a share outside (0, 1], kStatic without a ranking.
Result<std::unique_ptr<model::Planner>> make_planner(const Policy& policy, backend::Device& device,
                                                     const model::ModelFile& file,
                                                     const std::vector<int>& ranked = {});

/// The same for policies that need no weights (all but the oracle), for benchmarks of shapes.
Result<std::unique_ptr<model::Planner>> make_planner(const Policy& policy, backend::Device& device,
                                                     const model::ModelConfig& config,
                                                     const std::vector<int>& ranked = {});

/// Every planned row at one point of a profile, whatever its own point says: a measurement looks at
/// one point at a time. `cost`: see model::ProfilePlanner.
Result<std::unique_ptr<model::Planner>> point_planner(
    backend::Device& device, const sparsity::Profile& profile, int point,
    const std::shared_ptr<const model::MlpCost>& cost = nullptr);

/// Who chooses neurons, or null when the policy names nobody. Errors: a model whose MLPs are not
/// plain ReLU, no routers, a recall beyond those that they were measured for.
Result<std::unique_ptr<model::NeuronPlanner>> make_neurons(const Policy& policy,
                                                           backend::Device& device,
                                                           const model::ModelConfig& config);

}  // namespace polar::study
