#pragma once
// Verbs that say when they begin: how a device finds out what each kind of them costs.

#include <functional>
#include <utility>
#include <vector>

#include "backend/ops.h"

namespace polar::backend {

class TracedOps final : public Ops {
 public:
  /// `begins` is told each verb's name before it is handed to `ops`.
  TracedOps(Ops& ops, std::function<void(const char* verb)> begins)
      : ops_(ops), begins_(std::move(begins)) {}

  void embed(const EmbedArgs& args) override { pass("embed", &Ops::embed, args); }
  void norm(const NormArgs& args) override { pass("norm", &Ops::norm, args); }
  void qkv(const QkvArgs& args) override { pass("qkv", &Ops::qkv, args); }
  void plan(const PlanArgs& args) override { pass("plan", &Ops::plan, args); }
  void attention(const AttentionArgs& args) override { pass("attention", &Ops::attention, args); }
  void linear(const LinearArgs& args) override { pass("linear", &Ops::linear, args); }
  void neurons(const NeuronArgs& args) override { pass("neurons", &Ops::neurons, args); }
  void mlp(const MlpArgs& args) override { pass("mlp", &Ops::mlp, args); }
  void head(const HeadArgs& args) override { pass("head", &Ops::head, args); }
  void sample(const SampleArgs& args) override { pass("sample", &Ops::sample, args); }
  void score(const ScoreArgs& args) override { pass("score", &Ops::score, args); }

 private:
  template <typename Args>
  void pass(const char* verb, void (Ops::*run)(const Args&), const Args& args) {
    begins_(verb);
    (ops_.*run)(args);
  }

  Ops& ops_;
  std::function<void(const char*)> begins_;
};

/// Adds `more` to the entry of the same verb, or as a new one.
inline void add_cost(std::vector<VerbCost>& costs, const VerbCost& more) {
  for (VerbCost& cost : costs) {
    if (cost.verb != more.verb) continue;
    cost.calls += more.calls;
    cost.nodes += more.nodes;
    cost.seconds += more.seconds;
    return;
  }
  costs.push_back(more);
}

}  // namespace polar::backend
