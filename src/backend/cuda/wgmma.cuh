#pragma once
// Asynchronous products of a warpgroup (sm_90a): operands in shared memory stand in rows of 128
// bytes whose units of 16 are permuted by the row (unit ^ row % 8), eight rows and 1,024 aligned
// bytes to an atom. PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate".

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define POLAR_WGMMA 1
#endif

namespace polar::backend::cuda {

#ifdef POLAR_WGMMA

/// Eight rows (or, of a transposed operand, eight of the inner dimension) behind the next, `stride`
/// bytes apart. 64 columns behind the next of a transposed operand are `leading` bytes apart; of
/// others who queues the products says where they stand.
__device__ __forceinline__ uint64_t wgmma_matrix(uint32_t address, int stride = 1024,
                                                 int leading = 16) {
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | uint64_t{1} << 62;
}
/// The operand that stands `bytes` further on.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t matrix, int bytes) {
  return matrix + (bytes >> 4);
}
/// What this thread copied or wrote into shared memory is seen by products queued after a barrier.
__device__ __forceinline__ void wgmma_sees_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Products queued by now become a group; all but the newest kPending groups are finished.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Ties uses of sums to this place: the compiler knows no wait that they depend on.
template <int kTiles>
__device__ __forceinline__ void wgmma_pin(float (&d)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
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
__device__ __forceinline__ void wgmma(float (&d)[6][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,"
      "%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23}, %24, %25, p, 1, 1, %26, 0;}"
      : POLAR_D(0), POLAR_D(1), POLAR_D(2), POLAR_D(3), POLAR_D(4), POLAR_D(5)
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
/// The same of halves: a in registers, spread as in m16n8k16, b by columns.
#define POLAR_HALVES(n, names, a0, a1, a2, a3, b_)                                           \
  "{.reg .pred p; setp.eq.u32 p, 0, 0;\n"                                                    \
  "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.f16.f16 {" names "}, {%" a0 ",%" a1 ",%" a2 \
  ",%" a3 "}, %" b_ ", p, 1, 1, 0;}"
#define POLAR_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
__device__ __forceinline__ void wgmma_halves(float (&d)[1][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(POLAR_HALVES("8", "%0,%1,%2,%3", "4", "5", "6", "7", "8")
               : POLAR_D(0)
               : POLAR_A, "l"(b));
}
__device__ __forceinline__ void wgmma_halves(float (&d)[2][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(POLAR_HALVES("16", "%0,%1,%2,%3,%4,%5,%6,%7", "8", "9", "10", "11", "12")
               : POLAR_D(0), POLAR_D(1)
               : POLAR_A, "l"(b));
}
__device__ __forceinline__ void wgmma_halves(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(POLAR_HALVES("32", "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15", "16",
                            "17", "18", "19", "20")
               : POLAR_D(0), POLAR_D(1), POLAR_D(2), POLAR_D(3)
               : POLAR_A, "l"(b));
}
__device__ __forceinline__ void wgmma_halves(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(POLAR_HALVES("64",
                            "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                            "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31",
                            "32", "33", "34", "35", "36")
               : POLAR_D(0), POLAR_D(1), POLAR_D(2), POLAR_D(3), POLAR_D(4), POLAR_D(5), POLAR_D(6),
                 POLAR_D(7)
               : POLAR_A, "l"(b));
}
#undef POLAR_A
#undef POLAR_HALVES
#define POLAR_D8 \
  POLAR_D(0), POLAR_D(1), POLAR_D(2), POLAR_D(3), POLAR_D(4), POLAR_D(5), POLAR_D(6), POLAR_D(7)
#define POLAR_D16                                                                       \
  POLAR_D8, POLAR_D(8), POLAR_D(9), POLAR_D(10), POLAR_D(11), POLAR_D(12), POLAR_D(13), \
      POLAR_D(14), POLAR_D(15)
#define POLAR_NAMES32                                                                              \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
  "%26,%27,%28,%29,%30,%31"
#define POLAR_NAMES64                                                                          \
  POLAR_NAMES32                                                                                \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%" \
  "54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/// d[64 x 128] (+)= a[64 x 16] b[16 x 128], both 16-bit floats of type T: a by rows, b by columns.
template <typename T>
__device__ __forceinline__ void wgmma_both_shared(float (&d)[16][4], uint64_t a, uint64_t b,
                                                  bool add) {
#define POLAR_ISSUE(type)                                                             \
  asm volatile(                                                                       \
      "{.reg .pred p; setp.ne.u32 p, %66, 0;\n"                                       \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" POLAR_NAMES64 \
      "}, %64, %65, p, 1, 1, 0, 0;}"                                                  \
      : POLAR_D16                                                                     \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)))
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    POLAR_ISSUE("bf16");
  else
    POLAR_ISSUE("f16");
#undef POLAR_ISSUE
}
/// d[64 x 8 tiles] += a[64 x 16] b[16 x 8 tiles]: a in registers, spread as in m16n8k16, b by rows.
template <typename T>
__device__ __forceinline__ void wgmma_from_registers(float (&d)[8][4], const uint32_t (&a)[4],
                                                     uint64_t b) {
#define POLAR_ISSUE(type)                                                            \
  asm volatile(                                                                      \
      "{.reg .pred p; setp.eq.u32 p, 0, 0;\n"                                        \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" POLAR_NAMES32 \
      "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;}"                                      \
      : POLAR_D8                                                                     \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    POLAR_ISSUE("bf16");
  else
    POLAR_ISSUE("f16");
#undef POLAR_ISSUE
}
template <typename T>
__device__ __forceinline__ void wgmma_from_registers(float (&d)[16][4], const uint32_t (&a)[4],
                                                     uint64_t b) {
#define POLAR_ISSUE(type)                                                             \
  asm volatile(                                                                       \
      "{.reg .pred p; setp.eq.u32 p, 0, 0;\n"                                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" POLAR_NAMES64 \
      "}, {%64,%65,%66,%67}, %68, p, 1, 1, 1;}"                                       \
      : POLAR_D16                                                                     \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    POLAR_ISSUE("bf16");
  else
    POLAR_ISSUE("f16");
#undef POLAR_ISSUE
}
#undef POLAR_NAMES64
#undef POLAR_NAMES32
#undef POLAR_D16
#undef POLAR_D8
#undef POLAR_D

#endif

}  // namespace polar::backend::cuda
