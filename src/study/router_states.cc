// What routers are trained on: passes over the text, its rows run as decode steps, first dense,
// then as sparse as the routers make them.

#include <Eigen/Dense>
#include <algorithm>
#include <numeric>

#include "backend/device_values.h"
#include "study/host_planner.h"
#include "study/router_training.h"
#include "study/sequence_cache.h"

namespace polar::study {

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Memory for what head routers are trained on; of longer texts not every row is kept.
constexpr int64_t kStateBytes = int64_t{5} << 28;

/// What one layer showed.
struct LayerStates {
  std::vector<float> attention_in;  // [rows][hidden]
  std::vector<uint8_t> positive;    // [rows][kv_heads]
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
  int stride = 1;                                               // every how many rows one is kept
  const std::vector<sparsity::HeadRouter>* deployed = nullptr;  // null: dense states

 protected:
  void choose(const model::LayerContext& context, std::vector<char>& keep) override {
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

}  // namespace

Result<TrainedRouters> train_routers(backend::Device& device, const model::ModelFile& file,
                                     const model::Weights& weights, const Windows& windows,
                                     const RouterOptions& options) {
  const model::ModelConfig& config = weights.config;
  if (windows.count < kRouterWindows) {
    return bad_input("command line", "--text", std::to_string(windows.count) + " windows",
                     "at least 8, to train routers and to hold some out");
  }
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
  POLAR_ASSIGN(auto decoder, model::Decoder::create(device, weights, {options.rows_per_step, 1}));
  POLAR_ASSIGN(auto cache,
               SequenceCache::create(device, config, options.kv_dtype, 1, windows.context));
  // The last windows are left to the neurons' measurement.
  const bool neurons = options.neurons && has_routable_neurons(config);
  const int training = windows.count - (neurons ? windows.count / 8 : 0);
  const int64_t state_bytes = int64_t{training} * windows.context * config.layers * config.hidden *
                              static_cast<int64_t>(sizeof(float));
  recorder.stride = static_cast<int>((state_bytes + kStateBytes - 1) / kStateBytes);
  const auto collect = [&](const std::string& stage) {
    for (int window = 0; window < training; ++window) {
      for (int begin = 0; begin < windows.context; begin += options.rows_per_step) {
        const int rows = std::min(options.rows_per_step, windows.context - begin);
        const Chunk chunk{0, begin, windows.at(window).subspan(begin, rows), true};
        decoder->forward(cache.pack({&chunk, 1}, {}), cache.kv(), recorder, nullptr);
      }
      if (options.progress) options.progress(stage, window + 1, training);
    }
  };
  std::vector<sparsity::HeadRouter> heads(config.layers);
  const auto fit = [&](const std::string& stage) {
    for (int i = 0; i < config.layers; ++i) {
      if (options.progress) options.progress(stage, i + 1, config.layers);
      heads[i] = fit_head_router(layers[i].attention_in, layers[i].positive, config.hidden,
                                 config.kv_heads, options.epochs, options.seed + i);
      layers[i].attention_in.clear();
      layers[i].positive.clear();
    }
  };
  collect("states");
  fit("routers");
  for (int round = 2; round <= options.rounds; ++round) {
    recorder.deployed = &heads;
    collect("states of sparse run " + std::to_string(round - 1));
    fit("routers " + std::to_string(round));
  }

  TrainedRouters trained;
  sparsity::Routers& routers = trained.routers;
  if (neurons) {
    layers.clear();
    layers.shrink_to_fit();
    const auto first = static_cast<size_t>(training) * windows.context;
    const Windows held_out{
        {windows.tokens.begin() + static_cast<ptrdiff_t>(first), windows.tokens.end()},
        windows.context,
        windows.count - training};
    POLAR_ASSIGN(NeuronRecall measured,
                 measure_neuron_recall(device, file, weights, held_out, options));
    routers = std::move(measured.routers);
    trained.union_share = std::move(measured.union_share);
    trained.computed_share = std::move(measured.computed_share);
  }
  routers.hidden = config.hidden;
  routers.kv_heads = config.kv_heads;
  routers.ffn = config.ffn;
  routers.heads = std::move(heads);
  routers.mlps.resize(config.layers);
  return trained;
}

}  // namespace polar::study
