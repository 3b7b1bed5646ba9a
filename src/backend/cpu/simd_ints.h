// Vectors of kLanes dwords, each a number or four bytes, for one instruction set: what products
// with weights in blocks need of them. Included after simd.h, in the same way.

#if POLAR_ISA_LEVEL == 2

using Ints = __m512i;  // one dword a lane
inline Ints repeat(const int8_t* four) {
  int32_t bits;
  __builtin_memcpy(&bits, four, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
inline Ints and_bits(Ints a, int32_t bits) {
  return _mm512_and_si512(a, _mm512_set1_epi32(bits));
}
/// Signed bytes plus 128.
inline Ints flip_signs(Ints a) {
  return _mm512_xor_si512(a, _mm512_set1_epi8(-128));
}
template <int count>
inline Ints shift_right(Ints a) {
  return _mm512_srli_epi32(a, count);
}
inline Ints add_ints(Ints a, Ints b) {
  return _mm512_add_epi32(a, b);
}
inline Vec to_float(Ints a) {
  return _mm512_cvtepi32_ps(a);
}
inline Vec low_f16(Ints a) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a));
}
inline void both_f16(Ints a, Vec* low, Vec* high) {
  *low = low_f16(a);
  *high = low_f16(_mm512_srli_epi32(a, 16));
}
/// Dword j of 16 bytes at each of 16 rows.
template <typename Rows>
inline void turn(const Rows& rows, int64_t offset, Ints out[4]) {
  Ints four[4];
  POLAR_UNROLL
  for (int i = 0; i < 4; ++i) {
    four[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)(rows.at(i) + offset)));
    four[i] =
        _mm512_inserti32x4(four[i], _mm_loadu_si128((const __m128i*)(rows.at(i + 4) + offset)), 1);
    four[i] =
        _mm512_inserti32x4(four[i], _mm_loadu_si128((const __m128i*)(rows.at(i + 8) + offset)), 2);
    four[i] =
        _mm512_inserti32x4(four[i], _mm_loadu_si128((const __m128i*)(rows.at(i + 12) + offset)), 3);
  }
  const Ints low01 = _mm512_unpacklo_epi32(four[0], four[1]);
  const Ints low23 = _mm512_unpacklo_epi32(four[2], four[3]);
  const Ints high01 = _mm512_unpackhi_epi32(four[0], four[1]);
  const Ints high23 = _mm512_unpackhi_epi32(four[2], four[3]);
  out[0] = _mm512_unpacklo_epi64(low01, low23);
  out[1] = _mm512_unpackhi_epi64(low01, low23);
  out[2] = _mm512_unpacklo_epi64(high01, high23);
  out[3] = _mm512_unpackhi_epi64(high01, high23);
}
/// Sum over 32 weights (unsigned bytes) times inputs (signed bytes), times `unit`.
template <int unit>
inline Ints dot(const Ints weight[8], const int8_t* input) {
  Ints sum = _mm512_setzero_si512();
  POLAR_UNROLL
  for (int j = 0; j < 8; ++j) sum = _mm512_dpbusd_epi32(sum, weight[j], repeat(input + 4 * j));
  return unit == 1 ? sum : _mm512_slli_epi32(sum, 8);
}

#elif POLAR_ISA_LEVEL == 1

