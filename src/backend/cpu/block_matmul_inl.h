// Products with weights in blocks of 32 (Q4_0, Q4_1, Q8_0). Included per instruction set, after
// matmul_inl.h.
//
// Weights stay the small integers that they are, and inputs become integers too: digits under one
// scale for each 32 of them, 23 bits of the largest, as exact as f32 (two digits leave SmolLM2's
// logits 4e-4 of the largest off). A product of bytes does four to eight times the work of a
// multiply-add. kLanes rows of weights are a group: their blocks are turned so that a lane holds
// four neighbouring weights of one row, and sums need no reduction across lanes. A result depends
// on its row of x and its row of weights alone.

/// Rows of weights that follow each other.
struct RowsInARow {
  const std::byte* first;
  int64_t row_bytes;
  const std::byte* at(int64_t i) const { return first + i * row_bytes; }
};
/// Any rows.
struct RowsAnywhere {
  const std::byte* row[kLanes];
  const std::byte* at(int64_t i) const { return row[i]; }
};

/// Products with these run here; AVX2's products of bytes would saturate with weights of eight
/// bits.
constexpr bool in_digits(DType type) {
  return type == DType::kQ4_0 || type == DType::kQ4_1 ||
         (type == DType::kQ8_0 && POLAR_ISA_LEVEL != 1);
}

/// 32 inputs: scale * (digit[0] * 65536 + digit[1] * 256 + digit[2]).
struct InputBlock {
  int8_t digit[3][32];
  float scale;
  float sum;  // of the inputs
};

/// Inputs as whole multiples of the largest / (127 * 65536). What is not finite makes `sum` so, and
/// with it every product.
inline void pack_block(const float* x, InputBlock* out) {
  Vec largest = zero(), sum = zero();
  POLAR_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const Vec value = load(x + v * kLanes);
    largest = max(largest, max(value, sub(zero(), value)));
    sum = add(sum, value);
  }
  const float top = reduce_max(largest);
  constexpr float kSteps = 127.0f * 65536.0f;
  const bool tiny = !(top > 1e-30f);  // below what the inverse can hold: as good as zero
  const float inverse = tiny ? 0.0f : kSteps / top;
  for (int i = 0; i < 32; ++i) {
    const auto steps = (int32_t)__builtin_rintf(x[i] * inverse);
    const auto last = (int8_t)steps;
    const int32_t rest = (steps - last) >> 8;
    const auto middle = (int8_t)rest;
    out->digit[0][i] = (int8_t)((rest - middle) >> 8);
    out->digit[1][i] = middle;
    out->digit[2][i] = last;
  }
  out->scale = tiny ? 0.0f : top / kSteps;
  out->sum = reduce_add(sum);
}

inline size_t packed_bytes(DType type, int64_t k) {
  return in_digits(type) ? k / 32 * sizeof(InputBlock) : 0;
}

inline void pack(const PackArgs& a) {
  auto* out = (InputBlock*)a.out;
  for (int64_t b = 0; b < a.k / 32; ++b) {
    for (int64_t row = a.begin; row < a.end; ++row)
      pack_block(a.x + row * a.x_stride + b * 32, out + b * a.rows + row);
  }
}

/// One block of kLanes rows of weights: a weight is scale * byte + shift.
struct Turned {
  Ints weight[8];  // bytes of inputs 4 j to 4 j + 3
  Vec scale, shift;
};

inline void split_nibbles(const Ints packed[4], Ints weight[8]) {
  POLAR_UNROLL
  for (int j = 0; j < 4; ++j) {
    weight[j] = and_bits(packed[j], 0x0f0f0f0f);
    weight[j + 4] = and_bits(shift_right<4>(packed[j]), 0x0f0f0f0f);
  }
}

template <DType type, typename Rows>
[[gnu::always_inline]] inline void turn_block(const Rows& rows, int64_t offset, Turned& out) {
  Ints head[4], rest[4];
  turn(rows, offset, head);
  if constexpr (type == DType::kQ4_1) {
    turn(rows, offset + 4, rest);
    const Ints packed[4] = {head[1], head[2], head[3], rest[3]};
    split_nibbles(packed, out.weight);
    both_f16(head[0], &out.scale, &out.shift);
  } else if constexpr (type == DType::kQ4_0) {
    turn(rows, offset + 2, rest);
    split_nibbles(rest, out.weight);
    out.scale = low_f16(head[0]);
    out.shift = mul(out.scale, broadcast(-8.0f));
  } else {
    for (int half = 0; half < 2; ++half) {
      turn(rows, offset + 2 + 16 * half, rest);
      POLAR_UNROLL
      for (int j = 0; j < 4; ++j) out.weight[4 * half + j] = flip_signs(rest[j]);
    }
    out.scale = low_f16(head[0]);
    out.shift = mul(out.scale, broadcast(-128.0f));
  }
}

