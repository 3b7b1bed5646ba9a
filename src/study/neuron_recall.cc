#include "study/neuron_recall.h"

#include <Eigen/Dense>
#include <algorithm>
#include <numeric>
#include <random>

#include "backend/device_values.h"
#include "backend/neuron_choice.h"
#include "model/routed_neurons.h"
#include "study/sequence_cache.h"

namespace polar::study {

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr size_t kMostBytes = size_t{512} << 20;  // of the states of all layers
constexpr int kBatches[] = {1, 2, 4, 8, 16, 32, 64};

/// What one layer showed.
struct LayerStates {
  std::vector<float> mlp_in;    // [rows][hidden]
  std::vector<uint8_t> active;  // [rows][ffn]
};

/// Records what MLPs read in every `stride`-th row, and which neurons it activates. Chooses
/// nothing.
class MlpRecorder : public model::NeuronPlanner {
 public:
  MlpRecorder(std::vector<LayerStates>& layers, int stride) : layers_(layers), stride_(stride) {}

  int first_row = 0;  // of the step, counted over all windows

 protected:
  const backend::NeuronSet* choose(const model::MlpContext& context) override {
    LayerStates& layer = layers_[context.layer];
    const std::vector<float> x = download_values(context.device, context.normed);
    const model::LayerWeights& w = context.weights;
    context.device.ops().linear({context.normed, w.up.get(), w.up_bias, context.scratch});
    const std::vector<float> up = download_values(context.device, context.scratch);
    const auto rows = static_cast<int>(context.normed.shape[0]);
    const int hidden = context.config.hidden, ffn = context.config.ffn;
    for (int row = (stride_ - first_row % stride_) % stride_; row < rows; row += stride_) {
      const float* const in = x.data() + static_cast<size_t>(row) * hidden;
      layer.mlp_in.insert(layer.mlp_in.end(), in, in + hidden);
      const float* const out = up.data() + static_cast<size_t>(row) * ffn;
      for (int n = 0; n < ffn; ++n) layer.active.push_back(out[n] > 0 ? 1 : 0);
    }
    return nullptr;
  }

 private:
  std::vector<LayerStates>& layers_;
  int stride_;
};

/// The fewest neurons whose mean recall of the true union, over random batches of the text's rows,
/// reaches each of `recalls`; adds the union's mean size to `active`.
std::vector<int> neurons_for_recalls(const LayerStates& layer, const RowMajor& logits, int batch,
                                     const std::vector<double>& recalls, uint64_t seed,
                                     double* active) {
  const auto rows = static_cast<int>(logits.rows()), ffn = static_cast<int>(logits.cols());
  const int trials = std::clamp(2048 / batch, 64, 512);
  std::mt19937_64 random(seed);
  std::vector<double> curve(ffn);  // recall of the first n + 1, summed over trials
  std::vector<float> some(static_cast<size_t>(batch) * ffn);
  std::vector<char> on(ffn);
  std::vector<int> order(ffn);
  for (int trial = 0; trial < trials; ++trial) {
    std::fill(on.begin(), on.end(), 0);
    for (int i = 0; i < batch; ++i) {
      const auto row = static_cast<int>(random() % rows);
      std::copy_n(logits.row(row).data(), ffn, some.data() + static_cast<size_t>(i) * ffn);
      for (int n = 0; n < ffn; ++n) on[n] |= layer.active[static_cast<size_t>(row) * ffn + n];
    }
    const std::vector<float> scores =
        backend::union_scores(some.data(), batch, ffn, backend::UnionBy::kLikely);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return scores[a] > scores[b]; });
    const double all = std::accumulate(on.begin(), on.end(), 0.0);
    *active += all / ffn / trials;
    double hits = 0;
    for (int n = 0; n < ffn; ++n) {
      hits += on[order[n]];
      curve[n] += (all > 0 ? hits / all : 1.0) / trials;
    }
  }
  std::vector<int> counts;
  for (const double recall : recalls) {
    const auto enough = std::lower_bound(curve.begin(), curve.end(), recall);
    counts.push_back(std::min(ffn, static_cast<int>(enough - curve.begin()) + 1));
  }
  return counts;
}

