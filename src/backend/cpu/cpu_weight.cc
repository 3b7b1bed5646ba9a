#include "backend/cpu/cpu_weight.h"

#include <cstring>

namespace polar::backend::cpu {

namespace {

bool computed_as_stored(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
      return true;
    default:
      return false;
  }
}

/// Other quantised types become f16 once, at load: half the bytes of f32, and a rounding far below
/// the quantisation's own.
std::unique_ptr<std::byte[]> to_f16(const Tensor& tensor) {
  const int64_t rows = tensor.shape[0], columns = tensor.shape[1];
  auto converted = std::make_unique<std::byte[]>(static_cast<size_t>(rows) * columns * 2);
  std::vector<float> row(columns);
  const size_t row_bytes = dtype_bytes(tensor.dtype, columns);
  auto* out = reinterpret_cast<uint16_t*>(converted.get());
  for (int64_t r = 0; r < rows; ++r) {
    dequantize_row(tensor.dtype, tensor.as<std::byte>() + r * row_bytes, row.data(), columns);
    for (int64_t c = 0; c < columns; ++c) out[r * columns + c] = f32_to_f16(row[c]);
  }
  return converted;
}

void write_value(DType type, std::byte* out, int64_t index, float value) {
  if (type == DType::kF32) {
    std::memcpy(out + index * 4, &value, 4);
  } else {
    const uint16_t bits = type == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
    std::memcpy(out + index * 2, &bits, 2);
  }
}

/// splitmix64 as a generator of small values, the same on every machine.
float dummy_value(uint64_t seed, uint64_t index, float scale) {
  uint64_t x = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return (static_cast<float>(x >> 40) * 0x1p-23f - 1.0f) * scale;
}

}  // namespace

Result<std::unique_ptr<Weight>> CpuWeight::prepare(const WeightSource& source) {
  POLAR_CHECK(!source.parts.empty());
  int64_t rows = 0;
  size_t bytes = 0;
  const int64_t columns = source.parts[0].shape[1];
  for (const Tensor& part : source.parts) {
    POLAR_CHECK(part.rank == 2 && part.shape[1] == columns);
    rows += part.shape[0];
    bytes += dtype_bytes(computed_as_stored(part.dtype) ? part.dtype : DType::kF16, part.values());
  }
  std::unique_ptr<CpuWeight> weight(new CpuWeight(rows, columns, bytes));
  for (const Tensor& part : source.parts) {
    WeightPart prepared{part.as<std::byte>(), dtype_bytes(part.dtype, columns), part.dtype,
                        part.shape[0]};
    if (!computed_as_stored(part.dtype)) {
      weight->owned_.push_back(to_f16(part));
      prepared = {weight->owned_.back().get(), static_cast<size_t>(columns) * 2, DType::kF16,
                  part.shape[0]};
    }
    weight->parts_.push_back(prepared);
  }
  if (!source.gather_columns) return std::unique_ptr<Weight>(std::move(weight));

  POLAR_CHECK(source.parts.size() == 1);
  const WeightPart stored = weight->parts_[0];
  const DType type = dtype_info(stored.dtype).block_values == 1 ? stored.dtype : DType::kF16;
  const size_t value_bytes = type == DType::kF32 ? 4 : 2;
  std::unique_ptr<CpuWeight> turned(
      new CpuWeight(rows, columns, static_cast<size_t>(rows) * columns * value_bytes));
  turned->gathers_ = true;
  turned->owned_.push_back(std::make_unique<std::byte[]>(turned->bytes()));
  std::byte* out = turned->owned_.back().get();
  std::vector<float> row(columns);
  for (int64_t r = 0; r < rows; ++r) {
    dequantize_row(stored.dtype, stored.data + r * stored.row_bytes, row.data(), columns);
    for (int64_t c = 0; c < columns; ++c) write_value(type, out, c * rows + r, row[c]);
  }
  turned->parts_.push_back({out, static_cast<size_t>(rows) * value_bytes, type, columns});
  return std::unique_ptr<Weight>(std::move(turned));
}

std::unique_ptr<Weight> CpuWeight::dummy(int64_t rows, int64_t columns, DType dtype, bool gathers,
                                         uint64_t seed) {
  const size_t value_bytes = dtype == DType::kF32 ? 4 : 2;
  std::unique_ptr<CpuWeight> weight(
      new CpuWeight(rows, columns, static_cast<size_t>(rows) * columns * value_bytes));
  weight->gathers_ = gathers;
  weight->owned_.push_back(std::make_unique<std::byte[]>(weight->bytes()));
  std::byte* out = weight->owned_.back().get();
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(columns));
  // One stretch of random values, repeated with a shift per row: 100 GB of them would take minutes
  // to draw one by one.
  constexpr int64_t kStretch = 65521;
  std::vector<std::byte> stretch(static_cast<size_t>(kStretch) * value_bytes);
  for (int64_t i = 0; i < kStretch; ++i)
    write_value(dtype, stretch.data(), i, dummy_value(seed, i, scale));
  for (size_t done = 0; done < weight->bytes(); done += stretch.size()) {
    std::memcpy(out + done, stretch.data(), std::min(stretch.size(), weight->bytes() - done));
  }
  weight->parts_.push_back({out, static_cast<size_t>(gathers ? rows : columns) * value_bytes, dtype,
                            gathers ? columns : rows});
  return weight;
}

void CpuWeight::copy_row(int64_t row, float* out) const {
  POLAR_CHECK(!gathers_);
  for (const WeightPart& part : parts_) {
    if (row < part.rows) {
      dequantize_row(part.dtype, part.data + row * part.row_bytes, out, columns());
      return;
    }
    row -= part.rows;
  }
  POLAR_CHECK(!"row inside the matrix");
}

}  // namespace polar::backend::cpu
