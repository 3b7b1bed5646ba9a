#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/in_quotes.h"
#include "model/config_reader.h"

namespace polar::model {

using nlohmann::json;

namespace {

/// A value as a sentence may show it. Containers are not printed: a file may nest them deeper than
/// the stack allows.
std::string describe(const json& value) {
  if (value.is_array()) return "a list of " + std::to_string(value.size());
  if (value.is_object()) return "an object of " + std::to_string(value.size());
  if (value.is_string()) return io::in_quotes(value.get_ref<const std::string&>(), 60);
  return value.dump();
}

/// Typed access to one JSON object; null counts as absent, as in transformers.
class Fields {
 public:
  Fields(const json& object, std::string where, std::string prefix = "")
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  bool says_null(const char* key) const { return object_.contains(key) && object_[key].is_null(); }
  const json& at(const char* key) const { return object_[key]; }

  Error wrong(const char* key, const char* expected) const {
    return bad_input(where_, prefix_ + key,
                     object_.contains(key) ? describe(object_[key]) : "nothing", expected);
  }

  Result<int> whole(const char* key) const {
    if (!has(key) || !at(key).is_number_integer()) return wrong(key, "a whole number");
    const auto value = at(key).get<int64_t>();
    if (value < -(int64_t{1} << 31) || value >= (int64_t{1} << 31))
      return wrong(key, "a whole number of 32 bits");
    return static_cast<int>(value);
  }
  Result<int> whole_or(const char* key, int missing) const {
    return has(key) ? whole(key) : Result<int>(missing);
  }

  Result<double> number_or(const char* key, double missing) const {
    if (!has(key)) return missing;
    if (!at(key).is_number() || !std::isfinite(at(key).get<double>()))
      return wrong(key, "a number");
    return at(key).get<double>();
  }
  Result<bool> flag_or(const char* key, bool missing) const {
    if (!has(key)) return missing;
    if (!at(key).is_boolean()) return wrong(key, "true or false");
    return at(key).get<bool>();
  }
  Result<std::string> text_or(const char* key, const std::string& missing) const {
    if (!has(key)) return missing;
    if (!at(key).is_string()) return wrong(key, "a string");
    return at(key).get<std::string>();
  }
  const std::string& where() const { return where_; }

 private:
  const json& object_;
  std::string where_, prefix_;
};

Result<backend::Activation> read_activation(const Fields& fields, const char* key,
                                            const char* missing) {
  POLAR_ASSIGN(const std::string name, fields.text_or(key, missing));
  if (name == "relu") return backend::Activation::kRelu;
  if (name == "silu" || name == "swish") return backend::Activation::kSilu;
  if (name == "gelu") return backend::Activation::kGelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return backend::Activation::kGeluTanh;
  return fields.wrong(key, "relu, silu, gelu, gelu_new or gelu_pytorch_tanh");
}

/// rope_scaling, or transformers 5's rope_parameters.
Status read_rope(const Fields& fields, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.dim = config.head_dim;
  POLAR_ASSIGN(rope.theta, fields.number_or("rope_theta", 10000.0));
  POLAR_ASSIGN(const double turned, fields.number_or("partial_rotary_factor", 1.0));
  if (turned != 1.0)
    return fields.wrong("partial_rotary_factor", "1 (partial rotation is not supported)");
  const char* key = fields.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!fields.has(key)) return {};
  if (!fields.at(key).is_object()) return fields.wrong(key, "an object");
  const Fields scaling(fields.at(key), fields.where(), std::string(key) + ".");
  POLAR_ASSIGN(rope.theta, scaling.number_or("rope_theta", rope.theta));
  POLAR_ASSIGN(const double rotated, scaling.number_or("partial_rotary_factor", 1.0));
  if (rotated != 1.0)
    return scaling.wrong("partial_rotary_factor", "1 (partial rotation is not supported)");
  const char* type_key = scaling.has("rope_type") ? "rope_type" : "type";
  POLAR_ASSIGN(const std::string type, scaling.text_or(type_key, "default"));
  POLAR_ASSIGN(rope.factor, scaling.number_or("factor", 1.0));
  POLAR_ASSIGN(rope.original_max_positions,
               scaling.whole_or("original_max_position_embeddings", config.max_positions));
  if (type == "default") {
    rope.factor = 1.0;
  } else if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
  } else if (type == "llama3") {
    rope.scaling = RopeScaling::kLlama3;
    POLAR_ASSIGN(rope.low_frequency_factor, scaling.number_or("low_freq_factor", 1.0));
    POLAR_ASSIGN(rope.high_frequency_factor, scaling.number_or("high_freq_factor", 4.0));
    if (!(rope.high_frequency_factor > rope.low_frequency_factor)) {
      return scaling.wrong("high_freq_factor", "more than low_freq_factor");
    }
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::kYarn;
    POLAR_ASSIGN(rope.beta_fast, scaling.number_or("beta_fast", 32.0));
    POLAR_ASSIGN(rope.beta_slow, scaling.number_or("beta_slow", 1.0));
    POLAR_ASSIGN(rope.attention_factor, scaling.number_or("attention_factor", 0.0));
    for (const char* other : {"mscale", "mscale_all_dim"}) {
      if (scaling.has(other))
        return scaling.wrong(other, "nothing (only yarn's attention_factor is supported)");
    }
    POLAR_ASSIGN(rope.truncate, scaling.flag_or("truncate", true));
  } else {
    return scaling.wrong(type_key, "default, linear, llama3 or yarn");
  }
  return {};
}

