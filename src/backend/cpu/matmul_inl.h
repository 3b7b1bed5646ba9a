// Products with stored weights. Included per instruction set, after simd.h.
//
// One vector accumulator per output, walking k in order: a result does not depend on how many rows
// share a tile. The weights of 32 inputs are dequantised into registers (w = q * d + m) and used by
// all rows of the tile. With many rows (prefill) a panel of weight rows is dequantised once into
// scratch that stays in the first two cache levels; the sums run in the same order.

inline constexpr int kVecs = 32 / kLanes;  // vectors per 32 values

template <DType type>
struct Stored;

template <>
struct Stored<DType::kF32> {
  static constexpr int kBytes = 128;  // per 32 values
  static void get(const std::byte* p, Vec w[kVecs]) {
    for (int v = 0; v < kVecs; ++v) w[v] = load((const float*)p + v * kLanes);
  }
};
template <>
struct Stored<DType::kF16> {
  static constexpr int kBytes = 64;
  static void get(const std::byte* p, Vec w[kVecs]) {
    for (int v = 0; v < kVecs; ++v) w[v] = load_f16((const uint16_t*)p + v * kLanes);
  }
};
template <>
struct Stored<DType::kBF16> {
  static constexpr int kBytes = 64;
  static void get(const std::byte* p, Vec w[kVecs]) {
    for (int v = 0; v < kVecs; ++v) w[v] = load_bf16((const uint16_t*)p + v * kLanes);
  }
};
inline float half_at(const std::byte* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return scalar_f16(bits);
}
template <>
struct Stored<DType::kQ8_0> {
  static constexpr int kBytes = 34;
  static void get(const std::byte* p, Vec w[kVecs]) {
    const Vec d = broadcast(half_at(p));
    for (int v = 0; v < kVecs; ++v) w[v] = mul(load_i8((const int8_t*)p + 2 + v * kLanes), d);
  }
};
template <>
struct Stored<DType::kQ4_0> {
  static constexpr int kBytes = 18;
  static void get(const std::byte* p, Vec w[kVecs]) {
    const Vec d = broadcast(half_at(p));
    load_nibbles((const uint8_t*)p + 2, w);
    for (int v = 0; v < kVecs; ++v) w[v] = mul(sub(w[v], broadcast(8.0f)), d);
  }
};
template <>
struct Stored<DType::kQ4_1> {
  static constexpr int kBytes = 20;
  static void get(const std::byte* p, Vec w[kVecs]) {
    const Vec d = broadcast(half_at(p));
    const Vec m = broadcast(half_at(p + 2));
    load_nibbles((const uint8_t*)p + 4, w);
    for (int v = 0; v < kVecs; ++v) w[v] = fma(w[v], d, m);
  }
};

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

