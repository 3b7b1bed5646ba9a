// Products with weights in f32, f16, bf16 and, for AVX2, Q8_0. Included per instruction set, after
// simd.h.
//
// One vector accumulator per output, walking k in order: a result does not depend on how many rows
// share a tile. Weights become f32 in registers and are used by all rows of the tile. With many
// rows (prefill) a panel of weight rows is converted once into scratch that stays in the first two
// cache levels; the sums run in the same order.

inline constexpr int kVecs = 32 / kLanes;  // vectors per 32 values

template <DType type>
inline constexpr int kBlockBytes = type == DType::kF32    ? 128  // per 32 values
                                   : type == DType::kQ8_0 ? 34
                                   : type == DType::kQ4_0 ? 18
                                   : type == DType::kQ4_1 ? 20
                                                          : 64;

/// The last values of a row of plain type, padded with zeros to 32.
template <DType type>
inline void load_tail(const std::byte* p, int count, float tail[32]) {
  for (int i = 0; i < 32; ++i) tail[i] = 0.0f;
  for (int i = 0; i < count; ++i) {
    if constexpr (type == DType::kF32) tail[i] = ((const float*)p)[i];
    if constexpr (type == DType::kF16) tail[i] = scalar_f16(((const uint16_t*)p)[i]);
    if constexpr (type == DType::kBF16) tail[i] = scalar_bf16(((const uint16_t*)p)[i]);
  }
}

// Products are cut into tiles whose sums are in registers: M rows of x by N rows of w. There are
// enough sums to hide the latency of an addition, and sums, weights and one input fill the
// registers (32 with AVX-512, else 16).

template <DType type>
inline Vec load_plain(const std::byte* p, int64_t i) {
  if constexpr (type == DType::kF32) return load((const float*)p + i);
  if constexpr (type == DType::kF16) return load_f16((const uint16_t*)p + i);
  if constexpr (type == DType::kBF16) return load_bf16((const uint16_t*)p + i);
}

/// Block b of a row: 32 values.
template <DType type>
[[gnu::always_inline]] inline void load_block(const std::byte* row, int64_t b, Vec out[kVecs]) {
  if constexpr (type == DType::kQ8_0) {
    const std::byte* p = row + b * kBlockBytes<type>;
    const Vec scale = broadcast(scalar_f16(bits_at(p)));
    POLAR_UNROLL
    for (int v = 0; v < kVecs; ++v) out[v] = mul(load_i8((const int8_t*)p + 2 + v * kLanes), scale);
  } else {
    POLAR_UNROLL
    for (int v = 0; v < kVecs; ++v) out[v] = load_plain<type>(row, b * 32 + v * kLanes);
  }
}

/// Fetches the next rows' values that correspond to block b of this one, into the second cache
/// level: it keeps more lines under way than the first.
template <DType type, int N>
[[gnu::always_inline]] inline void fetch_block(const std::byte* const* next, int64_t b) {
  constexpr int kBytes = kBlockBytes<type>;
  POLAR_UNROLL
  for (int n = 0; n < N; ++n) {
    const std::byte* line = next[n] + b * kBytes;
    __builtin_prefetch(line, 0, 2);
    if constexpr (kBytes > 64) __builtin_prefetch(line + 64, 0, 2);
  }
}

/// Adds `count` inputs of M rows of x times N weight rows to sum. With `next`, fetches as many of
/// the weights at next[n], which will be needed soon.
template <DType type, int M, int N, bool fetch>
[[gnu::always_inline]] inline void tile_chunk(const float* x, int64_t x_stride,
                                              const std::byte* const* w,
                                              const std::byte* const* next, int64_t count,
                                              Vec (&sum)[M][N]) {
  const int64_t blocks = count / 32;
  for (int64_t b = 0; b < blocks; ++b) {
    if constexpr (fetch) fetch_block<type, N>(next, b);
    if constexpr (type == DType::kQ8_0) {
      POLAR_UNROLL
      for (int n = 0; n < N; ++n) {
        Vec weight[kVecs];
        load_block<type>(w[n], b, weight);
        POLAR_UNROLL
        for (int m = 0; m < M; ++m) {
          POLAR_UNROLL
          for (int v = 0; v < kVecs; ++v) {
            const Vec input = load(x + m * x_stride + b * 32 + v * kLanes);
            sum[m][n] = fma(weight[v], input, sum[m][n]);
          }
        }
      }
    } else {
      POLAR_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        Vec weight[N];
        POLAR_UNROLL
        for (int n = 0; n < N; ++n) weight[n] = load_plain<type>(w[n], b * 32 + v * kLanes);
        POLAR_UNROLL
        for (int m = 0; m < M; ++m) {
          const Vec input = in_register(load(x + m * x_stride + b * 32 + v * kLanes));
          POLAR_UNROLL
          for (int n = 0; n < N; ++n) sum[m][n] = fma(weight[n], input, sum[m][n]);
        }
      }
    }
  }
  const int rest = (int)(count % 32);
  if (rest == 0) return;
  POLAR_UNROLL
  for (int n = 0; n < N; ++n) {
    alignas(64) float weight[32];
    load_tail<type>(w[n] + blocks * kBlockBytes<type>, rest, weight);
    POLAR_UNROLL
    for (int m = 0; m < M; ++m) {
      alignas(64) float inputs[32];
      load_tail<DType::kF32>((const std::byte*)(x + m * x_stride + blocks * 32), rest, inputs);
      POLAR_UNROLL
      for (int v = 0; v < kVecs; ++v)
        sum[m][n] = fma(load(weight + v * kLanes), load(inputs + v * kLanes), sum[m][n]);
    }
  }
}

