#pragma once
// Trains routers from what the model itself computes on a text: linear head routers by logistic
// regression. MLP routers are copies of the model's own weights: measured, not trained.

#include <functional>
#include <memory>

#include "sparsity/routers.h"
#include "study/evaluate.h"
#include "study/policy.h"

namespace polar::study {

/// Windows that training needs at least: an eighth of them is held out.
inline constexpr int kRouterWindows = 8;

struct RouterOptions {
  double density = 0.5;  // share of a layer's heads that a token's label calls positive
  double recall = 0.99;  // of the true union, that the numbers of neurons are measured for
  int epochs = 12;       // of the head routers
  int rounds = 2;  // the first trains on dense states, each later one on those of its sparse run
  /// What calls a head positive, and what the others read: the paper's label by default.
  RankBy rank_by = RankBy::kNorm;
  Fallback fallback = Fallback::kNone;
  int sink = 1, recent = 4;             // pages of Fallback::kWindow
  std::vector<int> dense_layers = {0};  // read in full in sparse runs
  int rows_per_step = 256;
  DType kv_dtype = DType::kF16;
  uint64_t seed = 1;
  std::function<void(const std::string& stage, int done, int of)> progress;
};

struct TrainedRouters {
  sparsity::Routers routers;
  /// Mean over layers and held-out batches, one of each Routers::batches: neurons truly active in
  /// some row, and computed for the recall; shares of ffn.
  std::vector<double> union_share, computed_share;
};

/// Trains on all windows but the last eighth, which measures how many neurons hold the recall. The
/// result of the same seed is the same. Models that are not plain ReLU, or whose hidden size is no
/// multiple of 32, get head routers alone. Errors: fewer than 8 windows, no memory.
Result<TrainedRouters> train_routers(backend::Device& device, const model::ModelFile& file,
                                     const model::Weights& weights, const Windows& windows,
                                     const RouterOptions& options);

/// Logistic regression, one output per head, by AdamW on shuffled minibatches. `x` [rows][hidden];
/// `positive` [rows][heads], 0 or 1.
sparsity::HeadRouter fit_head_router(const std::vector<float>& x,
                                     const std::vector<uint8_t>& positive, int hidden, int heads,
                                     int epochs, uint64_t seed);

}  // namespace polar::study
