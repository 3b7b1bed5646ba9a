// Codes of keys as bits that tables of a query's sums are looked up by. Included by
// page_codes_inl.h for instruction sets without dot products of bytes.

/// Adds the codes of channels [begin, begin + width) to an index. Two planes, high bits first, of
/// bytes [octet][token]: an octet of channels, the lowest in bit 0.
inline void store_codes(std::byte* index, int head_dim, const Vec (*rotated)[kSlotVecs], int begin,
                        int width, float step) {
  const int plane_bytes = (head_dim + 15) / 16 * 32;
  // Bits of up to eight channels, as whole numbers up to 255 in the tokens' lanes.
  for (int d = 0; d < width;) {
    const int octet = (begin + d) / 8;
    Vec high[kSlotVecs], low[kSlotVecs];
    for (int v = 0; v < kSlotVecs; ++v) high[v] = low[v] = zero();
    for (; d < width && (begin + d) / 8 == octet; ++d) {
      const Vec bit = broadcast((float)(1 << (begin + d) % 8));
      for (int v = 0; v < kSlotVecs; ++v) {
        const Vec positive = where_above(rotated[d][v], 0.0f, bit);
        high[v] = add(high[v], positive);
        low[v] = add(low[v], sub(add(where_above(rotated[d][v], step, bit),
                                     where_above(rotated[d][v], -step, bit)),
                                 positive));
      }
    }
    alignas(64) float bits[2][kSlots];
    for (int v = 0; v < kSlotVecs; ++v) {
      store(bits[0] + v * kLanes, high[v]);
      store(bits[1] + v * kLanes, low[v]);
    }
    auto* out = (uint8_t*)index + octet * kSlots;
    for (int t = 0; t < kSlots; ++t) {
      out[t] = (uint8_t)(out[t] | (int)bits[0][t]);
      out[plane_bytes + t] = (uint8_t)(out[plane_bytes + t] | (int)bits[1][t]);
    }
  }
}

/// PageScore::kCodes: the largest over the page's tokens of rotated query . coded key. The sums of
/// four channels under each pattern of bits are looked up for all tokens at once, as whole numbers
/// from 0 to 2 kMost, kMost being nothing; a byte holds what an octet's high bits, or its low bits,
/// add up to, and a high bit counts twice a low one.
template <int Q>
struct CodesScore {
  CodesScore(const PageMassArgs& a, const float* query)
      : a(a), pairs((a.head_dim + 15) / 16), plane_bytes(pairs * 32) {
    for (int i = 0; i < Q; ++i) make_table(query + (int64_t)i * a.head_dim, i);
  }

  template <int P>
  void score(const std::byte* const* pages, float* out, int64_t stride) const {
    POLAR_UNROLL
    for (int p = 0; p < P; ++p) {
      float half_step;
      __builtin_memcpy(&half_step, pages[p] + 2 * plane_bytes, sizeof(half_step));
      int best[Q];
      best_tokens((const uint8_t*)pages[p], best);
      POLAR_UNROLL
      for (int i = 0; i < Q; ++i)
        out[i * stride + p] = (float)best[i] * (unit[i] * half_step * a.scale);
    }
  }

 private:
  static constexpr int kGroups = kMostChannels / 4;
  static constexpr int kMost = 63;  // 2 kMost + 2 kMost fits a byte

  /// Fills a query's table: 64 bytes per 16 channels, [low, high nibble][octet][pattern].
  void make_table(const float* query, int i) {
    alignas(64) float rotated[kMostChannels + 16];
    rotate_query(query, a.head_dim, rotated);
    float largest = 0;
    for (int g = 0; g < pairs * 4; ++g) {
      float sum = 0;
      for (int j = 0; j < 4; ++j) sum += __builtin_fabsf(rotated[g * 4 + j]);
      largest = sum > largest ? sum : largest;
    }
    unit[i] = largest / kMost;
    const float inverse = largest > 0 ? kMost / largest : 0.0f;
    constexpr float kRound = 12582912.0f;  // added, it leaves a whole number in the lowest bits
    for (int g = 0; g < pairs * 4; ++g) {
      const float* r = rotated + g * 4;
      uint8_t* out = table[i] + g / 4 * 64 + g % 2 * 32 + g / 2 % 2 * 16;
      POLAR_UNROLL
      for (int pattern = 0; pattern < 16; ++pattern) {
        const float sum = r[0] * (pattern & 1 ? 1.0f : -1.0f) +
                          r[1] * (pattern & 2 ? 1.0f : -1.0f) +
                          r[2] * (pattern & 4 ? 1.0f : -1.0f) + r[3] * (pattern & 8 ? 1.0f : -1.0f);
        const float whole = sum * inverse + (kRound + kMost);
        uint32_t bits;
        __builtin_memcpy(&bits, &whole, sizeof(bits));
        out[pattern] = (uint8_t)bits;
      }
    }
  }

