#pragma once
// Dense products by cuBLASLt, with the algorithms of each shape kept.

#include <map>
#include <tuple>
#include <vector>

#include "backend/cuda/cublas_library.h"
#include "core/dtype.h"

namespace polar::backend::cuda {

/// y = x W^T (+ bias) (ReLU): the shape that names a cached choice.
struct ProductShape {
  int rows = 0, outputs = 0, k = 0;
  int64_t x_stride = 0, y_stride = 0;
  bool by_columns = false;  // the weight is stored [k][outputs]
  bool f32 = false;         // y is f32, else bf16
  bool bias = false, relu = false;
  auto operator<=>(const ProductShape&) const = default;
};

class CublasProducts {
 public:
  explicit CublasProducts(const CublasLibrary& library);
  ~CublasProducts();
  CublasProducts(const CublasProducts&) = delete;
  CublasProducts& operator=(const CublasProducts&) = delete;

  /// How many algorithms the library proposes for a shape (at most 8, none for some narrow ones),
  /// best guess first.
  int algorithms(const ProductShape& shape) {
    return static_cast<int>(plan(shape).algorithms.size());
  }
  /// Queues one product. `bias` [outputs] is f32 where y is, else bf16.
  void run(const ProductShape& shape, int algorithm, const void* x, const void* weight,
           const void* bias, void* y, void* workspace, cudaStream_t stream);

  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

 private:
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t weight = nullptr, x = nullptr, y = nullptr;
    std::vector<cublasLtMatmulAlgo_t> algorithms;
  };
  Plan& plan(const ProductShape& shape);

  const CublasLibrary& library_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<ProductShape, Plan> plans_;
};

}  // namespace polar::backend::cuda
