#pragma once
// What each unit (layer, KV head) is worth: what the model's answers lose when that unit alone
// falls back.

#include <functional>
#include <span>
#include <vector>

#include "model/decoder.h"
#include "study/policy.h"

namespace polar::study {

/// One sequence of tokens to measure on: the first `prompt` tokens are prefilled dense, the others
/// run as decode steps.
struct Passage {
  std::vector<int32_t> tokens;
  int prompt = 0;
  /// Rows whose next-token distribution counts, ascending; all are at least `prompt`.
  std::vector<int32_t> scored_rows;
};

/// A window whose rows from `prompt` on count, every `stride`-th of them.
Passage make_passage(std::span<const int32_t> window, int prompt, int stride);

struct ImportanceOptions {
  /// sink, recent, fallback, pages and page_score say what a unit falls back to.
  Policy fallback;
  DType kv_dtype = DType::kF16;
  std::function<void(int done, int units)> progress;
};

/// Leave-one-out KL: mean over the scored rows of KL(dense || unit on its fallback), nats, [layers
/// * kv_heads]. The prompt runs once. Each unit's run starts at its layer, from the stored dense
/// state of the rows behind the prompt, so that it costs (layers - layer) / layers of a pass over
/// them.
Result<std::vector<double>> leave_one_out(backend::Device& device, const model::Weights& weights,
                                          std::span<const Passage> passages,
                                          const ImportanceOptions& options);

}  // namespace polar::study
