#include "model/weights.h"

#include <fmt/format.h>

#include <functional>

namespace polar::model {

namespace {

using backend::Device;
using backend::Norm;
using backend::WeightSource;

/// Fills a Weights struct: the same walk for a file's tensors and for dummies.
class Loader {
 public:
  Loader(Device& device, const ModelConfig& config) : device_(device) { weights.config = config; }

  Weights weights;

  /// f32 values on the device, kept by `weights`.
  Result<const float*> upload(const std::vector<float>& values) {
    POLAR_ASSIGN(backend::Buffer buffer,
                 device_.allocate(values.size() * sizeof(float), "norms and biases"));
    device_.upload(buffer.data(), values.data(), values.size() * sizeof(float));
    weights.vectors.push_back(std::move(buffer));
    return static_cast<const float*>(weights.vectors.back().as<float>());
  }

  /// Stacked vectors as one; null when there are none.
  Result<const float*> vector(std::initializer_list<Tensor> parts) {
    std::vector<float> values;
    for (const Tensor& part : parts) {
      if (part.data == nullptr) continue;
      const size_t begin = values.size();
      values.resize(begin + part.values());
      dequantize_row(part.dtype, part.data, values.data() + begin, part.values());
    }
    if (values.empty()) return static_cast<const float*>(nullptr);
    return upload(values);
  }

  Status norm(const Tensor& weight, const Tensor& bias, Norm* out) {
    out->kind = weights.config.norm;
    out->epsilon = weights.config.norm_epsilon;
    POLAR_ASSIGN(out->weight, vector({weight}));
    POLAR_ASSIGN(out->bias, vector({bias}));
    return {};
  }

  Status matrix(const char* name, std::initializer_list<Tensor> parts,
                std::unique_ptr<backend::Weight>* out, bool gather_columns = false) {
    WeightSource source{name, {}, gather_columns};
    for (const Tensor& part : parts) {
      if (part.data != nullptr) source.parts.push_back(part);
    }
    if (source.parts.empty()) return {};
    POLAR_ASSIGN(*out, device_.prepare(source));
    return {};
  }

  Status rope() {
    const RopeConfig& config = weights.config.rope;
    if (config.dim == 0) return {};
    const RopeTable table = rope_table(config);
    weights.rope.dim = config.dim;
    weights.rope.interleaved = config.interleaved;
    weights.rope.scale = table.scale;
    POLAR_ASSIGN(weights.rope.inverse_frequency, upload(table.inverse_frequency));
    return {};
  }

