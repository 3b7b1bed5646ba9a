// Shapes of published models, for benchmarks with random weights.

#include <string_view>

#include "model/config_reader.h"
#include "model/weights.h"

namespace polar::model {

namespace {

struct Shape {
  std::string_view name, architecture;
  int layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary, max_positions;
  double rope_theta;
};

constexpr Shape kShapes[] = {
    {"opt-6.7b", "opt", 32, 4096, 32, 32, 128, 16384, 50272, 2048, 0},
    {"opt-30b", "opt", 48, 7168, 56, 56, 128, 28672, 50272, 2048, 0},
    {"opt-66b", "opt", 64, 9216, 72, 72, 128, 36864, 50272, 2048, 0},
    {"llama-2-7b", "llama", 32, 4096, 32, 32, 128, 11008, 32000, 4096, 10000},
    {"llama-2-13b", "llama", 40, 5120, 40, 40, 128, 13824, 32000, 4096, 10000},
    {"llama-3.1-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 500000},
    {"llama-3.1-70b", "llama", 80, 8192, 64, 8, 128, 28672, 128256, 131072, 500000},
    {"mistral-7b", "mistral", 32, 4096, 32, 8, 128, 14336, 32000, 32768, 10000},
    {"qwen2.5-7b", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 131072, 1000000},
    {"qwen2.5-14b", "qwen2", 48, 5120, 40, 8, 128, 13824, 152064, 131072, 1000000},
    {"qwen3-8b", "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 40960, 1000000},
    {"dummy-1b", "llama", 16, 2048, 32, 8, 64, 8192, 32000, 131072, 500000},
};

ModelConfig from_shape(const Shape& shape) {
  ModelConfig config;
  config.architecture = shape.architecture;
  config.name = shape.name;
  config.layers = shape.layers;
  config.hidden = config.embedding = shape.hidden;
  config.heads = shape.heads;
  config.kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.ffn = shape.ffn;
  config.vocabulary = shape.vocabulary;
  config.max_positions = shape.max_positions;
  config.sliding_window.assign(shape.layers, 0);
  if (shape.architecture == "opt") {
    config.norm = backend::NormKind::kLayer;
    config.learned_positions = true;
    config.position_offset = 2;
    config.activation = backend::Activation::kRelu;
    config.gated = false;
    config.tied_embeddings = config.qkv_bias = config.output_bias = config.mlp_bias = true;
    return config;
  }
  config.rope.dim = shape.head_dim;
  config.rope.theta = shape.rope_theta;
  config.qkv_bias = shape.architecture == "qwen2";
  config.qk_norm = shape.architecture == "qwen3";
  return config;
}

}  // namespace

Result<ModelConfig> dummy_config(const std::string& name_or_path) {
  std::string names;
  for (const Shape& shape : kShapes) {
    if (shape.name == name_or_path) return from_shape(shape);
    names += std::string(shape.name) + ", ";
  }
  if (name_or_path.ends_with(".json")) {
    POLAR_ASSIGN(ModelConfig config, read_config_json(name_or_path));
    config.name = name_or_path;
    return config;
  }
  return bad_input("command line", "--dummy", "'" + name_or_path + "'", names + "or a config.json");
}

}  // namespace polar::model
