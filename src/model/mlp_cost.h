#pragma once
// When computing only some neurons is worth it: a cost model of the MLP, measured on the machine
// that runs it.

#include <string>
#include <vector>

#include "model/weights.h"

namespace polar::model {

/// Says why neurons of this model cannot be chosen, if they cannot: its MLPs are not plain ReLU.
Status check_chooses_neurons(const ModelConfig& config, const std::string& where);

/// Times a layer's MLP with all neurons and with two numbers of them, at a few batch sizes. The
/// time of a choice is taken as linear in its neurons between and beyond the two.
class MlpCost {
 public:
  /// What was measured at one number of rows.
  struct Sample {
    int rows = 0;
    double dense_seconds = 0;       // all neurons
    double fixed_seconds = 0;       // of a choice, however small
    double seconds_per_neuron = 0;  // of a choice
  };

  /// Measures at 1, 8 and 32 rows, on a GPU also at 64. A run passes over all layers (of large
  /// models: over a gigabyte of them), so that weights come from memory as they do in a step; times
  /// are medians of five runs, per layer. For a model whose MLPs are plain ReLU; the router's own
  /// time is not in it.
  static Result<MlpCost> measure(backend::Device& device, const Weights& weights);

  explicit MlpCost(std::vector<Sample> samples) : samples_(std::move(samples)) {}

  /// Whether `count` neurons are computed clearly sooner (by 2 %) than all of them at this number
  /// of rows.
  bool pays(int rows, int count) const;

  /// A sample at any number of rows: interpolated between the measured ones, else the nearest.
  Sample at(int rows) const;
  const std::vector<Sample>& samples() const { return samples_; }

 private:
  std::vector<Sample> samples_;  // ascending rows
};

}  // namespace polar::model
