// The page scores, one struct each: scores of Q queries [head_dim] against pages, times
// PageMassArgs::scale, written to out[query * stride + page]. Included per instruction set, after
// attention_inl.h.

/// PageScore::kMean: the query times the mean key [head_dim], f16.
template <int Q>
struct MeanScore {
  MeanScore(const PageMassArgs& a, const float* query) : a(a), q(query) {}

  /// P pages at once: the sums of one pair never depend on P.
  template <int P>
  void score(const std::byte* const* pages, float* out, int64_t stride) const {
    Vec sum[P][Q];
    POLAR_UNROLL
    for (int p = 0; p < P; ++p) POLAR_UNROLL
    for (int i = 0; i < Q; ++i) sum[p][i] = zero();
    int d = 0;
    for (; d + kLanes <= a.head_dim; d += kLanes) {
      POLAR_UNROLL
      for (int p = 0; p < P; ++p) {
        const Vec key = load_f16((const uint16_t*)pages[p] + d);
        POLAR_UNROLL
        for (int i = 0; i < Q; ++i)
          sum[p][i] = fma(load(q + (int64_t)i * a.head_dim + d), key, sum[p][i]);
      }
    }
    POLAR_UNROLL
    for (int p = 0; p < P; ++p) POLAR_UNROLL
    for (int i = 0; i < Q; ++i) {
      float score = reduce_add(sum[p][i]);
      for (int rest = d; rest < a.head_dim; ++rest)
        score += q[(int64_t)i * a.head_dim + rest] * scalar_f16(((const uint16_t*)pages[p])[rest]);
      out[i * stride + p] = score * a.scale;
    }
  }

  const PageMassArgs& a;
  const float* q;
};

/// PageScore::kCodes: the largest over the page's tokens of rotated query . coded key. The sums of
/// four channels under each pattern of bits are looked up for all tokens at once, as whole numbers
/// from 0 to 2 kMost, kMost being nothing: a high bit counts twice a low one, and a byte holds what
/// an octet's high and low bits add up to.
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
  static constexpr int kMost = 21;  // 2 (2 kMost + 2 kMost) + (2 kMost + 2 kMost) fits a byte

  /// Rotates a query as write_codes() rotates keys and fills its table: 64 bytes per 16 channels,
  /// [low, high nibble][octet][pattern].
  void make_table(const float* query, int i) {
    alignas(64) float rotated[kMostChannels + 16];
    const int width = rotated_channels(a.head_dim);
    const float norm = 1.0f / __builtin_sqrtf((float)width);
    for (int d = 0; d < a.head_dim; ++d) rotated[d] = query[d] * norm;
    for (int d = a.head_dim; d < pairs * 16; ++d) rotated[d] = 0;
    for (int half = 1; half < width; half *= 2) {
      for (int d = 0; d < a.head_dim; d += 2 * half) {
        for (int j = d; j < d + half; ++j) {
          const float x = rotated[j], y = rotated[j + half];
          rotated[j] = x + y;
          rotated[j + half] = x - y;
        }
      }
    }
    float largest = 0;
    for (int g = 0; g < pairs * 4; ++g) {
      float sum = 0;
      for (int j = 0; j < 4; ++j) sum += __builtin_fabsf(rotated[g * 4 + j]);
      largest = sum > largest ? sum : largest;
    }
    unit[i] = largest / kMost;
    const float inverse = largest > 0 ? kMost / largest : 0.0f;
    for (int g = 0; g < pairs * 4; ++g) {
      const float* r = rotated + g * 4;
      float sum[16] = {-(r[0] + r[1] + r[2] + r[3])};
      for (int bit = 0; bit < 4; ++bit) {
        for (int pattern = 0; pattern < 1 << bit; ++pattern)
          sum[pattern | 1 << bit] = sum[pattern] + 2 * r[bit];
      }
      uint8_t* out = table[i] + g / 4 * 64 + g % 2 * 32 + g / 2 % 2 * 16;
      for (int pattern = 0; pattern < 16; ++pattern)
        out[pattern] = (uint8_t)(kMost + (int)__builtin_nearbyintf(sum[pattern] * inverse));
    }
  }

  /// What a token adds up to where every entry is nothing.
  int nothing() const { return pairs * 2 * 6 * kMost; }

  /// The largest of the tokens' sums, for each query.
  void best_tokens(const uint8_t* codes, int* best) const {
#if POLAR_ISA_LEVEL > 0
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sum[Q], odd[Q];  // of 16-bit lanes, and of their upper bytes: the odd tokens
    POLAR_UNROLL
    for (int i = 0; i < Q; ++i) sum[i] = odd[i] = _mm256_setzero_si256();
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
        const __m256i octet = _mm256_add_epi8(_mm256_add_epi8(twice, twice), once);
        sum[i] = _mm256_add_epi16(sum[i], octet);
        odd[i] = _mm256_add_epi16(odd[i], _mm256_srli_epi16(octet, 8));
      }
    }
    POLAR_UNROLL
    for (int i = 0; i < Q; ++i) {
      const __m256i even = _mm256_sub_epi16(sum[i], _mm256_slli_epi16(odd[i], 8));
      const __m128i evens =
          _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
      const __m128i odds =
          _mm_add_epi16(_mm256_castsi256_si128(odd[i]), _mm256_extracti128_si256(odd[i], 1));
      // minpos finds the least unsigned number: the sums, from the top.
      const __m128i top = _mm_set1_epi16(INT16_MAX);
      const __m128i least = _mm_minpos_epu16(_mm_sub_epi16(top, _mm_max_epi16(evens, odds)));
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

/// PageScore::kMass: log of the sum over the page's tokens of exp(query . key * scale).
template <int Q>
struct MassScore {
  MassScore(const PageMassArgs& a, const float* query) : a(a), q(query) {}

  template <int P>
  void score(const std::byte* const* pages, float* out, int64_t stride) const {
    for (int p = 0; p < P; ++p) {
      for (int i = 0; i < Q; ++i) out[i * stride + p] = page(pages[p], q + (int64_t)i * a.head_dim);
    }
  }

 private:
  float page(const std::byte* keys, const float* query) const {
    constexpr int kTokens = 16;
    alignas(64) float dot[kTokens];
    for (int v = 0; v < kTokens; v += kLanes) {
      Vec sum = zero();
      for (int d = 0; d < a.head_dim; ++d)
        sum = fma(broadcast(query[d]), key(keys, (int64_t)d * kTokens + v), sum);
      store(dot + v, mul(sum, broadcast(a.scale)));
    }
    float top = dot[0];
    for (int t = 1; t < kTokens; ++t) top = dot[t] > top ? dot[t] : top;
    Vec sum = zero();
    for (int v = 0; v < kTokens; v += kLanes)
      sum = add(sum, exp(sub(load(dot + v), broadcast(top))));
    return top + __builtin_logf(reduce_add(sum));
  }
  Vec key(const std::byte* keys, int64_t i) const {
    if (a.dtype == DType::kF32) return load_kv<DType::kF32>(keys, i);
    if (a.dtype == DType::kBF16) return load_kv<DType::kBF16>(keys, i);
    return load_kv<DType::kF16>(keys, i);
  }

  const PageMassArgs& a;
  const float* q;
};
