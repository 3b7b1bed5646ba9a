#pragma once
// How the CPU arranges a block: K [head_dim][16 slots], so that the slots of a page are the lanes
// of a vector; V [16 slots][head_dim].

#include <cstring>

#include "backend/step.h"

namespace polar::backend::cpu {

inline void store_element(DType dtype, std::byte* half, int64_t index, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(half + index * 4, &value, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
  std::memcpy(half + index * 2, &bits, 2);
}

inline float load_element(DType dtype, const std::byte* half, int64_t index) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, half + index * 4, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, half + index * 2, 2);
  return dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

/// Stores the key [head_dim] of one token into its slot of a block.
inline void store_key(const KvView& kv, std::byte* block, int slot, const float* key) {
  for (int d = 0; d < kv.head_dim; ++d)
    store_element(kv.dtype, block, d * kPageTokens + slot, key[d]);
}

/// Stores the value [head_dim] of one token into its slot of a block.
inline void store_value(const KvView& kv, std::byte* block, int slot, const float* value) {
  std::byte* half = block + kv.half_bytes();
  for (int d = 0; d < kv.head_dim; ++d)
    store_element(kv.dtype, half, slot * kv.head_dim + d, value[d]);
}

}  // namespace polar::backend::cpu
