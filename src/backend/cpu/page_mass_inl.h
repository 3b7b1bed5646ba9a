// How much of a unit's attention each page is expected to draw. Included per instruction set, after
// page_scores_inl.h.

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

/// Pages whose indices are fetched ahead, from memory and then from the second cache level: they
/// lie scattered, so both latencies must be hidden.
inline constexpr int kIndicesAhead = 64, kIndicesNear = 8;

template <template <int> class Score, int Q>
inline void add_mass(const PageMassArgs& a, int query, int64_t padded) {
  const int bytes = (int)page_index_bytes(a.score, a.head_dim);
  const auto fetch = [&](int page) {
    for (int byte = 0; byte < bytes; byte += 64) __builtin_prefetch(a.pages[page] + byte, 0, 2);
  };
  const auto fetch_near = [&](int page) {
    for (int byte = 0; byte < bytes; byte += 64) __builtin_prefetch(a.pages[page] + byte, 0, 3);
  };
  for (int page = 0; page < a.count && page < kIndicesAhead; ++page) fetch(page);
  const Score<Q> score(a, a.query + (int64_t)query * a.head_dim);
  int page = 0;
  for (; page + 4 <= a.count; page += 4) {
    for (int i = 0; i < 4; ++i) {
      if (page + kIndicesAhead + i < a.count) fetch(page + kIndicesAhead + i);
      if (page + kIndicesNear + i < a.count) fetch_near(page + kIndicesNear + i);
    }
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

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

/// Masses are not negative, so their bits order as they do: finds the largest threshold that at
/// least `chosen` of them reach, bit by bit.
inline void choose_largest(const float* mass, int count, int chosen, int32_t* best) {
  uint32_t threshold = 0;
  int reached = count;
  for (int bit = 30; bit >= 0 && reached != chosen; --bit) {
    const uint32_t trial = threshold | 1u << bit;
    if (trial >= 0x7f800000u) continue;  // no mass is infinite
    const float least = float_of(trial);
    int found = 0;
    for (int i = 0; i < count; ++i) found += mass[i] >= least ? 1 : 0;
    if (found < chosen) continue;
    threshold = trial;
    reached = found;
  }
  const float least = float_of(threshold);
  int equal = chosen;  // of those that equal the threshold, how many are taken
  if (reached != chosen) {
    for (int i = 0; i < count; ++i) equal -= mass[i] > least ? 1 : 0;
  }
  for (int i = 0, at = 0; at < chosen; ++i) {  // without branches: which are taken is no pattern
    best[at] = i;
    const int tie = mass[i] == least ? 1 : 0;
    at += (mass[i] > least ? 1 : 0) | (tie & (equal > 0 ? 1 : 0));
    equal -= tie;
  }
}
