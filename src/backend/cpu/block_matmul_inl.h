// Products with weights in blocks of 32 (Q4_0, Q4_1, Q8_0). Included per instruction set, after
// matmul_inl.h.
//
// Weights stay the small integers that they are, and inputs become integers too: digits under one
// scale for each 32 of them, 23 bits of the largest, as exact as f32. A product of bytes
// does four to eight times the work of a multiply-add. kLanes rows of weights are a group: their
// blocks are turned so that a lane holds four neighbouring weights of one row, and sums need no
// reduction across lanes. A result depends on its row of x and its row of weights alone.

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

// Ints: kLanes lanes of 32 bits, which hold a number, two words or four bytes.

#if POLAR_ISA_LEVEL == 2

using Ints = __m512i;  // one dword a lane
inline Ints repeat(const int8_t* four) {
  int32_t bits;
  __builtin_memcpy(&bits, four, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
inline Ints and_bits(Ints a, int32_t bits) {
  return _mm512_and_si512(a, _mm512_set1_epi32(bits));
}
/// Signed bytes plus 128.
inline Ints flip_signs(Ints a) {
  return _mm512_xor_si512(a, _mm512_set1_epi8(-128));
}
template <int count>
inline Ints shift_right(Ints a) {
  return _mm512_srli_epi32(a, count);
}
inline Ints add_ints(Ints a, Ints b) {
  return _mm512_add_epi32(a, b);
}
inline Vec to_float(Ints a) {
  return _mm512_cvtepi32_ps(a);
}
inline Vec low_f16(Ints a) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a));
}
inline void both_f16(Ints a, Vec* low, Vec* high) {
  *low = low_f16(a);
  *high = low_f16(_mm512_srli_epi32(a, 16));
}
/// Dword j of 16 bytes at each of 16 rows.
template <typename Rows>
inline void turn(const Rows& rows, int64_t offset, Ints out[4]) {
  Ints four[4];
  POLAR_UNROLL
  for (int i = 0; i < 4; ++i) {
    four[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)(rows.at(i) + offset)));
    four[i] =
        _mm512_inserti32x4(four[i], _mm_loadu_si128((const __m128i*)(rows.at(i + 4) + offset)), 1);
    four[i] =
        _mm512_inserti32x4(four[i], _mm_loadu_si128((const __m128i*)(rows.at(i + 8) + offset)), 2);
    four[i] =
        _mm512_inserti32x4(four[i], _mm_loadu_si128((const __m128i*)(rows.at(i + 12) + offset)), 3);
  }
  const Ints low01 = _mm512_unpacklo_epi32(four[0], four[1]);
  const Ints low23 = _mm512_unpacklo_epi32(four[2], four[3]);
  const Ints high01 = _mm512_unpackhi_epi32(four[0], four[1]);
  const Ints high23 = _mm512_unpackhi_epi32(four[2], four[3]);
  out[0] = _mm512_unpacklo_epi64(low01, low23);
  out[1] = _mm512_unpackhi_epi64(low01, low23);
  out[2] = _mm512_unpacklo_epi64(high01, high23);
  out[3] = _mm512_unpackhi_epi64(high01, high23);
}
/// Sum over 32 weights (unsigned bytes) times inputs (signed bytes), times `unit`.
template <int unit>
inline Ints dot(const Ints weight[8], const int8_t* input) {
  Ints sum = _mm512_setzero_si512();
  POLAR_UNROLL
  for (int j = 0; j < 8; ++j) sum = _mm512_dpbusd_epi32(sum, weight[j], repeat(input + 4 * j));
  return unit == 1 ? sum : _mm512_slli_epi32(sum, 8);
}

#elif POLAR_ISA_LEVEL == 1

