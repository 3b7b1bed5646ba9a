// What routers are trained on: passes over the text, its rows run as decode steps, first dense,
// then as sparse as the routers make them.

#include <Eigen/Dense>
#include <algorithm>
#include <numeric>
#include <random>

#include "study/device_values.h"
#include "study/host_planner.h"
#include "study/neurons.h"
#include "study/router_training.h"
#include "study/sequence_cache.h"

namespace polar::study {

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Memory for what head routers are trained on; of longer texts not every row is kept.
constexpr int64_t kStateBytes = int64_t{5} << 28;

/// What one layer showed.
struct LayerStates {
  std::vector<float> attention_in;  // [rows][hidden], training rows
  std::vector<uint8_t> positive;    // [rows][kv_heads]
  std::vector<float> mlp_in;        // [rows][hidden], held-out rows
  std::vector<uint8_t> active;      // [rows][ffn], held-out rows
};

/// Runs the model and labels each row's units: those that an oracle would read in full, given the
/// state that the row has in this run. The first round runs dense, the later ones read what the
/// routers of the round before choose, so that routers see the states that they will be asked
/// about.
class Recorder : public OraclePlanner {
 public:
  Recorder(std::vector<LayerStates>& layers, const RouterOptions& options, Policy labels,
           std::vector<std::vector<float>> gram)
      : OraclePlanner(std::move(labels), std::move(gram)), layers_(layers), options_(options) {}
  bool held_out = false;
  int stride = 1;                                               // every how many rows one is kept
  const std::vector<sparsity::HeadRouter>* deployed = nullptr;  // null: dense states

 protected:
  void choose(const model::LayerContext& context, std::vector<char>& keep) override {
    if (!held_out) {
      OraclePlanner::choose(context, keep);
      LayerStates& layer = layers_[context.layer];
      const std::vector<float> x = download_values(context.device, context.normed);
      const int hidden = context.config.hidden, units = context.config.kv_heads;
      for (int row = position(0) % stride; row < rows(); row += stride) {
        const auto in = x.begin() + static_cast<ptrdiff_t>(row) * hidden;
        const auto labels = keep.begin() + static_cast<ptrdiff_t>(row) * units;
        layer.attention_in.insert(layer.attention_in.end(), in, in + hidden);
        layer.positive.insert(layer.positive.end(), labels, labels + units);
      }
      const auto& dense = options_.dense_layers;
      if (deployed != nullptr &&
          std::find(dense.begin(), dense.end(), context.layer) == dense.end()) {
        ask((*deployed)[context.layer], x, context.config, keep);
        return;
      }
    }
    std::fill(keep.begin(), keep.end(), 1);
  }

 private:
  /// The units with the largest logits (ties: the lower one), as many as the labels have.
  void ask(const sparsity::HeadRouter& router, const std::vector<float>& x,
           const model::ModelConfig& config, std::vector<char>& keep) const {
    const int units = config.kv_heads;
    const Eigen::Map<const RowMajor> weight(router.weight.data(), units, config.hidden);
    const Eigen::Map<const Eigen::RowVectorXf> bias(router.bias.data(), units);
    const Eigen::Map<const RowMajor> inputs(x.data(), rows(), config.hidden);
    const RowMajor logits = (inputs * weight.transpose()).rowwise() + bias;
    std::vector<int> order(units);
    std::fill(keep.begin(), keep.end(), 0);
    for (int row = 0; row < rows(); ++row) {
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int a, int b) { return logits(row, a) > logits(row, b); });
      for (int i = 0; i < policy().kept(units); ++i)
        keep[static_cast<size_t>(row) * units + order[i]] = 1;
    }
  }

  std::vector<LayerStates>& layers_;
  const RouterOptions& options_;
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
/// reaches `recall`; adds the union's mean size to `active`.
int neurons_for_recall(const LayerStates& layer, const RowMajor& logits, int batch, double recall,
                       uint64_t seed, double* active) {
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
  const auto enough = std::lower_bound(curve.begin(), curve.end(), recall);
  return std::min(ffn, static_cast<int>(enough - curve.begin()) + 1);
}

