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

 private:
  ProfilePlanner() = default;
  int points_ = 0;
  int kv_heads_ = 0;
  backend::Buffer budgets_;  // [layers][points][kv_heads]
  backend::Buffer limits_;   // [points]
};

}  // namespace polar::model