using Ints = __m256i;
inline Ints repeat(const int8_t* four) {
  int32_t bits;
  __builtin_memcpy(&bits, four, sizeof(bits));
  return _mm256_set1_epi32(bits);
}
inline Ints and_bits(Ints a, int32_t bits) {
  return _mm256_and_si256(a, _mm256_set1_epi32(bits));
}
inline Ints flip_signs(Ints a) {
  return _mm256_xor_si256(a, _mm256_set1_epi8(-128));
}
template <int count>
inline Ints shift_right(Ints a) {
  return _mm256_srli_epi32(a, count);
}
inline Ints add_ints(Ints a, Ints b) {
  return _mm256_add_epi32(a, b);
}
inline Vec to_float(Ints a) {
  return _mm256_cvtepi32_ps(a);
}
inline void both_f16(Ints a, Vec* low, Vec* high) {
  const Ints halves = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(and_bits(a, 0xffff), _mm256_srli_epi32(a, 16)), 0xd8);
  *low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
  *high = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
}
inline Vec low_f16(Ints a) {
  Vec low, high;
  both_f16(a, &low, &high);
  return low;
}
/// Dword j of 16 bytes at each of 8 rows.
template <typename Rows>
inline void turn(const Rows& rows, int64_t offset, Ints out[4]) {
  Ints two[4];
  POLAR_UNROLL
  for (int i = 0; i < 4; ++i) {
    two[i] = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(rows.at(i) + offset))),
        _mm_loadu_si128((const __m128i*)(rows.at(i + 4) + offset)), 1);
  }
  const Ints low01 = _mm256_unpacklo_epi32(two[0], two[1]);
  const Ints low23 = _mm256_unpacklo_epi32(two[2], two[3]);
  const Ints high01 = _mm256_unpackhi_epi32(two[0], two[1]);
  const Ints high23 = _mm256_unpackhi_epi32(two[2], two[3]);
  out[0] = _mm256_unpacklo_epi64(low01, low23);
  out[1] = _mm256_unpackhi_epi64(low01, low23);
  out[2] = _mm256_unpacklo_epi64(high01, high23);
  out[3] = _mm256_unpackhi_epi64(high01, high23);
}
/// Sum over 32 weights (0 to 15) times inputs (signed bytes), times `unit`. A 16-bit lane adds up
/// 16 products of at most 15 * 128: 30,720.
template <int unit>
inline Ints dot(const Ints weight[8], const int8_t* input) {
  Ints sum = _mm256_maddubs_epi16(weight[0], repeat(input));
  POLAR_UNROLL
  for (int j = 1; j < 8; ++j)
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weight[j], repeat(input + 4 * j)));
  return _mm256_madd_epi16(sum, _mm256_set1_epi16(unit));
}

#else

struct Ints {
  int32_t lane[kLanes];
};
#define POLAR_LANES for (int i = 0; i < kLanes; ++i)
inline Ints and_bits(Ints a, int32_t bits) {
  POLAR_LANES a.lane[i] &= bits;
  return a;
}
inline Ints flip_signs(Ints a) {
  POLAR_LANES a.lane[i] ^= (int32_t)0x80808080;
  return a;
}
template <int count>
inline Ints shift_right(Ints a) {
  POLAR_LANES a.lane[i] = (int32_t)((uint32_t)a.lane[i] >> count);
  return a;
}
inline Ints add_ints(Ints a, Ints b) {
  POLAR_LANES a.lane[i] += b.lane[i];
  return a;
}
inline Vec to_float(Ints a) {
  Vec v;
  POLAR_LANES v.lane[i] = (float)a.lane[i];
  return v;
}
inline void both_f16(Ints a, Vec* low, Vec* high) {
  POLAR_LANES low->lane[i] = scalar_f16((uint16_t)a.lane[i]);
  POLAR_LANES high->lane[i] = scalar_f16((uint16_t)((uint32_t)a.lane[i] >> 16));
}
inline Vec low_f16(Ints a) {
  Vec low, high;
  both_f16(a, &low, &high);
  return low;
}
template <typename Rows>
inline void turn(const Rows& rows, int64_t offset, Ints out[4]) {
  for (int j = 0; j < 4; ++j) {
    POLAR_LANES __builtin_memcpy(&out[j].lane[i], rows.at(i) + offset + 4 * j, 4);
  }
}
template <int unit>
inline Ints dot(const Ints weight[8], const int8_t* input) {
  Ints sum = {};
  for (int j = 0; j < 8; ++j) {
    for (int b = 0; b < 4; ++b) {
      const int32_t value = input[4 * j + b] * unit;
      POLAR_LANES sum.lane[i] += (weight[j].lane[i] >> 8 * b & 255) * value;
    }
  }
  return sum;
}
#undef POLAR_LANES

#endif
