#pragma once
// Which neurons of a ReLU model's MLPs a measurement computes, decided on the host.

#include <memory>
#include <span>
#include <vector>

#include "model/decoder.h"
#include "model/weights.h"
#include "sparsity/routers.h"
#include "study/mlp_cost.h"

namespace polar::study {

enum class NeuronChoice { kOff, kOracle, kRouted };

/// The neurons that some row of a step truly activates, known by computing all of them. With these
/// the MLP's result is the dense one.
class OracleNeurons : public model::NeuronPlanner {
 protected:
  const backend::NeuronSet* choose(const model::MlpContext& context) override;

 private:
  backend::Buffer index_;
  backend::NeuronSet set_;
};

/// The neurons that the MLP routers choose: those likeliest active in some row (of routers that
/// were brought along: of the largest sums of positive logits), as many as hold the recall at this
/// number of rows. With a cost model, a layer in which that many and their routing do not pay at
/// this number of rows runs dense, without asking its router.
class RoutedNeurons : public model::NeuronPlanner {
 public:
  static Result<std::unique_ptr<RoutedNeurons>> create(
      backend::Device& device, std::shared_ptr<const sparsity::Routers> routers,
      std::shared_ptr<const MlpCost> cost = nullptr);

 protected:
  const backend::NeuronSet* choose(const model::MlpContext& context) override;

 private:
  RoutedNeurons() = default;
  /// The layer's best `count` neurons for x [rows][hidden]; `scratch` [rows][ffn] is overwritten.
  const backend::NeuronSet* route(backend::Device& device, int layer, const Tensor& x,
                                  const Tensor& scratch, int count);
  Status add_routing(backend::Device& device, MlpCost::Sample& sample);

  struct Layer {
    std::unique_ptr<backend::Weight> narrow;  // of low rank; null: the copy reads x itself
    std::unique_ptr<backend::Weight> wide;    // null: this layer runs dense
    backend::Buffer bias;
  };
  std::shared_ptr<const sparsity::Routers> routers_;  // the CPU computes on its memory
  std::shared_ptr<const MlpCost> cost_;               // null: every choice is taken
  std::vector<Layer> layers_;
  backend::Buffer narrow_;  // [rows][rank]
  backend::Buffer index_;
  backend::NeuronSet set_;
};

/// Makes a router a copy of an up projection [ffn][hidden] and its bias [ffn] (or none).
void copy_up_projection(const std::vector<float>& up, std::vector<float> up_bias, int ffn,
                        sparsity::MlpRouter& mlp);

/// Makes copies of the model's own, for all routers that are one.
void copy_up_projections(const model::ModelFile& file, sparsity::Routers& routers);

/// Indices of the neurons that are above zero in some row of `activations` [rows][ffn], ascending.
std::vector<int32_t> active_union(std::span<const float> activations, int ffn);

/// Puts `index` onto the device, into `buffer`, which grows as needed. An empty set becomes neuron
/// 0: kernels want one.
backend::NeuronSet upload_neurons(backend::Device& device, std::vector<int32_t> index,
                                  backend::Buffer& buffer);

}  // namespace polar::study
