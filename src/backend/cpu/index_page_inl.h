// Writes the indices that pages are scored by, from the keys of a full page as stored. Included per
// instruction set, after attention_inl.h.

/// Keys of channel d, slots [v * kLanes, (v + 1) * kLanes).
template <DType type>
inline Vec key_lanes(const std::byte* block, int64_t d, int v) {
  return load_kv<type>(block, d * kSlots + v * kLanes);
}

/// The mean key, as f16.
template <DType type>
inline void write_mean(const IndexPageArgs& a) {
  for (int d = 0; d < a.head_dim; ++d) {
    Vec sum = key_lanes<type>(a.block, d, 0);
    for (int v = 1; v < kSlotVecs; ++v) sum = add(sum, key_lanes<type>(a.block, d, v));
    const uint16_t bits = f32_to_f16(reduce_add(sum) / kSlots);
    __builtin_memcpy(a.index + d * 2, &bits, sizeof(bits));
  }
}

/// Two bits per channel and token: the rotated key in four steps of the page's root mean square, at
/// -3/2, -1/2, 1/2 and 3/2 of it. Two planes, high bits first, of bytes [octet][token]: an octet of
/// channels, the lowest in bit 0. Behind them half the root mean square, as f32. The rotation
/// (rotated_channels() at a time, by a normalised Hadamard matrix) spreads a key's few large
/// channels over all of them, so that one scale fits all.
template <DType type>
inline void write_codes(const IndexPageArgs& a) {
  constexpr int kMostRotated = 64;
  Vec rotated[kMostRotated][kSlotVecs];
  const int width = rotated_channels(a.head_dim);
  const int plane_bytes = (a.head_dim + 15) / 16 * 32;
  const Vec norm = broadcast(1.0f / __builtin_sqrtf((float)width));
  Vec squares = zero();
  for (int d = 0; d < a.head_dim; ++d) {
    for (int v = 0; v < kSlotVecs; ++v) {
      const Vec key = key_lanes<type>(a.block, d, v);
      squares = fma(key, key, squares);
    }
  }
  const float step = __builtin_sqrtf(reduce_add(squares) / (float)(a.head_dim * kSlots));
  const float half_step = step / 2;
  __builtin_memset(a.index, 0, (size_t)plane_bytes * 2);
  __builtin_memcpy(a.index + 2 * plane_bytes, &half_step, sizeof(half_step));
  for (int begin = 0; begin < a.head_dim; begin += width) {
    for (int d = 0; d < width; ++d) {
      for (int v = 0; v < kSlotVecs; ++v)
        rotated[d][v] = mul(key_lanes<type>(a.block, begin + d, v), norm);
    }
    for (int half = 1; half < width; half *= 2) {
      for (int d = 0; d < width; ++d) {
        if ((d & half) != 0) continue;
        for (int v = 0; v < kSlotVecs; ++v) {
          const Vec x = rotated[d][v], y = rotated[d + half][v];
          rotated[d][v] = add(x, y);
          rotated[d + half][v] = sub(x, y);
        }
      }
    }
    // Bits of up to eight channels, as whole numbers up to 255 in the tokens' lanes.
    for (int d = 0; d < width;) {
      const int octet = (begin + d) / 8;
      Vec high[kSlotVecs], low[kSlotVecs];
      for (int v = 0; v < kSlotVecs; ++v) high[v] = low[v] = zero();
      for (; d < width && (begin + d) / 8 == octet; ++d) {
        const Vec bit = broadcast((float)(1 << (begin + d) % 8));
        for (int v = 0; v < kSlotVecs; ++v) {
          const Vec positive = where_above(rotated[d][v], 0.0f, bit);
          high[v] = add(high[v], positive);
          low[v] = add(low[v], sub(add(where_above(rotated[d][v], step, bit),
                                       where_above(rotated[d][v], -step, bit)),
                                   positive));
        }
      }
      alignas(64) float bits[2][kSlots];
      for (int v = 0; v < kSlotVecs; ++v) {
        store(bits[0] + v * kLanes, high[v]);
        store(bits[1] + v * kLanes, low[v]);
      }
      auto* out = (uint8_t*)a.index + octet * kSlots;
      for (int t = 0; t < kSlots; ++t) {
        out[t] = (uint8_t)(out[t] | (int)bits[0][t]);
        out[plane_bytes + t] = (uint8_t)(out[plane_bytes + t] | (int)bits[1][t]);
      }
    }
  }
}

template <DType type>
inline void index_page_typed(const IndexPageArgs& a) {
  if (a.score == PageScore::kMean) write_mean<type>(a);
  if (a.score == PageScore::kCodes) write_codes<type>(a);
}

inline void index_page(const IndexPageArgs& a) {
  if (a.dtype == DType::kF32) return index_page_typed<DType::kF32>(a);
  if (a.dtype == DType::kF16) return index_page_typed<DType::kF16>(a);
  return index_page_typed<DType::kBF16>(a);
}
