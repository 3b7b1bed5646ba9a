#pragma once
// Learned routers: per layer, what says from a row's input which heads to read and which neurons to
// compute (docs/sparsity.md holds the names in the file).

#include <memory>
#include <string>
#include <vector>

#include "core/error.h"

namespace polar::sparsity {

/// Linear: logits [kv_heads] = weight x + bias, with x what the layer's QKV projection reads.
struct HeadRouter {
  std::vector<float> weight;  // [kv_heads][hidden]; empty: this layer has none
  std::vector<float> bias;    // [kv_heads]
};

/// Which neurons of a layer will be active, from what its MLP reads. Either the layer's own up
/// projection with weights of four bits, whose errors are known, so that logits are in units of
/// them: logits [ffn] = (copy x + bias) / unit. Or, brought along, of low rank: logits = b (a x) +
/// bias.
struct MlpRouter {
  std::vector<std::byte> copy;  // Q4_0 [ffn][hidden], made from the model when it is opened
  float unit = 0;               // of the copy: the errors' root mean square; 0: low rank, or none
  int rank = 0;                 // 0: a copy, or this layer has no router
  std::vector<float> a;         // [rank][hidden]
  std::vector<float> b;         // [ffn][rank]
  std::vector<float> bias;      // [ffn]
  /// Neurons for each of Routers::recalls at each of Routers::batches, [recalls][batches].
  std::vector<int32_t> neurons;

  bool routes() const { return rank > 0 || unit > 0; }
};

struct Routers {
  int hidden = 0;
  int kv_heads = 0;
  int ffn = 0;
  /// Mean shares of the true union that MlpRouter::neurons were measured for: ascending, in (0, 1].
  std::vector<double> recalls;
  std::vector<int32_t> batches;   // ascending, at least 1
  std::vector<HeadRouter> heads;  // [layers]
  std::vector<MlpRouter> mlps;    // [layers]

  bool routes_heads() const;
  bool routes_neurons() const;
};

/// Neurons to compute for a recall at a batch size, never more than ffn. Between measured batch
/// sizes: interpolated over the logarithm of the batch; beyond the largest: all. Between measured
/// recalls: interpolated over the logarithm of what is missed; below the least: its number; beyond
/// the largest: all.
int neurons_for(const Routers& routers, int layer, int batch, double recall);

/// Reads DIR/routers.safetensors for a model of this shape. Errors, one sentence each: not there,
/// truncated, a tensor missing, of a wrong shape or with a value that is not finite.
Result<Routers> read_routers(const std::string& directory, int layers, int hidden, int kv_heads,
                             int ffn);

/// Writes DIR/routers.safetensors (and makes DIR), whole or not at all.
Status write_routers(const std::string& directory, const Routers& routers);

}  // namespace polar::sparsity