/// Fetches the group behind this one, as many bytes of it as block b of this one has: into the
/// first cache level, or the second where two groups would not fit the first.
template <DType type>
[[gnu::always_inline]] inline void fetch_ahead(const RowsInARow& rows, int64_t b) {
  constexpr int64_t kBytes = kLanes * kBlockBytes<type>;
  const std::byte* ahead = rows.at(kLanes) + b * kBytes;
  if (kLanes * rows.row_bytes <= (16 << 10)) {
    POLAR_UNROLL
    for (int64_t line = 0; line < kBytes; line += 64) __builtin_prefetch(ahead + line, 0, 3);
  } else {
    POLAR_UNROLL
    for (int64_t line = 0; line < kBytes; line += 64) __builtin_prefetch(ahead + line, 0, 2);
  }
}

/// Rows of x that share one pass over the weights: their packed inputs stay in the second cache
/// level.
inline constexpr int kPackedRows = 64;

/// Rows m0 to m0 + m (at most kPackedRows) of x by kLanes rows of weights.
template <DType type, typename Rows>
inline void block_group(const MatmulArgs& a, const Rows& rows, int m0, int m, Vec* sum) {
  for (int row = 0; row < m; ++row) sum[row] = zero();
  for (int64_t b = 0; b < a.k / 32; ++b) {
    if constexpr (std::is_same_v<Rows, RowsInARow>) fetch_ahead<type>(rows, b);
    Turned block;
    turn_block<type>(rows, b * kBlockBytes<type>, block);
    const InputBlock* inputs = (const InputBlock*)a.packed + b * a.m + m0;
    for (int row = 0; row < m; ++row) {
      const InputBlock& in = inputs[row];
      const Ints low =
          add_ints(dot<256>(block.weight, in.digit[1]), dot<1>(block.weight, in.digit[2]));
      const Ints high = dot<1>(block.weight, in.digit[0]);
      const Vec steps = fma(to_float(high), broadcast(65536.0f), to_float(low));
      const Vec shifted = fma(block.shift, broadcast(in.sum), sum[row]);
      sum[row] = fma(steps, mul(block.scale, broadcast(in.scale)), shifted);
    }
  }
}

template <DType type>
inline void block_matmul(const MatmulArgs& a) {
  Vec sum[kPackedRows];
  for (int m0 = 0; m0 < a.m; m0 += kPackedRows) {
    const int m = a.m - m0 < kPackedRows ? a.m - m0 : kPackedRows;
    for (int64_t n = a.begin; n < a.end; n += kLanes) {
      const int64_t count = a.end - n < kLanes ? a.end - n : kLanes;
      if (count == kLanes && a.index == nullptr) {
        block_group<type>(a, RowsInARow{weight_row(a, n), (int64_t)a.row_bytes}, m0, m, sum);
      } else {
        RowsAnywhere rows;
        for (int i = 0; i < kLanes; ++i) rows.row[i] = weight_row(a, i < count ? n + i : n);
        block_group<type>(a, rows, m0, m, sum);
      }
      for (int row = 0; row < m; ++row) {
        float* y = a.y + (m0 + row) * a.y_stride + n;
        if (count == kLanes) {
          store(y, sum[row]);
          continue;
        }
        alignas(64) float lanes[kLanes];
        store(lanes, sum[row]);
        for (int i = 0; i < count; ++i) y[i] = lanes[i];
      }
    }
  }
}

inline void matmul(const MatmulArgs& a) {
  switch (a.dtype) {
    case DType::kF32:
      plain_matmul<DType::kF32>(a);
      break;
    case DType::kF16:
      plain_matmul<DType::kF16>(a);
      break;
    case DType::kBF16:
      plain_matmul<DType::kBF16>(a);
      break;
    case DType::kQ8_0:
      if constexpr (in_digits(DType::kQ8_0)) {
        block_matmul<DType::kQ8_0>(a);
      } else {
        plain_matmul<DType::kQ8_0>(a);
      }
      break;
    case DType::kQ4_0:
      block_matmul<DType::kQ4_0>(a);
      break;
    case DType::kQ4_1:
      block_matmul<DType::kQ4_1>(a);
      break;
    default:
      __builtin_trap();
  }
  add_bias(a);
}
