#pragma once

#include <chrono>

#include "model/decoder.h"

namespace polar::engine {

/// Lets another planner plan, and adds up how long that takes on the host. Where verbs are only
/// queued (on a GPU) that is not what they cost: there it is not used.
class TimedPlanner : public model::Planner {
 public:
  explicit TimedPlanner(model::Planner& planner) : planner_(planner) {}

  void plan(const model::LayerContext& context) override {
    const auto begin = std::chrono::steady_clock::now();
    planner_.plan(context);
    spent_ += std::chrono::steady_clock::now() - begin;
  }
  bool selects_pages() const override { return planner_.selects_pages(); }
  bool uses_summaries() const override { return planner_.uses_summaries(); }
  backend::PageScore page_score() const override { return planner_.page_score(); }
  int points() const override { return planner_.points(); }
  model::NeuronPlanner* neurons() const override { return planner_.neurons(); }

  double seconds() const { return std::chrono::duration<double>(spent_).count(); }

 private:
  model::Planner& planner_;
  std::chrono::steady_clock::duration spent_{};
};

}  // namespace polar::engine
