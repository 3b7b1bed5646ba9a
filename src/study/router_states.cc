// What routers are trained on: one dense pass over the text, its rows run as decode steps.

#include <algorithm>

#include "backend/device_values.h"
#include "study/neuron_recall.h"
#include "study/router_training.h"
#include "study/sequence_cache.h"

namespace polar::study {

namespace {

/// What one layer showed.
struct LayerStates {
  std::vector<float> attention_in;  // [rows][hidden]
  std::vector<uint8_t> positive;    // [rows][kv_heads]
};

/// Records a dense run: labels are the heads with the largest output norms.
class Recorder : public model::DensePlanner {
 public:
  Recorder(std::vector<LayerStates>& layers, int positives)
      : layers_(layers), positives_(positives) {}

  void plan(const model::LayerContext& context) override {
    DensePlanner::plan(context);
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

}  // namespace

Result<TrainedRouters> train_routers(backend::Device& device, const model::ModelFile& file,
                                     const model::Weights& weights, const Windows& windows,
                                     const RouterOptions& options) {
  const model::ModelConfig& config = weights.config;
  if (windows.count < 8) {
    return bad_input("command line", "--text", std::to_string(windows.count) + " windows",
                     "at least 8, to train routers and to hold some out");
  }
  std::vector<LayerStates> layers(config.layers);
  const int positives = std::max(1, static_cast<int>(options.density * config.kv_heads + 1e-9));
  Recorder recorder(layers, positives);
  POLAR_ASSIGN(auto decoder, model::Decoder::create(device, weights, {options.rows_per_step, 1}));
  POLAR_ASSIGN(auto cache,
               SequenceCache::create(device, config, options.kv_dtype, 1, windows.context));
  const int training = windows.count - windows.count / 8;
  for (int window = 0; window < training; ++window) {
    for (int begin = 0; begin < windows.context; begin += options.rows_per_step) {
      const int rows = std::min(options.rows_per_step, windows.context - begin);
      const Chunk chunk{0, begin, windows.at(window).subspan(begin, rows), true};
      decoder->forward(cache.pack({&chunk, 1}, {}), cache.kv(), recorder, nullptr);
    }
    if (options.progress) options.progress("states", window + 1, training);
  }

  TrainedRouters trained;
  sparsity::Routers& routers = trained.routers;
  if (has_routable_neurons(config)) {
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
  routers.heads.resize(config.layers);
  routers.mlps.resize(config.layers);
  for (int i = 0; i < config.layers; ++i) {
    if (options.progress) options.progress("routers", i + 1, config.layers);
    routers.heads[i] = fit_head_router(layers[i].attention_in, layers[i].positive, config.hidden,
                                       config.kv_heads, options.epochs, options.seed + i);
    layers[i] = {};
  }
  return trained;
}

}  // namespace polar::study
