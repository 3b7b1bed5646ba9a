// Attention of a few queries over one piece of pages. Included per instruction set, after simd.h.
//
// K is stored dimension by dimension, so the 16 slots of a page are the lanes: scores need no
// horizontal sums. Up to four queries share each converted K and V vector. A query's own arithmetic
// is the same whichever queries share its tile: what it does not see adds exact zeros.

inline constexpr int kSlots = 16;
inline constexpr int kSlotVecs = kSlots / kLanes;

template <DType type>
inline Vec load_kv(const std::byte* p, int64_t i) {
  if constexpr (type == DType::kF32) return load((const float*)p + i);
  if constexpr (type == DType::kF16) return load_f16((const uint16_t*)p + i);
  if constexpr (type == DType::kBF16) return load_bf16((const uint16_t*)p + i);
}

template <DType type>
inline float scalar_kv(const std::byte* p, int64_t i) {
  if constexpr (type == DType::kF32) return ((const float*)p)[i];
  if constexpr (type == DType::kF16) return scalar_f16(((const uint16_t*)p)[i]);
  if constexpr (type == DType::kBF16) return scalar_bf16(((const uint16_t*)p)[i]);
}

/// Slots [first, last) of a page that positions [low, high) cover.
inline void visible_slots(const PageSlice& page, int32_t low, int32_t high, int* first, int* last) {
  if (page.position == kAllVisible) {
    *first = 0;
    *last = kSlots;
    return;
  }
  const int32_t from = low - page.position, to = high - page.position;
  *first = from < 0 ? 0 : from > kSlots ? kSlots : from;
  *last = to < 0 ? 0 : to > kSlots ? kSlots : to;
}

/// Scores of Q queries against one page; fetches the next page's block meanwhile.
template <DType type, int Q>
inline void score_page(const Query* queries, const std::byte* block, const std::byte* next,
                       int head_dim, float scale, float* scores) {
  Vec sum[Q][kSlotVecs];
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < kSlotVecs; ++v) sum[q][v] = zero();
  for (int d = 0; d < head_dim; ++d) {
    __builtin_prefetch(next + (int64_t)d * 64);
    Vec key[kSlotVecs];
    for (int v = 0; v < kSlotVecs; ++v)
      key[v] = load_kv<type>(block, (int64_t)d * kSlots + v * kLanes);
    for (int q = 0; q < Q; ++q) {
      const Vec value = broadcast(queries[q].values[d]);
      for (int v = 0; v < kSlotVecs; ++v) sum[q][v] = fma(value, key[v], sum[q][v]);
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < kSlotVecs; ++v)
      store(scores + q * kPieceTokens + v * kLanes, mul(sum[q][v], broadcast(scale)));
}

/// Turns one query's scores into weights, in place; writes its max and sum.
inline void soften(Query& query, const PageSlice* pages, int page_count, float* scores) {
  constexpr float kHidden = -3.0e38f;
  Vec top = broadcast(kHidden);
  for (int p = 0; p < page_count; ++p) {
    int first, last;
    visible_slots(pages[p], query.low, query.high, &first, &last);
    float* page = scores + p * kSlots;
    for (int s = 0; s < first; ++s) page[s] = kHidden;
    for (int s = last; s < kSlots; ++s) page[s] = kHidden;
    for (int v = 0; v < kSlotVecs; ++v) top = max(top, load(page + v * kLanes));
  }
  alignas(64) float lanes[kLanes];
  store(lanes, top);
  float highest = lanes[0];
  for (int i = 1; i < kLanes; ++i) highest = lanes[i] > highest ? lanes[i] : highest;
  const Vec shift = broadcast(highest);
  Vec sum = zero();
  for (int p = 0; p < page_count; ++p) {
    int first, last;
    visible_slots(pages[p], query.low, query.high, &first, &last);
    float* page = scores + p * kSlots;
    for (int v = 0; v < kSlotVecs; ++v)
      store(page + v * kLanes, exp(sub(load(page + v * kLanes), shift)));
    for (int s = 0; s < first; ++s) page[s] = 0.0f;
    for (int s = last; s < kSlots; ++s) page[s] = 0.0f;
    for (int v = 0; v < kSlotVecs; ++v) sum = add(sum, load(page + v * kLanes));
  }
  query.max = highest;
  query.sum = reduce_add(sum);
}

