#pragma once
// Asynchronous products of a warpgroup (sm_90a): both operands in shared memory, in rows of 128
// bytes whose units of 16 are permuted by the row (unit ^ row % 8), eight rows and 1,024 aligned
// bytes to an atom. PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate".

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define POLAR_WGMMA 1
#endif

namespace polar::backend::cuda {

#ifdef POLAR_WGMMA

/// Atoms one behind the other, 128-byte permutation.
__device__ __forceinline__ uint64_t wgmma_matrix(uint32_t address) {
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}
/// What other threads copied into shared memory is seen by products queued after a barrier.
__device__ __forceinline__ void wgmma_sees_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_end() {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
}

#define POLAR_D(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
/// d[64 x 8 tiles] += a[64 x 16] b[16 x 8 tiles]; b stands by columns, a by rows or, if
/// kTransposed, by columns. d is spread as in m16n8k16: warp w has rows 16 w ...
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&d)[1][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, p, 1, 1, %6, "
      "0;}"
      : POLAR_D(0)
      : "l"(a), "l"(b), "n"(kTransposed));
}
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&d)[2][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, p, "
      "1, 1, %10, 0;}"
      : POLAR_D(0), POLAR_D(1)
      : "l"(a), "l"(b), "n"(kTransposed));
}
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&d)[4][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,"
      "%11,%12,%13,%14,%15}, %16, %17, p, 1, 1, %18, 0;}"
      : POLAR_D(0), POLAR_D(1), POLAR_D(2), POLAR_D(3)
      : "l"(a), "l"(b), "n"(kTransposed));
}
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&d)[8][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,"
      "%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, "
      "%33, p, 1, 1, %34, 0;}"
      : POLAR_D(0), POLAR_D(1), POLAR_D(2), POLAR_D(3), POLAR_D(4), POLAR_D(5), POLAR_D(6),
        POLAR_D(7)
      : "l"(a), "l"(b), "n"(kTransposed));
}
#undef POLAR_D

#endif

}  // namespace polar::backend::cuda
