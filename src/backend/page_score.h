#pragma once
// How pages are scored for the units that choose among them.

#include <cstddef>
#include <cstdint>

namespace polar::backend {

/// A score reads each candidate's index: a few bytes per page and KV head, written once, when the
/// page becomes full (docs/sparsity.md says how well each does).
enum class PageScore : uint8_t {
  kMean,   // the query times the mean key
  kCodes,  // the page's best token, by two bits per channel of each rotated key
  kMass,   // the exact attention mass, from all keys: an oracle for studies, no index
};

/// Bytes of one page's index for one KV head. Codes: two planes of 16 bits per channel (rounded up
/// to 16 channels), and one f32.
[[gnu::always_inline]] constexpr size_t page_index_bytes(PageScore score, int head_dim) {
  switch (score) {
    case PageScore::kMean:
      return static_cast<size_t>(head_dim) * 2;
    case PageScore::kCodes:
      return static_cast<size_t>((head_dim + 15) / 16) * 64 + 4;
    case PageScore::kMass:
      break;
  }
  return 0;
}

/// Channels that kCodes rotates together: the largest power of two that divides head_dim, 64 at
/// most.
[[gnu::always_inline]] constexpr int rotated_channels(int head_dim) {
  int width = 1;
  while (width < 64 && head_dim % (width * 2) == 0) width *= 2;
  return width;
}

/// "mean", "codes" or "mass".
[[gnu::always_inline]] constexpr const char* page_score_name(PageScore score) {
  return score == PageScore::kMean ? "mean" : score == PageScore::kCodes ? "codes" : "mass";
}

}  // namespace polar::backend