/// Row n + ahead of this call's weights, or row n where there is none: what to fetch.
inline const std::byte* row_ahead(const MatmulArgs& a, int64_t n, int64_t ahead) {
  return weight_row(a, n + ahead < a.end ? n + ahead : n);
}

/// Few rows of x: N weight rows at a time by all of them, at most `kMost` at once, while the next N
/// weight rows arrive. Returns the first weight row that is left over.
template <DType type, int N, int kMost>
inline int64_t stream_rows(const MatmulArgs& a, int64_t n) {
  for (; n + N <= a.end; n += N) {
    const std::byte *w[N], *next[N];
    for (int i = 0; i < N; ++i) w[i] = weight_row(a, n + i);
    for (int i = 0; i < N; ++i) next[i] = row_ahead(a, n + i, N);
    int row = 0;
    const auto tile = [&]<int M, bool fetch>() {
      Vec sum[M][N];
      POLAR_UNROLL
      for (int m = 0; m < M; ++m) {
        POLAR_UNROLL
        for (int i = 0; i < N; ++i) sum[m][i] = zero();
      }
      tile_chunk<type, M, N, fetch>(a.x + row * a.x_stride, a.x_stride, w, next, a.k, sum);
      float* y = a.y + row * a.y_stride + n;
      POLAR_UNROLL
      for (int m = 0; m < M; ++m) {
        POLAR_UNROLL
        for (int i = 0; i < N; ++i) y[m * a.y_stride + i] = reduce_add(sum[m][i]);
      }
      row += M;
    };
    const auto over = [&]<int M>() {
      if (a.m - row < M) return;
      row == 0 ? tile.template operator()<M, true>() : tile.template operator()<M, false>();
    };
    while (a.m - row >= kMost) over.template operator()<kMost>();
    if constexpr (kMost > 4) over.template operator()<4>();
    if constexpr (kMost > 2) over.template operator()<2>();
    if constexpr (kMost > 1) over.template operator()<1>();
  }
  return n;
}

template <DType type, int N, int kMost>
inline void stream(const MatmulArgs& a) {
  stream_rows<type, 1, kMost>(a, stream_rows<type, N, kMost>(a, a.begin));
}

template <DType type>
inline void few_rows(const MatmulArgs& a) {
  if (a.m == 1) return stream<type, 4, 1>(a);
  if (a.m <= 2) return stream<type, 6, 2>(a);
  if constexpr (kLanes == 16) {
    if (a.m <= 4) return stream<type, 6, 4>(a);
    return stream<type, 3, 8>(a);
  } else {
    return stream<type, 3, 4>(a);
  }
}

// Many rows of x: inputs are walked in chunks, so that a chunk of x and of widened weights stays in
// the first cache level. Between chunks the sums wait in memory as the vectors they are, which
// changes no result.
inline constexpr int kChunk = 256;
inline constexpr int kTileRows = 4;
constexpr int tile_weights(int rows) {
  return rows <= 2 || kLanes == 16 ? 6 : 3;
}
inline constexpr int kGroup = 12;      // weight rows that share one pass over x
inline constexpr int kRowBlock = 128;  // rows of x between two conversions of the same weights

/// A group of weight rows, inputs [k, k + count), as f32.
struct Group {
  const std::byte* w[kGroup];
  int rows;
  int64_t count;
  bool first, last;  // chunk of the inputs
};

