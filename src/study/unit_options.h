#pragma once
// What single units may read, and what each choice would cost: the table from which calibration
// deals bytes out unit by unit (candidates.h).

#include <functional>
#include <span>
#include <vector>

#include "study/candidates.h"
#include "study/importance.h"

namespace polar::study {

/// What a unit's loss is measured with when it is left out alone, before the other options are
/// scaled from it: its newest page, and the summaries of the others.
inline constexpr int kDealtRecent = 1;
Policy dealt_fallback();

/// The options of a deal: everything, a window, and ever more chosen pages, each with and without
/// summaries of the rest; and what each reads in decode steps from `prompt` to `context` tokens.
/// `index_share` as in expected_density. There are no losses yet.
Deal unit_options(int prompt, int context, double index_share);

struct OptionErrorOptions {
  DType kv_dtype = DType::kF16;
  backend::PageScore page_score = backend::PageScore::kCodes;
  std::function<void(int done, int passages)> progress;
};

/// |option - full|^2: how far each unit's output, [group * head_dim] values, moves from the full
/// one under each option of a deal, mean over the scored rows of passages, [option][layers *
/// kv_heads]. The states are those of a dense run: one pass, whatever the number of options.
Result<std::vector<std::vector<double>>> option_errors(backend::Device& device,
                                                       const model::Weights& weights,
                                                       std::span<const Passage> passages,
                                                       const Deal& deal,
                                                       const OptionErrorOptions& options);

/// Adds to a deal's losses: what each unit loses on the fallback, `left_out` [unit], as a share of
/// what all of them lose, times how much farther or nearer than there an option keeps its output.
void add_losses(Deal& deal, const std::vector<std::vector<double>>& errors,
                std::span<const double> left_out);

}  // namespace polar::study
