// Every kernel on every instruction set that this machine has, against sums in double precision
// over dequantize_row's values.

#include "backend/cpu/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "backend/cpu/isa.h"
#include "backend/cpu/test_values.h"
#include "backend/cpu/tile_matmul.h"

namespace polar::backend::cpu {
namespace {

constexpr float kPoison = 1234567.0f;

class KernelsTest : public testing::TestWithParam<const Kernels*> {};

/// What AMX does, in plain code: machines without it run all but its instructions.
struct EmulatedTiles {
  struct Tile {
    int row_bytes;
    std::byte row[16][64];
  };
  static inline Tile tiles[8];

  static void configure(const int (&row_bytes)[8]) {
    for (int i = 0; i < 8; ++i) {
      tiles[i].row_bytes = row_bytes[i];
      std::memset(tiles[i].row, 0x7f, sizeof(tiles[i].row));  // poison
    }
  }
  static void release() { configure({}); }
  template <int T>
  static void zero() {
    std::memset(tiles[T].row, 0, sizeof(tiles[T].row));
  }
  template <int T>
  static void load(const void* data, int64_t stride) {
    for (int r = 0; r < 16; ++r)
      std::memcpy(tiles[T].row[r], static_cast<const std::byte*>(data) + r * stride,
                  tiles[T].row_bytes);
  }
  template <int T>
  static void store(void* data, int64_t stride) {
    for (int r = 0; r < 16; ++r)
      std::memcpy(static_cast<std::byte*>(data) + r * stride, tiles[T].row[r], tiles[T].row_bytes);
  }
  template <int C, int A, int B>
  static void multiply() {
    const auto value = [](const std::byte* at) {
      uint16_t bits;
      std::memcpy(&bits, at, sizeof(bits));
      return bf16_to_f32(bits);
    };
    for (int r = 0; r < 16; ++r) {
      for (int n = 0; n < tiles[C].row_bytes / 4; ++n) {
        float sum;
        std::memcpy(&sum, tiles[C].row[r] + n * 4, sizeof(sum));
        for (int i = 0; i < 32; ++i)
          sum += value(tiles[A].row[r] + i * 2) * value(tiles[B].row[i / 2] + n * 4 + i % 2 * 2);
        std::memcpy(tiles[C].row[r] + n * 4, &sum, sizeof(sum));
      }
    }
  }
};

std::vector<const Kernels*> tested_kernels() {
  static const Kernels tiles = TileKernels<EmulatedTiles, portable_kernels>::table("tiles");
  std::vector<const Kernels*> kernels = runnable_kernels();
  kernels.push_back(&tiles);
  return kernels;
}

INSTANTIATE_TEST_SUITE_P(Isa, KernelsTest, testing::ValuesIn(tested_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

/// A product, its exact result and what its rounding may be.
struct Product {
  Product(DType dtype, int m, int64_t n, int64_t k, uint32_t seed)
      : m(m), n(n), k(k), random(seed), weight(random_matrix(random, dtype, n, k)) {
    x = random_values(random, m * (k + 3));
    bias = random_values(random, n);
  }

  double exact(int row, int64_t output) const {
    double sum = 0;
    for (int64_t i = 0; i < k; ++i)
      sum += static_cast<double>(x[row * (k + 3) + i]) * weight.values[output * k + i];
    return sum;
  }
  double tolerance(int row, int64_t output) const {
    double sum = 0;
    for (int64_t i = 0; i < k; ++i)
      sum += std::abs(static_cast<double>(x[row * (k + 3) + i]) * weight.values[output * k + i]);
    return 2e-6 * sum + 1e-6;
  }

  /// Rows [row, row + rows) of x by outputs [begin, end): [rows][n] with everything else poisoned.
  std::vector<float> run(const Kernels& kernels, int row, int rows, int64_t begin, int64_t end,
                         bool with_bias = false, const std::vector<int32_t>* index = nullptr) {
    std::vector<float> y(rows * (n + 1), kPoison);
    std::vector<std::byte> packed(rows * kernels.packed_bytes(weight.dtype, k));
    if (!packed.empty())
      kernels.pack(
          {x.data() + row * (k + 3), k + 3, rows, k, weight.dtype, 0, rows, packed.data()});
    kernels.matmul({x.data() + row * (k + 3), k + 3, packed.data(), rows, weight.stored.data(),
                    weight.row_bytes, weight.dtype, k, index != nullptr ? index->data() : nullptr,
                    begin, end, with_bias ? bias.data() : nullptr, y.data(), n + 1});
    return y;
  }

  int m;
  int64_t n, k;
  std::mt19937 random;
  StoredMatrix weight;
  std::vector<float> x, bias;
};

const DType kAllTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16,
                           DType::kQ8_0, DType::kQ4_0, DType::kQ4_1};

int64_t allowed_width(DType dtype, int64_t k) {
  const int block = dtype_info(dtype).block_values;
  return (k + block - 1) / block * block;
}

TEST_P(KernelsTest, MatmulIsTheProductOfStoredValues) {
  uint32_t seed = 1;
  for (const DType dtype : kAllTypes) {
    for (const int64_t wanted : {1, 7, 32, 96, 255, 320, 577}) {
      const int64_t k = allowed_width(dtype, wanted);
      for (const int m : {1, 2, 3, 4, 5, 8, 19, 131}) {
        Product product(dtype, m, m > 100 ? 13 : 29, k, ++seed);
        const std::vector<float> y = product.run(*GetParam(), 0, m, 0, product.n, seed % 2 == 0);
        for (int row = 0; row < m; ++row) {
          for (int64_t o = 0; o < product.n; ++o) {
            const double wanted_value =
                product.exact(row, o) + (seed % 2 == 0 ? product.bias[o] : 0.0f);
            ASSERT_NEAR(y[row * (product.n + 1) + o], wanted_value, product.tolerance(row, o))
                << dtype_info(dtype).name << " k " << k << " m " << m << " row " << row
                << " output " << o;
          }
          ASSERT_EQ(y[row * (product.n + 1) + product.n], kPoison);
        }
      }
    }
  }
}

TEST_P(KernelsTest, MatmulRowsDoNotDependOnTheBatchOrTheCut) {
  uint32_t seed = 100;
  for (const DType dtype : kAllTypes) {
    const int64_t k = allowed_width(dtype, 610);
    Product product(dtype, 140, 31, k, ++seed);
    std::vector<std::vector<float>> alone;
    for (int row = 0; row < product.m; ++row)
      alone.push_back(product.run(*GetParam(), row, 1, 0, product.n));
    for (const int m : {2, 3, 4, 5, 6, 7, 8, 11, 16, 17, 33, 140}) {
      for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 31}, {5, 6}, {3, 28}}) {
        const std::vector<float> y = product.run(*GetParam(), 0, m, begin, end);
        for (int row = 0; row < m; ++row) {
          for (int64_t o = 0; o <= product.n; ++o) {
            const float wanted = o >= begin && o < end ? alone[row][o] : kPoison;
            ASSERT_EQ(y[row * (product.n + 1) + o], wanted)
                << dtype_info(dtype).name << " m " << m << " row " << row << " output " << o;
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, MatmulGathersRows) {
  for (const DType dtype : kAllTypes) {
    Product product(dtype, 6, 40, 64, 7);
    const std::vector<int32_t> index = {0, 1, 5, 8, 9, 13, 20, 21, 22, 23, 31, 38, 39};
    for (const int m : {1, 6}) {
      const std::vector<float> all = product.run(*GetParam(), 0, m, 0, 40, true);
      const auto count = static_cast<int64_t>(index.size());
      const std::vector<float> some = product.run(*GetParam(), 0, m, 0, count, true, &index);
      for (int row = 0; row < m; ++row) {
        for (int64_t i = 0; i < count; ++i) ASSERT_EQ(some[row * 41 + i], all[row * 41 + index[i]]);
        ASSERT_EQ(some[row * 41 + count], kPoison);
      }
    }
  }
}

TEST_P(KernelsTest, MatmulOfOutliersTinyAndEndlessInputs) {
  for (const DType dtype : kAllTypes) {
    Product product(dtype, 5, 20, 96, 11);
    float* x = product.x.data();
    const int64_t stride = product.k + 3;
    x[7] = 3e4f;                                                   // beside values about 1
    for (int i = 0; i < 96; ++i) x[stride + i] *= 1e-20f;          // all small
    for (int i = 0; i < 96; ++i) x[2 * stride + i] = 0.0f;         // nothing
    x[3 * stride + 40] = std::numeric_limits<float>::quiet_NaN();  // says so in every output
    x[4 * stride + 70] = std::numeric_limits<float>::infinity();
    const std::vector<float> y = product.run(*GetParam(), 0, 5, 0, product.n);
    for (int64_t o = 0; o < product.n; ++o) {
      // Inputs beside the outlier are rounded to its last bit.
      double weights = 0;
      for (int i = 0; i < 32; ++i) weights += std::abs(product.weight.values[o * product.k + i]);
      const double tolerance = product.tolerance(0, o) + weights * 3e4 / (1 << 24);
      EXPECT_NEAR(y[o], product.exact(0, o), tolerance) << dtype_info(dtype).name;
      EXPECT_NEAR(y[21 + o], product.exact(1, o), 1e-24);
      EXPECT_EQ(y[2 * 21 + o], 0.0f);
      EXPECT_FALSE(std::isfinite(y[3 * 21 + o]));
      EXPECT_FALSE(std::isfinite(y[4 * 21 + o]));
    }
  }
}

TEST_P(KernelsTest, AccumulateAddsNeuronsInOrder) {
  uint32_t seed = 500;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t outputs : {1, 8, 37, 64, 203}) {
      for (const int m : {1, 2, 3, 4, 7}) {
        std::mt19937 random(++seed);
        const int64_t neurons = 83;
        const StoredMatrix weight = random_matrix(random, dtype, neurons, outputs);
        std::vector<int32_t> index;
        for (int32_t j = 0; j < neurons; ++j)
          if (random() % 3 != 0) index.push_back(j);
        const std::vector<float> a = random_values(random, m * neurons);
        const std::vector<float> start = random_values(random, m * (outputs + 1));
        for (const bool gathered : {false, true}) {
          const int64_t count = gathered ? static_cast<int64_t>(index.size()) : neurons;
          std::vector<float> y = start;
          GetParam()->accumulate({a.data(), neurons, m, weight.stored.data(), weight.row_bytes,
                                  dtype, gathered ? index.data() : nullptr, 0, count, outputs,
                                  y.data(), outputs + 1});
          for (int row = 0; row < m; ++row) {
            for (int64_t o = 0; o < outputs; ++o) {
              double sum = start[row * (outputs + 1) + o], size = 1;
              for (int64_t j = 0; j < count; ++j) {
                const int64_t neuron = gathered ? index[j] : j;
                const double term =
                    static_cast<double>(a[row * neurons + j]) * weight.values[neuron * outputs + o];
                sum += term;
                size += std::abs(term);
              }
              ASSERT_NEAR(y[row * (outputs + 1) + o], sum, 2e-6 * size);
            }
            ASSERT_EQ(y[row * (outputs + 1) + outputs], start[row * (outputs + 1) + outputs]);
          }
          // A row alone, and a part of the outputs, give the same bits.
          std::vector<float> last(start.end() - (outputs + 1), start.end());
          const int64_t half = outputs / 2;
          for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, half}, {half, outputs}}) {
            GetParam()->accumulate({a.data() + (m - 1) * neurons, neurons, 1,
                                    weight.stored.data() + dtype_bytes(dtype, begin),
                                    weight.row_bytes, dtype, gathered ? index.data() : nullptr, 0,
                                    count, end - begin, last.data() + begin, outputs + 1});
          }
          for (int64_t o = 0; o < outputs; ++o) ASSERT_EQ(last[o], y[(m - 1) * (outputs + 1) + o]);
        }
      }
    }
  }
}

