#include <fmt/format.h>

#include "model/config_reader.h"

namespace polar::model {

namespace {

Status in_range(const std::string& where, const char* key, int64_t value, int64_t least,
                int64_t most) {
  if (value >= least && value <= most) return {};
  return bad_input(where, key, std::to_string(value), fmt::format("{} to {}", least, most));
}

/// What the formulas of llama3 and yarn divide by or take the logarithm of.
Status check_scaling(const RopeConfig& rope, const std::string& where) {
  if (rope.scaling != RopeScaling::kLlama3 && rope.scaling != RopeScaling::kYarn) return {};
  POLAR_RETURN_IF_ERROR(
      in_range(where, "rope scaling's original context", rope.original_max_positions, 1, 1 << 30));
  const bool yarn = rope.scaling == RopeScaling::kYarn;
  if (yarn && !(rope.theta > 1)) {
    return bad_input(where, "rope_theta", fmt::format("{}", rope.theta),
                     "more than 1 under yarn scaling");
  }
  const struct {
    const char* key;
    double value, least;
  } ranges[] = {
      {"low_freq_factor", yarn ? 1 : rope.low_frequency_factor, 1e-6},
      {"high_freq_factor", yarn ? 1 : rope.high_frequency_factor, 1e-6},
      {"beta_fast", yarn ? rope.beta_fast : 1, 1e-6},
      {"beta_slow", yarn ? rope.beta_slow : 1, 1e-6},
      {"attention_factor", yarn ? rope.attention_factor : 0, 0},
  };
  for (const auto& range : ranges) {
    if (!(range.value >= range.least && range.value <= 1e6)) {
      return bad_input(where, std::string("rope scaling's ") + range.key,
                       fmt::format("{}", range.value), "a positive number up to 1000000");
    }
  }
  return {};
}

}  // namespace

Status check_config(const ModelConfig& config, const std::string& where) {
  constexpr int64_t kWidest = 1 << 20;
  const struct {
    const char* key;
    int64_t value, least, most;
  } ranges[] = {
      {"layers", config.layers, 1, 4096},
      {"hidden size", config.hidden, 1, kWidest},
      {"attention heads", config.heads, 1, 8192},
      {"key-value heads", config.kv_heads, 1, 8192},
      {"head_dim", config.head_dim, 2, 1024},
      {"feed-forward size", config.ffn, 1, 1 << 24},
      {"vocabulary size", config.vocabulary, 1, 1 << 24},
      {"embedding size", config.embedding, 1, kWidest},
      {"longest context", config.max_positions, 1, 1 << 30},
  };
  for (const auto& range : ranges) {
    POLAR_RETURN_IF_ERROR(in_range(where, range.key, range.value, range.least, range.most));
  }
  if (config.heads % config.kv_heads != 0) {
    return bad_input(where, "key-value heads", std::to_string(config.kv_heads),
                     fmt::format("a divisor of the {} attention heads", config.heads));
  }
  if (config.rope.dim < 0 || config.rope.dim > config.head_dim || config.rope.dim % 2 != 0) {
    return bad_input(where, "rope dimensions", std::to_string(config.rope.dim),
                     fmt::format("an even number up to head_dim, {}", config.head_dim));
  }
  if (!(config.norm_epsilon > 0 && config.norm_epsilon < 1)) {
    return bad_input(where, "norm epsilon", fmt::format("{}", config.norm_epsilon),
                     "a small positive number");
  }
  if (config.rope.dim > 0 && !(config.rope.theta >= 1 && config.rope.theta < 1e30)) {
    return bad_input(where, "rope_theta", fmt::format("{}", config.rope.theta),
                     "a number of at least 1");
  }
  if (config.rope.dim == 0 && !config.learned_positions) {
    return bad_input(where, "rope dimensions", "0", "2 or more");
  }
  if (!(config.rope.factor >= 1 && config.rope.factor < 1e6)) {
    return bad_input(where, "rope scaling factor", fmt::format("{}", config.rope.factor),
                     "a number of at least 1");
  }
  POLAR_RETURN_IF_ERROR(check_scaling(config.rope, where));
  if (config.bos_token < -1 || config.bos_token >= config.vocabulary) {
    return bad_input(where, "bos_token_id", std::to_string(config.bos_token),
                     fmt::format("a token of the {} in the vocabulary", config.vocabulary));
  }
  return {};
}

}  // namespace polar::model
