#pragma once
// One data-driven decoder: families differ in the values of this struct, not in classes.

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/ops.h"

namespace polar::model {

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3, kYarn };

struct RopeConfig {
  int dim = 0;  // rotated dimensions per head; 0: learned positions
  double theta = 10000.0;
  bool interleaved = false;  // see backend::Rope
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  double low_frequency_factor = 1.0;         // llama3
  double high_frequency_factor = 4.0;        // llama3
  double beta_fast = 32.0, beta_slow = 1.0;  // yarn
  double attention_factor = 0.0;             // yarn; 0: 0.1 ln(factor) + 1
  bool truncate = true;                      // yarn: whole correction dimensions
  int original_max_positions = 0;            // llama3, yarn
  std::vector<float>
      frequency_factors;  // GGUF's rope_freqs.weight, [dim / 2]: divides each inverse frequency
};

struct ModelConfig {
  std::string architecture;  // "opt", "llama", "mistral", "qwen2", "qwen3"
  std::string name;          // for reports: the folder's or the file's name
  int layers = 0;
  int hidden = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  int vocabulary = 0;
  int embedding = 0;      // width of the token embedding; differs from `hidden` in OPT-350m
  int max_positions = 0;  // the longest context that the model was made for
  backend::NormKind norm = backend::NormKind::kRms;
  float norm_epsilon = 1e-5f;
  bool norm_after = false;  // post-norm (OPT-350m): x = norm(x + f(x))
  bool final_norm = true;
  bool qk_norm = false;  // Qwen3
  bool learned_positions = false;
  int position_offset = 0;  // OPT: 2
  RopeConfig rope;
  std::vector<int> sliding_window;  // [layers] tokens; 0: none
  backend::Activation activation = backend::Activation::kSilu;
  bool gated = true;
  bool tied_embeddings = false;
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  std::vector<int32_t> eos_tokens;  // any of them ends a text
  int32_t bos_token = -1;

  int group() const { return heads / kv_heads; }
  /// Whether a neuron of an MLP that is not above zero adds nothing: those can be left out.
  bool plain_relu() const { return !gated && activation == backend::Activation::kRelu; }
  int query_width() const { return heads * head_dim; }
  int kv_width() const { return kv_heads * head_dim; }
  float attention_scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
};

/// Inverse frequencies [dim / 2] with the scaling applied, and the factor on cos and sin, as
/// transformers' modeling_rope_utils defines them.
struct RopeTable {
  std::vector<float> inverse_frequency;
  float scale = 1.0f;
};
RopeTable rope_table(const RopeConfig& rope);

}  // namespace polar::model
