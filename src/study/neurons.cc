#include "study/neurons.h"

#include "backend/device_values.h"

namespace polar::study {

namespace {

/// Puts `index` onto the device, into `buffer`, which grows as needed. An empty set becomes neuron
/// 0: kernels want one.
backend::NeuronSet upload_neurons(backend::Device& device, std::vector<int32_t> index,
                                  backend::Buffer& buffer) {
  if (index.empty()) index.push_back(0);
  const size_t bytes = index.size() * sizeof(int32_t);
  if (buffer.bytes() < bytes) {
    auto allocated = device.allocate(2 * bytes, "a step's neurons");
    POLAR_CHECK(allocated.ok());
    buffer = std::move(allocated).value();
  }
  device.upload(buffer.data(), index.data(), bytes);
  return {buffer.as<int32_t>(), static_cast<int>(index.size())};
}

}  // namespace

std::vector<int32_t> active_union(std::span<const float> activations, int ffn) {
  std::vector<char> active(ffn);
  for (size_t i = 0; i < activations.size(); ++i) active[i % ffn] |= activations[i] > 0;
  std::vector<int32_t> index;
  for (int32_t n = 0; n < ffn; ++n) {
    if (active[n]) index.push_back(n);
  }
  return index;
}

const backend::NeuronSet* OracleNeurons::choose(const model::MlpContext& context) {
  const model::LayerWeights& w = context.weights;
  context.device.ops().linear({context.normed, w.up.get(), w.up_bias, context.scratch});
  const std::vector<float> values = download_values(context.device, context.scratch);
  set_ = upload_neurons(context.device, active_union(values, context.config.ffn), index_);
  return &set_;
}

}  // namespace polar::study