TEST_P(KernelsTest, SiluMul) {
  std::mt19937 random(3);
  std::vector<float> gate = random_values(random, 77), up = random_values(random, 77);
  for (float& value : gate) value *= 20;
  gate[0] = 0;
  gate[1] = -200;
  gate[2] = 200;
  std::vector<float> out(78, kPoison);
  GetParam()->silu_mul(gate.data(), up.data(), out.data(), 77);
  for (int i = 0; i < 77; ++i) {
    const double g = gate[i];
    const double wanted = g / (1 + std::exp(-g)) * up[i];
    EXPECT_NEAR(out[i], wanted, 1e-6 * std::abs(wanted) + 1e-30) << g;
  }
  EXPECT_EQ(out[77], kPoison);
}

TEST(IsaTest, ForcingAnUnknownOneIsAnError) {
  ASSERT_EQ(setenv("POLAR_CPU_ISA", "sse9", 1), 0);
  const auto chosen = choose_kernels();
  ASSERT_EQ(unsetenv("POLAR_CPU_ISA"), 0);
  ASSERT_FALSE(chosen.ok());
  EXPECT_NE(chosen.error().message.find("POLAR_CPU_ISA"), std::string::npos);
  EXPECT_NE(chosen.error().message.find("portable"), std::string::npos);
}

TEST(IsaTest, ForcedAndBest) {
  for (const Kernels* kernels : runnable_kernels()) {
    ASSERT_EQ(setenv("POLAR_CPU_ISA", kernels->name, 1), 0);
    const auto chosen = choose_kernels();
    ASSERT_TRUE(chosen.ok());
    EXPECT_STREQ((*chosen)->name, kernels->name);
  }
  ASSERT_EQ(unsetenv("POLAR_CPU_ISA"), 0);
  EXPECT_EQ(*choose_kernels(), runnable_kernels().back());
}

}  // namespace
}  // namespace polar::backend::cpu
