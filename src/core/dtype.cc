#include "core/dtype.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/error.h"

namespace polar {
namespace {

constexpr int kQuantBlock = 32;   // values of a Qx_0 / Qx_1 block
constexpr int kSuperBlock = 256;  // values of a Qx_K block

// In the order of DType. Bytes of a block: see the dequantize_* functions, each of which walks one
// block.
constexpr std::array<DTypeInfo, 12> kInfos = {{
    {"f32", 1, 4},
    {"f16", 1, 2},
    {"bf16", 1, 2},
    {"i32", 1, 4},
    {"q8_0", kQuantBlock, 2 + 32},
    {"q4_0", kQuantBlock, 2 + 16},
    {"q4_1", kQuantBlock, 2 + 2 + 16},
    {"q5_0", kQuantBlock, 2 + 4 + 16},
    {"q5_1", kQuantBlock, 2 + 2 + 4 + 16},
    {"q4_k", kSuperBlock, 2 + 2 + 12 + 128},
    {"q5_k", kSuperBlock, 2 + 2 + 12 + 32 + 128},
    {"q6_k", kSuperBlock, 128 + 64 + 16 + 2},
}};

float load_f16(const uint8_t* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return f16_to_f32(bits);
}

// f16 scale, 32 x i8.
void dequantize_q8_0(const uint8_t* block, float* out) {
  const float scale = load_f16(block);
  for (int i = 0; i < kQuantBlock; ++i) {
    out[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }
}

// f16 scale, [f16 minimum,] 16 bytes: value i in the low half of byte i, value 16 + i in its high
// half. Without a minimum, 8 stands for zero.
void dequantize_q4(const uint8_t* block, float* out, bool has_minimum) {
  const float scale = load_f16(block);
  const float minimum = has_minimum ? load_f16(block + 2) : 0.0F;
  const uint8_t* quants = block + (has_minimum ? 4 : 2);
  const int zero = has_minimum ? 0 : 8;
  for (int i = 0; i < kQuantBlock; ++i) {
    const int quant = (i < 16 ? quants[i] & 15 : quants[i - 16] >> 4) - zero;
    const float scaled = scale * static_cast<float>(quant);
    out[i] = has_minimum ? scaled + minimum : scaled;
  }
}

// As Q4, with the fifth bits of the 32 values in a little-endian u32 before the 16 bytes; 16 stands
// for zero.
void dequantize_q5(const uint8_t* block, float* out, bool has_minimum) {
  const float scale = load_f16(block);
  const float minimum = has_minimum ? load_f16(block + 2) : 0.0F;
  const uint8_t* high = block + (has_minimum ? 4 : 2);
  const uint8_t* quants = high + 4;
  const int zero = has_minimum ? 0 : 16;
  for (int i = 0; i < kQuantBlock; ++i) {
    const int low = i < 16 ? quants[i] & 15 : quants[i - 16] >> 4;
    const int quant = (low | (((high[i / 8] >> (i % 8)) & 1) << 4)) - zero;
    const float scaled = scale * static_cast<float>(quant);
    out[i] = has_minimum ? scaled + minimum : scaled;
  }
}

struct ScaleMinimum {
  int scale, minimum;
};

// The 6-bit scale and minimum of group 0..7 of 32 values, packed in 12 bytes: groups 0..3 have
// their six bits in bytes 0..3 (scales) and 4..7 (minima); groups 4..7 have their low four bits in
// bytes 8..11 and their high two bits on top of bytes 0..7.
ScaleMinimum unpack_scale_minimum(const uint8_t* packed, int group) {
  if (group < 4) return {packed[group] & 63, packed[group + 4] & 63};
  return {(packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4),
          (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4)};
}

// f16 scale of scales, f16 scale of minima, 12 bytes of 6-bit scales and minima, [32 bytes: bit g
// of byte i is the fifth bit of value i of group g,] 4 x 32 bytes: two groups in each, low halves
// first.
void dequantize_q45_k(const uint8_t* block, float* out, bool five_bits) {
  const float scale = load_f16(block);
  const float minimum = load_f16(block + 2);
  const uint8_t* high = block + 16;
  const uint8_t* quants = block + (five_bits ? 48 : 16);
  for (int group = 0; group < 8; ++group) {
    const ScaleMinimum unpacked = unpack_scale_minimum(block + 4, group);
    const float group_scale = scale * static_cast<float>(unpacked.scale);
    const float group_minimum = minimum * static_cast<float>(unpacked.minimum);
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = quants[(group / 2) * 32 + i];
      int quant = (group % 2 == 0) ? byte & 15 : byte >> 4;
      if (five_bits) quant |= ((high[i] >> group) & 1) << 4;
      const float scaled = group_scale * static_cast<float>(quant);
      out[group * 32 + i] = scaled - group_minimum;
    }
  }
}

// 128 bytes of low halves, 64 bytes of high bit pairs, 16 x i8 scales (one per 16 values), f16
// scale of scales. Each half of 128 values takes 64 low bytes (values 0..63 in their low halves,
// 64..127 in the high ones) and 32 high bytes (four values each, 32 apart); 32 stands for zero.
void dequantize_q6_k(const uint8_t* block, float* out) {
  const float scale = load_f16(block + 208);
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128;
    const int in_half = i % 128;
    const uint8_t low_byte = block[half * 64 + in_half % 64];
    const int low = in_half < 64 ? low_byte & 15 : low_byte >> 4;
    const int high = (block[128 + half * 32 + in_half % 32] >> (2 * (in_half / 32))) & 3;
    const auto group_scale = static_cast<int8_t>(block[192 + i / 16]);
    out[i] =
        (scale * static_cast<float>(group_scale)) * static_cast<float>((low | (high << 4)) - 32);
  }
}

void dequantize_block(DType type, const uint8_t* block, float* out) {
  switch (type) {
    case DType::kF32:
      std::memcpy(out, block, sizeof(float));
      return;
    case DType::kF16:
      *out = load_f16(block);
      return;
    case DType::kBF16: {
      uint16_t bits;
      std::memcpy(&bits, block, sizeof(bits));
      *out = bf16_to_f32(bits);
      return;
    }
    case DType::kI32: {
      int32_t integer;
      std::memcpy(&integer, block, sizeof(integer));
      *out = static_cast<float>(integer);
      return;
    }
    case DType::kQ8_0:
      dequantize_q8_0(block, out);
      return;
    case DType::kQ4_0:
      dequantize_q4(block, out, false);
      return;
    case DType::kQ4_1:
      dequantize_q4(block, out, true);
      return;
    case DType::kQ5_0:
      dequantize_q5(block, out, false);
      return;
    case DType::kQ5_1:
      dequantize_q5(block, out, true);
      return;
    case DType::kQ4_K:
      dequantize_q45_k(block, out, false);
      return;
    case DType::kQ5_K:
      dequantize_q45_k(block, out, true);
      return;
    case DType::kQ6_K:
      dequantize_q6_k(block, out);
      return;
  }
}

}  // namespace