using Ints = __m256i;
inline Ints repeat(const int8_t* four) {
  int32_t bits;
  __builtin_memcpy(&bits, four, sizeof(bits));
  return _mm256_set1_epi32(bits);
}
inline Ints and_bits(Ints a, int32_t bits) {
  return _mm256_and_si256(a, _mm256_set1_epi32(bits));
}
inline Ints flip_signs(Ints a) {
  return _mm256_xor_si256(a, _mm256_set1_epi8(-128));
}
template <int count>
inline Ints shift_right(Ints a) {
  return _mm256_srli_epi32(a, count);
}
inline Ints add_ints(Ints a, Ints b) {
  return _mm256_add_epi32(a, b);
}
inline Vec to_float(Ints a) {
  return _mm256_cvtepi32_ps(a);
}
inline void both_f16(Ints a, Vec* low, Vec* high) {
  const Ints halves = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(and_bits(a, 0xffff), _mm256_srli_epi32(a, 16)), 0xd8);
  *low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
  *high = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
}
inline Vec low_f16(Ints a) {
  Vec low, high;
  both_f16(a, &low, &high);
  return low;
}
/// Dword j of 16 bytes at each of 8 rows.
template <typename Rows>
inline void turn(const Rows& rows, int64_t offset, Ints out[4]) {
  Ints two[4];
  POLAR_UNROLL
  for (int i = 0; i < 4; ++i) {
    two[i] = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(rows.at(i) + offset))),
        _mm_loadu_si128((const __m128i*)(rows.at(i + 4) + offset)), 1);
  }
  const Ints low01 = _mm256_unpacklo_epi32(two[0], two[1]);
  const Ints low23 = _mm256_unpacklo_epi32(two[2], two[3]);
  const Ints high01 = _mm256_unpackhi_epi32(two[0], two[1]);
  const Ints high23 = _mm256_unpackhi_epi32(two[2], two[3]);
  out[0] = _mm256_unpacklo_epi64(low01, low23);
  out[1] = _mm256_unpackhi_epi64(low01, low23);
  out[2] = _mm256_unpacklo_epi64(high01, high23);
  out[3] = _mm256_unpackhi_epi64(high01, high23);
}
/// Sum over 32 weights (0 to 15) times inputs (signed bytes), times `unit`. A 16-bit lane adds up
/// 16 products of at most 15 * 128: 30,720.
template <int unit>
inline Ints dot(const Ints weight[8], const int8_t* input) {
  Ints sum = _mm256_maddubs_epi16(weight[0], repeat(input));
  POLAR_UNROLL
  for (int j = 1; j < 8; ++j)
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weight[j], repeat(input + 4 * j)));
  return _mm256_madd_epi16(sum, _mm256_set1_epi16(unit));
}

#else

struct Ints {
  int32_t lane[kLanes];
};
#define POLAR_LANES for (int i = 0; i < kLanes; ++i)
inline Ints and_bits(Ints a, int32_t bits) {
  POLAR_LANES a.lane[i] &= bits;
  return a;
}
inline Ints flip_signs(Ints a) {
  POLAR_LANES a.lane[i] ^= (int32_t)0x80808080;
  return a;
}
template <int count>
inline Ints shift_right(Ints a) {
  POLAR_LANES a.lane[i] = (int32_t)((uint32_t)a.lane[i] >> count);
  return a;
}
inline Ints add_ints(Ints a, Ints b) {
  POLAR_LANES a.lane[i] += b.lane[i];
  return a;
}
inline Vec to_float(Ints a) {
  Vec v;
  POLAR_LANES v.lane[i] = (float)a.lane[i];
  return v;
}
inline void both_f16(Ints a, Vec* low, Vec* high) {
  POLAR_LANES low->lane[i] = scalar_f16((uint16_t)a.lane[i]);
  POLAR_LANES high->lane[i] = scalar_f16((uint16_t)((uint32_t)a.lane[i] >> 16));
}
inline Vec low_f16(Ints a) {
  Vec low, high;
  both_f16(a, &low, &high);
  return low;
}
template <typename Rows>
inline void turn(const Rows& rows, int64_t offset, Ints out[4]) {
  for (int j = 0; j < 4; ++j) {
    POLAR_LANES __builtin_memcpy(&out[j].lane[i], rows.at(i) + offset + 4 * j, 4);
  }
}
template <int unit>
inline Ints dot(const Ints weight[8], const int8_t* input) {
  Ints sum = {};
  for (int j = 0; j < 8; ++j) {
    for (int b = 0; b < 4; ++b) {
      const int32_t value = input[4 * j + b] * unit;
      POLAR_LANES sum.lane[i] += (weight[j].lane[i] >> 8 * b & 255) * value;
    }
  }
  return sum;
}
#undef POLAR_LANES

#endif

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
  if (a.bias == nullptr) return;
  for (int m = 0; m < a.m; ++m) {
    float* y = a.y + m * a.y_stride;
    for (int64_t n = a.begin; n < a.end; ++n) y[n] += a.bias[a.index != nullptr ? a.index[n] : n];
  }
}
