#include "model/routed_neurons.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <random>

#include "backend/device_values.h"
#include "core/dtype.h"

namespace polar::model {

void copy_up_projection(const std::vector<float>& up, std::vector<float> up_bias, int ffn,
                        sparsity::MlpRouter& mlp) {
  mlp.copy.resize(dtype_bytes(DType::kQ4_0, up.size()));
  quantize_q4_0(up.data(), mlp.copy.data(), up.size());
  mlp.bias = std::move(up_bias);
  mlp.bias.resize(ffn);
}

void copy_up_projections(const ModelFile& file, sparsity::Routers& routers) {
  for (size_t i = 0; i < routers.mlps.size(); ++i) {
    if (routers.mlps[i].unit <= 0) continue;
    copy_up_projection(backend::host_values(file.layers[i].up),
                       backend::host_values(file.layers[i].up_bias), routers.ffn, routers.mlps[i]);
  }
}

Status prepare_neurons(const ModelFile& file, const std::string& directory,
                       sparsity::Profile& profile) {
  if (!profile.routes_neurons()) return {};
  POLAR_RETURN_IF_ERROR(check_chooses_neurons(file.config(), directory));
  sparsity::Routers routers = *profile.routers;
  copy_up_projections(file, routers);
  profile.routers = std::make_shared<const sparsity::Routers>(std::move(routers));
  return {};
}

Status RoutedNeurons::prepare_layer(backend::Device& device, int index) {
  const sparsity::MlpRouter& mlp = routers_->mlps[index];
  if (!mlp.routes()) return {};
  const auto matrix = [](const auto& values, DType type, int64_t rows, int64_t columns) {
    return Tensor{
        const_cast<void*>(static_cast<const void*>(values.data())), type, {rows, columns, 1, 1}, 2};
  };
  Layer& layer = layers_[index];
  Tensor wide;
  if (mlp.rank > 0) {
    const Tensor narrow = matrix(mlp.a, DType::kF32, mlp.rank, routers_->hidden);
    POLAR_ASSIGN(layer.narrow, device.prepare({"MLP router", {narrow}, false}));
    wide = matrix(mlp.b, DType::kF32, routers_->ffn, mlp.rank);
  } else {
    if (mlp.copy.empty()) {
      return bad_input("routers", "layers." + std::to_string(index) + ".mlp_router.unit",
                       "no model whose weights to copy", "a model, not --dummy");
    }
    wide = matrix(mlp.copy, DType::kQ4_0, routers_->ffn, routers_->hidden);
  }
  POLAR_ASSIGN(layer.wide, device.prepare({"MLP router", {wide}, false, true}));
  POLAR_ASSIGN(layer.bias, device.allocate(mlp.bias.size() * sizeof(float), "routers"));
  device.upload(layer.bias.data(), mlp.bias.data(), mlp.bias.size() * sizeof(float));
  return {};
}

Result<std::unique_ptr<RoutedNeurons>> RoutedNeurons::create(
    backend::Device& device, std::shared_ptr<const sparsity::Routers> routers,
    std::vector<double> recalls, const std::shared_ptr<const MlpCost>& cost) {
  POLAR_CHECK(!recalls.empty());
  std::unique_ptr<RoutedNeurons> planner(new RoutedNeurons);
  planner->layers_.resize(routers->mlps.size());
  planner->routers_ = std::move(routers);
  planner->recalls_ = std::move(recalls);
  for (size_t i = 0; i < planner->layers_.size(); ++i)
    POLAR_RETURN_IF_ERROR(planner->prepare_layer(device, static_cast<int>(i)));
  POLAR_ASSIGN(planner->index_,
               device.allocate(planner->routers_->ffn * sizeof(int32_t), "a step's neurons"));
  planner->set_.index = planner->index_.as<int32_t>();
  if (cost == nullptr) return planner;
  std::vector<MlpCost::Sample> samples = cost->samples();
  for (MlpCost::Sample& sample : samples)
    POLAR_RETURN_IF_ERROR(planner->add_routing(device, sample));
  planner->cost_ = std::make_shared<const MlpCost>(std::move(samples));
  return planner;
}

int RoutedNeurons::common_point(std::span<const int32_t> points) const {
  int most = 0;
  for (const int32_t point : points) {
    if (recalls_[point] == 0) return point;  // all
    if (&point == points.data() || recalls_[point] > recalls_[most]) most = point;
  }
  return most;
}

const backend::NeuronSet* RoutedNeurons::choose(const MlpContext& context) {
  const double recall = recalls_[context.batch.neuron_point];
  const Layer& layer = layers_[context.layer];
  if (layer.wide == nullptr || recall == 0) return nullptr;
  const auto rows = static_cast<int>(context.normed.shape[0]);
  const int count = sparsity::neurons_for(*routers_, context.layer, rows, recall);
  if (count == routers_->ffn || (cost_ != nullptr && !cost_->pays(rows, count))) return nullptr;
  count_router(static_cast<double>(layer.bytes()));
  route(context.device, context.layer, context.normed, context.scratch, count);
  return &set_;
}

void RoutedNeurons::route(backend::Device& device, int index, const Tensor& x,
                          const Tensor& scratch, int count) {
  const Layer& layer = layers_[index];
  const float unit = routers_->mlps[index].unit;
  backend::NeuronArgs args;
  args.x = x;
  args.narrow = layer.narrow.get();
  args.wide = layer.wide.get();
  args.bias = layer.bias.as<float>();
  args.unit = unit > 0 ? unit : 1.0f;
  args.by = unit > 0 ? backend::UnionBy::kLikely : backend::UnionBy::kSum;
  args.scratch = scratch;
  args.count = count;
  args.index = index_.as<int32_t>();
  device.ops().neurons(args);
  set_.count = count;
}

/// Adds what routing takes, per layer, to a choice's fixed time: the fastest of a few passes over
/// all layers that have a router.
Status RoutedNeurons::add_routing(backend::Device& device, MlpCost::Sample& sample) {
  using Clock = std::chrono::steady_clock;
  constexpr int kPasses = 5;
  const DType type = device.info().activation;
  const auto bytes = [&](int64_t width) { return dtype_bytes(type, sample.rows * width); };
  POLAR_ASSIGN(backend::Buffer x, device.allocate(bytes(routers_->hidden), "timing a router"));
  POLAR_ASSIGN(backend::Buffer scratch, device.allocate(bytes(routers_->ffn), "timing a router"));
  // Random: of zeros all neurons would be as good as each other, which takes longer to rank.
  POLAR_CHECK(type == DType::kF32 || type == DType::kBF16);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::byte> inputs(bytes(routers_->hidden));
  for (size_t at = 0; at < inputs.size(); at += dtype_bytes(type, 1)) {
    const float value = normal(random);
    const uint16_t narrow = f32_to_bf16(value);
    type == DType::kF32 ? std::memcpy(&inputs[at], &value, sizeof(value))
                        : std::memcpy(&inputs[at], &narrow, sizeof(narrow));
  }
  device.upload(x.data(), inputs.data(), inputs.size());
  const Tensor in{x.data(), type, {sample.rows, routers_->hidden, 1, 1}, 2};
  const Tensor out{scratch.data(), type, {sample.rows, routers_->ffn, 1, 1}, 2};
  const double recall = *std::max_element(recalls_.begin(), recalls_.end());
  double fastest = std::numeric_limits<double>::infinity();
  const auto routed = std::count_if(layers_.begin(), layers_.end(),
                                    [](const Layer& layer) { return layer.wide != nullptr; });
  const uint64_t key = device.own_key();
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto begin = Clock::now();
    device.replay(key, [&] {
      for (int layer = 0; layer < static_cast<int>(layers_.size()); ++layer) {
        if (layers_[layer].wide == nullptr) continue;
        route(device, layer, in, out, sparsity::neurons_for(*routers_, layer, sample.rows, recall));
      }
    });
    device.synchronize();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    fastest = std::min(fastest, seconds / static_cast<double>(std::max<int64_t>(routed, 1)));
  }
  sample.fixed_seconds += fastest;
  return {};
}

}  // namespace polar::model
