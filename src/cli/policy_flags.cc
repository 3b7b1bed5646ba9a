#include "cli/policy_flags.h"

#include "study/candidates.h"

namespace polar::cli {

void add_policy_flags(CLI::App& command, PolicyFlags& flags) {
  command
      .add_option(
          "--policy", flags.policy,
          "What decode steps read: dense, window, pages (each head's best), static (the best "
          "heads in full), random, oracle, or routed (each token's heads, by the profile's "
          "routers)")
      ->check(CLI::IsMember({"dense", "window", "pages", "static", "random", "oracle", "routed"}))
      ->capture_default_str();
  command
      .add_option("--density", flags.values.density,
                  "Share of a layer's KV heads that are read in full")
      ->capture_default_str();
  command
      .add_option("--scope", flags.scope,
                  "The heads that share a budget: those of a layer (default), or of the model "
                  "(default of static)")
      ->check(CLI::IsMember({"layer", "model"}));
  command
      .add_option("--rank-by", flags.rank_by,
                  "The oracle's score: norm (of the output) or contribution (to the layer)")
      ->check(CLI::IsMember({"norm", "contribution"}))
      ->capture_default_str();
  command
      .add_option("--fallback", flags.fallback,
                  "What a head that is not read in full reads: none, window or pages")
      ->check(CLI::IsMember({"none", "window", "pages"}))
      ->capture_default_str();
  command
      .add_option("--pages", flags.values.pages,
                  "Share of its pages that a head chooses, sink and newest included")
      ->capture_default_str();
  command
      .add_option(
          "--page-score", flags.page_score,
          "How pages are scored: codes (two bits per key channel), mean (the query times the "
          "page's mean key) or mass (all keys: an oracle)")
      ->check(CLI::IsMember({"mean", "codes", "mass"}))
      ->capture_default_str();
  command.add_option("--sink", flags.values.sink, "Pages always read at the begin of the text")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command
      .add_option("--recent", flags.values.recent,
                  "Newest full pages always read (the page being filled too)")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command.add_flag("--summaries", flags.values.summaries,
                   "Pages that windows and choices leave out are seen by their summaries: a mean "
                   "key and a mean value each");
  command.add_option("--dense-layers", flags.dense_layers, "Layers always read in full, e.g. 0,1");
  command
      .add_option("--neurons", flags.neurons,
                  "Neurons of a ReLU model's MLPs that a step computes: off (all), oracle (those "
                  "that some row activates) or routed (by the profile's routers); default: what "
                  "the profile's point says")
      ->check(CLI::IsMember({"off", "oracle", "routed"}));
  command
      .add_option("--recall", flags.values.recall,
                  "Share of the truly active neurons that --neurons routed aims for")
      ->check(CLI::Range(0.5, 1.0))
      ->capture_default_str();
  command.add_option("--seed", flags.values.seed, "Seed of whatever is random")
      ->capture_default_str();
}

Result<study::Policy> read_policy(const PolicyFlags& flags) {
  study::Policy policy = flags.values;
  policy.kind = flags.policy == "window"   ? study::PolicyKind::kWindow
                : flags.policy == "pages"  ? study::PolicyKind::kPages
                : flags.policy == "static" ? study::PolicyKind::kStatic
                : flags.policy == "random" ? study::PolicyKind::kRandom
                : flags.policy == "oracle" ? study::PolicyKind::kOracle
                : flags.policy == "routed" ? study::PolicyKind::kRouted
                                           : study::PolicyKind::kDense;
  policy.neurons = flags.neurons == "oracle"   ? study::NeuronChoice::kOracle
                   : flags.neurons == "routed" ? study::NeuronChoice::kRouted
                   : flags.neurons == "off"    ? study::NeuronChoice::kOff
                                               : study::NeuronChoice::kByPoint;
  policy.page_score = flags.page_score == "mean"    ? backend::PageScore::kMean
                      : flags.page_score == "codes" ? backend::PageScore::kCodes
                                                    : backend::PageScore::kMass;
  policy.rank_by = flags.rank_by == "norm" ? study::RankBy::kNorm : study::RankBy::kContribution;
  policy.fallback = flags.fallback == "none"     ? study::Fallback::kNone
                    : flags.fallback == "window" ? study::Fallback::kWindow
                                                 : study::Fallback::kPages;
  const bool of_model = flags.scope == "model" || (flags.scope.empty() && flags.policy == "static");
  policy.scope = of_model ? study::Scope::kModel : study::Scope::kLayer;
  if (of_model && policy.kind != study::PolicyKind::kStatic) {
    return bad_input("command line", "--scope", "model", "layer, unless --policy is static");
  }
  if (!flags.dense_layers.empty()) {
    POLAR_ASSIGN(policy.dense_layers, parse_list("--dense-layers", flags.dense_layers, 0));
  }
  if (!(policy.density > 0 && policy.density <= 1)) {
    return bad_input("command line", "--density", std::to_string(policy.density),
                     "a share in (0, 1]");
  }
  return policy;
}

namespace {

/// What attention reads: null where it reads everything.
Result<Sparse> make_attention(const ModelFlags& flags, const study::Policy& policy,
                              backend::Device& device, const model::ModelConfig& config,
                              const model::ModelFile* file) {
  Sparse sparse{study::policy_name(policy.kind), nullptr};
  sparsity::Profile profile;
  if (!flags.profile.empty()) {
    POLAR_ASSIGN(profile,
                 sparsity::open_profile(flags.profile,
                                        {config.layers, config.hidden, config.kv_heads, config.ffn},
                                        file != nullptr ? file->fingerprint() : ""));
    if (policy.kind == study::PolicyKind::kDense) {
      POLAR_ASSIGN(const int point, sparsity::find_point(profile, flags.profile, flags.point));
      sparse.name = profile.points[point].name;
      if (point == 0) return sparse;
      if (policy.neurons != study::NeuronChoice::kByPoint) profile.points[point].recall = 0;
      if (file != nullptr) {
        POLAR_RETURN_IF_ERROR(model::prepare_neurons(*file, flags.profile, profile));
      }
      POLAR_ASSIGN(sparse.planner, study::point_planner(device, profile, point, policy.mlp_cost));
      return sparse;
    }
  }
  if (policy.kind == study::PolicyKind::kDense) return sparse;
  const std::vector<int> ranked =
      study::rank_units(profile.text_importance, profile.retrieval_importance);
  if (file != nullptr) {
    POLAR_ASSIGN(sparse.planner, study::make_planner(policy, device, *file, ranked));
  } else {
    POLAR_ASSIGN(sparse.planner, study::make_planner(policy, device, config, ranked));
  }
  return sparse;
}

}  // namespace

Result<Sparse> make_sparse(const ModelFlags& flags, study::Policy policy, backend::Device& device,
                           const model::ModelConfig& config, const model::ModelFile* file) {
  const bool routed =
      policy.kind == study::PolicyKind::kRouted || policy.neurons == study::NeuronChoice::kRouted;
  if (routed && !flags.profile.empty()) {
    POLAR_ASSIGN(auto routers, sparsity::read_routers(flags.profile, config.layers, config.hidden,
                                                      config.kv_heads, config.ffn));
    if (policy.neurons == study::NeuronChoice::kRouted && file != nullptr)
      model::copy_up_projections(*file, routers);
    policy.routers = std::make_shared<const sparsity::Routers>(std::move(routers));
  }
  POLAR_ASSIGN(Sparse sparse, make_attention(flags, policy, device, config, file));
  POLAR_RETURN_IF_ERROR(add_neurons(sparse, policy, device, config));
  return sparse;
}

Status add_neurons(Sparse& sparse, const study::Policy& policy, backend::Device& device,
                   const model::ModelConfig& config) {
  POLAR_ASSIGN(auto neurons, study::make_neurons(policy, device, config));
  if (neurons == nullptr) return {};
  if (sparse.planner == nullptr) sparse.planner = std::make_unique<model::DensePlanner>();
  sparse.planner->set_neurons(std::move(neurons));
  sparse.name = sparse.name == "dense" ? "neurons" : sparse.name + "+neurons";
  return {};
}

}  // namespace polar::cli
