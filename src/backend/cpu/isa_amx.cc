// Products with bf16 weights by AMX (Intel's Architecture Instruction Set Extensions, "Intel AMX
// instructions"); everything else is AVX-512's.

#include "backend/cpu/tile_matmul.h"

namespace polar::backend::cpu {
namespace {

/// By name: the intrinsics take a tile's number as a literal only.
struct AmxTiles {
  static void configure(const int (&row_bytes)[8]) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(config) == 64);
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = row_bytes[i] > 0 ? 16 : 0;
      config.row_bytes[i] = static_cast<uint16_t>(row_bytes[i]);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  static void release() { asm volatile("tilerelease" ::); }

  template <int T>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  static void load(const void* data, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(data), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  static void store(void* data, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(data), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

}  // namespace

const Kernels& amx_kernels() {
  static const Kernels kernels = TileKernels<AmxTiles, avx512_kernels>::table("amx");
  return kernels;
}

}  // namespace polar::backend::cpu
