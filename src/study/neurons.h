#pragma once
// Which neurons of a ReLU model's MLPs a measurement computes.

#include <span>
#include <vector>

#include "model/routed_neurons.h"

namespace polar::study {

enum class NeuronChoice { kByPoint, kOff, kOracle, kRouted };

/// The neurons that some row of a step truly activates, known by computing all of them. With these
/// the MLP's result is the dense one.
class OracleNeurons : public model::NeuronPlanner {
 protected:
  const backend::NeuronSet* choose(const model::MlpContext& context) override;

 private:
  backend::Buffer index_;
  backend::NeuronSet set_;
};

/// Indices of the neurons that are above zero in some row of `activations` [rows][ffn], ascending.
std::vector<int32_t> active_union(std::span<const float> activations, int ffn);

}  // namespace polar::study
