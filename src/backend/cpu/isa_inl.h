// What every isa_*.cc is: the table of one instruction set. Included once per file, with POLAR_ISA
// and POLAR_ISA_LEVEL defined and the intrinsics' header included. Nothing here may call an inline
// function from outside POLAR_ISA that is not always inlined.

#include <type_traits>

#include "backend/cpu/kernels.h"

namespace polar::backend::cpu {
namespace POLAR_ISA {

[[gnu::always_inline]] inline float scalar_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof(value));
  return value;
}

/// IEEE half precision to f32, all values, without tables: shifts the exponent by a product that is
/// exact.
[[gnu::always_inline]] inline float scalar_f16(uint16_t bits) {
#if POLAR_ISA_LEVEL > 0
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  uint32_t wide = static_cast<uint32_t>(bits & 0x7fff) << 13;
  float value;
  if ((bits & 0x7c00) == 0x7c00) {
    wide |= 0x7f800000;
    __builtin_memcpy(&value, &wide, sizeof(value));
  } else {
    __builtin_memcpy(&value, &wide, sizeof(value));
    value *= 0x1p112f;
  }
  uint32_t result;
  __builtin_memcpy(&result, &value, sizeof(result));
  result |= sign;
  __builtin_memcpy(&value, &result, sizeof(value));
  return value;
#endif
}

#include "backend/cpu/simd.h"
// Then whole numbers in as many lanes.
#include "backend/cpu/simd_ints.h"
// simd.h first: the others are written in its vectors.
#include "backend/cpu/attention_inl.h"
#include "backend/cpu/matmul_inl.h"
#include "backend/cpu/summary_inl.h"
// matmul_inl.h before block_matmul_inl.h: this chooses between them.
#include "backend/cpu/block_matmul_inl.h"
#include "backend/cpu/page_scores_inl.h"
// Then what pages draw by these scores.
#include "backend/cpu/page_mass_inl.h"

inline void silu_mul(const float* gate, const float* up, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    // silu(x) = x / (1 + e^-x); e^-x would overflow below -88, where silu is 0 to all digits.
    const Vec x = max(load(gate + i), broadcast(-85.0f));
    const Vec silu = div(x, add(broadcast(1.0f), exp(sub(zero(), x))));
    store(out + i, mul(silu, load(up + i)));
  }
  for (; i < count; ++i) {
    alignas(64) float lanes[kLanes] = {};
    lanes[0] = gate[i];
    const Vec x = max(load(lanes), broadcast(-85.0f));
    store(lanes, div(x, add(broadcast(1.0f), exp(sub(zero(), x)))));
    out[i] = lanes[0] * up[i];
  }
}

inline float read(const std::byte* data, size_t bytes) {
  Vec sum[4] = {zero(), zero(), zero(), zero()};
  constexpr size_t kStep = 4 * kLanes * sizeof(float);
  for (size_t i = 0; i + kStep <= bytes; i += kStep) {
    POLAR_UNROLL
    for (int v = 0; v < 4; ++v) sum[v] = add(sum[v], load((const float*)(data + i) + v * kLanes));
  }
  return reduce_add(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

inline float flops(int64_t rounds) {
  constexpr int kSums = 12;  // enough to hide the latency, few enough for 16 registers
  Vec sum[kSums];
  POLAR_UNROLL
  for (int i = 0; i < kSums; ++i) sum[i] = broadcast(static_cast<float>(i));
  const Vec a = broadcast(0.999f), b = broadcast(1e-3f);
  for (int64_t r = 0; r < rounds; ++r) {
    POLAR_UNROLL
    for (int i = 0; i < kSums; ++i) sum[i] = fma(sum[i], a, b);
  }
  POLAR_UNROLL
  for (int i = 1; i < kSums; ++i) sum[0] = add(sum[0], sum[i]);
  return reduce_add(sum[0]);
}

inline constexpr Kernels kKernels = {
    POLAR_ISA_NAME, matmul,           packed_bytes, pack,           accumulate,
    attend,         attend_summaries, index_page,   summarize_page, page_mass,
    choose_largest, silu_mul,         read,         flops,          kLanes};

}  // namespace POLAR_ISA
}  // namespace polar::backend::cpu
