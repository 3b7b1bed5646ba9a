// How much of a unit's attention each page is expected to draw. Included per instruction set, after
// page_index_inl.h.

/// Adds the softmax of one query's scores to the mass.
inline void add_softmax(float* scores, int count, int64_t padded, float* mass) {
  for (int64_t i = count; i < padded; ++i) scores[i] = kHidden;
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

/// Pages whose indices are fetched ahead: they lie scattered, so the memory's latency must be
/// hidden.
inline constexpr int kIndicesAhead = 64;

template <template <int> class Score, int Q>
inline void add_mass(const PageMassArgs& a, int query, int64_t padded) {
  const int bytes = (int)page_index_bytes(a.score, a.head_dim);
  const auto fetch = [&](int page) {
    for (int byte = 0; byte < bytes; byte += 64) __builtin_prefetch(a.pages[page] + byte, 0, 2);
  };
  for (int page = 0; page < a.count && page < kIndicesAhead; ++page) fetch(page);
  const Score<Q> score(a, a.query + (int64_t)query * a.head_dim);
  int page = 0;
  for (; page + 4 <= a.count; page += 4) {
    for (int ahead = page + kIndicesAhead; ahead < page + kIndicesAhead + 4 && ahead < a.count;
         ++ahead)
      fetch(ahead);
    score.template score<4>(a.pages + page, a.scratch + page, padded);
  }
  for (; page < a.count; ++page) score.template score<1>(a.pages + page, a.scratch + page, padded);
  for (int i = 0; i < Q; ++i) add_softmax(a.scratch + i * padded, a.count, padded, a.mass);
}

template <template <int> class Score>
inline void page_mass_by(const PageMassArgs& a) {
  const int64_t padded = padded_pages(a.count);
  __builtin_memset(a.mass, 0, (size_t)padded * sizeof(float));
  int query = 0;
  for (; query + kMassQueries <= a.query_count; query += kMassQueries)
    add_mass<Score, kMassQueries>(a, query, padded);
  if (query + 2 == a.query_count) add_mass<Score, 2>(a, query, padded);
  if (query + 1 == a.query_count) add_mass<Score, 1>(a, query, padded);
}

inline void page_mass(const PageMassArgs& a) {
  switch (a.score) {
    case PageScore::kMean:
      return page_mass_by<MeanScore>(a);
    case PageScore::kCodes:
      return page_mass_by<CodesScore>(a);
    case PageScore::kMass:
      return page_mass_by<MassScore>(a);
  }
}
