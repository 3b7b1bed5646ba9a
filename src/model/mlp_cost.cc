#include "model/mlp_cost.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace polar::model {

namespace {

constexpr int kRuns = 5;
constexpr size_t kEnoughBytes = size_t{1} << 30;  // no cache holds them

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The layers' MLPs over rows of zeros.
class MlpTimer {
 public:
  MlpTimer(backend::Device& device, const Weights& weights)
      : device_(device), weights_(weights), config_(weights.config) {}

  Status prepare(int rows) {
    const backend::DeviceInfo info = device_.info();
    const auto allocate = [&](DType type, int64_t width, backend::Buffer& buffer,
                              Tensor& view) -> Status {
      const size_t bytes = dtype_bytes(type, static_cast<size_t>(rows) * width);
      POLAR_ASSIGN(buffer, device_.allocate(bytes, "timing an MLP"));
      view = Tensor{buffer.data(), type, {rows, width, 1, 1}, 2};
      const std::vector<std::byte> zeros(bytes);
      device_.upload(buffer.data(), zeros.data(), bytes);
      return {};
    };
    POLAR_RETURN_IF_ERROR(allocate(info.activation, config_.hidden, x_, args_.x));
    POLAR_RETURN_IF_ERROR(allocate(info.activation, config_.ffn, scratch_, args_.scratch));
    POLAR_RETURN_IF_ERROR(allocate(info.residual, config_.hidden, y_, args_.y));
    POLAR_ASSIGN(index_, device_.allocate(config_.ffn * sizeof(int32_t), "timing an MLP"));
    args_.activation = config_.activation;
    size_t bytes = 0;
    for (size_t i = 0; i < weights_.layers.size() && bytes < kEnoughBytes; ++i, ++layers_)
      bytes += weights_.layers[i].up->bytes() + weights_.layers[i].down->bytes();
    return {};
  }

  /// Seconds per layer, the median of a few runs; `count` neurons, spread evenly, or all of them
  /// (0).
  double seconds(int count) {
    backend::NeuronSet set{index_.as<int32_t>(), count};
    if (count > 0) {
      std::vector<int32_t> index(count);
      for (int i = 0; i < count; ++i)
        index[i] = static_cast<int32_t>(static_cast<int64_t>(i) * config_.ffn / count);
      device_.upload(index_.data(), index.data(), index.size() * sizeof(int32_t));
    }
    args_.neurons = count > 0 ? &set : nullptr;
    std::vector<double> times;
    const uint64_t key = device_.own_key();
    for (int run = -2; run < kRuns; ++run) {
      device_.synchronize();
      const double begin = now();
      device_.replay(key, [&] {
        for (int i = 0; i < layers_; ++i) {
          const LayerWeights& layer = weights_.layers[i];
          args_.up = layer.up.get();
          args_.up_bias = layer.up_bias;
          args_.down = layer.down.get();
          args_.down_bias = layer.down_bias;
          device_.ops().mlp(args_);
        }
      });
      device_.synchronize();
      if (run >= 0) times.push_back((now() - begin) / layers_);
    }
    std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
    return times[kRuns / 2];
  }

 private:
  backend::Device& device_;
  const Weights& weights_;
  const ModelConfig& config_;
  int layers_ = 0;
  backend::Buffer x_, scratch_, y_, index_;
  backend::MlpArgs args_;
};

}  // namespace

Status check_chooses_neurons(const ModelConfig& config, const std::string& where) {
  if (config.plain_relu()) return {};
  return bad_input(where, "neurons", "a model without plain ReLU MLPs",
                   "a ReLU model such as OPT, or all neurons");
}

Result<MlpCost> MlpCost::measure(backend::Device& device, const Weights& weights) {
  const int ffn = weights.config.ffn;
  POLAR_RETURN_IF_ERROR(check_chooses_neurons(weights.config, "command line"));
  std::vector<int> sizes = {1, 8, 32};
  if (!device.info().is_cpu) sizes.push_back(64);  // where a GPU begins a second launch
  std::vector<Sample> samples;
  for (const int rows : sizes) {
    MlpTimer timer(device, weights);
    POLAR_RETURN_IF_ERROR(timer.prepare(rows));
    const int few = std::max(1, ffn / 8), many = std::max(few + 1, ffn / 2);
    const double few_seconds = timer.seconds(few), many_seconds = timer.seconds(many);
    Sample sample;
    sample.rows = rows;
    sample.dense_seconds = timer.seconds(0);
    sample.seconds_per_neuron = std::max(0.0, (many_seconds - few_seconds) / (many - few));
    sample.fixed_seconds = std::max(0.0, few_seconds - few * sample.seconds_per_neuron);
    samples.push_back(sample);
  }
  return MlpCost(std::move(samples));
}

MlpCost::Sample MlpCost::at(int rows) const {
  const auto above = std::find_if(samples_.begin(), samples_.end(),
                                  [&](const Sample& s) { return s.rows >= rows; });
  if (above == samples_.begin()) return samples_.front();
  if (above == samples_.end()) return samples_.back();
  const Sample &low = *(above - 1), &high = *above;
  const double share = static_cast<double>(rows - low.rows) / (high.rows - low.rows);
  return {rows, std::lerp(low.dense_seconds, high.dense_seconds, share),
          std::lerp(low.fixed_seconds, high.fixed_seconds, share),
          std::lerp(low.seconds_per_neuron, high.seconds_per_neuron, share)};
}

bool MlpCost::pays(int rows, int count) const {
  constexpr double kClearly = 0.98;
  const Sample sample = at(rows);
  return sample.fixed_seconds + count * sample.seconds_per_neuron < kClearly * sample.dense_seconds;
}

}  // namespace polar::model
