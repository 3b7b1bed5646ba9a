#pragma once
// For tests: the shape of a model that is small enough to run by hand.

#include <utility>
#include <vector>

#include "model/config.h"

namespace polar::model {

/// A LLaMA of two KV heads with a layer for each of `sliding_window` (0: none).
inline ModelConfig small_config(std::vector<int> sliding_window = {0, 0}, int vocabulary = 211,
                                int max_positions = 512) {
  ModelConfig config;
  config.architecture = "llama";
  config.layers = static_cast<int>(sliding_window.size());
  config.hidden = 48;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.ffn = 80;
  config.vocabulary = vocabulary;
  config.embedding = 48;
  config.max_positions = max_positions;
  config.rope.dim = 16;
  config.sliding_window = std::move(sliding_window);
  return config;
}

}  // namespace polar::model
