#pragma once
// For tests: text drawn from a model itself, so that whatever departs from dense loses.

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "model/decoder.h"
#include "study/sequence_cache.h"

namespace polar::study {

/// What the dense model says behind token 1, `count` tokens of its own distribution.
inline std::vector<int32_t> sample_tokens(backend::Device& device, const model::Weights& weights,
                                          int count, std::mt19937_64& random) {
  auto decoder = model::Decoder::create(device, weights, {1, 1});
  auto cache = SequenceCache::create(device, weights.config, DType::kF32, 1, count + 1);
  EXPECT_TRUE(decoder.ok() && cache.ok());
  model::DensePlanner dense;
  std::vector<int32_t> tokens;
  const int32_t row = 0;
  std::vector<float> logits(weights.config.vocabulary);
  for (int32_t token = 1; static_cast<int>(tokens.size()) < count; tokens.push_back(token)) {
    const Chunk chunk{0, static_cast<int>(tokens.size()), {&token, 1}, true};
    device.download(
        logits.data(),
        (*decoder)->forward(cache->pack({&chunk, 1}, {&row, 1}), cache->kv(), dense, nullptr),
        logits.size() * sizeof(float));
    for (float& value : logits) value = std::exp(value);
    token = std::discrete_distribution<int32_t>(logits.begin(), logits.end())(random);
  }
  return tokens;
}

}  // namespace polar::study
