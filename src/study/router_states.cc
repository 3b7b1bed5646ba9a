// What routers are trained on: one dense pass over the text, its rows run as decode steps.

#include <Eigen/Dense>
#include <algorithm>
#include <numeric>
#include <random>

#include "backend/device_values.h"
#include "study/neurons.h"
#include "study/router_training.h"
#include "study/sequence_cache.h"

namespace polar::study {

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// What one layer showed.
struct LayerStates {
  std::vector<float> attention_in;  // [rows][hidden], training rows
  std::vector<uint8_t> positive;    // [rows][kv_heads]
  std::vector<float> mlp_in;        // [rows][hidden], held-out rows
  std::vector<uint8_t> active;      // [rows][ffn], held-out rows
};

/// Records a dense run: labels are the heads with the largest output norms.
class Recorder : public model::DensePlanner {
 public:
  Recorder(std::vector<LayerStates>& layers, int positives)
      : layers_(layers), positives_(positives) {}
  bool held_out = false;

  void plan(const model::LayerContext& context) override {
    DensePlanner::plan(context);
    if (held_out) return;
    context.device.ops().attention(context.attention());
    LayerStates& layer = layers_[context.layer];
    const std::vector<float> x = download_values(context.device, context.normed);
    layer.attention_in.insert(layer.attention_in.end(), x.begin(), x.end());
    const std::vector<float> output = download_values(context.device, context.output);
    const int units = context.config.kv_heads;
    const size_t width = static_cast<size_t>(context.config.group()) * context.config.head_dim;
    std::vector<std::pair<double, int>> norms(units);
    for (size_t row = 0; row < output.size() / (units * width); ++row) {
      for (int unit = 0; unit < units; ++unit) {
        const float* values = output.data() + (row * units + unit) * width;
        double sum = 0;
        for (size_t i = 0; i < width; ++i) sum += static_cast<double>(values[i]) * values[i];
        norms[unit] = {-sum, unit};
      }
      std::sort(norms.begin(), norms.end());
      const size_t begin = layer.positive.size();
      layer.positive.resize(begin + units);
      for (int i = 0; i < positives_; ++i) layer.positive[begin + norms[i].second] = 1;
    }
  }

 private:
  std::vector<LayerStates>& layers_;
  int positives_;
};

/// Records what MLPs read, and which neurons they activate. Chooses nothing.
class MlpRecorder : public model::NeuronPlanner {
 public:
  MlpRecorder(std::vector<LayerStates>& layers, const Recorder& recorder)
      : layers_(layers), recorder_(recorder) {}

 protected:
  const backend::NeuronSet* choose(const model::MlpContext& context) override {
    if (!recorder_.held_out) return nullptr;
    LayerStates& layer = layers_[context.layer];
    const std::vector<float> x = download_values(context.device, context.normed);
    layer.mlp_in.insert(layer.mlp_in.end(), x.begin(), x.end());
    const model::LayerWeights& w = context.weights;
    context.device.ops().linear({context.normed, w.up.get(), w.up_bias, context.scratch});
    for (const float value : download_values(context.device, context.scratch))
      layer.active.push_back(value > 0 ? 1 : 0);
    return nullptr;
  }

 private:
  std::vector<LayerStates>& layers_;
  const Recorder& recorder_;
};

/// The fewest neurons whose mean recall of the true union, over random batches of held-out rows,
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
        sparsity::union_scores(some.data(), batch, ffn, sparsity::UnionBy::kLikely);
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

/// What a layer's copy says of the held-out rows, [rows][ffn]; sets its unit.
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

}  // namespace

Result<TrainedRouters> train_routers(backend::Device& device, const model::ModelFile& file,
                                     const model::Weights& weights, const Windows& windows,
                                     const RouterOptions& options) {
  const model::ModelConfig& config = weights.config;
  if (windows.count < 8) {
    return bad_input("command line", "--text", std::to_string(windows.count) + " windows",
                     "at least 8, to train routers and to hold some out");
  }
  const bool relu = !config.gated && config.activation == backend::Activation::kRelu &&
                    config.hidden % 32 == 0;  // blocks of Q4_0
  std::vector<LayerStates> layers(config.layers);
  const int positives = std::max(1, static_cast<int>(options.density * config.kv_heads + 1e-9));
  Recorder recorder(layers, positives);
  if (relu) recorder.set_neurons(std::make_unique<MlpRecorder>(layers, recorder));
  POLAR_ASSIGN(auto decoder, model::Decoder::create(device, weights, {options.rows_per_step, 1}));
  POLAR_ASSIGN(auto cache,
               SequenceCache::create(device, config, options.kv_dtype, 1, windows.context));
  for (int window = 0; window < windows.count; ++window) {
    recorder.held_out = window >= windows.count - windows.count / 8;
    for (int begin = 0; begin < windows.context; begin += options.rows_per_step) {
      const int rows = std::min(options.rows_per_step, windows.context - begin);
      const Chunk chunk{0, begin, windows.at(window).subspan(begin, rows), true};
      decoder->forward(cache.pack({&chunk, 1}, {}), cache.kv(), recorder, nullptr);
    }
    if (options.progress) options.progress("states", window + 1, windows.count);
  }

  TrainedRouters trained;
  sparsity::Routers& routers = trained.routers;
  routers.hidden = config.hidden;
  routers.kv_heads = config.kv_heads;
  routers.ffn = config.ffn;
  routers.heads.resize(config.layers);
  routers.mlps.resize(config.layers);
  if (relu) {
    routers.recalls = options.recalls;
    routers.batches = {1, 2, 4, 8, 16, 32, 64};
    trained.union_share.resize(routers.batches.size());
    trained.computed_share.resize(routers.recalls.size() * routers.batches.size());
  }
  for (int i = 0; i < config.layers; ++i) {
    LayerStates& layer = layers[i];
    if (options.progress) options.progress("routers", i + 1, config.layers);
    routers.heads[i] = fit_head_router(layer.attention_in, layer.positive, config.hidden,
                                       config.kv_heads, options.epochs, options.seed + i);
    layer.attention_in = {};
    if (!relu) continue;
    const RowMajor logits = copy_logits(file, i, layer, routers);
    sparsity::MlpRouter& mlp = routers.mlps[i];
    const size_t sizes = routers.batches.size();
    mlp.neurons.resize(routers.recalls.size() * sizes);
    for (size_t s = 0; s < sizes; ++s) {
      double active = 0;
      const std::vector<int> counts = neurons_for_recalls(layer, logits, routers.batches[s],
                                                          routers.recalls, options.seed, &active);
      trained.union_share[s] += active / config.layers;
      for (size_t r = 0; r < counts.size(); ++r) {
        mlp.neurons[r * sizes + s] = counts[r];
        trained.computed_share[r * sizes + s] +=
            static_cast<double>(counts[r]) / config.ffn / config.layers;
      }
    }
  }
  return trained;
}

}  // namespace polar::study
