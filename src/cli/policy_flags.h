#pragma once

#include "cli/command.h"
#include "model/model_file.h"
#include "sparsity/profile.h"
#include "study/policy.h"

namespace polar::cli {

/// --policy and what goes with it, as `polar eval` and `polar bench` take it.
struct PolicyFlags {
  std::string policy = "dense";
  std::string rank_by = "contribution";
  std::string fallback = "window";
  std::string scope;  // default: the model for static, else a layer
  std::string page_score = "mean";
  std::string dense_layers;
  std::string neurons;  // default: what the profile's point says
  study::Policy values;
};
void add_policy_flags(CLI::App& command, PolicyFlags& flags);

/// The policy that the flags name, checked.
Result<study::Policy> read_policy(const PolicyFlags& flags);

/// What a measurement compares with dense: a point of a profile, or a policy.
struct Sparse {
  std::string name;                         // "dense", "1%", "window"
  std::unique_ptr<model::Planner> planner;  // null: dense
};

/// `flags` names a profile's point, or `policy` says what is read; a profile beside --policy static
/// ranks the units. `file` may be null (shapes without weights); else it must outlive the planner.
/// Errors: as read_profile, check_profile and make_planner.
Result<Sparse> make_sparse(const ModelFlags& flags, study::Policy policy, backend::Device& device,
                           const model::ModelConfig& config, const model::ModelFile* file);

/// Lets the planner choose neurons as the policy says, beside what it plans. Errors: as
/// study::make_neurons.
Status add_neurons(Sparse& sparse, const study::Policy& policy, backend::Device& device,
                   const model::ModelConfig& config);

}  // namespace polar::cli