  /// What a token adds up to where every entry is nothing.
  int nothing() const { return pairs * 2 * 6 * kMost; }

  /// The largest of the tokens' sums, for each query.
  void best_tokens(const uint8_t* codes, int* best) const {
#if POLAR_ISA_LEVEL > 0
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i weights = _mm256_set1_epi16(2 | 1 << 8);  // of a high bit, of a low one
    __m256i lower[Q], upper[Q];  // of tokens 0 to 7 and 8 to 15: two octets, 16 bits each
    POLAR_UNROLL
    for (int i = 0; i < Q; ++i) lower[i] = upper[i] = _mm256_setzero_si256();
    for (int pair = 0; pair < pairs; ++pair) {
      const __m256i high = _mm256_loadu_si256((const __m256i*)(codes + pair * 32));
      const __m256i low = _mm256_loadu_si256((const __m256i*)(codes + plane_bytes + pair * 32));
      const __m256i high0 = _mm256_and_si256(high, nibble);
      const __m256i high1 = _mm256_and_si256(_mm256_srli_epi16(high, 4), nibble);
      const __m256i low0 = _mm256_and_si256(low, nibble);
      const __m256i low1 = _mm256_and_si256(_mm256_srli_epi16(low, 4), nibble);
      POLAR_UNROLL
      for (int i = 0; i < Q; ++i) {
        const __m256i first = _mm256_load_si256((const __m256i*)(table[i] + pair * 64));
        const __m256i second = _mm256_load_si256((const __m256i*)(table[i] + pair * 64 + 32));
        const __m256i twice =
            _mm256_add_epi8(_mm256_shuffle_epi8(first, high0), _mm256_shuffle_epi8(second, high1));
        const __m256i once =
            _mm256_add_epi8(_mm256_shuffle_epi8(first, low0), _mm256_shuffle_epi8(second, low1));
        const auto weighted = [&](__m256i both) { return _mm256_maddubs_epi16(both, weights); };
        lower[i] = _mm256_add_epi16(lower[i], weighted(_mm256_unpacklo_epi8(twice, once)));
        upper[i] = _mm256_add_epi16(upper[i], weighted(_mm256_unpackhi_epi8(twice, once)));
      }
    }
    POLAR_UNROLL
    for (int i = 0; i < Q; ++i) {
      const auto octets = [](__m256i v) {
        return _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
      };
      // minpos finds the least unsigned number: the sums, from the top.
      const __m128i top = _mm_set1_epi16(INT16_MAX);
      const __m128i least =
          _mm_minpos_epu16(_mm_sub_epi16(top, _mm_max_epi16(octets(lower[i]), octets(upper[i]))));
      best[i] = INT16_MAX - _mm_extract_epi16(least, 0) - nothing();
    }
#else
    for (int i = 0; i < Q; ++i) {
      best[i] = INT16_MIN;
      for (int token = 0; token < 16; ++token) {
        int sum = -nothing();
        for (int octet = 0; octet < 2 * pairs; ++octet) {
          const uint8_t* patterns = table[i] + octet / 2 * 64 + octet % 2 * 16;
          const uint8_t high = codes[octet * 16 + token];
          const uint8_t low = codes[plane_bytes + octet * 16 + token];
          sum += 2 * (patterns[high & 15] + patterns[32 + (high >> 4)]);
          sum += patterns[low & 15] + patterns[32 + (low >> 4)];
        }
        best[i] = sum > best[i] ? sum : best[i];
      }
    }
#endif
  }

  const PageMassArgs& a;
  const int pairs, plane_bytes;
  float unit[Q];
  alignas(64) uint8_t table[Q][kGroups * 16];
};
