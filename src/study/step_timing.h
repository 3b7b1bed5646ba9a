#pragma once
// Times decode steps, dense and sparse side by side, beside the bytes that they read.

#include <string>
#include <vector>

#include "model/decoder.h"
#include "study/policy.h"

namespace polar::study {

struct StepBenchOptions {
  std::vector<int> batches = {1, 8};
  std::vector<int> contexts = {512, 4096};  // KV length at the measured steps
  int steps = 32;                           // measured per cell
  DType kv_dtype = DType::kF16;
  bool prefill = false;  // measure prefill too: batch x context tokens
  uint64_t seed = 1;
};

/// One measured cell. Bytes are per step.
struct StepBenchRow {
  int batch = 0;
  int context = 0;
  std::string point;  // "dense" or the policy's name
  double step_seconds = 0;
  double prefill_tokens_per_second = 0;  // 0: not measured
  double kv_bytes = 0;
  double weight_bytes = 0;
  double score_bytes = 0;
  double bandwidth_share = 0;            // of the read bandwidth measured in the same run
  std::vector<backend::VerbCost> verbs;  // empty where neurons are chosen on the host
  // Where sparse:
  double effective_density = 1;
  double neuron_share = 1;  // neurons computed; weight_bytes holds them and their routers
  double speedup = 1;
  double ideal_speedup = 1;  // by bytes
  double floor_share = 0;    // the step's own byte floor / its time

  double read_bytes() const { return kv_bytes + weight_bytes + score_bytes; }
};

struct StepBenchResult {
  double read_bandwidth = 0;  // bytes per second, measured in this run
  std::vector<StepBenchRow> rows;
};

/// Random units as data, so that the device plans them: point s of its profile is what sequence
/// s reads, drawn anew for every layer. Rounding is carried from layer to layer: the density is met
/// exactly over all of them. For bench_steps with up to `sequences` sequences.
Result<std::unique_ptr<model::Planner>> random_units_planner(const Policy& policy,
                                                             backend::Device& device,
                                                             const model::ModelConfig& config,
                                                             int sequences);

/// Routers that choose this share of the neurons, whatever the batch, by four-bit copies of random
/// values: what choosing costs, without a model.
std::shared_ptr<const sparsity::Routers> random_routers(const model::ModelConfig& config,
                                                        double share, uint64_t seed);

/// Runs the grid, dense and (unless it is null) with `sparse`, which plans on the device. The cache
/// holds seeded random keys and values over shuffled pages. Dense and sparse steps of a cell
/// alternate, so that drift of the machine hits both; times are medians.
Result<StepBenchResult> bench_steps(backend::Device& device, const model::Weights& weights,
                                    const std::string& name, model::Planner* sparse,
                                    const StepBenchOptions& options);

}  // namespace polar::study
