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
/// four channels under each pattern of bits are looked up, as 7-bit whole numbers, for all tokens
/// at once; a high bit counts twice a low one.
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
      POLAR_UNROLL
      for (int i = 0; i < Q; ++i)
        out[i * stride + p] =
            (float)best_token((const uint8_t*)pages[p], table[i]) * (unit[i] * half_step * a.scale);
    }
  }

 private:
  static constexpr int kGroups = kMostChannels / 4;

  /// Rotates a query as write_codes() rotates keys and fills its table: 64 bytes per 16 channels,
  /// [low, high nibble][octet][pattern].
  void make_table(const float* query, int i) {
    alignas(64) float rotated[kMostChannels + 16] = {};
    const int width = rotated_channels(a.head_dim);
    const float norm = 1.0f / __builtin_sqrtf((float)width);
    for (int d = 0; d < a.head_dim; ++d) rotated[d] = query[d] * norm;
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
    unit[i] = largest / 63.0f;
    const float inverse = largest > 0 ? 63.0f / largest : 0.0f;
    for (int g = 0; g < pairs * 4; ++g) {
      const float* r = rotated + g * 4;
      float sum[16] = {-(r[0] + r[1] + r[2] + r[3])};
      for (int bit = 0; bit < 4; ++bit) {
        for (int pattern = 0; pattern < 1 << bit; ++pattern)
          sum[pattern | 1 << bit] = sum[pattern] + 2 * r[bit];
      }
      int8_t* out = table[i] + g / 4 * 64 + g % 2 * 32 + g / 2 % 2 * 16;
      for (int pattern = 0; pattern < 16; ++pattern)
        out[pattern] = (int8_t)__builtin_nearbyintf(sum[pattern] * inverse);
    }
  }

  /// The largest of the tokens' sums. Two table values fit a byte, a head's a 16-bit number.
  int best_token(const uint8_t* codes, const int8_t* t) const {
#if POLAR_ISA_LEVEL > 0
    __m256i even = _mm256_setzero_si256(), odd = even;  // tokens
    add_plane(codes, t, &even, &odd);
    even = _mm256_slli_epi16(even, 1);
    odd = _mm256_slli_epi16(odd, 1);
    add_plane(codes + plane_bytes, t, &even, &odd);
    const __m128i first =
        _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    const __m128i second =
        _mm_add_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256(odd, 1));
    // minpos finds the least unsigned number: the sums, from the top.
    const __m128i top = _mm_set1_epi16(INT16_MAX);
    const __m128i least = _mm_minpos_epu16(_mm_sub_epi16(top, _mm_max_epi16(first, second)));
    return INT16_MAX - _mm_extract_epi16(least, 0);
#else
    int best = INT16_MIN;
    for (int token = 0; token < 16; ++token) {
      int sum = 0;
      for (int octet = 0; octet < 2 * pairs; ++octet) {
        const int8_t* patterns = t + octet / 2 * 64 + octet % 2 * 16;
        const uint8_t high = codes[octet * 16 + token];
        const uint8_t low = codes[plane_bytes + octet * 16 + token];
        sum += 2 * (patterns[high & 15] + patterns[32 + (high >> 4)]);
        sum += patterns[low & 15] + patterns[32 + (low >> 4)];
      }
      best = sum > best ? sum : best;
    }
    return best;
#endif
  }
#if POLAR_ISA_LEVEL > 0
  void add_plane(const uint8_t* plane, const int8_t* t, __m256i* even, __m256i* odd) const {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int pair = 0; pair < pairs; ++pair) {
      const __m256i bytes = _mm256_loadu_si256((const __m256i*)(plane + pair * 32));
      const __m256i low = _mm256_shuffle_epi8(_mm256_load_si256((const __m256i*)(t + pair * 64)),
                                              _mm256_and_si256(bytes, nibble));
      const __m256i high =
          _mm256_shuffle_epi8(_mm256_load_si256((const __m256i*)(t + pair * 64 + 32)),
                              _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));
      const __m256i both = _mm256_add_epi8(low, high);
      *even = _mm256_add_epi16(*even, _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8));
      *odd = _mm256_add_epi16(*odd, _mm256_srai_epi16(both, 8));
    }
  }
#endif

  const PageMassArgs& a;
  const int pairs, plane_bytes;
  float unit[Q];
  alignas(64) int8_t table[Q][kGroups * 16];
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
