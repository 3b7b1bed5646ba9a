#pragma once
// Random matrices in stored types, for tests and benchmarks.

#include <cstring>
#include <random>
#include <vector>

#include "core/dtype.h"

namespace polar::backend::cpu {

inline std::vector<float> random_values(std::mt19937& random, size_t count, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

/// [rows][columns] as stored, and what its values mean.
struct StoredMatrix {
  DType dtype;
  int64_t rows, columns;
  size_t row_bytes;
  std::vector<std::byte> stored;
  std::vector<float> values;
};

/// Random bytes as quants under random f16 scales (and minima): not what a quantiser would write,
/// but every pattern a file may hold.
inline void random_blocks(std::mt19937& random, DType dtype, std::vector<std::byte>& stored) {
  const int block_bytes = dtype_info(dtype).block_bytes;
  const int halves = dtype == DType::kQ4_1 || dtype == DType::kQ5_1 ? 2 : 1;
  for (std::byte& byte : stored) byte = static_cast<std::byte>(random());
  for (size_t block = 0; block < stored.size(); block += block_bytes) {
    for (int i = 0; i < halves; ++i) {
      const float scale = std::normal_distribution<float>(0.0f, 0.1f)(random);
      const uint16_t bits = f32_to_f16(scale);
      std::memcpy(stored.data() + block + i * 2, &bits, 2);
    }
  }
}

inline StoredMatrix random_matrix(std::mt19937& random, DType dtype, int64_t rows,
                                  int64_t columns) {
  StoredMatrix matrix{dtype, rows, columns, dtype_bytes(dtype, columns), {}, {}};
  matrix.stored.resize(matrix.row_bytes * rows);
  matrix.values.resize(rows * columns);
  if (dtype_info(dtype).block_values > 1) {
    random_blocks(random, dtype, matrix.stored);
  } else {
    const std::vector<float> values = random_values(random, rows * columns);
    for (int64_t i = 0; i < rows * columns; ++i) {
      if (dtype == DType::kF32) {
        std::memcpy(matrix.stored.data() + i * 4, &values[i], 4);
      } else {
        const uint16_t bits = dtype == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
        std::memcpy(matrix.stored.data() + i * 2, &bits, 2);
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    dequantize_row(dtype, matrix.stored.data() + row * matrix.row_bytes,
                   matrix.values.data() + row * columns, columns);
  }
  return matrix;
}

}  // namespace polar::backend::cpu
