#include "study/neurons.h"

#include <algorithm>

#include "study/device_values.h"

namespace polar::study {

std::vector<int32_t> active_union(std::span<const float> activations, int ffn) {
  std::vector<char> active(ffn);
  for (size_t i = 0; i < activations.size(); ++i) active[i % ffn] |= activations[i] > 0;
  std::vector<int32_t> index;
  for (int32_t n = 0; n < ffn; ++n) {
    if (active[n]) index.push_back(n);
  }
  return index;
}

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

const backend::NeuronSet* OracleNeurons::choose(const model::MlpContext& context) {
  const model::LayerWeights& w = context.weights;
  context.device.ops().linear({context.normed, w.up.get(), w.up_bias, context.scratch});
  const std::vector<float> values = download_values(context.device, context.scratch);
  set_ = upload_neurons(context.device, active_union(values, context.config.ffn), index_);
  return &set_;
}

Result<std::unique_ptr<RoutedNeurons>> RoutedNeurons::create(
    backend::Device& device, std::shared_ptr<const sparsity::Routers> routers) {
  std::unique_ptr<RoutedNeurons> planner(new RoutedNeurons);
  planner->layers_.resize(routers->mlps.size());
  const auto matrix = [](const std::vector<float>& values, int64_t rows, int64_t columns) {
    return Tensor{const_cast<float*>(values.data()), DType::kF32, {rows, columns, 1, 1}, 2};
  };
  for (size_t i = 0; i < planner->layers_.size(); ++i) {
    const sparsity::MlpRouter& mlp = routers->mlps[i];
    if (mlp.rank == 0) continue;
    Layer& layer = planner->layers_[i];
    const Tensor a = matrix(mlp.a, mlp.rank, routers->hidden);
    const Tensor b = matrix(mlp.b, routers->ffn, mlp.rank);
    POLAR_ASSIGN(layer.a, device.prepare({"MLP router", {a}, false}));
    POLAR_ASSIGN(layer.b, device.prepare({"MLP router", {b}, false}));
    POLAR_ASSIGN(layer.bias, device.allocate(mlp.bias.size() * sizeof(float), "routers"));
    device.upload(layer.bias.data(), mlp.bias.data(), mlp.bias.size() * sizeof(float));
  }
  planner->routers_ = std::move(routers);
  return planner;
}

const backend::NeuronSet* RoutedNeurons::choose(const model::MlpContext& context) {
  const Layer& layer = layers_[context.layer];
  if (layer.a == nullptr) return nullptr;
  const auto rows = static_cast<int>(context.normed.shape[0]);
  const int ffn = context.config.ffn;
  const int count = std::min(ffn, sparsity::neurons_for(*routers_, context.layer, rows));
  if (count == ffn) return nullptr;
  const DType type = context.normed.dtype;
  const int64_t rank = layer.a->rows();
  const size_t bytes = dtype_bytes(type, static_cast<size_t>(rows) * rank);
  if (narrow_.bytes() < bytes) {
    auto allocated = context.device.allocate(bytes, "routers");
    POLAR_CHECK(allocated.ok());
    narrow_ = std::move(allocated).value();
  }
  const Tensor narrow{narrow_.data(), type, {rows, rank, 1, 1}, 2};
  backend::Ops& ops = context.device.ops();
  ops.linear({context.normed, layer.a.get(), nullptr, narrow});
  ops.linear({narrow, layer.b.get(), layer.bias.as<float>(), context.scratch});
  const std::vector<float> logits = download_values(context.device, context.scratch);
  set_ = upload_neurons(
      context.device,
      sparsity::choose_neurons(logits.data(), rows, ffn, count, sparsity::UnionBy::kSum), index_);
  return &set_;
}

}  // namespace polar::study