/// One chunk of a tile whose sums wait in `held` [M][kGroup]: the first starts from zero, the last
/// writes y.
template <int M, int N>
inline void tile(const MatmulArgs& a, const Group& group, int n, const float* x, float* held,
                 float* y) {
  Vec sum[M][N];
  held += n * kLanes;
  POLAR_UNROLL
  for (int m = 0; m < M; ++m) {
    POLAR_UNROLL
    for (int i = 0; i < N; ++i)
      sum[m][i] = group.first ? zero() : load(held + (m * kGroup + i) * kLanes);
  }
  tile_chunk<DType::kF32, M, N, false>(x, a.x_stride, group.w + n, nullptr, group.count, sum);
  POLAR_UNROLL
  for (int m = 0; m < M; ++m) {
    POLAR_UNROLL
    for (int i = 0; i < N; ++i) {
      if (group.last) {
        y[m * a.y_stride + n + i] = reduce_add(sum[m][i]);
      } else {
        store(held + (m * kGroup + i) * kLanes, sum[m][i]);
      }
    }
  }
}

/// m (at most kRowBlock) rows of x by a group.
inline void tile_rows(const MatmulArgs& a, const Group& group, const float* x, int m, float* held,
                      float* y) {
  const auto over = [&]<int M>() {
    constexpr int N = tile_weights(M);
    int n = 0;
    for (; n + N <= group.rows; n += N) tile<M, N>(a, group, n, x, held, y);
    for (; n < group.rows; ++n) tile<M, 1>(a, group, n, x, held, y);
    x += M * a.x_stride;
    y += M * a.y_stride;
    held += M * kGroup * kLanes;
    m -= M;
  };
  while (m >= kTileRows) over.template operator()<kTileRows>();
  if (m >= 2) over.template operator()<2>();
  if (m >= 1) over.template operator()<1>();
}

/// Turns `count` stored values into f32, padded with zeros to 32.
template <DType type>
inline void widen_row(const std::byte* w, const std::byte* next, int64_t count, float* out) {
  for (int64_t b = 0; b < count / 32; ++b) {
    fetch_block<type, 1>(&next, b);
    Vec value[kVecs];
    load_block<type>(w, b, value);
    POLAR_UNROLL
    for (int v = 0; v < kVecs; ++v) store(out + b * 32 + v * kLanes, value[v]);
  }
  if (const int rest = (int)(count % 32); rest > 0) {
    load_tail<type>(w + count / 32 * kBlockBytes<type>, rest, out + count / 32 * 32);
  }
}

/// Rows [m0, m0 + m) of x, at most kRowBlock, by all weights.
template <DType type>
inline void many_rows(const MatmulArgs& a, int m0, int m) {
  alignas(64) float panel[kGroup * kChunk];
  alignas(64) float held[kRowBlock * kGroup * kLanes];
  for (int64_t n = a.begin; n < a.end; n += kGroup) {
    Group group;
    group.rows = (int)(a.end - n < kGroup ? a.end - n : kGroup);
    float* y = a.y + m0 * a.y_stride + n;
    for (int64_t k = 0; k < a.k; k += kChunk) {
      const int64_t offset = k / 32 * kBlockBytes<type>;
      group.count = a.k - k < kChunk ? a.k - k : kChunk;
      group.first = k == 0;
      group.last = k + group.count == a.k;
      for (int r = 0; r < group.rows; ++r) {
        group.w[r] = weight_row(a, n + r) + offset;
        if constexpr (type != DType::kF32) {
          const std::byte* next = row_ahead(a, n + r, kGroup) + offset;
          widen_row<type>(group.w[r], next, group.count, panel + r * kChunk);
          group.w[r] = (const std::byte*)(panel + r * kChunk);
        }
      }
      tile_rows(a, group, a.x + m0 * a.x_stride + k, m, held, y);
    }
  }
}

template <DType type>
inline void plain_matmul(const MatmulArgs& a) {
  constexpr int kFewRows = type == DType::kQ8_0 ? 4 : 16;
  if (a.m <= kFewRows) return few_rows<type>(a);
  for (int m = 0; m < a.m; m += kRowBlock)
    many_rows<type>(a, m, a.m - m < kRowBlock ? a.m - m : kRowBlock);
}

