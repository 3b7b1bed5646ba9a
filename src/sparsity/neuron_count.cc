// How many neurons a recall takes.

#include <algorithm>
#include <cmath>

#include "sparsity/routers.h"

namespace polar::sparsity {

namespace {

/// Of one measured recall.
double neurons_at(const Routers& routers, const int32_t* neurons, int batch) {
  const std::vector<int32_t>& sizes = routers.batches;
  const auto above = std::lower_bound(sizes.begin(), sizes.end(), batch);
  if (above == sizes.end()) return routers.ffn;
  const size_t i = above - sizes.begin();
  if (i == 0 || sizes[i] == batch) return neurons[i];
  const double share = std::log(static_cast<double>(batch) / sizes[i - 1]) /
                       std::log(static_cast<double>(sizes[i]) / sizes[i - 1]);
  return neurons[i - 1] + share * (neurons[i] - neurons[i - 1]);
}

}  // namespace

int neurons_for(const Routers& routers, int layer, int batch, double recall) {
  // Recalls come from files as f32.
  constexpr double kSame = 1e-6;
  const std::vector<double>& recalls = routers.recalls;
  const auto above = std::lower_bound(recalls.begin(), recalls.end(), recall - kSame);
  if (above == recalls.end()) return routers.ffn;
  const size_t i = above - recalls.begin(), sizes = routers.batches.size();
  const int32_t* const neurons = routers.mlps[layer].neurons.data();
  double count = neurons_at(routers, neurons + i * sizes, batch);
  // Nothing lies between a recall and 1 on this scale.
  if (i > 0 && recalls[i] > recall + kSame && recalls[i] < 1) {
    const double below = neurons_at(routers, neurons + (i - 1) * sizes, batch);
    const double share = std::log((1 - recall) / (1 - recalls[i - 1])) /
                         std::log((1 - recalls[i]) / (1 - recalls[i - 1]));
    count = below + share * (count - below);
  }
  return std::min(routers.ffn, static_cast<int>(std::ceil(count - kSame)));
}

}  // namespace polar::sparsity
