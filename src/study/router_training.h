#pragma once
// Trains routers from what the model itself computes on a text: linear head routers by logistic
// regression.

#include <memory>

#include "sparsity/routers.h"
#include "study/neuron_recall.h"
#include "study/policy.h"

namespace polar::study {

/// Windows that training needs at least: an eighth of them is held out.
inline constexpr int kRouterWindows = 8;

/// With what the measurement of neurons, which is part of it, is asked for.
struct RouterOptions : NeuronRecallOptions {
  double density = 0.5;  // share of a layer's heads that a token's label calls positive
  int epochs = 12;       // of the head routers
  int rounds = 2;  // the first trains on dense states, each later one on those of its sparse run
  /// What calls a head positive, and what the others read: the paper's label by default.
  RankBy rank_by = RankBy::kNorm;
  Fallback fallback = Fallback::kNone;
  int sink = 1, recent = 4;             // pages of Fallback::kWindow
  std::vector<int> dense_layers = {0};  // read in full in sparse runs
  bool neurons = true;                  // a ReLU model's neurons are measured too
};

struct TrainedRouters {
  sparsity::Routers routers;
  /// Mean over layers and held-out batches: neurons truly active in some row [batches], and
  /// computed for each recall [recalls][batches]; shares of ffn.
  std::vector<double> union_share, computed_share;
};

/// Trains on all windows; where neurons are measured too, on all but the last eighth, on which
/// measure_neuron_recall() measures. The result of the same seed is the same. Models that are not
/// plain ReLU, or whose hidden size is no multiple of 32, get head routers alone. Errors: fewer
/// than kRouterWindows windows, no memory.
Result<TrainedRouters> train_routers(backend::Device& device, const model::ModelFile& file,
                                     const model::Weights& weights, const Windows& windows,
                                     const RouterOptions& options);

/// Logistic regression, one output per head, by AdamW on shuffled minibatches. `x` [rows][hidden];
/// `positive` [rows][heads], 0 or 1.
sparsity::HeadRouter fit_head_router(const std::vector<float>& x,
                                     const std::vector<uint8_t>& positive, int hidden, int heads,
                                     int epochs, uint64_t seed);

}  // namespace polar::study
