#pragma once

#include "cli/command.h"
#include "study/policy.h"

namespace polar::cli {

/// --policy and what goes with it, as `polar eval` and `polar bench` take it.
struct PolicyFlags {
  std::string policy = "dense";
  std::string rank_by = "contribution";
  std::string fallback = "window";
  std::string scope = "layer";
  std::string dense_layers;
  study::Policy values;
};
void add_policy_flags(CLI::App& command, PolicyFlags& flags);

/// The policy that the flags name, checked.
Result<study::Policy> read_policy(const PolicyFlags& flags);

}  // namespace polar::cli
