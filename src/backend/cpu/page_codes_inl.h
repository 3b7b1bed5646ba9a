// PageScore::kCodes: two bits per channel of each rotated key. Included by page_scores_inl.h.

/// Rotates a query as write_codes() rotates keys; zeros up to the next 16 channels.
inline void rotate_query(const float* query, int head_dim, float* rotated) {
  const int width = rotated_channels(head_dim), padded = (head_dim + 15) / 16 * 16;
  const float norm = 1.0f / __builtin_sqrtf((float)width);
  for (int d = 0; d < head_dim; ++d) rotated[d] = query[d] * norm;
  for (int d = head_dim; d < padded; ++d) rotated[d] = 0;
  for (int half = 1; half < width; half *= 2) {
    for (int d = 0; d < head_dim; d += 2 * half) {
      for (int j = d; j < d + half; ++j) {
        const float x = rotated[j], y = rotated[j + half];
        rotated[j] = x + y;
        rotated[j + half] = x - y;
      }
    }
  }
}

// The order of a page's codes is its instruction set's own: indices live no longer than the
// process.
#if POLAR_ISA_LEVEL == 2
#include "backend/cpu/page_codes_dot_inl.h"
#else
#include "backend/cpu/page_codes_lookup_inl.h"
#endif

/// Two bits per channel and token: the rotated key in four steps of the page's root mean square, at
/// -3/2, -1/2, 1/2 and 3/2 of it. Behind them half the root mean square, as f32. The rotation
/// (rotated_channels() at a time, by a normalised Hadamard matrix) spreads a key's few large
/// channels over all of them, so that one scale fits all.
template <DType type>
inline void write_codes(const IndexPageArgs& a) {
  constexpr int kMostRotated = 64;
  Vec rotated[kMostRotated][kSlotVecs];
  const int width = rotated_channels(a.head_dim);
  const int code_bytes = (a.head_dim + 15) / 16 * 64;
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
  __builtin_memset(a.index, 0, (size_t)code_bytes);
  __builtin_memcpy(a.index + code_bytes, &half_step, sizeof(half_step));
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
    store_codes(a.index, a.head_dim, rotated, begin, width, step);
  }
}