/// Which layers look through a sliding window: layer_types where it is given, else the family's own
/// rule.
Status read_windows(const Fields& fields, ModelConfig& config) {
  config.sliding_window.assign(config.layers, 0);
  // transformers' defaults where the key is missing; null says that there is no window.
  const bool llama = config.architecture == "llama";
  const int missing = llama || fields.says_null("sliding_window") ? 0 : 4096;
  POLAR_ASSIGN(const int window, fields.whole_or("sliding_window", missing));
  if (window < 0) return fields.wrong("sliding_window", "a positive number");
  const bool qwen = config.architecture == "qwen2" || config.architecture == "qwen3";
  POLAR_ASSIGN(const bool use, fields.flag_or("use_sliding_window", !qwen));
  if (window == 0 || !use || llama) return {};
  int first = 0;
  if (qwen) {
    POLAR_ASSIGN(first, fields.whole_or("max_window_layers", 28));
  }
  const bool listed = fields.has("layer_types");
  if (listed && (!fields.at("layer_types").is_array() ||
                 fields.at("layer_types").size() != static_cast<size_t>(config.layers))) {
    return fields.wrong("layer_types", "one entry per layer");
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    bool slides = layer >= first;
    if (listed) {
      const json& type = fields.at("layer_types")[layer];
      if (type != "sliding_attention" && type != "full_attention") {
        return fields.wrong("layer_types", "sliding_attention and full_attention");
      }
      slides = type == "sliding_attention";
    }
    if (slides) config.sliding_window[layer] = window;
  }
  return {};
}

Status read_opt(const Fields& fields, ModelConfig& config) {
  POLAR_ASSIGN(config.ffn, fields.whole("ffn_dim"));
  POLAR_ASSIGN(config.embedding, fields.whole_or("word_embed_proj_dim", config.hidden));
  POLAR_ASSIGN(const bool norm_before, fields.flag_or("do_layer_norm_before", true));
  POLAR_ASSIGN(const bool no_final_norm, fields.flag_or("_remove_final_layer_norm", false));
  POLAR_ASSIGN(const bool bias, fields.flag_or("enable_bias", true));
  POLAR_ASSIGN(const bool affine, fields.flag_or("layer_norm_elementwise_affine", true));
  if (!affine) return fields.wrong("layer_norm_elementwise_affine", "true");
  POLAR_ASSIGN(config.activation, read_activation(fields, "activation_function", "relu"));
  POLAR_ASSIGN(config.tied_embeddings, fields.flag_or("tie_word_embeddings", true));
  config.kv_heads = config.heads;
  if (config.heads > 0) config.head_dim = config.hidden / config.heads;
  config.norm = backend::NormKind::kLayer;
  config.norm_after = !norm_before;
  config.final_norm = norm_before && !no_final_norm;
  config.learned_positions = true;
  config.position_offset = 2;
  config.gated = false;
  config.qkv_bias = config.output_bias = config.mlp_bias = bias;
  config.sliding_window.assign(std::max(0, std::min(config.layers, 4096)), 0);
  return {};
}

