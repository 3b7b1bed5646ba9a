// Attention of a few queries over one piece of pages. Included per instruction set, after simd.h.
//
// K is stored dimension by dimension, so the 16 slots of a page are the lanes: scores need no
// horizontal sums. Up to six queries share each converted K and V vector. A query's own arithmetic
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

/// Fetches line `line` of a half block (64 bytes each) towards the first cache level.
inline void fetch_line(const std::byte* half, int64_t line) {
  __builtin_prefetch(half + line * 64);
}

/// Scores of Q queries against P pages at once, so that there are enough independent sums to hide
/// the latency of an addition; fetches the keys of the pages `next` meanwhile.
template <DType type, int Q, int P>
inline void score_pages(const Query* queries, const PageSlice* pages, const std::byte* const* next,
                        int head_dim, float scale, float* scores) {
  constexpr int kLines = type == DType::kF32 ? 1 : 2;  // dimensions of K in 64 bytes
  Vec sum[P][Q][kSlotVecs];
  POLAR_UNROLL
  for (int p = 0; p < P; ++p) POLAR_UNROLL
  for (int q = 0; q < Q; ++q) POLAR_UNROLL
  for (int v = 0; v < kSlotVecs; ++v) sum[p][q][v] = zero();
  for (int d = 0; d < head_dim; ++d) {
    if (d % kLines == 0) {
      POLAR_UNROLL
      for (int p = 0; p < P; ++p) fetch_line(next[p], d / kLines);
    }
    POLAR_UNROLL
    for (int p = 0; p < P; ++p) {
      Vec key[kSlotVecs];
      POLAR_UNROLL
      for (int v = 0; v < kSlotVecs; ++v)
        key[v] = load_kv<type>(pages[p].block, (int64_t)d * kSlots + v * kLanes);
      POLAR_UNROLL
      for (int q = 0; q < Q; ++q) {
        const Vec value = broadcast(queries[q].values[d]);
        POLAR_UNROLL
        for (int v = 0; v < kSlotVecs; ++v) sum[p][q][v] = fma(value, key[v], sum[p][q][v]);
      }
    }
  }
  POLAR_UNROLL
  for (int p = 0; p < P; ++p) POLAR_UNROLL
  for (int q = 0; q < Q; ++q) POLAR_UNROLL
  for (int v = 0; v < kSlotVecs; ++v)
    store(scores + q * kPieceTokens + p * kSlots + v * kLanes, mul(sum[p][q][v], broadcast(scale)));
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
  const float highest = reduce_max(top);
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

/// Adds one page to output dimensions [d, d + D * kLanes) of Q queries: weights times V.
template <DType type, int Q, int D>
inline void weigh(const Query* queries, const std::byte* values, int head_dim, int first, int last,
                  const float* weights, int d) {
  Vec sum[Q][D];
  POLAR_UNROLL
  for (int q = 0; q < Q; ++q) POLAR_UNROLL
  for (int i = 0; i < D; ++i) sum[q][i] = load(queries[q].output + d + i * kLanes);
  for (int s = first; s < last; ++s) {
    Vec weight[Q];
    POLAR_UNROLL
    for (int q = 0; q < Q; ++q) weight[q] = broadcast(weights[q * kPieceTokens + s]);
    POLAR_UNROLL
    for (int i = 0; i < D; ++i) {
      const Vec value = load_kv<type>(values, (int64_t)s * head_dim + d + i * kLanes);
      POLAR_UNROLL
      for (int q = 0; q < Q; ++q) sum[q][i] = fma(weight[q], value, sum[q][i]);
    }
  }
  POLAR_UNROLL
  for (int q = 0; q < Q; ++q) POLAR_UNROLL
  for (int i = 0; i < D; ++i) store(queries[q].output + d + i * kLanes, sum[q][i]);
}

/// Adds one page to all output dimensions of Q queries.
template <DType type, int Q>
inline void weigh_page(const Query* queries, const std::byte* values, int head_dim, int first,
                       int last, const float* weights) {
  constexpr int D = Q == 1 ? 8 : Q == 2 ? 4 : Q == 3 ? 4 : 2;
  int d = 0;
  for (; d + D * kLanes <= head_dim; d += D * kLanes)
    weigh<type, Q, D>(queries, values, head_dim, first, last, weights, d);
  for (; d + kLanes <= head_dim; d += kLanes)
    weigh<type, Q, 1>(queries, values, head_dim, first, last, weights, d);
  for (; d < head_dim; ++d) {
    for (int q = 0; q < Q; ++q) {
      float sum = queries[q].output[d];
      for (int s = first; s < last; ++s) {
        sum += weights[q * kPieceTokens + s] * scalar_kv<type>(values, (int64_t)s * head_dim + d);
      }
      queries[q].output[d] = sum;
    }
  }
}

/// Queries that share one converted vector. Without vector registers there is nothing to keep them
/// in.
inline constexpr int kTileQueries = POLAR_ISA_LEVEL == 0 ? 2 : 6;

/// fn.operator()<tile width>(first query) over `count` queries in even tiles of at most
/// kTileQueries.
template <typename Fn>
[[gnu::always_inline]] inline void over_tiles(int count, Fn&& fn) {
  int tiles = (count + kTileQueries - 1) / kTileQueries;
  for (int q = 0; q < count; --tiles) {
    const int width = (count - q + tiles - 1) / tiles;
    if (width == 1) fn.template operator()<1>(q);
    if (width == 2) fn.template operator()<2>(q);
    if constexpr (kTileQueries > 2) {
      if (width == 3) fn.template operator()<3>(q);
      if (width == 4) fn.template operator()<4>(q);
      if (width == 5) fn.template operator()<5>(q);
      if (width == 6) fn.template operator()<6>(q);
    }
    q += width;
  }
}

/// Scores `P` pages for all queries; the first tile brings the next pages' keys.
template <DType type, int P>
inline void score_all(const AttendArgs& a, int page) {
  const std::byte* next[P];
  for (int p = 0; p < P; ++p) {
    const int ahead = page + P + p;
    next[p] = a.pages[ahead < a.page_count ? ahead : page + p].block;
  }
  over_tiles(a.query_count, [&]<int Q>(int q) {
    if constexpr (P == 1 || Q <= 3)
      score_pages<type, Q, P>(a.queries + q, a.pages + page, next, a.head_dim, a.scale,
                              a.scratch + q * kPieceTokens + page * kSlots);
  });
}

template <DType type>
inline void attend_typed(const AttendArgs& a) {
  const int64_t half = (int64_t)kSlots * a.head_dim * (type == DType::kF32 ? 4 : 2);
  int page = 0;
  if (a.query_count <= 3) {
    for (; page + 2 <= a.page_count; page += 2) score_all<type, 2>(a, page);
  }
  for (; page < a.page_count; ++page) score_all<type, 1>(a, page);

  int32_t low = a.queries[0].low, high = a.queries[0].high;
  for (int q = 0; q < a.query_count; ++q) {
    soften(a.queries[q], a.pages, a.page_count, a.scratch + q * kPieceTokens);
    low = a.queries[q].low < low ? a.queries[q].low : low;
    high = a.queries[q].high > high ? a.queries[q].high : high;
    __builtin_memset(a.queries[q].output, 0, (size_t)a.head_dim * sizeof(float));
  }
  for (page = 0; page < a.page_count; ++page) {
    int first, last;
    visible_slots(a.pages[page], low, high, &first, &last);
    const std::byte* values = a.pages[page].block + half;
    const std::byte* next = a.pages[page + 1 < a.page_count ? page + 1 : page].block + half;
    for (int64_t line = 0; line * 64 < half; ++line) fetch_line(next, line);
    over_tiles(a.query_count, [&]<int Q>(int q) {
      weigh_page<type, Q>(a.queries + q, values, a.head_dim, first, last,
                          a.scratch + q * kPieceTokens + page * kSlots);
    });
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