/// What a layer's copy says of the held-out rows, [rows][ffn]; sets its unit.
RowMajor copy_logits(const model::ModelFile& file, int index, const LayerStates& layer,
                     sparsity::Routers& routers) {
  sparsity::MlpRouter& mlp = routers.mlps[index];
  const std::vector<float> up = host_values(file.layers[index].up);
  copy_up_projection(up, host_values(file.layers[index].up_bias), routers.ffn, mlp);
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
  if (windows.count < kRouterWindows) {
    return bad_input("command line", "--text", std::to_string(windows.count) + " windows",
                     "at least 8, to train routers and to hold some out");
  }
  const bool relu = !config.gated && config.activation == backend::Activation::kRelu &&
                    config.hidden % 32 == 0;  // blocks of Q4_0
  std::vector<LayerStates> layers(config.layers);
  Policy labels;
  labels.kind = PolicyKind::kOracle;
  labels.density = std::max(options.density, 1.0 / config.kv_heads);
  labels.rank_by = options.rank_by;
  labels.fallback = options.fallback;
  labels.sink = options.sink;
  labels.recent = options.recent;
  std::vector<std::vector<float>> gram;
  if (options.rank_by == RankBy::kContribution) gram = output_gram_matrices(file);
  Recorder recorder(layers, options, std::move(labels), std::move(gram));
  if (relu) recorder.set_neurons(std::make_unique<MlpRecorder>(layers, recorder));
  POLAR_ASSIGN(auto decoder, model::Decoder::create(device, weights, {options.rows_per_step, 1}));
  POLAR_ASSIGN(auto cache,
               SequenceCache::create(device, config, options.kv_dtype, 1, windows.context));
  const int held_out = windows.count / 8;
  const int64_t state_bytes = static_cast<int64_t>(windows.count - held_out) * windows.context *
                              config.layers * config.hidden * static_cast<int64_t>(sizeof(float));
  recorder.stride = static_cast<int>((state_bytes + kStateBytes - 1) / kStateBytes);
  const auto collect = [&](const std::string& stage, int first, int last) {
    for (int window = first; window < last; ++window) {
      recorder.held_out = window >= windows.count - held_out;
      for (int begin = 0; begin < windows.context; begin += options.rows_per_step) {
        const int rows = std::min(options.rows_per_step, windows.context - begin);
        const Chunk chunk{0, begin, windows.at(window).subspan(begin, rows), true};
        decoder->forward(cache.pack({&chunk, 1}, {}), cache.kv(), recorder, nullptr);
      }
      if (options.progress) options.progress(stage, window + 1, last);
    }
  };
  std::vector<sparsity::HeadRouter> heads(config.layers);
  const auto fit = [&](const std::string& stage) {
    for (int i = 0; i < config.layers; ++i) {
      if (options.progress) options.progress(stage, i + 1, config.layers);
      heads[i] = fit_head_router(layers[i].attention_in, layers[i].positive, config.hidden,
                                 config.kv_heads, options.epochs, options.seed + i);
    }
  };
  collect("states", 0, windows.count);
  fit("routers");
  for (int round = 2; round <= options.rounds; ++round) {
    recorder.deployed = &heads;
    for (LayerStates& layer : layers) {
      layer.attention_in.clear();
      layer.positive.clear();
    }
    collect("states of sparse run " + std::to_string(round - 1), 0, windows.count - held_out);
    fit("routers " + std::to_string(round));
  }

  TrainedRouters trained;
  sparsity::Routers& routers = trained.routers;
  routers.hidden = config.hidden;
  routers.kv_heads = config.kv_heads;
  routers.ffn = config.ffn;
  routers.heads = std::move(heads);
  routers.mlps.resize(config.layers);
  if (relu) {
    routers.recall = options.recall;
    routers.batches = {1, 2, 4, 8, 16, 32, 64};
    trained.union_share.resize(routers.batches.size());
    trained.computed_share.resize(routers.batches.size());
  }
  for (int i = 0; i < config.layers; ++i) {
    LayerStates& layer = layers[i];
    if (!relu) break;
    layer.attention_in = {};
    const RowMajor logits = copy_logits(file, i, layer, routers);
    sparsity::MlpRouter& mlp = routers.mlps[i];
    for (size_t s = 0; s < routers.batches.size(); ++s) {
      double active = 0;
      mlp.neurons.push_back(neurons_for_recall(layer, logits, routers.batches[s], options.recall,
                                               options.seed, &active));
      trained.union_share[s] += active / config.layers;
      trained.computed_share[s] +=
          static_cast<double>(mlp.neurons.back()) / config.ffn / config.layers;
    }
  }
  return trained;
}

}  // namespace polar::study
