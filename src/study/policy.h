#pragma once
// What the planned rows of an evaluation read, where no profile says it: controls, oracles, and the
// paper's policy.

#include <memory>
#include <string>
#include <vector>

#include "model/decoder.h"

namespace polar::study {

enum class PolicyKind { kDense, kWindow, kRandom, kOracle };
enum class RankBy { kNorm, kContribution };
enum class Fallback { kNone, kWindow };

/// See CONTRACT.md, `polar eval`. Units are KV heads.
struct Policy {
  PolicyKind kind = PolicyKind::kDense;
  double density =
      1.0;  // share of a layer's units that are read in full: floor(density * units) of them
  RankBy rank_by = RankBy::kContribution;
  Fallback fallback = Fallback::kWindow;
  int sink = 1;    // pages
  int recent = 4;  // pages; the page being filled comes on top
  std::vector<int> dense_layers;
  uint64_t seed = 1;

  bool is_dense(int layer) const;
  /// Units of a layer that are read in full.
  int kept(int units) const { return static_cast<int>(density * units + 1e-9); }
};

const char* policy_name(PolicyKind kind);

/// The planner of a policy. `file` must outlive it (the oracle by contribution reads the output
/// projections). Errors: a dense layer that the model does not have, density outside (0, 1].
Result<std::unique_ptr<model::Planner>> make_planner(const Policy& policy, backend::Device& device,
                                                     const model::ModelFile& file);

/// The same for policies that need no weights (dense, window, random), for benchmarks of shapes.
Result<std::unique_ptr<model::Planner>> make_planner(const Policy& policy, backend::Device& device,
                                                     const model::ModelConfig& config);

}  // namespace polar::study
