// The page scores: what each writes of a full page, its index, and how it scores pages by that.
// Scores are one struct each: of Q queries [head_dim] against pages, times PageMassArgs::scale,
// written to out[query * stride + page]. Included per instruction set, after attention_inl.h.

/// Keys of channel d, slots [v * kLanes, (v + 1) * kLanes).
template <DType type>
inline Vec key_lanes(const std::byte* block, int64_t d, int v) {
  return load_kv<type>(block, d * kSlots + v * kLanes);
}

/// The mean key, as f16.
template <DType type>
inline void write_mean(const IndexPageArgs& a) {
  for (int d = 0; d < a.head_dim; ++d) {
    Vec sum = key_lanes<type>(a.block, d, 0);
    for (int v = 1; v < kSlotVecs; ++v) sum = add(sum, key_lanes<type>(a.block, d, v));
    const uint16_t bits = f32_to_f16(reduce_add(sum) / kSlots);
    __builtin_memcpy(a.index + d * 2, &bits, sizeof(bits));
  }
}

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

#include "backend/cpu/page_codes_inl.h"

template <DType type>
inline void index_page_typed(const IndexPageArgs& a) {
  if (a.score == PageScore::kMean) write_mean<type>(a);
  if (a.score == PageScore::kCodes) write_codes<type>(a);
}

inline void index_page(const IndexPageArgs& a) {
  if (a.dtype == DType::kF32) return index_page_typed<DType::kF32>(a);
  if (a.dtype == DType::kF16) return index_page_typed<DType::kF16>(a);
  return index_page_typed<DType::kBF16>(a);
}
