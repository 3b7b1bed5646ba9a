// Vectors of f32 lanes for one instruction set. Included inside namespace
// polar::backend::cpu::POLAR_ISA, once per isa_*.cc, so that no function compiled for one
// instruction set can be linked into another's file: no include guard, on purpose. POLAR_ISA_LEVEL:
// 0 portable, 1 AVX2 + FMA + F16C, 2 AVX-512 F/BW/VL/DQ.

// Arrays of vectors stay in registers only when the loops over them are unrolled before the
// compiler splits arrays into scalars, and g++ does that only when told.
#ifdef __clang__
#define POLAR_UNROLL _Pragma("unroll")
#else
#define POLAR_UNROLL _Pragma("GCC unroll 16")
#endif

[[gnu::always_inline]] inline uint16_t bits_at(const std::byte* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return bits;
}

#if POLAR_ISA_LEVEL == 2

inline constexpr int kLanes = 16;
using Vec = __m512;
inline Vec zero() {
  return _mm512_setzero_ps();
}
inline Vec broadcast(float x) {
  return _mm512_set1_ps(x);
}
inline Vec load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline void store(float* p, Vec v) {
  _mm512_storeu_ps(p, v);
}
/// Keeps g++ from loading v anew at each of its uses: a load of 64 bytes takes as long as a
/// product. Elsewhere it would run out of registers.
inline Vec in_register(Vec v) {
  asm("" : "+v"(v));
  return v;
}
inline Vec add(Vec a, Vec b) {
  return _mm512_add_ps(a, b);
}
inline Vec sub(Vec a, Vec b) {
  return _mm512_sub_ps(a, b);
}
inline Vec mul(Vec a, Vec b) {
  return _mm512_mul_ps(a, b);
}
inline Vec div(Vec a, Vec b) {
  return _mm512_div_ps(a, b);
}
inline Vec max(Vec a, Vec b) {
  return _mm512_max_ps(a, b);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}
/// y where a is above x, else 0.
inline Vec where_above(Vec a, float x, Vec y) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, broadcast(x), _CMP_GT_OQ), y);
}
inline Vec load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline Vec load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline Vec load_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
inline Vec round_even(Vec v) {
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec pow2(Vec n) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline float reduce_add(Vec v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

#elif POLAR_ISA_LEVEL == 1

inline constexpr int kLanes = 8;
using Vec = __m256;
inline Vec zero() {
  return _mm256_setzero_ps();
}
inline Vec broadcast(float x) {
  return _mm256_set1_ps(x);
}
inline Vec load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline void store(float* p, Vec v) {
  _mm256_storeu_ps(p, v);
}
inline Vec in_register(Vec v) {
  return v;
}
inline Vec add(Vec a, Vec b) {
  return _mm256_add_ps(a, b);
}
inline Vec sub(Vec a, Vec b) {
  return _mm256_sub_ps(a, b);
}
inline Vec mul(Vec a, Vec b) {
  return _mm256_mul_ps(a, b);
}
inline Vec div(Vec a, Vec b) {
  return _mm256_div_ps(a, b);
}
inline Vec max(Vec a, Vec b) {
  return _mm256_max_ps(a, b);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Vec where_above(Vec a, float x, Vec y) {
  return _mm256_and_ps(_mm256_cmp_ps(a, broadcast(x), _CMP_GT_OQ), y);
}
inline Vec load_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
inline Vec load_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline Vec load_i8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
inline Vec round_even(Vec v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec pow2(Vec n) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline float reduce_add(Vec v) {
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

#else

inline constexpr int kLanes = 8;
struct Vec {
  float lane[kLanes];
};
#define POLAR_LANES for (int i = 0; i < kLanes; ++i)
inline Vec broadcast(float x) {
  Vec v;
  POLAR_LANES v.lane[i] = x;
  return v;
}
inline Vec zero() {
  return broadcast(0.0f);
}
inline Vec load(const float* p) {
  Vec v;
  POLAR_LANES v.lane[i] = p[i];
  return v;
}
inline void store(float* p, Vec v) {
  POLAR_LANES p[i] = v.lane[i];
}
inline Vec in_register(Vec v) {
  return v;
}
inline Vec add(Vec a, Vec b) {
  POLAR_LANES a.lane[i] += b.lane[i];
  return a;
}
inline Vec sub(Vec a, Vec b) {
  POLAR_LANES a.lane[i] -= b.lane[i];
  return a;
}
inline Vec mul(Vec a, Vec b) {
  POLAR_LANES a.lane[i] *= b.lane[i];
  return a;
}
inline Vec div(Vec a, Vec b) {
  POLAR_LANES a.lane[i] /= b.lane[i];
  return a;
}
inline Vec max(Vec a, Vec b) {
  POLAR_LANES a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
inline Vec fma(Vec a, Vec b, Vec c) {
  POLAR_LANES c.lane[i] += a.lane[i] * b.lane[i];
  return c;
}
inline Vec where_above(Vec a, float x, Vec y) {
  POLAR_LANES y.lane[i] = a.lane[i] > x ? y.lane[i] : 0.0f;
  return y;
}
inline Vec load_f16(const uint16_t* p) {
  Vec v;
  POLAR_LANES v.lane[i] = scalar_f16(p[i]);
  return v;
}
inline Vec load_bf16(const uint16_t* p) {
  Vec v;
  POLAR_LANES v.lane[i] = scalar_bf16(p[i]);
  return v;
}
inline Vec load_i8(const int8_t* p) {
  Vec v;
  POLAR_LANES v.lane[i] = static_cast<float>(p[i]);
  return v;
}
inline Vec round_even(Vec v) {
  POLAR_LANES v.lane[i] = __builtin_nearbyintf(v.lane[i]);
  return v;
}
inline Vec pow2(Vec n) {
  POLAR_LANES {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.lane[i]) + 127) << 23;
    __builtin_memcpy(&n.lane[i], &bits, sizeof(bits));
  }
  return n;
}
inline float reduce_add(Vec v) {
  return ((v.lane[0] + v.lane[4]) + (v.lane[2] + v.lane[6])) +
         ((v.lane[1] + v.lane[5]) + (v.lane[3] + v.lane[7]));
}
#undef POLAR_LANES

#endif

/// e^x for x up to 88, relative error below 3e-7; tiny (about 1e-38) below -87.
inline Vec exp(Vec x) {
  x = max(x, broadcast(-87.0f));
  const Vec n = round_even(mul(x, broadcast(1.44269504089f)));
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(mul(r, r), p, add(r, broadcast(1.0f)));
  return mul(p, pow2(n));
}

inline float reduce_max(Vec v) {
#if POLAR_ISA_LEVEL == 2
  return _mm512_reduce_max_ps(v);
#elif POLAR_ISA_LEVEL == 1
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
#else
  float highest = v.lane[0];
  for (int i = 1; i < kLanes; ++i) highest = v.lane[i] > highest ? v.lane[i] : highest;
  return highest;
#endif
}