 private:
  Device& device_;
};

/// Values of all matrices.
int64_t matrix_values(const ModelConfig& config) {
  const int64_t hidden = config.hidden, query = config.query_width(),
                layer = (query + 2 * config.kv_width()) * hidden + hidden * query +
                        (config.gated ? 3 : 2) * hidden * config.ffn,
                tables = int64_t{config.vocabulary} * (config.tied_embeddings ? 1 : 2),
                positions = config.learned_positions ? config.max_positions : 0;
  return config.layers * layer + tables * config.embedding + positions * hidden;
}

/// A device of its own memory holds all matrices, in bf16.
Status check_memory(Device& device, const ModelConfig& config) {
  const backend::DeviceInfo info = device.info();
  const auto wanted = static_cast<size_t>(matrix_values(config)) * 2;
  if (info.is_cpu || wanted <= info.free_bytes) return {};
  return bad_input("memory", "weights",
                   fmt::format("{} MiB free of {} MiB on {}", info.free_bytes >> 20,
                               info.memory_bytes >> 20, info.name),
                   fmt::format("{} MiB, in bf16 (a smaller model, or --device cpu)", wanted >> 20));
}

}  // namespace

Result<Weights> load_weights(Device& device, const ModelFile& file) {
  POLAR_RETURN_IF_ERROR(check_memory(device, file.config()));
  Loader loader(device, file.config());
  Weights& w = loader.weights;
  POLAR_RETURN_IF_ERROR(
      loader.matrix("token embedding", {file.token_embedding}, &w.token_embedding));
  POLAR_RETURN_IF_ERROR(
      loader.matrix("position embedding", {file.position_embedding}, &w.position_embedding));
  POLAR_RETURN_IF_ERROR(loader.matrix("input projection", {file.project_in}, &w.project_in));
  POLAR_RETURN_IF_ERROR(loader.matrix("output projection", {file.project_out}, &w.project_out));
  POLAR_RETURN_IF_ERROR(loader.matrix("head", {file.lm_head}, &w.lm_head));
  POLAR_RETURN_IF_ERROR(loader.norm(file.final_norm, file.final_norm_bias, &w.final_norm));
  POLAR_RETURN_IF_ERROR(loader.rope());
  // The FC2 of a ReLU model is kept by columns, so that the neurons of a step are contiguous rows.
  const bool gathers = file.config().plain_relu();
  for (const LayerTensors& t : file.layers) {
    LayerWeights layer;
    POLAR_RETURN_IF_ERROR(
        loader.norm(t.attention_norm, t.attention_norm_bias, &layer.attention_norm));
    POLAR_RETURN_IF_ERROR(loader.norm(t.query_norm, {}, &layer.query_norm));
    POLAR_RETURN_IF_ERROR(loader.norm(t.key_norm, {}, &layer.key_norm));
    POLAR_RETURN_IF_ERROR(loader.norm(t.mlp_norm, t.mlp_norm_bias, &layer.mlp_norm));
    POLAR_RETURN_IF_ERROR(loader.matrix("qkv", {t.query, t.key, t.value}, &layer.qkv));
    POLAR_RETURN_IF_ERROR(loader.matrix("attention output", {t.output}, &layer.output));
    POLAR_RETURN_IF_ERROR(loader.matrix("up", {t.gate, t.up}, &layer.up));
    POLAR_RETURN_IF_ERROR(loader.matrix("down", {t.down}, &layer.down, gathers));
    POLAR_ASSIGN(layer.qkv_bias, loader.vector({t.query_bias, t.key_bias, t.value_bias}));
    POLAR_ASSIGN(layer.output_bias, loader.vector({t.output_bias}));
    POLAR_ASSIGN(layer.up_bias, loader.vector({t.up_bias}));
    POLAR_ASSIGN(layer.down_bias, loader.vector({t.down_bias}));
    w.layers.push_back(std::move(layer));
  }
  return std::move(loader.weights);
}

Result<Weights> dummy_weights(Device& device, const ModelConfig& config, DType dtype,
                              uint64_t seed) {
  POLAR_RETURN_IF_ERROR(check_memory(device, config));
  Loader loader(device, config);
  Weights& w = loader.weights;
  const auto matrix = [&](int64_t rows, int64_t columns, std::unique_ptr<backend::Weight>* out,
                          bool gather = false) -> Status {
    POLAR_ASSIGN(*out, device.dummy(rows, columns, dtype, gather, ++seed));
    return {};
  };
  const auto norm = [&](int width, Norm* out) -> Status {
    out->kind = config.norm;
    out->epsilon = config.norm_epsilon;
    POLAR_ASSIGN(out->weight, loader.upload(std::vector<float>(width, 1.0f)));
    if (config.norm == backend::NormKind::kLayer) {
      POLAR_ASSIGN(out->bias, loader.upload(std::vector<float>(width, 0.0f)));
    }
    return {};
  };
  const auto bias = [&](bool has, int width, const float** out) -> Status {
    if (!has) return {};
    POLAR_ASSIGN(*out, loader.upload(std::vector<float>(width, 0.01f)));
    return {};
  };
  POLAR_RETURN_IF_ERROR(matrix(config.vocabulary, config.embedding, &w.token_embedding));
  if (!config.tied_embeddings)
    POLAR_RETURN_IF_ERROR(matrix(config.vocabulary, config.embedding, &w.lm_head));
  if (config.learned_positions) {
    POLAR_RETURN_IF_ERROR(matrix(config.max_positions + config.position_offset, config.hidden,
                                 &w.position_embedding));
  }
  if (config.embedding != config.hidden) {
    POLAR_RETURN_IF_ERROR(matrix(config.hidden, config.embedding, &w.project_in));
    POLAR_RETURN_IF_ERROR(matrix(config.embedding, config.hidden, &w.project_out));
  }
  if (config.final_norm) POLAR_RETURN_IF_ERROR(norm(config.hidden, &w.final_norm));
  POLAR_RETURN_IF_ERROR(loader.rope());
  const int qkv_width = config.query_width() + 2 * config.kv_width();
  for (int i = 0; i < config.layers; ++i) {
    LayerWeights layer;
    POLAR_RETURN_IF_ERROR(norm(config.hidden, &layer.attention_norm));
    POLAR_RETURN_IF_ERROR(norm(config.hidden, &layer.mlp_norm));
    if (config.qk_norm) {
      POLAR_RETURN_IF_ERROR(norm(config.head_dim, &layer.query_norm));
      POLAR_RETURN_IF_ERROR(norm(config.head_dim, &layer.key_norm));
    }
    POLAR_RETURN_IF_ERROR(matrix(qkv_width, config.hidden, &layer.qkv));
    POLAR_RETURN_IF_ERROR(matrix(config.hidden, config.query_width(), &layer.output));
    POLAR_RETURN_IF_ERROR(matrix(config.ffn * (config.gated ? 2 : 1), config.hidden, &layer.up));
    POLAR_RETURN_IF_ERROR(matrix(config.hidden, config.ffn, &layer.down, config.plain_relu()));
    POLAR_RETURN_IF_ERROR(bias(config.qkv_bias, qkv_width, &layer.qkv_bias));
    POLAR_RETURN_IF_ERROR(bias(config.output_bias, config.hidden, &layer.output_bias));
    POLAR_RETURN_IF_ERROR(bias(config.mlp_bias, config.ffn, &layer.up_bias));
    POLAR_RETURN_IF_ERROR(bias(config.mlp_bias, config.hidden, &layer.down_bias));
    w.layers.push_back(std::move(layer));
  }
  return std::move(loader.weights);
}

size_t Weights::step_bytes() const {
  size_t bytes = head().bytes();
  for (const auto* weight : {project_in.get(), project_out.get()}) {
    if (weight != nullptr) bytes += weight->bytes();
  }
  for (const LayerWeights& layer : layers) {
    bytes += layer.qkv->bytes() + layer.output->bytes() + layer.up->bytes() + layer.down->bytes();
  }
  return bytes;
}

}  // namespace polar::model