Status read_llama_like(const Fields& fields, ModelConfig& config) {
  POLAR_ASSIGN(config.ffn, fields.whole("intermediate_size"));
  POLAR_ASSIGN(config.kv_heads, fields.whole_or("num_key_value_heads", config.heads));
  const int hidden_share = config.heads > 0 ? config.hidden / config.heads : 0;
  POLAR_ASSIGN(config.head_dim,
               fields.whole_or("head_dim", config.architecture == "qwen3" ? 128 : hidden_share));
  POLAR_ASSIGN(const double epsilon, fields.number_or("rms_norm_eps", 1e-6));
  config.norm_epsilon = static_cast<float>(epsilon);
  POLAR_ASSIGN(config.activation, read_activation(fields, "hidden_act", "silu"));
  POLAR_ASSIGN(config.tied_embeddings, fields.flag_or("tie_word_embeddings", false));
  POLAR_ASSIGN(const bool attention_bias, fields.flag_or("attention_bias", false));
  POLAR_ASSIGN(config.mlp_bias, fields.flag_or("mlp_bias", false));
  if (config.mlp_bias)
    return fields.wrong("mlp_bias", "false (a gated MLP with biases is not supported)");
  config.qkv_bias = attention_bias || config.architecture == "qwen2";
  config.output_bias = attention_bias && config.architecture != "qwen2";
  config.qk_norm = config.architecture == "qwen3";
  config.embedding = config.hidden;
  if (config.layers < 1 || config.layers > 4096) return {};  // check_config says it
  POLAR_RETURN_IF_ERROR(read_rope(fields, config));
  return read_windows(fields, config);
}

Result<json> read_json(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return bad_input(path, "file", "nothing that can be read", "a model's configuration");
  std::ostringstream bytes;
  bytes << in.rdbuf();
  json object = json::parse(bytes.str(), nullptr, false);
  if (!object.is_object())
    return bad_input(path, "file", "no JSON object", "a model's configuration");
  return object;
}

/// eos_token_id is a number or a list of them.
Status read_eos(const Fields& fields, ModelConfig& config) {
  if (!fields.has("eos_token_id")) return {};
  const json& value = fields.at("eos_token_id");
  std::vector<int32_t> tokens;
  const size_t count = value.is_array() ? value.size() : 1;
  for (size_t i = 0; i < count; ++i) {
    const json& id = value.is_array() ? value[i] : value;
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      return fields.wrong("eos_token_id", "a token id, or a list of them");
    }
    tokens.push_back(id.get<int32_t>());
  }
  config.eos_tokens = std::move(tokens);
  return {};
}

}  // namespace

Result<ModelConfig> read_config_json(const std::string& path) {
  POLAR_ASSIGN(const json object, read_json(path));
  const Fields fields(object, path);
  ModelConfig config;
  POLAR_ASSIGN(config.architecture, fields.text_or("model_type", ""));
  if (fields.has("quantization_config"))
    return fields.wrong("quantization_config", "nothing (use a GGUF file)");
  const bool opt = config.architecture == "opt";
  if (!opt && config.architecture != "llama" && config.architecture != "mistral" &&
      config.architecture != "qwen2" && config.architecture != "qwen3") {
    return fields.wrong("model_type", "opt, llama, mistral, qwen2 or qwen3");
  }
  POLAR_ASSIGN(config.layers, fields.whole("num_hidden_layers"));
  POLAR_ASSIGN(config.hidden, fields.whole("hidden_size"));
  POLAR_ASSIGN(config.heads, fields.whole("num_attention_heads"));
  POLAR_ASSIGN(config.vocabulary, fields.whole("vocab_size"));
  POLAR_ASSIGN(config.max_positions, fields.whole_or("max_position_embeddings", 2048));
  POLAR_ASSIGN(config.bos_token, fields.whole_or("bos_token_id", -1));
  POLAR_RETURN_IF_ERROR(read_eos(fields, config));
  POLAR_RETURN_IF_ERROR(opt ? read_opt(fields, config) : read_llama_like(fields, config));
  POLAR_RETURN_IF_ERROR(check_config(config, path));
  return config;
}

Result<ModelConfig> read_hf_config(const std::string& folder) {
  namespace fs = std::filesystem;
  POLAR_ASSIGN(ModelConfig config, read_config_json((fs::path(folder) / "config.json").string()));
  config.name = fs::path(folder).lexically_normal().filename().string();
  if (config.name.empty())
    config.name = fs::path(folder).lexically_normal().parent_path().filename().string();
  const std::string generation = (fs::path(folder) / "generation_config.json").string();
  std::error_code error;
  if (!fs::exists(generation, error)) return config;
  POLAR_ASSIGN(const json object, read_json(generation));
  POLAR_RETURN_IF_ERROR(read_eos(Fields(object, generation), config));
  return config;
}

}  // namespace polar::model
