#pragma once

#include <vector>

#include "backend/step.h"
#include "model/decoder.h"

namespace polar::engine {

/// Lets another planner plan, and copies each layer's plan out behind it. So what every unit reads
/// can be seen on any backend, and costs nothing while nobody asks.
class TracingPlanner : public model::Planner {
 public:
  /// `units` receives [layer][planned row][kv_head]; it is there when the step's results are.
  TracingPlanner(model::Planner& planner, std::vector<backend::PageRanges>& units)
      : planner_(planner), units_(units) {}

  void plan(const model::LayerContext& context) override {
    planner_.plan(context);
    const size_t count = static_cast<size_t>(context.batch.planned_rows()) * context.kv.kv_heads;
    // Sized once: copies that are under way must find their place where it was.
    units_.resize(count * context.config.layers);
    context.device.download_later(units_.data() + count * context.layer, context.plan.units,
                                  count * sizeof(backend::PageRanges));
  }
  bool selects_pages() const override { return planner_.selects_pages(); }
  bool uses_summaries() const override { return planner_.uses_summaries(); }
  backend::PageScore page_score() const override { return planner_.page_score(); }
  int points() const override { return planner_.points(); }
  model::NeuronPlanner* neurons() const override { return planner_.neurons(); }

 private:
  model::Planner& planner_;
  std::vector<backend::PageRanges>& units_;
};

}  // namespace polar::engine
