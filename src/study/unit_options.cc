#include "study/unit_options.h"

#include <algorithm>

#include "backend/device_values.h"
#include "study/sequence_cache.h"

namespace polar::study {

using backend::ReadKind;
using backend::UnitBudget;
using sparsity::OperatingPoint;

namespace {

/// Of a deal's options, the one that is dealt_fallback().
constexpr size_t kFallbackOption = 2;

OperatingPoint all_units(const Deal& deal, size_t option, int units) {
  OperatingPoint point;
  point.limits = deal.limits;
  point.budgets.assign(units, deal.options[option]);
  return point;
}

/// A dense run that asks, at each layer, what attention would have given under other plans.
class ErrorPlanner : public model::Planner {
 public:
  static Result<std::unique_ptr<ErrorPlanner>> create(backend::Device& device,
                                                      const model::ModelConfig& config,
                                                      const Deal& deal,
                                                      backend::PageScore page_score) {
    auto made = std::make_unique<ErrorPlanner>();
    made->page_score_ = page_score;
    sparsity::Profile profile = sparsity::dense_profile(config.layers, config.kv_heads);
    profile.page_score = page_score;
    const int units = config.layers * config.kv_heads;
    for (size_t option = 0; option < deal.options.size(); ++option) {
      profile.points = {all_units(deal, option, units)};
      POLAR_ASSIGN(auto planner, point_planner(device, profile, 0));
      made->options_.push_back(std::move(planner));
    }
    made->errors_.assign(deal.options.size(), std::vector<double>(units, 0.0));
    return made;
  }

  void plan(const model::LayerContext& context) override {
    dense_.plan(context);
    if (context.batch.planned_rows() == 0) return;
    const std::vector<float> full = attend(context);
    for (size_t option = 1; option < options_.size(); ++option) {  // 0: everything
      options_[option]->plan(context);
      add_errors(context, full, attend(context), errors_[option]);
    }
    dense_.plan(context);
  }
  bool selects_pages() const override { return true; }
  bool uses_summaries() const override { return true; }
  backend::PageScore page_score() const override { return page_score_; }

  /// Rows of the batch that count.
  std::vector<int32_t> rows;
  std::vector<std::vector<double>> errors() && { return std::move(errors_); }

 private:
  static std::vector<float> attend(const model::LayerContext& context) {
    context.device.ops().attention(context.attention());
    return download_values(context.device, context.output);
  }

  void add_errors(const model::LayerContext& context, const std::vector<float>& full,
                  const std::vector<float>& other, std::vector<double>& errors) const {
    const int units = context.config.kv_heads;
    const int width = context.config.group() * context.config.head_dim;
    for (const int32_t row : rows) {
      for (int unit = 0; unit < units; ++unit) {
        const size_t begin = (static_cast<size_t>(row) * units + unit) * width;
        float sum = 0;
        for (size_t i = begin; i < begin + width; ++i)
          sum += (full[i] - other[i]) * (full[i] - other[i]);
        errors[static_cast<size_t>(context.layer) * units + unit] += sum;
      }
    }
  }

  backend::PageScore page_score_ = backend::PageScore::kMean;
  model::DensePlanner dense_;
  std::vector<std::unique_ptr<model::Planner>> options_;
  std::vector<std::vector<double>> errors_;  // [option][unit]
};

}  // namespace

Policy dealt_fallback() {
  Policy policy;
  policy.fallback = Fallback::kWindow;
  policy.recent = kDealtRecent;
  policy.summaries = true;
  return policy;
}

Deal unit_options(int prompt, int context, double index_share) {
  Deal deal;
  deal.limits = point_limits(dealt_fallback());
  deal.options = {{}, {ReadKind::kWindow}, fallback_budget(dealt_fallback())};
  // As many pages wherever a sequence stands: of few pages a share is too little. Beyond the
  // longest context they grow with it.
  for (const int per_mille : {60, 80, 110, 170, 250, 350, 500, 700}) {
    UnitBudget budget{ReadKind::kPages};
    budget.pages_per_mille = static_cast<uint16_t>(per_mille);
    budget.least = least_pages(per_mille, context / backend::kPageTokens);
    deal.options.push_back(budget);
    budget.summaries = true;
    deal.options.push_back(budget);
  }
  for (size_t option = 0; option < deal.options.size(); ++option)
    deal.bytes.push_back(
        expected_density(all_units(deal, option, 1), prompt, context, index_share, 1));
  return deal;
}

Result<std::vector<std::vector<double>>> option_errors(backend::Device& device,
                                                       const model::Weights& weights,
                                                       std::span<const Passage> passages,
                                                       const Deal& deal,
                                                       const OptionErrorOptions& options) {
  const model::ModelConfig& config = weights.config;
  POLAR_ASSIGN(auto planner, ErrorPlanner::create(device, config, deal, options.page_score));
  double rows = 0;
  int done = 0;
  for (const Passage& passage : passages) {
    const int length = static_cast<int>(passage.tokens.size());
    const int planned = length - passage.prompt;
    POLAR_ASSIGN(const auto decoder,
                 model::Decoder::create(device, weights, {std::max(passage.prompt, planned), 1}));
    POLAR_ASSIGN(SequenceCache cache,
                 SequenceCache::create(device, config, options.kv_dtype, 1, length, 0,
                                       page_extras(planner.get(), planned)));
    const std::span<const int32_t> tokens(passage.tokens);
    model::DensePlanner dense;
    if (passage.prompt > 0) {
      const Chunk prompt{0, 0, tokens.first(passage.prompt), false};
      decoder->forward(cache.pack({&prompt, 1}, {}), cache.kv(), dense, nullptr);
    }
    planner->rows.clear();
    for (const int32_t row : passage.scored_rows) planner->rows.push_back(row - passage.prompt);
    const Chunk behind{0, passage.prompt, tokens.subspan(passage.prompt), true};
    decoder->forward(cache.pack({&behind, 1}, {}), cache.kv(), *planner, nullptr);
    rows += static_cast<double>(planner->rows.size());
    if (options.progress) options.progress(++done, static_cast<int>(passages.size()));
  }
  std::vector<std::vector<double>> errors = std::move(*planner).errors();
  for (std::vector<double>& option : errors)
    for (double& error : option) error /= rows;
  return errors;
}

void add_losses(Deal& deal, const std::vector<std::vector<double>>& errors,
                std::span<const double> left_out) {
  double all = 0;
  for (const double lost : left_out) all += std::max(lost, 0.0);
  deal.loss.resize(deal.options.size(), std::vector<double>(left_out.size(), 0.0));
  if (all <= 0) return;  // nobody loses anything
  for (size_t option = 0; option < deal.options.size(); ++option) {
    for (size_t unit = 0; unit < left_out.size(); ++unit) {
      const double fallback = errors[kFallbackOption][unit];
      // A unit whose output the fallback leaves as it is has nothing to lose.
      if (fallback > 0)
        deal.loss[option][unit] +=
            std::max(left_out[unit], 0.0) / all * errors[option][unit] / fallback;
    }
  }
}

}  // namespace polar::study