const DTypeInfo& dtype_info(DType type) {
  const auto index = static_cast<size_t>(type);
  POLAR_CHECK(index < kInfos.size());
  return kInfos[index];
}

void quantize_q4_0(const float* source, std::byte* destination, size_t values) {
  constexpr size_t kBlock = 32, kHalf = kBlock / 2;
  for (size_t begin = 0; begin < values; begin += kBlock) {
    const float* block = source + begin;
    const float most = *std::max_element(
        block, block + kBlock, [](float a, float b) { return std::abs(a) < std::abs(b); });
    const float step = most / -8, inverse = step == 0 ? 0.0f : 1 / step;
    const uint16_t bits = f32_to_f16(step);
    std::memcpy(destination, &bits, sizeof(bits));
    destination += sizeof(bits);
    const auto code = [&](size_t i) {
      return static_cast<uint8_t>(std::clamp(block[i] * inverse + 8.5f, 0.0f, 15.0f));
    };
    for (size_t i = 0; i < kHalf; ++i)
      *destination++ = static_cast<std::byte>(code(i) | code(i + kHalf) << 4);
  }
}

void dequantize_row(DType type, const void* source, float* destination, size_t values) {
  const DTypeInfo& info = dtype_info(type);
  const auto block_values = static_cast<size_t>(info.block_values);
  POLAR_CHECK(values % block_values == 0);
  const auto* block = static_cast<const uint8_t*>(source);
  for (size_t i = 0; i < values; i += block_values) {
    dequantize_block(type, block, destination + i);
    block += info.block_bytes;
  }
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 31U;
  const uint32_t mantissa = bits & 1023U;
  if (exponent == 31) {  // infinity, or NaN (made quiet, as the processor does)
    const uint32_t quiet = mantissa != 0 ? 0x400000U : 0U;
    return std::bit_cast<float>(sign | 0x7F800000U | quiet | (mantissa << 13));
  }
  if (exponent == 0) {  // zero or subnormal: mantissa x 2^-24, exact in f32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) {  // NaN: quiet, with what fits of its payload
    return static_cast<uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x3FFU));
  }
  if (magnitude >= 0x477FF000U) {  // 65520 and more round to infinity
    return static_cast<uint16_t>(sign | 0x7C00U);
  }
  if (magnitude < 0x38800000U) {  // below 2^-14: a multiple of 2^-24
    // Adding 0.5 puts the unit of 2^-24 into the last bit of the sum, which the addition rounds to
    // nearest even.
    const float sum = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x3F000000U));
  }
  const uint32_t odd = (magnitude >> 13) & 1U;
  const uint32_t rounded = magnitude + 0xFFFU + odd;  // may carry into the exponent, as it should
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace polar
