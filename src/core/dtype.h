#pragma once
// Element types, and the layouts of quantised blocks as GGUF stores them (ggml/docs/gguf.md,
// ggml-quants).

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace polar {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI32,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K
};

struct DTypeInfo {
  std::string_view name;  // "f16", "q4_1"
  int block_values;       // values per block: 1 for plain types
  int block_bytes;        // bytes per block
};

/// Name and block shape of a type.
const DTypeInfo& dtype_info(DType type);

/// Bytes of `values` values. `values` must be a multiple of the type's block.
inline size_t dtype_bytes(DType type, size_t values) {
  const DTypeInfo& info = dtype_info(type);
  return values / static_cast<size_t>(info.block_values) * static_cast<size_t>(info.block_bytes);
}

/// Converts one row of `values` values to f32: the definition of what a stored value means, slow
/// and obvious. Backends compute on stored blocks directly and are tested against this. `values`
/// must be a multiple of the block.
void dequantize_row(DType type, const void* source, float* destination, size_t values);

/// Converts `values` values, a multiple of 32, to Q4_0 blocks: each block's value of largest
/// magnitude becomes -8 steps, as the gguf package does.
void quantize_q4_0(const float* source, std::byte* destination, size_t values);

/// IEEE half precision and bfloat16, round to nearest even; portable, bit exact.
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);
inline float bf16_to_f32(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof(value));
  return value;
}
uint16_t f32_to_bf16(float value);

}  // namespace polar
