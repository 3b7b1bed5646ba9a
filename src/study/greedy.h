#pragma once
// How long the answers stay the same: greedy continuations of a text's windows, dense and sparse.

#include <vector>

#include "study/evaluate.h"

namespace polar::study {

struct GreedyResult {
  int tokens = 0;  // length of a continuation
  /// Per window: tokens that the sparse continuation shares with the dense one before the first
  /// that differs (`tokens`: none does). The first token is always shared: the dense prompt
  /// predicts it.
  std::vector<int> same;

  double mean() const;
  /// Continuations that never differ.
  int whole() const;
};

/// Continues each window's first `options.prompt` tokens greedily by `tokens` tokens, up to
/// `options.batch` windows in lock-step. The prompt is prefilled dense; behind it the sparse
/// side's rows run as decode steps with `planner`. Once a continuation has differed, its later
/// tokens are the dense ones: only the first difference counts. Needs a prompt.
Result<GreedyResult> continue_greedily(backend::Device& device, const model::Weights& weights,
                                       const Windows& windows, model::Planner& planner, int tokens,
                                       const EvaluateOptions& options);

}  // namespace polar::study
