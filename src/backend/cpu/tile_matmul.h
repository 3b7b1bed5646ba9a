#pragma once
// Products with bf16 weights in tiles: 16 rows of 32 weights, as they are stored, by 32 inputs of
// up to 16 rows of x. An input is the sum of three digits in bf16 (8 of its 24 bits each, so
// nothing is lost) and sums are f32: as exact as multiply-adds, three products of tiles instead of
// one.
//
// All row counts run here, so that an output's order of summation depends on k alone. Everything is
// a member of a template over the tile instructions, so that no two instruction sets share code.

#include <cstring>

#include "backend/cpu/kernels.h"

namespace polar::backend::cpu {

/// `Tiles` has eight tiles of 16 rows: configure(bytes of a row of each, 64 at most), zero<T>(),
/// load<T>(data, stride), store<T>(data, stride), multiply<C, A, B>() (C += A B; A in bf16, B in
/// pairs of it, C in f32) and release(). What is not a product with bf16 weights is done by
/// `others`.
template <typename Tiles, const Kernels& (*others)()>
class TileKernels {
 public:
  static Kernels table(const char* name) {
    Kernels kernels = others();
    kernels.name = name;
    kernels.matmul = matmul;
    kernels.packed_bytes = packed_bytes;
    kernels.pack = pack;
    return kernels;
  }

 private:
  static constexpr int kRows = 16, kInputs = 32, kDigits = 3;
  // Tiles: sums of two groups of weights by two of rows of x, weights, inputs.
  static constexpr int kSums = 0, kWeights = 4, kInputTiles = 6;

  /// Two groups of `left` and `right` rows of x.
  static void configure(int left, int right) {
    const int x[2] = {left * 4, right * 4}, weights = kInputs * 2;
    Tiles::configure({x[0], x[1], x[0], x[1], weights, weights, x[0], x[1]});
  }

  static int64_t blocks(int64_t k) { return (k + kInputs - 1) / kInputs; }

  static size_t packed_bytes(DType dtype, int64_t k) {
    if (dtype != DType::kBF16) return others().packed_bytes(dtype, k);
    return blocks(k) * kDigits * kInputs * sizeof(uint16_t);
  }

  /// The upper half of each value, then of what that leaves, and again. What is not finite leaves
  /// what is not.
  static void split(const float* x, int count, uint16_t (&digit)[kDigits][kInputs]) {
    alignas(64) float rest[kInputs] = {};
    std::memcpy(rest, x, count * sizeof(float));
    for (auto& digits : digit) {
      for (int i = 0; i < kInputs; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &rest[i], sizeof(bits));
        digits[i] = static_cast<uint16_t>(bits >> 16);
        bits &= 0xffff0000u;
        float upper;
        std::memcpy(&upper, &bits, sizeof(upper));
        rest[i] -= upper;
      }
    }
  }

  /// Groups of 16 rows, the last of those that are left; in a group [block][digit][pair of
  /// inputs][row][2].
  static void pack(const PackArgs& a) {
    if (a.dtype != DType::kBF16) return others().pack(a);
    for (int64_t row = a.begin; row < a.end; ++row) {
      const int64_t group = row / kRows * kRows;
      const int64_t rows = a.rows - group < kRows ? a.rows - group : kRows;
      std::byte* out = a.out + group * packed_bytes(a.dtype, a.k) + (row - group) * 4;
      const float* x = a.x + row * a.x_stride;
      for (int64_t k = 0; k < a.k; k += kInputs) {
        alignas(64) uint16_t digit[kDigits][kInputs];
        split(x + k, static_cast<int>(a.k - k < kInputs ? a.k - k : kInputs), digit);
        for (const auto& digits : digit) {
          for (int i = 0; i < kInputs; i += 2, out += rows * 4) std::memcpy(out, &digits[i], 4);
        }
      }
    }
  }

  /// Up to 16 rows of weights from row n on.
  struct WeightGroup {
    const MatmulArgs& a;
    int64_t n;
    int count;
    alignas(64) std::byte copy[kRows * kInputs * 2];

    WeightGroup(const MatmulArgs& args, int64_t first)
        : a(args), n(first), count(static_cast<int>(a.end - n < kRows ? a.end - n : kRows)) {}

