#pragma once
// Launch functions of the kernels that are not attention. Raw device pointers and plain values; no
// allocation, no synchronisation: all of it can be captured in a CUDA graph. bf16 pointers are
// void*.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/ops.h"

namespace polar::backend::cuda {

/// For which architecture the kernels that run here were compiled, as 80 or 90; 0 if for none that
/// this GPU can run. Clusters, bulk copies and early launches want 90.
int code_version();

// Weights (weight_kernels.cu).

/// count values of f32, f16 or bf16 to bf16.
void launch_convert(DType from, const void* source, void* bf16, size_t count, cudaStream_t stream);
/// source [rows][columns] (f32, f16, bf16) to target[column * target_stride + row], bf16.
void launch_transpose(DType from, const void* source, void* bf16, int64_t rows, int64_t columns,
                      int64_t target_stride, cudaStream_t stream);
/// Seeded values, uniform in (-scale, scale).
void launch_dummy(void* bf16, size_t count, float scale, uint64_t seed, cudaStream_t stream);
void launch_f32_to_bf16(const float* source, void* bf16, int count, cudaStream_t stream);

// Pointwise verbs (pointwise.cu).

struct EmbedLaunch {
  const int32_t* token = nullptr;
  const int32_t* last_token = nullptr;
  const int32_t* position = nullptr;
  int rows = 0;
  const void* table = nullptr;  // [vocabulary][width] bf16
  int width = 0;
  const void* positions = nullptr;  // [..][width] bf16 or null
  int position_offset = 0;
  void* out = nullptr;   // [rows][width]
  bool out_f32 = false;  // else bf16
  Rope rope;
  float* rotation = nullptr;
};
void launch_embed(const EmbedLaunch& args, cudaStream_t stream);
/// hidden[row] += positions[position[row] + offset].
void launch_add_positions(const int32_t* position, int rows, int width, const void* positions,
                          int offset, void* hidden, bool hidden_f32, cudaStream_t stream);

struct NormLaunch {
  void* residual = nullptr;   // [rows][hidden]
  const void* add = nullptr;  // as residual, or null
  bool f32 = false;           // both, else bf16
  Norm norm;
  void* out = nullptr;  // [rows][hidden] bf16; may be residual where that is bf16
  int rows = 0;
  int hidden = 0;                       // % 8 == 0, at most 16,384
  const int32_t* rows_index = nullptr;  // the residual rows to read, then residual is not written
};
/// residual[row] += add[row]; out = norm(residual).
void launch_norm(const NormLaunch& args, cudaStream_t stream);
/// After the QKV product: QK-norm, rotation, K and V into their page slots, query out.
void launch_rope_store(const QkvArgs& args, const float* bias, cudaStream_t stream);
/// out[row][i] = act(in[row][i]) (* in[row][width + i] when gated); strides in values.
void launch_activate(const void* in, int64_t in_stride, void* out, int64_t out_stride, int rows,
                     int width, Activation activation, bool gated, cudaStream_t stream);

// Products of few rows (skinny.cu). The weight is read once.

inline constexpr int kMostSkinnyRows = 64;               // a launch
inline constexpr int kMostParts = 8;                     // the largest cluster that every GPU has
inline constexpr int kTwoPerProcessorBytes = 108 << 10;  // the ring of one of two blocks

/// How a product is cut into blocks.
struct ProductCut {
  int parts = 1;          // of a tile's inputs: 1, 2, 4 or 8; above 1 only with clusters
  int per_processor = 3;  // blocks on a multiprocessor: 2 with long rings, 3 with short ones
};
struct ProductLimits {
  int processors = 0, shared_bytes = 0;  // of the GPU; of a block
  bool clusters = false;                 // blocks can read each other's shared memory (sm_90)
};
/// The cuts of a product of that many stored rows (of a gathered down: outputs) that are worth
/// trying; which is fastest depends on shape and GPU.
std::vector<ProductCut> product_cuts(int outputs, int tile, const ProductLimits& limits);
/// Stored rows of a tile.
constexpr int product_tile(int rows) {
  return rows <= 16 ? 64 : 128;
}
inline constexpr int kGatherDownTile = 128;

struct SkinnyLaunch {
  const void* x = nullptr;         // [rows][k] bf16, stride x_stride values
  int64_t x_stride = 0;            // % 8 == 0
  int rows = 0;                    // at most kMostSkinnyRows
  const void* weight = nullptr;    // [n][k] bf16, k % 8 == 0
  const int32_t* index = nullptr;  // [n] which stored rows, or null: 0 .. n - 1
  int n = 0;                       // outputs (of a gated pair: half the stored rows)
  int k = 0;
  const float* bias = nullptr;  // by stored row, or null
  bool activate = false;
  Activation activation = Activation::kRelu;
  bool gated = false;  // act(row i) * row (n + i)
  void* y = nullptr;   // [rows][n]
  int64_t y_stride = 0;
  bool y_f32 = false;
};
/// y = act(x W[index]^T + bias).
void launch_skinny(const SkinnyLaunch& args, const ProductCut& cut, cudaStream_t stream);

/// How a product of wide_product.cu is cut into blocks, of which a multiprocessor has one.
struct WideCut {
  int tile = 128;  // stored rows of a tile: a multiple of 16
  int parts = 1;   // of a tile's inputs: 1, 2, 4 or 8
  bool operator==(const WideCut&) const = default;
};
inline constexpr int kFewestWideRows = 9;  // below, small tiles are as fast
inline constexpr int kMostWideTile = 512;
inline constexpr int kWideSharedBytes = 224 << 10;
/// Whether launch_wide knows such a product: on a GPU that runs code of sm_90a, if outputs are
/// multiples of 8 and inputs of 64; by_outputs (the weight is stored [k][n]): of 64 and 8.
bool wide_can(int outputs, int k, bool by_outputs);
/// The cuts that are worth trying: none where launch_wide can't.
std::vector<WideCut> wide_cuts(int outputs, int k, bool gated, bool by_outputs);
/// As launch_skinny, without an index. By outputs tiles are multiples of 64.
void launch_wide(const SkinnyLaunch& args, bool by_outputs, const WideCut& cut,
                 cudaStream_t stream);

struct GatherDownLaunch {
  const void* a = nullptr;       // [rows][count] bf16, stride a_stride
  int64_t a_stride = 0;          // % 8 == 0
  int rows = 0;                  // at most kMostSkinnyRows
  const void* weight = nullptr;  // [stored rows][outputs] bf16: row j is column j of the matrix
  /// [count] or null. Read before the kernel in front has ended: that one must have waited for what
  /// wrote it, as the gathered product by the same list has.
  const int32_t* index = nullptr;
  int count = 0;
  int outputs = 0;  // % 8 == 0
  const float* bias = nullptr;
  void* y = nullptr;   // [rows][outputs]
  bool y_f32 = false;  // else bf16
};
/// y[r] = sum_j a[r][j] weight[index[j]] + bias.
void launch_gather_down(const GatherDownLaunch& args, const ProductCut& cut, cudaStream_t stream);

// Neurons (four_bit.cu, choose_neurons.cu).

// A matrix of four bits a value lies in memory as its product reads it, without gaps: a piece is 16
// rows by 256 inputs, first the codes as the tensor core's lanes take them, then the scales,
// halves, of each block of 32 inputs. Pieces of the same rows follow each other; zeros pad rows to
// whole pieces and inputs to pairs of them. Scales are multiplied by a power of two that makes the
// largest one of the matrix lie in [kFourBitMost / 2, kFourBitMost]: so that halves hold them times
// a code that stands in the low bits of a half.
inline constexpr int kFourBitRows = 16, kFourBitInputs = 256;
inline constexpr int kFourBitScales = kFourBitRows * kFourBitInputs / 2;  // where they begin, bytes
inline constexpr int kFourBitPiece = kFourBitScales + kFourBitRows * kFourBitInputs / 32 * 2;
inline constexpr float kFourBitMost = 1 << 14;
inline constexpr float kFourBitUnit = 1.0f / (1 << 24);  // of a half's lowest bit
constexpr int64_t four_bit_pieces(int64_t inputs) {
  return (inputs + 2 * kFourBitInputs - 1) / (2 * kFourBitInputs) * 2;
}
/// Where in its piece the word lies that holds inputs 8 part to 8 part + 7 of a row's block. Of a
/// word's inputs the first lies in the low half's lowest four bits, the second in the high half's,
/// the third in the low half's next, and so on.
constexpr int four_bit_word(int row, int block, int part) {
  return ((block / 4 * 2 + row / 8) * 32 + row % 8 * 4 + part) * 4 + block % 4;
}

inline constexpr int kMostNeurons = 65536;  // of a layer
inline constexpr int kNeuronBins = 2048;

/// How neurons are ranked, and where: by the scores of union_scores().
struct NeuronScores {
  UnionBy by = UnionBy::kSum;  // not kRows
  float inverse_unit = 1.0f;   // times the logits
  uint32_t* keys = nullptr;    // [neurons] out: in the order of the scores
  int32_t* bins = nullptr;     // [kNeuronBins] zeros: are increased by the keys' counts
};

struct FourBitLaunch {
  const void* x = nullptr;  // [rows][k] bf16, stride x_stride values, % 8 == 0
  int64_t x_stride = 0;
  int rows = 0;
  const void* matrix = nullptr;  // [n / 16][four_bit_pieces(k)][kFourBitPiece]
  int n = 0;                     // outputs
  int k = 0;                     // % 32 == 0
  float unit = 1.0f;             // of the scales
  const float* bias = nullptr;   // [n] or null
  float* y = nullptr;            // [rows][n], or null: the outputs are logits of neurons,
  NeuronScores scores;           // which are ranked; at most kMostSkinnyRows rows then
};
/// y = x W^T + bias, W = unit scale (code - 8); one node for each 64 rows.
void launch_four_bit(const FourBitLaunch& args, cudaStream_t stream);

/// Ranks the neurons of logits [rows][ffn]; one node.
void launch_score_neurons(const float* logits, int rows, int ffn, const NeuronScores& scores,
                          cudaStream_t stream);
/// The `count` best of [0, ffn) as an ascending list; of equal ones the lower. Leaves zeros in the
/// bins. One node.
void launch_list_neurons(const NeuronScores& scores, int ffn, int count, int32_t* index,
                         cudaStream_t stream);

// Sampling (sample.cu).
void launch_sample(const SampleArgs& args, cudaStream_t stream);
void launch_score(const ScoreArgs& args, cudaStream_t stream);

// Attention for what the fast kernels leave out: f32 caches, unusual head_dim
// (simple_attention.cu).
/// Offsets as in kv_layout for 16-bit caches; f32 halves are [token][head_dim].
void launch_simple_attention(const AttentionArgs& args, cudaStream_t stream);
/// read[row].blocks += the pages of its units, `layers` times.
void launch_count_pages(const PageRanges* units, ReadCount* read, int rows, int kv_heads,
                        int layers, cudaStream_t stream);

// Memory (read_bandwidth.cu).
/// Reads `bytes` at `data` once, with bulk copies where the GPU has them.
void launch_read(const void* data, size_t bytes, int processors, void* sink, cudaStream_t stream);

}  // namespace polar::backend::cuda
