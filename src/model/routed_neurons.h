#pragma once
// Which neurons of a ReLU model's MLPs a step computes, by routers.

#include <memory>
#include <vector>

#include "model/decoder.h"
#include "model/mlp_cost.h"
#include "model/model_file.h"
#include "sparsity/profile.h"
#include "sparsity/routers.h"

namespace polar::model {

/// The neurons that the MLP routers choose: those likeliest active in some row (of routers that
/// were brought along: of the largest sums of positive logits), as many as hold the recall at this
/// number of rows. With a cost model, a layer in which that many and their routing do not pay at
/// this number of rows runs dense, without asking its router.
class RoutedNeurons : public NeuronPlanner {
 public:
  /// `recalls` [operating points]: the share of the truly active neurons that rows of each point
  /// want (sparsity::neurons_for); 0: all neurons. A step computes what its most demanding row
  /// wants, so one row that wants all makes the step dense. Errors: routers that are copies of a
  /// model's weights without these copies, no memory.
  static Result<std::unique_ptr<RoutedNeurons>> create(
      backend::Device& device, std::shared_ptr<const sparsity::Routers> routers,
      std::vector<double> recalls, const std::shared_ptr<const MlpCost>& cost = nullptr);

  bool on_device() const override { return true; }
  int common_point(std::span<const int32_t> points) const override;

 protected:
  const backend::NeuronSet* choose(const MlpContext& context) override;

 private:
  RoutedNeurons() = default;
  /// Queues the choice of the layer's best `count` neurons for x [rows][hidden] into `set_`;
  /// `scratch` [rows][ffn] is overwritten.
  void route(backend::Device& device, int index, const Tensor& x, const Tensor& scratch, int count);
  Status prepare_layer(backend::Device& device, int index);
  Status add_routing(backend::Device& device, MlpCost::Sample& sample);

  struct Layer {
    std::unique_ptr<backend::Weight> narrow;  // of low rank; null: the copy reads x itself
    std::unique_ptr<backend::Weight> wide;    // null: this layer runs dense
    backend::Buffer bias;
    size_t bytes() const { return wide->bytes() + (narrow != nullptr ? narrow->bytes() : 0); }
  };
  std::shared_ptr<const sparsity::Routers> routers_;  // the CPU computes on its memory
  std::vector<double> recalls_;
  std::shared_ptr<const MlpCost> cost_;  // null: every choice is taken
  std::vector<Layer> layers_;
  backend::Buffer index_;  // [ffn]
  backend::NeuronSet set_;
};

/// Makes a router a copy of an up projection [ffn][hidden] and its bias [ffn] (or none).
void copy_up_projection(const std::vector<float>& up, std::vector<float> up_bias, int ffn,
                        sparsity::MlpRouter& mlp);

/// Makes copies of the model's own, for all routers that are one.
void copy_up_projections(const ModelFile& file, sparsity::Routers& routers);

/// Makes a profile whose points choose neurons ready to run on its model: copies what its routers
/// are copies of. Does nothing for other profiles. Errors: a model whose MLPs are not plain ReLU.
Status prepare_neurons(const ModelFile& file, const std::string& directory,
                       sparsity::Profile& profile);

}  // namespace polar::model
