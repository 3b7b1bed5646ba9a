#pragma once
// Policy as data: what each unit (layer, KV head) may read at each operating point.

#include <string>
#include <vector>

#include "backend/step.h"

namespace polar::sparsity {

/// One point of the trade between bytes and quality.
struct OperatingPoint {
  std::string name;  // "dense", "1%", "window"
  backend::PointLimits limits;
  std::vector<backend::UnitBudget> budgets;  // [layers][kv_heads]
};

/// An ordered list of operating points; point 0 is always dense.
struct Profile {
  int layers = 0;
  int kv_heads = 0;
  std::vector<OperatingPoint> points;

  /// Index of a point by name, or -1.
  int find(const std::string& name) const;
};

/// A profile with the dense point alone.
Profile dense_profile(int layers, int kv_heads);

/// Dense, and a point of that name in which every unit reads its first `sink` and its newest
/// `recent` pages (and the page being filled).
Profile window_profile(int layers, int kv_heads, int sink, int recent,
                       const std::vector<int>& dense_layers);

}  // namespace polar::sparsity
