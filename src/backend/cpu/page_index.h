#pragma once
// The indices that pages are scored by, written from the keys of a full page as stored.

#include <algorithm>
#include <array>
#include <cmath>

#include "backend/cpu/kv_layout.h"

namespace polar::backend::cpu {

/// The mean key, as f16, summed slot by slot.
inline void write_mean(const KvView& kv, const std::byte* block, std::byte* index) {
  for (int d = 0; d < kv.head_dim; ++d) {
    float sum = 0;
    for (int slot = 0; slot < kPageTokens; ++slot)
      sum += load_element(kv.dtype, block, d * kPageTokens + slot);
    const uint16_t bits = f32_to_f16(sum / kPageTokens);
    std::memcpy(index + d * 2, &bits, 2);
  }
}

/// Two bits per channel and token: the rotated key in four steps of the page's root mean square, at
/// -3/2, -1/2, 1/2 and 3/2 of it. Two planes, high bits first, of bytes [octet][token]: an octet of
/// channels, the lowest in bit 0. Behind them half the root mean square, as f32. The rotation
/// (rotated_channels() at a time, by a normalised Hadamard matrix) spreads a key's few large
/// channels over all of them, so that one scale fits all.
inline void write_codes(const KvView& kv, const std::byte* block, std::byte* index) {
  std::array<std::array<float, kPageTokens>, 64> rotated;
  const int width = rotated_channels(kv.head_dim);
  const float norm = 1.0f / std::sqrt(static_cast<float>(width));
  const size_t code_bytes = kv.index_bytes() - sizeof(float), plane_bytes = code_bytes / 2;
  float squares = 0;
  for (int i = 0; i < kv.head_dim * kPageTokens; ++i) {
    const float value = load_element(kv.dtype, block, i);
    squares += value * value;
  }
  const float step = std::sqrt(squares / static_cast<float>(kv.head_dim * kPageTokens));
  const float half_step = step / 2;
  std::memset(index, 0, code_bytes);
  std::memcpy(index + code_bytes, &half_step, sizeof(half_step));
  for (int begin = 0; begin < kv.head_dim; begin += width) {
    for (int d = 0; d < width; ++d) {
      for (int t = 0; t < kPageTokens; ++t)
        rotated[d][t] = load_element(kv.dtype, block, (begin + d) * kPageTokens + t) * norm;
    }
    for (int half = 1; half < width; half *= 2) {
      for (int d = 0; d < width; ++d) {
        if ((d & half) != 0) continue;
        for (int t = 0; t < kPageTokens; ++t) {
          const float a = rotated[d][t], b = rotated[d + half][t];
          rotated[d][t] = a + b;
          rotated[d + half][t] = a - b;
        }
      }
    }
    for (int d = 0; d < width; ++d) {
      std::byte* octet = index + (begin + d) / 8 * kPageTokens;
      const std::byte bit = std::byte{1} << ((begin + d) % 8);
      for (int t = 0; t < kPageTokens; ++t) {
        const float value = rotated[d][t];
        if (value > 0) octet[t] |= bit;
        if (value > (value > 0 ? step : -step)) octet[plane_bytes + t] |= bit;
      }
    }
  }
}

/// Writes the index of a full page: `block` holds its keys.
inline void write_page_index(const KvView& kv, const std::byte* block, std::byte* index) {
  if (kv.page_score == PageScore::kMean) write_mean(kv, block, index);
  if (kv.page_score == PageScore::kCodes) write_codes(kv, block, index);
}

}  // namespace polar::backend::cpu
