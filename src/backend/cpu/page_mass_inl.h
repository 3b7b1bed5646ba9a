// Page scores: how much of a unit's attention each page is expected to draw, by its mean key.
// Included per instruction set, after simd.h.

/// Scores of Q queries against P mean keys: the sums of one pair never depend on the tile.
template <int Q, int P>
inline void score_means(const PageMassArgs& a, int query, int page, int64_t stride) {
  const float* q = a.query + (int64_t)query * a.head_dim;
  Vec sum[P][Q];
  POLAR_UNROLL
  for (int p = 0; p < P; ++p) POLAR_UNROLL
  for (int i = 0; i < Q; ++i) sum[p][i] = zero();
  int d = 0;
  for (; d + kLanes <= a.head_dim; d += kLanes) {
    POLAR_UNROLL
    for (int p = 0; p < P; ++p) {
      const Vec key = load_f16(a.means[page + p] + d);
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
      score += q[(int64_t)i * a.head_dim + rest] * scalar_f16(a.means[page + p][rest]);
    a.scratch[i * stride + page + p] = score * a.scale;
  }
}

/// Adds the softmax of one query's scores to the mass.
inline void add_softmax(float* scores, int count, int64_t padded, float* mass) {
  for (int64_t i = count; i < padded; ++i) scores[i] = -3.0e38f;
  Vec top = load(scores);
  for (int64_t i = kLanes; i < padded; i += kLanes) top = max(top, load(scores + i));
  const Vec shift = broadcast(reduce_max(top));
  Vec sum = zero();
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec weight = exp(sub(load(scores + i), shift));
    store(scores + i, weight);
    sum = add(sum, weight);
  }
  const Vec share = broadcast(1.0f / reduce_add(sum));
  for (int64_t i = 0; i < padded; i += kLanes)
    store(mass + i, fma(load(scores + i), share, load(mass + i)));
}

/// Pages whose means are fetched ahead: they lie scattered, so the memory's latency must be hidden.
inline constexpr int kMeansAhead = 16;

template <int Q>
inline void add_mass(const PageMassArgs& a, int query, int64_t padded) {
  const auto fetch = [&](int page) {
    const auto* line = (const std::byte*)a.means[page];
    for (int byte = 0; byte < a.head_dim * 2; byte += 64) __builtin_prefetch(line + byte);
  };
  for (int page = 0; page < a.count && page < kMeansAhead; ++page) fetch(page);
  int page = 0;
  for (; page + 4 <= a.count; page += 4) {
    for (int ahead = page + kMeansAhead; ahead < page + kMeansAhead + 4 && ahead < a.count; ++ahead)
      fetch(ahead);
    score_means<Q, 4>(a, query, page, padded);
  }
  for (; page < a.count; ++page) score_means<Q, 1>(a, query, page, padded);
  for (int i = 0; i < Q; ++i) add_softmax(a.scratch + i * padded, a.count, padded, a.mass);
}

inline void page_mass(const PageMassArgs& a) {
  const int64_t padded = padded_pages(a.count);
  __builtin_memset(a.mass, 0, (size_t)padded * sizeof(float));
  int query = 0;
  for (; query + kMassQueries <= a.query_count; query += kMassQueries)
    add_mass<kMassQueries>(a, query, padded);
  if (query + 2 == a.query_count) add_mass<2>(a, query, padded);
  if (query + 1 == a.query_count) add_mass<1>(a, query, padded);
}
