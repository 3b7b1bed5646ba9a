#pragma once
// How many neurons a ReLU model's MLPs must compute to find those that are truly active. Its MLP
// routers are copies of the model's own weights: measured, not trained.

#include <functional>
#include <memory>

#include "sparsity/routers.h"
#include "study/evaluate.h"

namespace polar::study {

struct NeuronRecallOptions {
  /// Shares of the true union that the numbers of neurons are measured for; ascending, in (0, 1].
  std::vector<double> recalls = {0.9, 0.95, 0.98, 0.99, 0.995, 0.999};
  int rows_per_step = 256;
  DType kv_dtype = DType::kF16;
  uint64_t seed = 1;
  std::function<void(const std::string& stage, int done, int of)> progress;
};

struct NeuronRecall {
  sparsity::Routers routers;  // of neurons alone, with the copies
  /// Mean over layers and batches of the text's rows: neurons truly active in some row [batches],
  /// and computed for each recall [recalls][batches]; shares of ffn.
  std::vector<double> union_share, computed_share;
};

/// Whether neurons of a model can be routed: plain ReLU, a hidden size in whole blocks of four
/// bits.
bool has_routable_neurons(const model::ModelConfig& config);

/// Runs the windows dense and measures, on rows spread over all of them (as many as half a gigabyte
/// of states holds), the fewest neurons of each layer whose mean recall over random batches reaches
/// each of `recalls`. The same seed gives the same numbers. The model's neurons must be routable.
/// Errors: no memory.
Result<NeuronRecall> measure_neuron_recall(backend::Device& device, const model::ModelFile& file,
                                           const model::Weights& weights, const Windows& windows,
                                           const NeuronRecallOptions& options);

}  // namespace polar::study
