#pragma once

#include "model/decoder.h"
#include "model/mlp_cost.h"
#include "sparsity/profile.h"

namespace polar::model {

/// Reads what a profile says: its budgets live on the device, each row's operating point
/// (Batch::point) picks among them.
class ProfilePlanner : public Planner {
 public:
  /// The profile's routers choose among the routed units of layers that have one; the routed units
  /// of the others fall back. Where points choose neurons, they do so by these routers too
  /// (prepare_neurons made them ready); `cost`: only where that pays.
  static Result<std::unique_ptr<ProfilePlanner>> create(
      backend::Device& device, const sparsity::Profile& profile,
      const std::shared_ptr<const MlpCost>& cost = nullptr);
  void plan(const LayerContext& context) override;
  bool selects_pages() const override;
  bool uses_summaries() const override { return uses_summaries_; }
  backend::PageScore page_score() const override { return page_score_; }
  int points() const override { return points_; }

 private:
  ProfilePlanner() = default;
  Status prepare_routers(backend::Device& device, const sparsity::Profile& profile);

  int points_ = 0;
  backend::PageScore page_score_ = backend::PageScore::kMean;
  bool uses_summaries_ = false;
  int kv_heads_ = 0;
  std::vector<char> layer_selects_;                               // [layers]
  backend::Buffer budgets_;                                       // [layers][points][kv_heads]
  backend::Buffer limits_;                                        // [points]
  std::shared_ptr<const sparsity::Routers> routers_;              // the CPU computes on its memory
  std::vector<std::unique_ptr<backend::Weight>> router_weights_;  // [layers]
  std::vector<backend::Buffer> router_biases_;                    // [layers]
};

}  // namespace polar::model
