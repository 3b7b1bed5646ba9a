#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "backend/device.h"
#include "cli/open_device.h"
#include "cli/policy_flags.h"
#include "cli/table.h"
#include "study/step_timing.h"

namespace polar::cli {

namespace {

struct BenchFlags {
  ModelFlags model;
  PolicyFlags policy;
  std::string dummy;
  std::string batches = "1,8";
  std::string contexts = "512,4096";
  int steps = 64;
  bool prefill = false;
  double neuron_share = 0;  // 0: not given
  Format format = Format::kMarkdown;
};

int nodes_of(const study::StepBenchRow& row) {
  int nodes = 0;
  for (const backend::VerbCost& v : row.verbs) nodes += v.nodes;
  return nodes;
}

/// One line: where a step's time goes, and in how many nodes (where steps are recorded) or calls.
void print_verbs(const study::StepBenchRow& row) {
  if (row.verbs.empty()) return;
  fmt::print(stderr, "batch {}, context {}, {}:", row.batch, row.context, row.point);
  const int nodes = nodes_of(row);
  if (nodes > 0) fmt::print(stderr, " {} nodes;", nodes);
  for (const backend::VerbCost& v : row.verbs) {
    fmt::print(stderr, "{} {} {:.3g} ms ({})", &v == row.verbs.data() ? "" : ",", v.verb,
               v.seconds * 1e3, nodes > 0 ? v.nodes : v.calls);
  }
  fmt::print(stderr, "\n");
}

nlohmann::ordered_json row_json(const study::StepBenchRow& row, const std::string& model,
                                const std::string& device, bool sparse_run,
                                const BenchFlags& flags) {
  nlohmann::ordered_json json = {{"model", model},
                                 {"device", device},
                                 {"batch", row.batch},
                                 {"context", row.context},
                                 {"point", row.point},
                                 {"decode_step_ms", row.step_seconds * 1e3},
                                 {"decode_tokens_per_s", row.batch / row.step_seconds}};
  if (flags.prefill) json["prefill_tokens_per_s"] = row.prefill_tokens_per_second;
  json["kv_bytes"] = row.kv_bytes;
  json["weight_bytes"] = row.weight_bytes;
  json["score_bytes"] = row.score_bytes;
  json["read_gb_per_s"] = row.read_bytes() / row.step_seconds / 1e9;
  json["bandwidth_share"] = row.bandwidth_share;
  if (flags.format == Format::kJson && !row.verbs.empty()) {
    const int nodes = nodes_of(row);
    if (nodes > 0) json["nodes"] = nodes;
    for (const backend::VerbCost& v : row.verbs) {
      auto& verb = json["verbs"][v.verb] = {{"calls", v.calls}, {"ms", v.seconds * 1e3}};
      if (nodes > 0) verb["nodes"] = v.nodes;
    }
  }
  if (!sparse_run) return json;
  json["effective_density"] = row.effective_density;
  json["neuron_share"] = row.neuron_share;
  json["speedup"] = row.speedup;
  json["ideal_speedup"] = row.ideal_speedup;
  json["floor_share"] = row.floor_share;
  return json;
}

Result<model::Weights> load(const BenchFlags& flags, backend::Device& device,
                            std::unique_ptr<model::ModelFile>& file) {
  if (!flags.dummy.empty()) {
    POLAR_ASSIGN(const model::ModelConfig config, model::dummy_config(flags.dummy));
    return model::dummy_weights(device, config, DType::kBF16, flags.policy.values.seed);
  }
  POLAR_ASSIGN(auto opened, model::ModelFile::open(flags.model.model));
  file = std::make_unique<model::ModelFile>(std::move(opened));
  const auto begin = std::chrono::steady_clock::now();
  POLAR_ASSIGN(auto weights, model::load_weights(device, *file));
  device.synchronize();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  const auto bytes = static_cast<double>(file->weight_bytes());
  if (!device.info().is_cpu)  // the CPU maps them
    fmt::print(stderr, "weights: {:.2f} GB loaded in {:.2f} s ({:.2f} GB/s)\n", bytes / 1e9,
               seconds.count(), bytes / seconds.count() / 1e9);
  return weights;
}

/// Random units as data, so that the device plans them.
Result<Sparse> random_units(const study::Policy& policy, backend::Device& device,
                            const model::ModelConfig& config,
                            const study::StepBenchOptions& options) {
  const int most = *std::max_element(options.batches.begin(), options.batches.end());
  Sparse sparse{study::policy_name(policy.kind), nullptr};
  POLAR_ASSIGN(sparse.planner, study::random_units_planner(policy, device, config, most));
  POLAR_RETURN_IF_ERROR(add_neurons(sparse, policy, device, config));
  return sparse;
}

/// What choosing neurons costs on this machine, and says so: where it pays, routed neurons are
/// used.
Result<std::shared_ptr<const model::MlpCost>> measure_mlps(backend::Device& device,
                                                           const model::Weights& weights) {
  POLAR_ASSIGN(model::MlpCost cost, model::MlpCost::measure(device, weights));
  for (const auto& sample : cost.samples()) {
    const double most = (sample.dense_seconds - sample.fixed_seconds) / sample.seconds_per_neuron;
    fmt::print(stderr,
               "an MLP at batch {}: {:.3f} ms dense, {:.3f} ms + {:.4f} us per chosen neuron; "
               "without its router choosing pays below {:.0f} % of the neurons\n",
               sample.rows, sample.dense_seconds * 1e3, sample.fixed_seconds * 1e3,
               sample.seconds_per_neuron * 1e6,
               std::clamp(most / weights.config.ffn, 0.0, 1.0) * 100);
  }
  return std::make_shared<const model::MlpCost>(std::move(cost));
}

Result<int> bench(const BenchFlags& flags) {
  if (flags.model.model.empty() == flags.dummy.empty()) {
    return bad_input("command line", "MODEL",
                     flags.dummy.empty() ? "nothing" : "both a model and --dummy",
                     "a model or --dummy SHAPE");
  }
  if (flags.neuron_share > 0 && flags.dummy.empty()) {
    return bad_input("command line", "--neuron-share", "a model",
                     "--dummy, or --profile with a profile whose points choose neurons");
  }
  study::StepBenchOptions options;
  POLAR_ASSIGN(options.batches, parse_list("--batch", flags.batches, 1));
  POLAR_ASSIGN(options.contexts, parse_list("--context", flags.contexts, 1));
  POLAR_ASSIGN(study::Policy policy, read_policy(flags.policy));
  options.steps = flags.steps;
  options.prefill = flags.prefill;
  POLAR_ASSIGN(auto device, open_device(flags.model));
  options.kv_dtype = kv_dtype(flags.model, *device);
  std::unique_ptr<model::ModelFile> file;
  POLAR_ASSIGN(const model::Weights weights, load(flags, *device, file));
  if (flags.neuron_share > 0) {
    policy.neurons = study::NeuronChoice::kRouted;
    policy.routers = study::random_routers(weights.config, flags.neuron_share, policy.seed);
  }
  const bool by_point = policy.neurons == study::NeuronChoice::kByPoint &&
                        !flags.model.profile.empty() && weights.config.plain_relu();
  if (by_point || policy.neurons == study::NeuronChoice::kRouted) {
    POLAR_ASSIGN(policy.mlp_cost, measure_mlps(*device, weights));
  }
  POLAR_ASSIGN(const Sparse sparse,
               policy.kind == study::PolicyKind::kRandom
                   ? random_units(policy, *device, weights.config, options)
                   : make_sparse(flags.model, policy, *device, weights.config, file.get()));
  POLAR_ASSIGN(const study::StepBenchResult result,
               study::bench_steps(*device, weights, sparse.name, sparse.planner.get(), options));

  Rows rows;
  for (const study::StepBenchRow& row : result.rows) {
    rows.push_back(
        row_json(row, weights.config.name, device->info().name, sparse.planner != nullptr, flags));
    print_verbs(row);
  }
  fmt::print("{}", print_rows(rows, flags.format));
  fmt::print(stderr, "read bandwidth of this machine, measured in this run: {:.1f} GB/s\n",
             result.read_bandwidth / 1e9);
  if (!flags.dummy.empty())
    fmt::print(stderr, "dummy weights: these numbers say nothing of quality\n");
  return kOk;
}

}  // namespace

void add_bench(CLI::App& app, Run& run) {
  auto* command = app.add_subcommand(
      "bench", "Time decode steps, dense and sparse side by side, beside their bytes");
  auto flags = std::make_shared<BenchFlags>();
  add_model_flags(*command, flags->model, false);
  add_policy_flags(*command, flags->policy);
  command->add_option("--dummy", flags->dummy,
                      "A shape with random weights instead of a model, e.g. llama-2-7b");
  command
      ->add_option("--neuron-share", flags->neuron_share,
                   "With --dummy: routers of random values that choose this share of the neurons")
      ->check(CLI::Range(0.001, 1.0));
  command->add_option("--batch", flags->batches, "Batch sizes")->capture_default_str();
  command->add_option("--context", flags->contexts, "KV lengths at the measured steps")
      ->capture_default_str();
  command->add_option("--decode", flags->steps, "Decode steps measured per cell")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_flag("--prefill", flags->prefill, "Measure prefill too");
  add_format_flag(*command, flags->format);
  command->callback([flags, &run] { run = [flags] { return bench(*flags); }; });
}

}  // namespace polar::cli
