#pragma once

#include "model/decoder.h"
#include "sparsity/profile.h"

namespace polar::model {

/// Reads what a profile says: its budgets live on the device, each row's operating point
/// (Batch::point) picks among them.
class ProfilePlanner : public Planner {
 public:
  static Result<std::unique_ptr<ProfilePlanner>> create(backend::Device& device,
                                                        const sparsity::Profile& profile);
  void plan(const LayerContext& context) override;
  bool selects_pages() const override { return selects_pages_; }
  int points() const override { return points_; }

 private:
  ProfilePlanner() = default;
  int points_ = 0;
  int kv_heads_ = 0;
  bool selects_pages_ = false;
  std::vector<char> layer_selects_;  // [layers]
  backend::Buffer budgets_;          // [layers][points][kv_heads]
  backend::Buffer limits_;           // [points]
};

}  // namespace polar::model
