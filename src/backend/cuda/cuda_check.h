#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

/// Aborts with file, line and CUDA's own words when a call fails that cannot fail unless Polar is
/// wrong.
#define POLAR_CUDA(call)                                                        \
  do {                                                                          \
    if (const cudaError_t polar_error_ = (call); polar_error_ != cudaSuccess) { \
      std::fprintf(stderr, "polar: %s:%d: %s: %s\n", __FILE__, __LINE__, #call, \
                   cudaGetErrorString(polar_error_));                           \
      std::abort();                                                             \
    }                                                                           \
  } while (false)
