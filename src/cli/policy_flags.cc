#include "cli/policy_flags.h"

namespace polar::cli {

void add_policy_flags(CLI::App& command, PolicyFlags& flags) {
  command
      .add_option("--policy", flags.policy,
                  "What decode steps read: dense, window, random or oracle")
      ->check(CLI::IsMember({"dense", "window", "random", "oracle"}))
      ->capture_default_str();
  command
      .add_option("--density", flags.values.density,
                  "Share of a layer's KV heads that are read in full")
      ->capture_default_str();
  command.add_option("--scope", flags.scope, "The heads that share a budget: those of a layer")
      ->check(CLI::IsMember({"layer"}))
      ->capture_default_str();
  command
      .add_option("--rank-by", flags.rank_by,
                  "The oracle's score: norm (of the output) or contribution (to the layer)")
      ->check(CLI::IsMember({"norm", "contribution"}))
      ->capture_default_str();
  command
      .add_option("--fallback", flags.fallback,
                  "What a head that is not read in full reads: none or window")
      ->check(CLI::IsMember({"none", "window"}))
      ->capture_default_str();
  command.add_option("--sink", flags.values.sink, "Pages always read at the begin of the text")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command
      .add_option("--recent", flags.values.recent,
                  "Newest full pages always read (the page being filled too)")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command.add_option("--dense-layers", flags.dense_layers, "Layers always read in full, e.g. 0,1");
  command.add_option("--seed", flags.values.seed, "Seed of whatever is random")
      ->capture_default_str();
}

Result<study::Policy> read_policy(const PolicyFlags& flags) {
  study::Policy policy = flags.values;
  policy.kind = flags.policy == "window"   ? study::PolicyKind::kWindow
                : flags.policy == "random" ? study::PolicyKind::kRandom
                : flags.policy == "oracle" ? study::PolicyKind::kOracle
                                           : study::PolicyKind::kDense;
  policy.rank_by = flags.rank_by == "norm" ? study::RankBy::kNorm : study::RankBy::kContribution;
  policy.fallback = flags.fallback == "none" ? study::Fallback::kNone : study::Fallback::kWindow;
  if (!flags.dense_layers.empty()) {
    POLAR_ASSIGN(policy.dense_layers, parse_list("--dense-layers", flags.dense_layers, 0));
  }
  if (!(policy.density > 0 && policy.density <= 1)) {
    return bad_input("command line", "--density", std::to_string(policy.density),
                     "a share in (0, 1]");
  }
  return policy;
}

}  // namespace polar::cli