/// Output dimensions [d, d + D * kLanes) of Q queries: weights times V over all pages.
template <DType type, int Q, int D>
inline void weigh(const Query* queries, const AttendArgs& a, const int* first, const int* last,
                  const float* weights, int d) {
  const int64_t half = (int64_t)kSlots * a.head_dim * (type == DType::kF32 ? 4 : 2);
  Vec sum[Q][D];
  for (int q = 0; q < Q; ++q)
    for (int i = 0; i < D; ++i) sum[q][i] = zero();
  for (int p = 0; p < a.page_count; ++p) {
    const std::byte* values = a.pages[p].block + half;
    for (int s = first[p]; s < last[p]; ++s) {
      Vec value[D];
      for (int i = 0; i < D; ++i)
        value[i] = load_kv<type>(values, (int64_t)s * a.head_dim + d + i * kLanes);
      for (int q = 0; q < Q; ++q) {
        const Vec weight = broadcast(weights[q * kPieceTokens + p * kSlots + s]);
        for (int i = 0; i < D; ++i) sum[q][i] = fma(weight, value[i], sum[q][i]);
      }
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int i = 0; i < D; ++i) store(queries[q].output + d + i * kLanes, sum[q][i]);
}

template <DType type, int Q>
inline void attend_queries(Query* queries, const AttendArgs& a, float* scratch) {
  int first[kPiecePages], last[kPiecePages];
  int32_t low = queries[0].low, high = queries[0].high;
  for (int q = 1; q < Q; ++q) {
    low = queries[q].low < low ? queries[q].low : low;
    high = queries[q].high > high ? queries[q].high : high;
  }
  for (int p = 0; p < a.page_count; ++p) {
    visible_slots(a.pages[p], low, high, &first[p], &last[p]);
    const std::byte* next = a.pages[p + 1 < a.page_count ? p + 1 : p].block;
    score_page<type, Q>(queries, a.pages[p].block, next, a.head_dim, a.scale, scratch + p * kSlots);
  }
  for (int q = 0; q < Q; ++q) soften(queries[q], a.pages, a.page_count, scratch + q * kPieceTokens);

  constexpr int D = Q <= 2 ? 4 : 2;  // as many sums as hide the latency of an addition
  int d = 0;
  for (; d + D * kLanes <= a.head_dim; d += D * kLanes)
    weigh<type, Q, D>(queries, a, first, last, scratch, d);
  for (; d + kLanes <= a.head_dim; d += kLanes)
    weigh<type, Q, 1>(queries, a, first, last, scratch, d);
  const int64_t half = (int64_t)kSlots * a.head_dim * (type == DType::kF32 ? 4 : 2);
  for (; d < a.head_dim; ++d) {
    for (int q = 0; q < Q; ++q) {
      float sum = 0.0f;
      for (int p = 0; p < a.page_count; ++p) {
        for (int s = first[p]; s < last[p]; ++s) {
          sum += scratch[q * kPieceTokens + p * kSlots + s] *
                 scalar_kv<type>(a.pages[p].block + half, (int64_t)s * a.head_dim + d);
        }
      }
      queries[q].output[d] = sum;
    }
  }
}

template <DType type>
inline void attend_typed(const AttendArgs& a) {
  for (int q = 0; q < a.query_count;) {
    Query* queries = a.queries + q;
    switch (a.query_count - q) {
      case 1:
        attend_queries<type, 1>(queries, a, a.scratch);
        return;
      case 2:
        attend_queries<type, 2>(queries, a, a.scratch);
        return;
      case 3:
        attend_queries<type, 3>(queries, a, a.scratch);
        return;
      default:
        attend_queries<type, 4>(queries, a, a.scratch);
        q += 4;
    }
  }
}

inline void attend(const AttendArgs& a) {
  switch (a.dtype) {
    case DType::kF32:
      attend_typed<DType::kF32>(a);
      break;
    case DType::kF16:
      attend_typed<DType::kF16>(a);
      break;
    case DType::kBF16:
      attend_typed<DType::kBF16>(a);
      break;
    default:
      __builtin_trap();
  }
}
