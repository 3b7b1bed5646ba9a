#include <algorithm>
#include <cmath>
#include <filesystem>

#include "io/in_quotes.h"
#include "model/config_reader.h"

namespace polar::model {

namespace {

/// What a file says as an int; negative values stay so, for check_config to refuse.
int bounded(int64_t value, int64_t most) {
  return static_cast<int>(std::clamp<int64_t>(value, -1, most));
}

Status read_rope(const io::GgufFile& file, const std::string& arch, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  POLAR_ASSIGN(const int64_t dim, file.i64_or(arch + ".rope.dimension_count", config.head_dim));
  rope.dim = bounded(dim, 1 << 20);
  POLAR_ASSIGN(rope.theta, file.f64_or(arch + ".rope.freq_base", 10000.0));
  // llama.cpp stores Q and K of the LLaMA family so that pairs stand side by side; those of Qwen as
  // Hugging Face does.
  rope.interleaved = arch == "llama";
  // Files from before rope.scaling.* say rope.scale_linear.
  POLAR_ASSIGN(const double linear, file.f64_or(arch + ".rope.scale_linear", 1.0));
  POLAR_ASSIGN(const std::string_view type,
               file.string_or(arch + ".rope.scaling.type", linear == 1.0 ? "none" : "linear"));
  POLAR_ASSIGN(rope.factor, file.f64_or(arch + ".rope.scaling.factor", linear));
  POLAR_ASSIGN(const int64_t original,
               file.i64_or(arch + ".rope.scaling.original_context_length", config.max_positions));
  rope.original_max_positions = bounded(original, INT32_MAX);
  if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::kYarn;
    POLAR_ASSIGN(rope.beta_fast, file.f64_or(arch + ".rope.scaling.yarn_beta_fast", 32.0));
    POLAR_ASSIGN(rope.beta_slow, file.f64_or(arch + ".rope.scaling.yarn_beta_slow", 1.0));
    // GGUF's factor multiplies yarn's own, transformers' replaces it.
    POLAR_ASSIGN(const double attention, file.f64_or(arch + ".rope.scaling.attn_factor", 1.0));
    rope.attention_factor = attention * (rope.factor > 1 ? 0.1 * std::log(rope.factor) + 1 : 1.0);
  } else if (type != "none") {
    return bad_input(file.path(), arch + ".rope.scaling.type", io::in_quotes(type),
                     "none, linear or yarn");
  } else {
    rope.factor = 1.0;
  }
  if (const Tensor* factors = file.find("rope_freqs.weight")) {
    if (factors->dtype != DType::kF32 || factors->values() != rope.dim / 2) {
      return bad_input(file.path(), "rope_freqs.weight",
                       std::to_string(factors->values()) + " values",
                       std::to_string(rope.dim / 2) + " of f32");
    }
    rope.frequency_factors.assign(factors->as<float>(), factors->as<float>() + factors->values());
    for (const float factor : rope.frequency_factors) {
      if (!(factor > 0 && factor <= 1e6f)) {
        return bad_input(file.path(), "rope_freqs.weight", std::to_string(factor),
                         "positive numbers");
      }
    }
  }
  return {};
}

}  // namespace

Result<ModelConfig> read_gguf_config(const io::GgufFile& file) {
  const std::string arch(file.architecture());
  if (arch != "llama" && arch != "qwen2" && arch != "qwen3") {
    return bad_input(file.path(), "general.architecture", io::in_quotes(arch),
                     "llama, qwen2 or qwen3");
  }
  ModelConfig config;
  config.architecture = arch;
  config.name = std::filesystem::path(file.path()).filename().string();
  const auto whole = [&](const std::string& key, int* out) -> Status {
    POLAR_ASSIGN(const int64_t value, file.i64(arch + key));
    if (value < 0 || value > INT32_MAX) {
      return bad_input(file.path(), arch + key, std::to_string(value),
                       "a positive number of 31 bits");
    }
    *out = static_cast<int>(value);
    return {};
  };
  POLAR_RETURN_IF_ERROR(whole(".block_count", &config.layers));
  POLAR_RETURN_IF_ERROR(whole(".embedding_length", &config.hidden));
  POLAR_RETURN_IF_ERROR(whole(".attention.head_count", &config.heads));
  POLAR_RETURN_IF_ERROR(whole(".feed_forward_length", &config.ffn));
  POLAR_RETURN_IF_ERROR(whole(".context_length", &config.max_positions));
  config.kv_heads = config.heads;
  if (file.contains(arch + ".attention.head_count_kv")) {
    POLAR_RETURN_IF_ERROR(whole(".attention.head_count_kv", &config.kv_heads));
  }
  config.head_dim = config.heads > 0 ? config.hidden / config.heads : 0;
  if (file.contains(arch + ".attention.key_length")) {
    POLAR_RETURN_IF_ERROR(whole(".attention.key_length", &config.head_dim));
  }
  POLAR_ASSIGN(const uint64_t experts, file.u64_or(arch + ".expert_count", 0));
  if (experts > 0) {
    return bad_input(file.path(), arch + ".expert_count", "a mixture of experts", "a dense model");
  }
  POLAR_ASSIGN(const double epsilon, file.f64(arch + ".attention.layer_norm_rms_epsilon"));
  config.norm_epsilon = static_cast<float>(epsilon);
  POLAR_ASSIGN(const Tensor table, file.tensor("token_embd.weight"));
  config.vocabulary = bounded(table.shape[0], INT32_MAX);
  config.embedding = config.hidden;
  config.tied_embeddings = file.find("output.weight") == nullptr;
  config.qkv_bias = file.find("blk.0.attn_q.bias") != nullptr;
  config.output_bias = file.find("blk.0.attn_output.bias") != nullptr;
  config.qk_norm = arch == "qwen3";
  POLAR_RETURN_IF_ERROR(read_rope(file, arch, config));
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    POLAR_ASSIGN(const int64_t id, file.i64_or(key, -1));
    if (id >= 0 && id <= INT32_MAX) config.eos_tokens.push_back(static_cast<int32_t>(id));
  }
  POLAR_ASSIGN(const int64_t bos, file.i64_or("tokenizer.ggml.bos_token_id", -1));
  config.bos_token = bounded(bos, INT32_MAX);
  POLAR_RETURN_IF_ERROR(check_config(config, file.path()));
  POLAR_ASSIGN(const int64_t window, file.i64_or(arch + ".attention.sliding_window", 0));
  config.sliding_window.assign(config.layers, std::max(0, bounded(window, INT32_MAX)));
  return config;
}

}  // namespace polar::model
