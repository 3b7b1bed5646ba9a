// Attention of a few queries over one piece of pages. Included per instruction set, after simd.h.
//
// K is stored dimension by dimension, so the 16 slots of a page are the lanes: scores need no
// horizontal sums. Up to six queries share each converted K and V vector. A query's own arithmetic
// is the same whichever queries share its tile: what it does not see adds exact zeros.
//
// A piece is walked in strips of pages: scores, softmax, V. While one strip's keys are read its
// values are fetched, and while its values are read the next strip's keys: into the second cache
// level, which keeps twice as many lines under way as the first.

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

/// Brings what will be needed after this half block.
[[gnu::always_inline]] inline void fetch(const std::byte* next, int64_t offset) {
  __builtin_prefetch(next + offset, 0, 2);
}

/// Scores of Q queries against P pages at once, so that there are enough independent sums to hide
/// the latency of an addition; fetches as much at `next` meanwhile.
template <DType type, int Q, int P, bool fetching>
inline void score_pages(const Query* queries, const PageSlice* pages, const std::byte* const* next,
                        int head_dim, float scale, float* scores) {
  constexpr int64_t kBytes = kSlots * (type == DType::kF32 ? 4 : 2);  // of a dimension
  Vec sum[P][Q][kSlotVecs];
  POLAR_UNROLL
  for (int p = 0; p < P; ++p) POLAR_UNROLL
  for (int q = 0; q < Q; ++q) POLAR_UNROLL
  for (int v = 0; v < kSlotVecs; ++v) sum[p][q][v] = zero();
  for (int d = 0; d < head_dim; ++d) {
    if constexpr (fetching) {
      if (kBytes == 64 || d % 2 == 0) {
        POLAR_UNROLL
        for (int p = 0; p < P; ++p) fetch(next[p], d * kBytes);
      }
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
    store(scores + q * kStripTokens + p * kSlots + v * kLanes, mul(sum[p][q][v], broadcast(scale)));
}

/// Below every score: of what is hidden, and of a query that has seen nothing.
inline constexpr float kHidden = -3.0e38f;

/// What a query sees of a strip's pages.
struct VisibleSlots {
  int first[kStripPages], last[kStripPages];
  bool whole;  // all of them

  void find(const Query& query, const PageSlice* pages, int page_count) {
    whole = true;
    for (int p = 0; p < page_count; ++p) {
      visible_slots(pages[p], query.low, query.high, &first[p], &last[p]);
      whole = whole && first[p] == 0 && last[p] == kSlots;
    }
  }
  /// Gives `value` to what it does not see.
  void hide(float* scores, int page_count, float value) const {
    if (whole) return;
    for (int p = 0; p < page_count; ++p) {
      for (int s = 0; s < first[p]; ++s) scores[p * kSlots + s] = value;
      for (int s = last[p]; s < kSlots; ++s) scores[p * kSlots + s] = value;
    }
  }
};

/// Turns one query's scores of a strip into weights, in place, and brings what it has so far to the
/// new maximum.
inline void soften(Query& query, const VisibleSlots& visible, int page_count, int head_dim,
                   float* scores) {
  visible.hide(scores, page_count, kHidden);
  Vec top = broadcast(kHidden);
  for (int p = 0; p < page_count; ++p) {
    const float* page = scores + p * kSlots;
    POLAR_UNROLL
    for (int v = 0; v < kSlotVecs; ++v) top = max(top, load(page + v * kLanes));
  }
  const float highest = reduce_max(top);
  if (highest > query.max) {
    const float shrink = query.sum == 0.0f ? 0.0f : __builtin_expf(query.max - highest);
    query.max = highest;
    query.sum *= shrink;
    for (int d = 0; d < head_dim; ++d) query.output[d] *= shrink;
  }
  const Vec shift = broadcast(query.max);
  Vec sum = zero();
  for (int p = 0; p < page_count; ++p) {
    float* page = scores + p * kSlots;
    POLAR_UNROLL
    for (int v = 0; v < kSlotVecs; ++v)
      store(page + v * kLanes, exp(sub(load(page + v * kLanes), shift)));
  }
  visible.hide(scores, page_count, 0.0f);
  for (int v = 0; v < page_count * kSlotVecs; ++v) sum = add(sum, load(scores + v * kLanes));
  query.sum += reduce_add(sum);
}

/// Adds one page to output dimensions [d, d + D * kLanes) of Q queries: weights times V.
template <DType type, int Q, int D, bool fetching>
inline void weigh(const Query* queries, const std::byte* values, const std::byte* next,
                  int head_dim, int first, int last, const float* weights, int d) {
  constexpr int kBytes = type == DType::kF32 ? 4 : 2;
  Vec sum[Q][D];
  POLAR_UNROLL
  for (int q = 0; q < Q; ++q) POLAR_UNROLL
  for (int i = 0; i < D; ++i) sum[q][i] = load(queries[q].output + d + i * kLanes);
  for (int s = first; s < last; ++s) {
    const auto value = [&](int i) {
      const int64_t at = (int64_t)s * head_dim + d + i * kLanes;
      if (fetching && i * kLanes * kBytes % 64 == 0) fetch(next, at * kBytes);
      return load_kv<type>(values, at);
    };
    const auto weight = [&](int q) { return broadcast(weights[q * kStripTokens + s]); };
    // Whichever are fewer stay in registers.
    if constexpr (Q < D) {
      Vec held[Q];
      POLAR_UNROLL
      for (int q = 0; q < Q; ++q) held[q] = weight(q);
      POLAR_UNROLL
      for (int i = 0; i < D; ++i) {
        const Vec v = value(i);
        POLAR_UNROLL
        for (int q = 0; q < Q; ++q) sum[q][i] = fma(held[q], v, sum[q][i]);
      }
    } else {
      Vec held[D];
      POLAR_UNROLL
      for (int i = 0; i < D; ++i) held[i] = value(i);
      POLAR_UNROLL
      for (int q = 0; q < Q; ++q) {
        const Vec w = weight(q);
        POLAR_UNROLL
        for (int i = 0; i < D; ++i) sum[q][i] = fma(w, held[i], sum[q][i]);
      }
    }
  }
  POLAR_UNROLL
  for (int q = 0; q < Q; ++q) POLAR_UNROLL
  for (int i = 0; i < D; ++i) store(queries[q].output + d + i * kLanes, sum[q][i]);
}

/// Adds one page to all output dimensions of Q queries.
template <DType type, int Q, bool fetching>
inline void weigh_page(const Query* queries, const std::byte* values, const std::byte* next,
                       int head_dim, int first, int last, const float* weights) {
  constexpr int D = Q == 1 ? 8 : Q <= 3 || kLanes == 16 ? 4 : 2;
  int d = 0;
  const auto over = [&]<int width>() {
    for (; d + width * kLanes <= head_dim; d += width * kLanes)
      weigh<type, Q, width, fetching>(queries, values, next, head_dim, first, last, weights, d);
  };
  over.template operator()<D>();
  if constexpr (D > 4) over.template operator()<4>();
  if constexpr (D > 2) over.template operator()<2>();
  over.template operator()<1>();
  for (; d < head_dim; ++d) {
    for (int q = 0; q < Q; ++q) {
      float sum = queries[q].output[d];
      for (int s = first; s < last; ++s) {
        sum += weights[q * kStripTokens + s] * scalar_kv<type>(values, (int64_t)s * head_dim + d);
      }
      queries[q].output[d] = sum;
    }
  }
}

/// Queries that share one converted vector. Without vector registers there is nothing to keep them
/// in.
inline constexpr int kTileQueries = POLAR_ISA_LEVEL == 0 ? 2 : 6;

/// fn.operator()<tile width, first tile>(first query) over `count` queries in even tiles of at most
/// kTileQueries.
template <typename Fn>
[[gnu::always_inline]] inline void over_tiles(int count, Fn&& fn) {
  int tiles = (count + kTileQueries - 1) / kTileQueries;
  const auto call = [&]<bool first>(int q, int width) {
    if (width == 1) fn.template operator()<1, first>(q);
    if (width == 2) fn.template operator()<2, first>(q);
    if constexpr (kTileQueries > 2) {
      if (width == 3) fn.template operator()<3, first>(q);
      if (width == 4) fn.template operator()<4, first>(q);
      if (width == 5) fn.template operator()<5, first>(q);
      if (width == 6) fn.template operator()<6, first>(q);
    }
  };
  for (int q = 0; q < count; --tiles) {
    const int width = (count - q + tiles - 1) / tiles;
    if (q == 0) {
      call.template operator()<true>(q, width);
    } else {
      call.template operator()<false>(q, width);
    }
    q += width;
  }
}

/// Pages that a tile of that many queries is scored against at once. Two pages' sums stand beside
/// what both of them broadcast: 16 registers hold that for two queries, 32 for six.
constexpr int scored_pages(int queries) {
  constexpr int kMostOfTwo = kLanes == 16 ? 6 : 4;
  return queries * kSlotVecs <= 2 ? 4 : queries * kSlotVecs <= kMostOfTwo ? 2 : 1;
}

/// Scores `P` pages of a strip for all queries; the first tile fetches their values.
template <DType type, int P>
inline void score_all(const AttendArgs& a, const PageSlice* pages, int64_t half, float* scores) {
  const std::byte* next[P];
  for (int p = 0; p < P; ++p) next[p] = pages[p].block + half;
  over_tiles(a.query_count, [&]<int Q, bool first>(int q) {
    if constexpr (P <= scored_pages(Q)) {
      score_pages<type, Q, P, first>(a.queries + q, pages, next, a.head_dim, a.scale,
                                     scores + q * kStripTokens);
    }
  });
}

template <DType type>
inline void attend_strip(const AttendArgs& a, const PageSlice* pages, int count,
                         const PageSlice* ahead, int ahead_count) {
  const int64_t half = (int64_t)kSlots * a.head_dim * (type == DType::kF32 ? 4 : 2);
  const int widest = a.query_count < kTileQueries ? a.query_count : kTileQueries;
  const int most = scored_pages(widest);
  int page = 0;
  for (; most >= 4 && page + 4 <= count; page += 4)
    score_all<type, 4>(a, pages + page, half, a.scratch + page * kSlots);
  for (; most >= 2 && page + 2 <= count; page += 2)
    score_all<type, 2>(a, pages + page, half, a.scratch + page * kSlots);
  for (; page < count; ++page) score_all<type, 1>(a, pages + page, half, a.scratch + page * kSlots);

  int32_t low = a.queries[0].low, high = a.queries[0].high;
  VisibleSlots visible;
  for (int q = 0; q < a.query_count; ++q) {
    const bool as_before = q > 0 && a.queries[q].low == a.queries[q - 1].low &&
                           a.queries[q].high == a.queries[q - 1].high;
    if (!as_before) visible.find(a.queries[q], pages, count);
    soften(a.queries[q], visible, count, a.head_dim, a.scratch + q * kStripTokens);
    low = a.queries[q].low < low ? a.queries[q].low : low;
    high = a.queries[q].high > high ? a.queries[q].high : high;
  }

  for (int page = 0; page < count; ++page) {
    int first_slot, last_slot;
    visible_slots(pages[page], low, high, &first_slot, &last_slot);
    const std::byte* values = pages[page].block + half;
    const std::byte* next = page < ahead_count ? ahead[page].block : pages[page].block;
    over_tiles(a.query_count, [&]<int Q, bool first>(int q) {
      weigh_page<type, Q, first>(a.queries + q, values, next, a.head_dim, first_slot, last_slot,
                                 a.scratch + q * kStripTokens + page * kSlots);
    });
  }
}

/// They have seen nothing yet.
inline void begin_queries(Query* queries, int count, int head_dim) {
  for (int q = 0; q < count; ++q) {
    queries[q].max = kHidden;
    queries[q].sum = 0.0f;
    __builtin_memset(queries[q].output, 0, (size_t)head_dim * sizeof(float));
  }
}

template <DType type>
inline void attend_typed(const AttendArgs& a) {
  begin_queries(a.queries, a.query_count, a.head_dim);
  for (int page = 0; page < a.page_count; page += kStripPages) {
    const int end = page + kStripPages < a.page_count ? page + kStripPages : a.page_count;
    attend_strip<type>(a, a.pages + page, end - page, a.pages + end, a.listed_count - end);
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
