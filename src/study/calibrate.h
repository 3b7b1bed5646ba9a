#pragma once
// From a model, a text and a quality budget to a profile (docs/sparsity.md): measure what each unit
// is worth, try assignments from cheap to dear, and keep the one that reads the fewest bytes while
// its measured loss stays inside the budget.

#include <functional>
#include <string>
#include <vector>

#include "sparsity/profile.h"
#include "study/evaluate.h"
#include "study/needle.h"
#include "study/policy.h"
#include "study/solver.h"

namespace polar::study {

/// One setting of a policy, to be measured for the curve of quality against bytes.
struct CurveSetting {
  std::string policy;   // "random": settings of one name make one line
  std::string setting;  // "3 of 8 heads"
  Policy values;
};

/// The curve's settings for a model: the paper's policy by its oracle and, where there are
/// `routers`, by these; the oracle with a window, random heads, static heads, pages. `settings`:
/// how many of each at most.
std::vector<CurveSetting> curve_settings(const model::ModelConfig& config,
                                         std::shared_ptr<const sparsity::Routers> routers,
                                         uint64_t seed, int settings);

struct CalibrateOptions {
  std::vector<double> max_losses = {0.01};  // perplexity ratio - 1, one operating point each
  /// Shares of the KV bytes, page indices included, one operating point each: the least loss that
  /// was found there.
  std::vector<double> max_bytes;
  int context = 2048;
  int prompt = -1;  // tokens of each window that are prefilled dense; -1: context / 4
  int prompt_tokens() const { return prompt >= 0 ? prompt : context / 4; }
  int importance_windows = 4;  // windows in whose last quarters units are left out, one by one
  int held_out_windows = 12;   // windows that decide
  int needles = 24;            // retrieval prompts: a third ranks the units, the others decide
  /// Assignments measured at most, per operating point, on the whole held-out slice; those that
  /// are measured on a part of it count that part.
  int trials = 10;
  /// Which policies candidates may have (Shape::policy()); empty: all.
  std::vector<std::string> policies;
  /// Head routers. When given, routed and hybrid assignments are candidates too.
  std::shared_ptr<const sparsity::Routers> routers;
  /// Gives the MLP routers that points may use, with their copies, and stores them in the run's
  /// folder: asked once, with windows that the held-out slice does not hold. Null: points compute
  /// all neurons.
  std::function<Result<sparsity::Routers>(const Windows&)> neurons;
  backend::PageScore page_score = backend::PageScore::kCodes;
  DType kv_dtype = DType::kF16;
  uint64_t seed = 1;
  std::string text_name;
  /// Measure the best of each policy at the bytes of each point, beyond what the search looked at.
  bool compare = false;
  /// Measured when the points are chosen; `curve_planner` makes their planners (`ranked`: the
  /// units by what they are worth).
  std::vector<CurveSetting> curve;
  std::function<Result<std::unique_ptr<model::Planner>>(const Policy&,
                                                        const std::vector<int>& ranked)>
      curve_planner;
  std::function<void(const std::string& stage, int done, int of)> progress;
};

/// What one setting of the curve did there.
struct CurvePoint {
  std::string policy, setting;
  double loss = 0;
  double effective_density = 1;
  int needles = 0;
  double answer_loss = 0;
};

/// The best of each policy at the bytes of a chosen point.
struct Comparison {
  std::string point;
  std::vector<Trial> policies;
};

struct Calibration {
  sparsity::Profile profile;
  std::vector<double> text_importance,
      retrieval_importance;  // leave-one-out KL, [layers * kv_heads], nats
  std::vector<Trial> trials;
  std::vector<CurvePoint> curve;
  std::vector<Comparison> comparisons;
  double dense_perplexity = 0;
  int dense_needles = 0, needle_count = 0;
};

/// Runs everything. What was measured is kept in `directory`/calibration.json as it comes, so a run
/// that was killed goes on where it stopped; the result of the same seed is the same. Writes
/// `directory`/profile.json, and routers.safetensors where a point routes heads. Errors: text too
/// short, a folder that cannot be written, a state of another run in the folder.
Result<Calibration> calibrate(backend::Device& device, const model::Weights& weights,
                              const std::string& fingerprint,
                              const std::vector<std::string>& documents, const Encode& encode,
                              int leading_token, const std::string& directory,
                              const CalibrateOptions& options);

}  // namespace polar::study
