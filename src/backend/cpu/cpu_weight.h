#pragma once

#include <vector>

#include "backend/device.h"

namespace polar::backend::cpu {

/// Rows of one stored type, in the mapped file or in memory that the weight owns.
struct WeightPart {
  const std::byte* data;
  size_t row_bytes;
  DType dtype;
  int64_t rows;
};

/// A matrix as stored: row blocks one under the other. With `gathers` it is held transposed
/// instead, [columns][rows]: one part, whose row j is column j of the matrix.
class CpuWeight : public Weight {
 public:
  static Result<std::unique_ptr<Weight>> prepare(const WeightSource& source);
  static std::unique_ptr<Weight> dummy(int64_t rows, int64_t columns, DType dtype, bool gathers,
                                       uint64_t seed);

  const std::vector<WeightPart>& parts() const { return parts_; }
  bool gathers() const { return gathers_; }
  /// Row `row` of a weight that does not gather, as f32.
  void copy_row(int64_t row, float* out) const;

 private:
  using Weight::Weight;
  std::vector<WeightPart> parts_;
  std::vector<std::unique_ptr<std::byte[]>> owned_;
  bool gathers_ = false;
};

inline const CpuWeight& cpu(const Weight& weight) {
  return static_cast<const CpuWeight&>(weight);
}

}  // namespace polar::backend::cpu