    template <int T>
    void load(int64_t block) {
      const int64_t offset = block * kInputs * 2, left = a.k * 2 - offset;
      if (count == kRows && a.index == nullptr && left >= kInputs * 2)
        return Tiles::template load<T>(weight_row(a, n) + offset, a.row_bytes);
      std::memset(copy, 0, sizeof(copy));
      for (int i = 0; i < count; ++i)
        std::memcpy(copy + i * kInputs * 2, weight_row(a, n + i) + offset,
                    left < kInputs * 2 ? left : kInputs * 2);
      Tiles::template load<T>(copy, kInputs * 2);
    }

    /// Brings the same block of the rows that are needed after the next `ahead`.
    void fetch(int64_t block, int64_t ahead) const {
      for (int64_t i = n + ahead; i < n + ahead + kRows && i < a.end; ++i)
        __builtin_prefetch(weight_row(a, i) + block * kInputs * 2, 0, 2);
    }
  };

  template <int T>
  static void write(const MatmulArgs& a, int64_t n, int count, int row, int rows) {
    alignas(64) float sums[kRows][kRows];
    Tiles::template store<T>(sums, sizeof(sums[0]));
    for (int m = 0; m < rows; ++m) {
      float* y = a.y + (row + m) * a.y_stride + n;
      for (int i = 0; i < count; ++i) y[i] = sums[i][m];
    }
  }

  /// G groups of weights from row n on by R groups of rows of x from `row` on, of `rows` in all.
  template <int G, int R>
  static void product(const MatmulArgs& a, int64_t n, int row, int rows) {
    WeightGroup left(a, n), right(a, G == 2 ? n + kRows : n);
    Tiles::template zero<kSums>();
    if constexpr (R == 2) Tiles::template zero<kSums + 1>();
    if constexpr (G == 2) Tiles::template zero<kSums + 2>();
    if constexpr (G == 2 && R == 2) Tiles::template zero<kSums + 3>();
    const int64_t row_bytes = packed_bytes(a.dtype, a.k);
    const int counts[2] = {rows < kRows ? rows : kRows, rows - kRows};
    const std::byte* inputs[2] = {a.packed + row * row_bytes, a.packed + (row + kRows) * row_bytes};
    for (int64_t block = 0; block < blocks(a.k); ++block) {
      if (row == 0) {
        left.fetch(block, G * kRows);
        if constexpr (G == 2) right.fetch(block, G * kRows);
      }
      left.template load<kWeights>(block);
      if constexpr (G == 2) right.template load<kWeights + 1>(block);
      for (int digit = 0; digit < kDigits; ++digit) {
        Tiles::template load<kInputTiles>(inputs[0], counts[0] * 4);
        inputs[0] += counts[0] * kInputs * 2;
        Tiles::template multiply<kSums, kWeights, kInputTiles>();
        if constexpr (G == 2) Tiles::template multiply<kSums + 2, kWeights + 1, kInputTiles>();
        if constexpr (R == 2) {
          Tiles::template load<kInputTiles + 1>(inputs[1], counts[1] * 4);
          inputs[1] += counts[1] * kInputs * 2;
          Tiles::template multiply<kSums + 1, kWeights, kInputTiles + 1>();
          if constexpr (G == 2)
            Tiles::template multiply<kSums + 3, kWeights + 1, kInputTiles + 1>();
        }
      }
    }
    write<kSums>(a, n, left.count, row, counts[0]);
    if constexpr (R == 2) write<kSums + 1>(a, n, left.count, row + kRows, counts[1]);
    if constexpr (G == 2) write<kSums + 2>(a, n + kRows, right.count, row, counts[0]);
    if constexpr (G == 2 && R == 2)
      write<kSums + 3>(a, n + kRows, right.count, row + kRows, counts[1]);
  }

  static void matmul(const MatmulArgs& a) {
    if (a.dtype != DType::kBF16) return others().matmul(a);
    for (int row = 0; row < a.m; row += 2 * kRows) {
      const int rows = a.m - row < 2 * kRows ? a.m - row : 2 * kRows;
      configure(rows < kRows ? rows : kRows, rows > kRows ? rows - kRows : 0);
      for (int64_t n = a.begin; n < a.end; n += 2 * kRows) {
        const bool two = a.end - n > kRows;
        if (rows > kRows) {
          two ? product<2, 2>(a, n, row, rows) : product<1, 2>(a, n, row, rows);
        } else {
          two ? product<2, 1>(a, n, row, rows) : product<1, 1>(a, n, row, rows);
        }
      }
    }
    Tiles::release();
    add_bias(a);
  }
};

}  // namespace polar::backend::cpu