/// What a layer's copy says of the recorded rows, [rows][ffn]; sets its unit.
RowMajor copy_logits(const model::ModelFile& file, int index, const LayerStates& layer,
                     sparsity::Routers& routers) {
  sparsity::MlpRouter& mlp = routers.mlps[index];
  const std::vector<float> up = backend::host_values(file.layers[index].up);
  model::copy_up_projection(up, backend::host_values(file.layers[index].up_bias), routers.ffn, mlp);
  std::vector<float> copied(up.size());
  dequantize_row(DType::kQ4_0, mlp.copy.data(), copied.data(), copied.size());
  const auto rows = static_cast<Eigen::Index>(layer.mlp_in.size()) / routers.hidden;
  const Eigen::Map<const RowMajor> x(layer.mlp_in.data(), rows, routers.hidden);
  const Eigen::Map<const RowMajor> exact(up.data(), routers.ffn, routers.hidden);
  const Eigen::Map<const RowMajor> copy(copied.data(), routers.ffn, routers.hidden);
  const Eigen::Map<const Eigen::RowVectorXf> bias(mlp.bias.data(), routers.ffn);
  const RowMajor error = x * (copy - exact).transpose();
  mlp.unit = std::max(std::sqrt(error.squaredNorm() / static_cast<float>(error.size())), 1e-6f);
  return ((x * copy.transpose()).rowwise() + bias) / mlp.unit;
}

/// Runs the windows dense, past a recorder.
Result<std::vector<LayerStates>> collect_states(backend::Device& device,
                                                const model::Weights& weights,
                                                const Windows& windows,
                                                const NeuronRecallOptions& options) {
  const model::ModelConfig& config = weights.config;
  const size_t row_bytes =
      static_cast<size_t>(config.layers) * (config.hidden * sizeof(float) + config.ffn);
  const size_t all_bytes = row_bytes * windows.count * windows.context;
  const auto stride = static_cast<int>((all_bytes + kMostBytes - 1) / kMostBytes);
  std::vector<LayerStates> layers(config.layers);
  model::DensePlanner planner;
  auto recorder = std::make_unique<MlpRecorder>(layers, stride);
  MlpRecorder& recording = *recorder;
  planner.set_neurons(std::move(recorder));
  POLAR_ASSIGN(auto decoder, model::Decoder::create(device, weights, {options.rows_per_step, 1}));
  POLAR_ASSIGN(auto cache,
               SequenceCache::create(device, config, options.kv_dtype, 1, windows.context));
  for (int window = 0; window < windows.count; ++window) {
    for (int begin = 0; begin < windows.context; begin += options.rows_per_step) {
      const int rows = std::min(options.rows_per_step, windows.context - begin);
      recording.first_row = window * windows.context + begin;
      const Chunk chunk{0, begin, windows.at(window).subspan(begin, rows), true};
      decoder->forward(cache.pack({&chunk, 1}, {}), cache.kv(), planner, nullptr);
    }
    if (options.progress) options.progress("neuron states", window + 1, windows.count);
  }
  return layers;
}

}  // namespace

bool has_routable_neurons(const model::ModelConfig& config) {
  return config.plain_relu() && config.hidden % 32 == 0;  // blocks of Q4_0
}

Result<NeuronRecall> measure_neuron_recall(backend::Device& device, const model::ModelFile& file,
                                           const model::Weights& weights, const Windows& windows,
                                           const NeuronRecallOptions& options) {
  const model::ModelConfig& config = weights.config;
  POLAR_CHECK(has_routable_neurons(config));
  POLAR_ASSIGN(std::vector<LayerStates> layers, collect_states(device, weights, windows, options));
  NeuronRecall result;
  sparsity::Routers& routers = result.routers;
  routers.hidden = config.hidden;
  routers.kv_heads = config.kv_heads;
  routers.ffn = config.ffn;
  routers.heads.resize(config.layers);
  routers.mlps.resize(config.layers);
  routers.recalls = options.recalls;
  routers.batches.assign(std::begin(kBatches), std::end(kBatches));
  const size_t sizes = routers.batches.size();
  result.union_share.resize(sizes);
  result.computed_share.resize(routers.recalls.size() * sizes);
  for (int i = 0; i < config.layers; ++i) {
    if (options.progress) options.progress("neurons of a layer", i + 1, config.layers);
    const RowMajor logits = copy_logits(file, i, layers[i], routers);
    std::vector<int32_t>& neurons = routers.mlps[i].neurons;
    neurons.resize(result.computed_share.size());
    for (size_t s = 0; s < sizes; ++s) {
      double active = 0;
      const std::vector<int> counts = neurons_for_recalls(layers[i], logits, routers.batches[s],
                                                          routers.recalls, options.seed, &active);
      result.union_share[s] += active / config.layers;
      for (size_t r = 0; r < counts.size(); ++r) {
        neurons[r * sizes + s] = counts[r];
        result.computed_share[r * sizes + s] +=
            static_cast<double>(counts[r]) / config.ffn / config.layers;
      }
    }
    layers[i] = {};
  }
  return result;
}

}  // namespace polar::study
