// Attention to pages by their summaries: each page is one token with the page's mean key and mean
// value, and its score gains log kPageTokens, as if all of its tokens had that key. Included per
// instruction set, after attention_inl.h.

inline constexpr float kLogPageTokens = 2.772588722239781f;

/// Summaries that are fetched ahead: they lie scattered, so the memory's latency must be hidden.
inline constexpr int kSummariesAhead = 16;

inline void fetch_summary(const std::byte* summary, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(summary + byte, 0, 2);
}

/// Scores of Q queries against P summaries' mean keys.
template <DType type, int Q, int P>
inline void score_summaries(const AttendSummariesArgs& a, const Query* queries,
                            const std::byte* const* summaries, float* scores) {
  Vec sum[P][Q];
  POLAR_UNROLL
  for (int p = 0; p < P; ++p) POLAR_UNROLL
  for (int q = 0; q < Q; ++q) sum[p][q] = zero();
  int d = 0;
  for (; d + kLanes <= a.head_dim; d += kLanes) {
    POLAR_UNROLL
    for (int p = 0; p < P; ++p) {
      const Vec key = load_kv<type>(summaries[p], d);
      POLAR_UNROLL
      for (int q = 0; q < Q; ++q) sum[p][q] = fma(load(queries[q].values + d), key, sum[p][q]);
    }
  }
  POLAR_UNROLL
  for (int p = 0; p < P; ++p) POLAR_UNROLL
  for (int q = 0; q < Q; ++q) {
    float score = reduce_add(sum[p][q]);
    for (int rest = d; rest < a.head_dim; ++rest)
      score += queries[q].values[rest] * scalar_kv<type>(summaries[p], rest);
    scores[q * kStripTokens + p] = score * a.scale + kLogPageTokens;
  }
}

/// Adds `count` mean values, weighted, to the outputs of Q queries.
template <DType type, int Q>
inline void weigh_summaries(const AttendSummariesArgs& a, const Query* queries,
                            const std::byte* const* summaries, int count, const float* weights) {
  constexpr int D = Q <= 3 || kLanes == 16 ? 4 : 2;
  int d = 0;
  const auto over = [&]<int width>() {
    for (; d + width * kLanes <= a.head_dim; d += width * kLanes) {
      Vec sum[Q][width];
      POLAR_UNROLL
      for (int q = 0; q < Q; ++q) POLAR_UNROLL
      for (int i = 0; i < width; ++i) sum[q][i] = load(queries[q].output + d + i * kLanes);
      for (int s = 0; s < count; ++s) {
        Vec value[width];
        POLAR_UNROLL
        for (int i = 0; i < width; ++i)
          value[i] = load_kv<type>(summaries[s], a.head_dim + d + i * kLanes);
        POLAR_UNROLL
        for (int q = 0; q < Q; ++q) {
          const Vec weight = broadcast(weights[q * kStripTokens + s]);
          POLAR_UNROLL
          for (int i = 0; i < width; ++i) sum[q][i] = fma(weight, value[i], sum[q][i]);
        }
      }
      POLAR_UNROLL
      for (int q = 0; q < Q; ++q) POLAR_UNROLL
      for (int i = 0; i < width; ++i) store(queries[q].output + d + i * kLanes, sum[q][i]);
    }
  };
  over.template operator()<D>();
  over.template operator()<1>();
  for (; d < a.head_dim; ++d) {
    for (int q = 0; q < Q; ++q) {
      float sum = queries[q].output[d];
      for (int s = 0; s < count; ++s) {
        sum += weights[q * kStripTokens + s] * scalar_kv<type>(summaries[s], a.head_dim + d);
      }
      queries[q].output[d] = sum;
    }
  }
}

template <DType type>
inline void attend_summaries_typed(const AttendSummariesArgs& a) {
  begin_queries(a.queries, a.query_count, a.head_dim);
  const int64_t bytes = (int64_t)a.head_dim * (type == DType::kF32 ? 8 : 4);
  for (int s = 0; s < a.summary_count && s < kSummariesAhead; ++s)
    fetch_summary(a.summaries[s], bytes);
  VisibleSlots visible;
  visible.whole = true;
  for (int begin = 0; begin < a.summary_count; begin += kStripTokens) {
    const std::byte* const* strip = a.summaries + begin;
    const int count =
        begin + kStripTokens < a.summary_count ? kStripTokens : a.summary_count - begin;
    const int blocks = (count + kSlots - 1) / kSlots;
    int s = 0;
    const auto score = [&]<int P>() {
      for (; s + P <= count; s += P) {
        for (int p = 0; p < P && begin + s + p + kSummariesAhead < a.summary_count; ++p)
          fetch_summary(strip[s + p + kSummariesAhead], bytes);
        over_tiles(a.query_count, [&]<int Q, bool first>(int q) {
          score_summaries<type, Q, P>(a, a.queries + q, strip + s,
                                      a.scratch + q * kStripTokens + s);
        });
      }
    };
    score.template operator()<2>();
    score.template operator()<1>();
    for (int q = 0; q < a.query_count; ++q) {
      float* scores = a.scratch + q * kStripTokens;
      for (int empty = count; empty < blocks * kSlots; ++empty) scores[empty] = kHidden;
      soften(a.queries[q], visible, blocks, a.head_dim, scores);
    }
    over_tiles(a.query_count, [&]<int Q, bool first>(int q) {
      weigh_summaries<type, Q>(a, a.queries + q, strip, count, a.scratch + q * kStripTokens);
    });
  }
}

inline void attend_summaries(const AttendSummariesArgs& a) {
  if (a.dtype == DType::kF32) return attend_summaries_typed<DType::kF32>(a);
  if (a.dtype == DType::kF16) return attend_summaries_typed<DType::kF16>(a);
  return attend_summaries_typed<DType::kBF16>(a);
}

inline void store_summary_value(const SummarizePageArgs& a, int64_t i, float value) {
  if (a.dtype == DType::kF32) {
    __builtin_memcpy(a.summary + i * 4, &value, 4);
    return;
  }
  const uint16_t bits = a.dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
  __builtin_memcpy(a.summary + i * 2, &bits, 2);
}

template <DType type>
inline void summarize_page_typed(const SummarizePageArgs& a) {
  for (int d = 0; d < a.head_dim; ++d) {
    Vec sum = load_kv<type>(a.block, (int64_t)d * kSlots);
    for (int v = 1; v < kSlotVecs; ++v)
      sum = add(sum, load_kv<type>(a.block, (int64_t)d * kSlots + v * kLanes));
    store_summary_value(a, d, reduce_add(sum) / kSlots);
    float value = 0.0f;
    for (int slot = 0; slot < kSlots; ++slot)
      value += scalar_kv<type>(a.block, ((int64_t)kSlots + slot) * a.head_dim + d);
    store_summary_value(a, a.head_dim + d, value / kSlots);
  }
}

inline void summarize_page(const SummarizePageArgs& a) {
  if (a.dtype == DType::kF32) return summarize_page_typed<DType::kF32>(a);
  if (a.dtype == DType::kF16) return summarize_page_typed<DType::kF16>(a);
  return summarize_page_typed<DType::kBF16>(a);
}