/// M rows of x times N rows of w into y[m * y_stride + n], summed in k order.
template <DType type, int M, int N>
inline void tile(const float* x, int64_t x_stride, const std::byte* const* w, int64_t k, float* y,
                 int64_t y_stride) {
  Vec sum[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = zero();
  const int64_t blocks = k / 32;
  if constexpr (type == DType::kF32) {
    // Plain vectors need no unpacking: all weights of a vector first, so that each load of x serves
    // N rows.
    for (int64_t i = 0; i < blocks * 32; i += kLanes) {
      Vec weight[N];
      for (int n = 0; n < N; ++n) weight[n] = load((const float*)w[n] + i);
      for (int m = 0; m < M; ++m) {
        const Vec input = load(x + m * x_stride + i);
        for (int n = 0; n < N; ++n) sum[m][n] = fma(weight[n], input, sum[m][n]);
      }
    }
  } else {
    for (int64_t b = 0; b < blocks; ++b) {
      for (int n = 0; n < N; ++n) {
        Vec weight[kVecs];
        Stored<type>::get(w[n] + b * Stored<type>::kBytes, weight);
        for (int m = 0; m < M; ++m) {
          const float* inputs = x + m * x_stride + b * 32;
          for (int v = 0; v < kVecs; ++v)
            sum[m][n] = fma(weight[v], load(inputs + v * kLanes), sum[m][n]);
        }
      }
    }
  }
  if (const int rest = (int)(k % 32); rest > 0) {
    for (int n = 0; n < N; ++n) {
      alignas(64) float weight[32];
      load_tail<type>(w[n] + blocks * Stored<type>::kBytes, rest, weight);
      for (int m = 0; m < M; ++m) {
        alignas(64) float inputs[32];
        load_tail<DType::kF32>((const std::byte*)(x + m * x_stride + blocks * 32), rest, inputs);
        for (int v = 0; v < kVecs; ++v) {
          sum[m][n] = fma(load(weight + v * kLanes), load(inputs + v * kLanes), sum[m][n]);
        }
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) y[m * y_stride + n] = reduce_add(sum[m][n]);
}

inline const std::byte* weight_row(const MatmulArgs& a, int64_t n) {
  return a.weight + (a.index != nullptr ? a.index[n] : n) * a.row_bytes;
}

/// All weight rows of the call for M rows of x, N weight rows at a time.
template <DType type, int M, int N>
inline void stripe(const MatmulArgs& a, const float* x, float* y) {
  int64_t n = a.begin;
  const std::byte* w[N];
  for (; n + N <= a.end; n += N) {
    for (int i = 0; i < N; ++i) w[i] = weight_row(a, n + i);
    tile<type, M, N>(x, a.x_stride, w, a.k, y + n, a.y_stride);
  }
  for (; n < a.end; ++n) {
    w[0] = weight_row(a, n);
    tile<type, M, 1>(x, a.x_stride, w, a.k, y + n, a.y_stride);
  }
}

/// Few rows: weights go from memory through registers once per 8 rows of x.
template <DType type>
inline void matmul_direct(const MatmulArgs& a) {
  for (int m = 0; m < a.m;) {
    const float* x = a.x + m * a.x_stride;
    float* y = a.y + m * a.y_stride;
    const int left = a.m - m;
    if (left >= 8) {
      stripe<type, 8, 1>(a, x, y);
      m += 8;
    } else if (left >= 4) {
      stripe<type, 4, 2>(a, x, y);
      m += 4;
    } else if (left >= 2) {
      stripe<type, 2, 4>(a, x, y);
      m += 2;
    } else {
      stripe<type, 1, 4>(a, x, y);
      m += 1;
    }
  }
}

/// Many rows: kPanelRows weight rows at a time become f32 in scratch, then tiles of 4 x 3.
template <DType type>
inline void matmul_panels(const MatmulArgs& a) {
  const int64_t padded = (a.k + 31) / 32 * 32;
  for (int64_t n = a.begin; n < a.end; n += kPanelRows) {
    const int rows = (int)(a.end - n < kPanelRows ? a.end - n : kPanelRows);
    const std::byte* w[kPanelRows];
    for (int r = 0; r < rows; ++r) {
      const std::byte* stored = weight_row(a, n + r);
      float* row = a.panel + r * padded;
      for (int64_t b = 0; b < a.k / 32; ++b) {
        Vec weight[kVecs];
        Stored<type>::get(stored + b * Stored<type>::kBytes, weight);
        for (int v = 0; v < kVecs; ++v) store(row + b * 32 + v * kLanes, weight[v]);
      }
      if (const int rest = (int)(a.k % 32); rest > 0) {
        load_tail<type>(stored + a.k / 32 * Stored<type>::kBytes, rest, row + a.k / 32 * 32);
      }
      w[r] = (const std::byte*)row;
    }
    for (int m = 0; m < a.m;) {
      const float* x = a.x + m * a.x_stride;
      float* y = a.y + m * a.y_stride + n;
      const bool four = m + 4 <= a.m;
      int r = 0;
      for (; four && r + 3 <= rows; r += 3)
        tile<DType::kF32, 4, 3>(x, a.x_stride, w + r, a.k, y + r, a.y_stride);
      for (; four && r < rows; ++r)
        tile<DType::kF32, 4, 1>(x, a.x_stride, w + r, a.k, y + r, a.y_stride);
      for (; r + 4 <= rows; r += 4)
        tile<DType::kF32, 1, 4>(x, a.x_stride, w + r, a.k, y + r, a.y_stride);
      for (; r < rows; ++r) tile<DType::kF32, 1, 1>(x, a.x_stride, w + r, a.k, y + r, a.y_stride);
      m += four ? 4 : 1;
    }
  }
}

template <DType type>
inline void matmul_typed(const MatmulArgs& a) {
  if (a.m <= kDirectRows) {
    matmul_direct<type>(a);
  } else {
    matmul_panels<type>(a);
  }
}

inline void matmul(const MatmulArgs& a) {
  switch (a.dtype) {
    case DType::kF32:
      matmul_typed<DType::kF32>(a);
      break;
    case DType::kF16:
      matmul_typed<DType::kF16>(a);
      break;
    case DType::kBF16:
      matmul_typed<DType::kBF16>(a);
      break;
    case DType::kQ8_0:
      matmul_typed<DType::kQ8_0>(a);
      break;
    case DType::kQ4_0:
      matmul_typed<DType::kQ4_0>(a);
      break;
    case DType::kQ4_1:
      matmul_typed<DType::kQ4_1>(a);
      break;
    default:
      __builtin_trap();
  }
  if (a.bias == nullptr) return;
  for (int m = 0; m < a.m; ++m) {
    float* y = a.y + m * a.y_stride;
    for (int64_t n = a.begin; n < a.end; ++n) y[n] += a.bias[a.index != nullptr ? a.index[n] : n];
  }
}

template <DType type>
inline Vec load_weight(const std::byte* p, int64_t i) {
  if constexpr (type == DType::kF32) return load((const float*)p + i);
  if constexpr (type == DType::kF16) return load_f16((const uint16_t*)p + i);
  if constexpr (type == DType::kBF16) return load_bf16((const uint16_t*)p + i);
}

/// Adds kRows neurons to all outputs of all rows; each output still adds neurons one by one, in
/// order.
template <DType type, int kRows>
inline void accumulate_rows(const AccumulateArgs& a, int64_t j) {
  const std::byte* w[kRows];
  for (int r = 0; r < kRows; ++r)
    w[r] = a.weight + (a.index != nullptr ? a.index[j + r] : j + r) * a.row_bytes;
  const int64_t whole = a.outputs / kLanes * kLanes;
  for (int m = 0; m < a.m; ++m) {
    Vec value[kRows];
    for (int r = 0; r < kRows; ++r) value[r] = broadcast(a.a[m * a.a_stride + j + r]);
    float* y = a.y + m * a.y_stride;
    for (int64_t o = 0; o < whole; o += kLanes) {
      Vec sum = load(y + o);
      for (int r = 0; r < kRows; ++r) sum = fma(load_weight<type>(w[r], o), value[r], sum);
      store(y + o, sum);
    }
    if (whole == a.outputs) continue;
    alignas(64) float rest[32], weight[32];
    const int count = (int)(a.outputs - whole);
    load_tail<DType::kF32>((const std::byte*)(y + whole), count, rest);
    Vec sum = load(rest);
    for (int r = 0; r < kRows; ++r) {
      load_tail<type>(w[r] + whole * (type == DType::kF32 ? 4 : 2), count, weight);
      sum = fma(load(weight), value[r], sum);
    }
    store(rest, sum);
    for (int i = 0; i < count; ++i) y[whole + i] = rest[i];
  }
}

template <DType type>
inline void accumulate_typed(const AccumulateArgs& a) {
  int64_t j = a.begin;
  for (; j + 4 <= a.end; j += 4) accumulate_rows<type, 4>(a, j);
  for (; j < a.end; ++j) accumulate_rows<type, 1>(a, j);
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
