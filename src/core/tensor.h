#pragma once

#include <array>
#include <cstdint>

#include "core/dtype.h"

namespace polar {

/// A non-owning view of a dense row-major array; where it lives (host or device) is known from who
/// made it. Owners are explicit: a mapped file, a backend::Buffer, a std::vector. Rank 1 to 4;
/// unused extents are 1.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  std::array<int64_t, 4> shape = {1, 1, 1, 1};  // outermost first; the last extent is contiguous
  int rank = 0;

  int64_t values() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace polar
