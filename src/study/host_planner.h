#pragma once
// Planners that decide on the host, row by row and eagerly: slow, obvious, for studies only.

#include <vector>

#include "model/decoder.h"
#include "study/policy.h"

namespace polar::study {

class HostPlanner : public model::Planner {
 public:
  explicit HostPlanner(Policy policy) : policy_(std::move(policy)) {}
  void plan(const model::LayerContext& context) final;
  bool uses_summaries() const final { return fallback_budget(policy_).summaries; }

 protected:
  /// Marks in `keep` [planned row][kv_head] the units that are read in full; all are false at
  /// entry. Not called for dense layers.
  virtual void choose(const model::LayerContext& context, std::vector<char>& keep) = 0;

  const Policy& policy() const { return policy_; }
  int rows() const { return static_cast<int>(position_.size()); }
  int position(int row) const { return position_[row]; }
  /// What unit (row, any head) reads in full, and what it falls back to.
  backend::PageRanges full(const model::LayerContext& context, int row) const;
  backend::PageRanges fallback(const model::LayerContext& context, int row) const;
  /// Writes a plan for all planned rows to the device.
  void write(const model::LayerContext& context,
             const std::vector<backend::PageRanges>& units) const;

 private:
  void begin_step(const model::LayerContext& context);

  Policy policy_;
  std::vector<int32_t> position_, table_begin_;  // [planned row]
  std::vector<backend::ReadCount> read_;         // [planned row]
};

/// Random units, drawn anew for every row and layer: the control.
class RandomPlanner : public HostPlanner {
 public:
  using HostPlanner::HostPlanner;

 protected:
  void choose(const model::LayerContext& context, std::vector<char>& keep) override;
};

/// The units that matter most, known by computing everything: by the norm of the unit's output (the
/// paper's label), or by the norm of what the layer's output loses when the unit falls back, ||W_O
/// (full - fallback)||.
class OraclePlanner : public HostPlanner {
 public:
  /// `gram`: per layer and unit, W^T W of the unit's columns of W_O, [group * head_dim]^2; empty
  /// when ranking by norm.
  OraclePlanner(Policy policy, std::vector<std::vector<float>> gram)
      : HostPlanner(std::move(policy)), gram_(std::move(gram)) {}

 protected:
  void choose(const model::LayerContext& context, std::vector<char>& keep) override;

 private:
  std::vector<float> attend(const model::LayerContext& context, bool fall_back);
  double score(int layer, int unit, const float* values, int width) const;

  int layers_ = 1;
  std::vector<std::vector<float>> gram_;  // [layer * kv_heads + unit]
};

/// W^T W of each unit's columns of the output projections, [layers * kv_heads] matrices of (group *
/// head_dim)^2.
std::vector<std::vector<float>> output_gram_matrices(const model::ModelFile& file);

}  // namespace polar::study
