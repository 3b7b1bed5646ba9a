// Codes of keys as bytes that a query of eight bits a channel is multiplied with. Included by
// page_codes_inl.h for instruction sets with dot products of bytes.

inline constexpr int kDotChannels = 16;  // of a group: 64 bytes [token][4]

/// Adds the codes of channels [begin, begin + width) to an index. Bits 2 j of byte b of a token, of
/// a group of channels: channel 4 j + b, 0 to 3.
inline void store_codes(std::byte* index, int, const Vec (*rotated)[kSlotVecs], int begin,
                        int width, float step) {
  static_assert(kSlotVecs == 1 && kLanes == kSlots);
  for (int d = 0; d < width;) {
    const int group = (begin + d) / kDotChannels;
    __m512i codes = _mm512_loadu_si512(index + group * 64);
    for (; d < width && (begin + d) / kDotChannels == group; ++d) {
      const int inside = (begin + d) % kDotChannels;
      const auto above = [&](float bound) {
        return _mm512_cmp_ps_mask(rotated[d][0], _mm512_set1_ps(bound), _CMP_GT_OQ);
      };
      const __m512i bit = _mm512_set1_epi32(1 << (inside % 4 * 8 + inside / 4 * 2));
      for (const float bound : {-step, 0.0f, step})
        codes = _mm512_mask_add_epi32(codes, above(bound), codes, bit);
    }
    _mm512_storeu_si512(index + group * 64, codes);
  }
}

/// PageScore::kCodes: the largest over the page's tokens of rotated query . coded key.
template <int Q>
struct CodesScore {
  CodesScore(const PageMassArgs& a, const float* query)
      : a(a), groups((a.head_dim + kDotChannels - 1) / kDotChannels) {
    for (int i = 0; i < Q; ++i) quantise(query + (int64_t)i * a.head_dim, i);
  }

  template <int P>
  void score(const std::byte* const* pages, float* out, int64_t stride) const {
    const __m512i mask = _mm512_set1_epi8(3);
    __m512i sum[Q][P];  // of a token's codes, in its lane
    POLAR_UNROLL
    for (int i = 0; i < Q; ++i) POLAR_UNROLL
    for (int p = 0; p < P; ++p) sum[i][p] = _mm512_setzero_si512();
    for (int group = 0; group < groups; ++group) {
      __m512i codes[P];
      POLAR_UNROLL
      for (int p = 0; p < P; ++p) codes[p] = _mm512_loadu_si512(pages[p] + group * 64);
      POLAR_UNROLL
      for (int j = 0; j < 4; ++j) {
        __m512i of_channels[P];
        POLAR_UNROLL
        for (int p = 0; p < P; ++p)
          of_channels[p] = _mm512_and_si512(_mm512_srli_epi32(codes[p], 2 * j), mask);
        POLAR_UNROLL
        for (int i = 0; i < Q; ++i) {
          const __m512i query = _mm512_set1_epi32(channels[i][group * 4 + j]);
          POLAR_UNROLL
          for (int p = 0; p < P; ++p)
            sum[i][p] = _mm512_dpbusd_epi32(sum[i][p], of_channels[p], query);
        }
      }
    }
    alignas(16) float half_step[4] = {};
    POLAR_UNROLL
    for (int p = 0; p < P; ++p)
      __builtin_memcpy(&half_step[p], pages[p] + groups * 64, sizeof(float));
    POLAR_UNROLL
    for (int i = 0; i < Q; ++i) {
      // A code c stands for 2 c - 3 half steps.
      const __m128i best = largest(sum[i]),
                    whole_steps =
                        _mm_sub_epi32(_mm_add_epi32(best, best), _mm_set1_epi32(3 * whole[i]));
      const __m128 scores =
          _mm_mul_ps(_mm_cvtepi32_ps(whole_steps),
                     _mm_mul_ps(_mm_load_ps(half_step), _mm_set1_ps(unit[i] * a.scale)));
      if (P == 4) {
        _mm_storeu_ps(out + i * stride, scores);
      } else {
        out[i * stride] = _mm_cvtss_f32(scores);
      }
    }
  }

 private:
  /// A query's rotated channels, in eight bits each.
  void quantise(const float* query, int i) {
    alignas(64) float rotated[kMostChannels + kDotChannels];
    rotate_query(query, a.head_dim, rotated);
    const int count = groups * kDotChannels;
    float largest = 0;
    for (int d = 0; d < count; ++d) {
      const float size = __builtin_fabsf(rotated[d]);
      largest = size > largest ? size : largest;
    }
    unit[i] = largest / 127;
    const float inverse = largest > 0 ? 127 / largest : 0.0f;
    auto* out = (int8_t*)channels[i];
    whole[i] = 0;
    for (int d = 0; d < count; d += kLanes) {
      const __m512i values =
          _mm512_cvtps_epi32(_mm512_mul_ps(load(rotated + d), broadcast(inverse)));
      _mm_store_si128((__m128i*)(out + d), _mm512_cvtepi32_epi8(values));
      whole[i] += _mm512_reduce_add_epi32(values);
    }
  }

  /// The largest lane of each of some sums, in order.
  template <int P>
  static __m128i largest(const __m512i (&sum)[P]) {
    static_assert(P == 1 || P == 4);
    if constexpr (P == 1) return _mm_set1_epi32(_mm512_reduce_max_epi32(sum[0]));
    __m128i four[4];
    POLAR_UNROLL
    for (int p = 0; p < P; ++p) {
      const __m256i eight =
          _mm256_max_epi32(_mm512_castsi512_si256(sum[p]), _mm512_extracti64x4_epi64(sum[p], 1));
      four[p] = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    }
    const auto pairs = [](__m128i x, __m128i y) {
      return _mm_max_epi32(_mm_unpacklo_epi32(x, y), _mm_unpackhi_epi32(x, y));
    };
    const __m128i front = pairs(four[0], four[1]), back = pairs(four[2], four[3]);
    return _mm_max_epi32(_mm_unpacklo_epi64(front, back), _mm_unpackhi_epi64(front, back));
  }

  const PageMassArgs& a;
  const int groups;
  float unit[Q];
  int whole[Q];  // a query's sum
  alignas(64) int32_t channels[Q][kMostChannels / 4];
};