/// Adds `count` neurons, one by one in order, to outputs [o, o + V * kLanes) of M rows.
template <DType type, int M, int V>
[[gnu::always_inline]] inline void accumulate_tile(const AccumulateArgs& a, const float* scale,
                                                   const std::byte* const* w, int count, int64_t o,
                                                   float* y) {
  Vec sum[M][V];
  POLAR_UNROLL
  for (int m = 0; m < M; ++m) {
    POLAR_UNROLL
    for (int v = 0; v < V; ++v) sum[m][v] = load(y + m * a.y_stride + o + v * kLanes);
  }
  for (int r = 0; r < count; ++r) {
    Vec weight[V];
    POLAR_UNROLL
    for (int v = 0; v < V; ++v) weight[v] = load_plain<type>(w[r], o + v * kLanes);
    POLAR_UNROLL
    for (int m = 0; m < M; ++m) {
      const Vec value = broadcast(scale[m * a.a_stride + r]);
      POLAR_UNROLL
      for (int v = 0; v < V; ++v) sum[m][v] = fma(weight[v], value, sum[m][v]);
    }
  }
  POLAR_UNROLL
  for (int m = 0; m < M; ++m) {
    POLAR_UNROLL
    for (int v = 0; v < V; ++v) store(y + m * a.y_stride + o + v * kLanes, sum[m][v]);
  }
}

/// Adds `count` neurons to all outputs of M rows.
template <DType type, int M>
inline void accumulate_rows(const AccumulateArgs& a, const float* scale, const std::byte* const* w,
                            const std::byte* const* next, int count, float* y) {
  constexpr int V = M <= 2 ? 4 : 2;
  constexpr int64_t kValueBytes = type == DType::kF32 ? 4 : 2;
  int64_t o = 0;
  for (; o + V * kLanes <= a.outputs; o += V * kLanes) {
    for (int r = 0; next != nullptr && r < count; ++r)
      __builtin_prefetch(next[r] + o * kValueBytes, 0, 2);
    accumulate_tile<type, M, V>(a, scale, w, count, o, y);
  }
  for (; o + kLanes <= a.outputs; o += kLanes) {
    accumulate_tile<type, M, 1>(a, scale, w, count, o, y);
  }
  const int rest = (int)(a.outputs - o);
  for (int m = 0; rest > 0 && m < M; ++m) {
    alignas(64) float sums[32], weight[32];
    load_tail<DType::kF32>((const std::byte*)(y + m * a.y_stride + o), rest, sums);
    Vec sum = load(sums);
    for (int r = 0; r < count; ++r) {
      load_tail<type>(w[r] + o * kValueBytes, rest, weight);
      sum = fma(load(weight), broadcast(scale[m * a.a_stride + r]), sum);
    }
    store(sums, sum);
    for (int i = 0; i < rest; ++i) y[m * a.y_stride + o + i] = sums[i];
  }
}

/// Neurons in blocks, so that sums stay in registers for a while; the rows of x share each block's
/// weights, and the first of them fetches the next block's.
template <DType type>
inline void accumulate_typed(const AccumulateArgs& a) {
  constexpr int kBlock = 16;
  for (int64_t j = a.begin; j < a.end; j += kBlock) {
    const int count = (int)(a.end - j < kBlock ? a.end - j : kBlock);
    const std::byte *w[kBlock], *next[kBlock];
    for (int r = 0; r < count; ++r) {
      const int64_t ahead = j + kBlock + r < a.end ? j + kBlock + r : j + r;
      w[r] = a.weight + (a.index != nullptr ? a.index[j + r] : j + r) * a.row_bytes;
      next[r] = a.weight + (a.index != nullptr ? a.index[ahead] : ahead) * a.row_bytes;
    }
    for (int m = 0; m < a.m;) {
      const float* scale = a.a + m * a.a_stride + j;
      float* y = a.y + m * a.y_stride;
      const std::byte* const* fetch = m == 0 ? next : nullptr;
      const int left = a.m - m;
      if (left >= 4) {
        accumulate_rows<type, 4>(a, scale, w, fetch, count, y);
        m += 4;
      } else if (left >= 2) {
        accumulate_rows<type, 2>(a, scale, w, fetch, count, y);
        m += 2;
      } else {
        accumulate_rows<type, 1>(a, scale, w, fetch, count, y);
        m += 1;
      }
    }
  }
}

inline void accumulate(const AccumulateArgs& a) {
  switch (a.dtype) {
    case DType::kF32:
      accumulate_typed<DType::kF32>(a);
      break;
    case DType::kF16:
      accumulate_typed<DType::kF16>(a);
      break;
    case DType::kBF16:
      accumulate_typed<DType::kBF16>(a);
      break;
    default:
      __builtin_trap();
  }
}
