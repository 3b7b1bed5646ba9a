#pragma once
// cuBLASLt, loaded when a GPU is opened. A program that links it maps 150 to 205 MB of it at every
// start, used or not: one that computes on the CPU would never see the end of it.

#include <cublasLt.h>

#include "core/error.h"

// What Polar calls of it; each becomes a member of CublasLibrary.
#define POLAR_CUBLAS_FUNCTIONS(f)                                                          \
  f(Create) f(Destroy) f(Matmul) f(MatmulAlgoGetHeuristic) f(MatmulDescCreate)             \
      f(MatmulDescDestroy) f(MatmulDescSetAttribute) f(MatmulPreferenceCreate)             \
          f(MatmulPreferenceDestroy) f(MatmulPreferenceSetAttribute) f(MatrixLayoutCreate) \
              f(MatrixLayoutDestroy)

namespace polar::backend::cuda {

/// Functions of cuBLASLt by their names without the prefix: `Matmul` is cublasLtMatmul.
struct CublasLibrary {
#define POLAR_CUBLAS_MEMBER(name) decltype(&cublasLt##name) name = nullptr;
  POLAR_CUBLAS_FUNCTIONS(POLAR_CUBLAS_MEMBER)
#undef POLAR_CUBLAS_MEMBER

  /// Loads the library on the first call and keeps it to the end of the program. Any thread may
  /// call. An Error when it, or one of its functions, is not found.
  static Result<const CublasLibrary*> load();
};

}  // namespace polar::backend::cuda
