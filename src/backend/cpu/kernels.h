#pragma once
// The inner loops, once per instruction set: a table of plain functions over raw pointers. isa_*.cc
// instantiate the *_inl.h files; isa.cc picks a table by CPU feature bits. Plain data only: this
// header is seen by files compiled for any instruction set.

#include <cstddef>
#include <cstdint>

#include "backend/page_score.h"
#include "core/dtype.h"

namespace polar::backend::cpu {

/// Turns rows [begin, end) of x into what products with weights in blocks take.
struct PackArgs {
  const float* x;  // [rows][x_stride]
  int64_t x_stride;
  int64_t rows;
  int64_t k;    // a multiple of 32
  DType dtype;  // of the weights
  int64_t begin, end;
  std::byte* out;  // [rows][packed_bytes(dtype, k)] in all
};

/// y[m][n] = sum_k x[m][k] w[n][k] (+ bias[n]) for the rows n in [begin, end) of one stored matrix.
/// The order in which one y[m][n] is summed depends on k alone: not on m, the tile or the thread.
struct MatmulArgs {
  const float* x;  // [m][x_stride]
  int64_t x_stride;
  const std::byte* packed;  // x as packed for this dtype, if that is what it takes
  int m;
  const std::byte* weight;  // stored row 0
  size_t row_bytes;
  DType dtype;  // f32, f16, bf16, q8_0, q4_0 or q4_1
  int64_t k;
  const int32_t* index;  // row n of the product is stored row index[n]; null: row n
  int64_t begin, end;
  const float* bias;  // by stored row, or null
  float* y;           // [m][y_stride]
  int64_t y_stride;
};

/// Row n of the product's weights, as stored.
[[gnu::always_inline]] inline const std::byte* weight_row(const MatmulArgs& a, int64_t n) {
  return a.weight + (a.index != nullptr ? a.index[n] : n) * a.row_bytes;
}

[[gnu::always_inline]] inline void add_bias(const MatmulArgs& a) {
  if (a.bias == nullptr) return;
  for (int m = 0; m < a.m; ++m) {
    float* y = a.y + m * a.y_stride;
    for (int64_t n = a.begin; n < a.end; ++n) y[n] += a.bias[a.index != nullptr ? a.index[n] : n];
  }
}

/// y[m][o] += sum over neurons j in [begin, end), in order, of a[m][j] w[row(j)][o], for all
/// outputs o.
struct AccumulateArgs {
  const float* a;  // [m][a_stride]
  int64_t a_stride;
  int m;
  const std::byte* weight;  // [neurons][outputs]
  size_t row_bytes;
  DType dtype;           // f32, f16 or bf16
  const int32_t* index;  // stored row of neuron j; null: j
  int64_t begin, end;
  int64_t outputs;
  float* y;  // [m][y_stride]
  int64_t y_stride;
};

/// Attention runs over pieces of a unit's pages, and strips of a piece's, cut by position: every
/// result is summed in the same order whatever the load.
inline constexpr int kPiecePages = 32;
inline constexpr int kStripPages = 8;
inline constexpr int kStripTokens = 128;
inline constexpr int kMostQueries = 16;

struct PageSlice {
  const std::byte* block;  // K half [head_dim][16], then V half [16][head_dim]
  int32_t position;        // of slot 0; kAllVisible: every query sees the whole page
};
inline constexpr int32_t kAllVisible = INT32_MIN;

/// One query vector over one piece. It sees the positions [low, high).
struct Query {
  const float* values;  // [head_dim]
  int32_t low, high;
  float* output;  // [head_dim]: sum of exp(score - max) V, written
  float max;      // of the scores, written
  float sum;      // of exp(score - max), written; 0: nothing was visible
};

struct AttendArgs {
  Query* queries;
  int query_count;  // at most kMostQueries
  const PageSlice* pages;
  int page_count;    // at most kPiecePages
  int listed_count;  // pages behind these are attended to next: worth fetching
  DType dtype;       // of the cache: f32, f16 or bf16
  int head_dim;
  float scale;
  float* scratch;  // [query_count][kStripTokens]
};

/// Pages that a query sees by their summaries: one token each, whose score gains log kPageTokens.
struct AttendSummariesArgs {
  Query* queries;                     // low and high do not matter
  int query_count;                    // at most kMostQueries
  const std::byte* const* summaries;  // mean key [head_dim], then mean value [head_dim]
  int summary_count;                  // at most kPieceSummaries
  DType dtype;                        // of the cache: f32, f16 or bf16
  int head_dim;
  float scale;
  float* scratch;  // [query_count][kStripTokens]
};
inline constexpr int kPieceSummaries = 512;

/// The summary of a full page, from its block.
struct SummarizePageArgs {
  DType dtype;
  int head_dim;
  const std::byte* block;
  std::byte* summary;  // mean key [head_dim], then mean value [head_dim], of dtype; out
};

/// The index of a full page, from its keys as stored.
struct IndexPageArgs {
  PageScore score;  // kMean or kCodes
  DType dtype;      // of the block
  int head_dim;
  const std::byte* block;
  std::byte* index;  // [page_index_bytes(score, head_dim)] out
};

/// Queries that share each page's index they are scored against.
inline constexpr int kMassQueries = 3;
/// Most channels of a head.
inline constexpr int kMostChannels = 1024;

/// mass[i] = sum over the queries of softmax_i(score of page i): the share of a unit's attention
/// that page i is expected to draw.
struct PageMassArgs {
  PageScore score;
  const float* query;  // [query_count][head_dim]
  int query_count;
  const std::byte* const* pages;  // [count]: their indices; kMass: their blocks
  DType dtype;                    // kMass: of the blocks
  int count;
  int head_dim;
  float scale;
  float* scratch;  // [min(query_count, kMassQueries)][padded_pages(count)]
  float* mass;     // [padded_pages(count)] out
};
[[gnu::always_inline]] inline constexpr int padded_pages(int count) {
  return (count + 15) / 16 * 16;
}

struct Kernels {
  const char* name;
  void (*matmul)(const MatmulArgs& args);
  /// Bytes of a packed row of k inputs for weights of this type; 0: its products take x as it is.
  size_t (*packed_bytes)(DType dtype, int64_t k);
  void (*pack)(const PackArgs& args);
  void (*accumulate)(const AccumulateArgs& args);
  void (*attend)(const AttendArgs& args);
  void (*attend_summaries)(const AttendSummariesArgs& args);
  void (*index_page)(const IndexPageArgs& args);
  void (*summarize_page)(const SummarizePageArgs& args);
  void (*page_mass)(const PageMassArgs& args);
  /// Writes the indices of the `chosen` largest of `mass` [count], none of them negative or
  /// infinite (ties: the lower index), ascending, to `best`.
  void (*choose_largest)(const float* mass, int count, int chosen, int32_t* best);
  /// out[i] = silu(gate[i]) * up[i]
  void (*silu_mul)(const float* gate, const float* up, float* out, int64_t count);
  /// Reads all bytes (a multiple of 512) as fast as memory gives them. The value keeps the loads
  /// alive.
  float (*read)(const std::byte* data, size_t bytes);
  /// 12 * lanes multiply-adds per round, in registers only: the arithmetic peak.
  float (*flops)(int64_t rounds);
  int lanes;
};

const Kernels& portable_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& amx_kernels();

}  // namespace polar::backend::cpu
