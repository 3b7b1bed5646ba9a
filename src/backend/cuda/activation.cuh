#pragma once

#include "backend/ops.h"

namespace polar::backend::cuda {

__device__ __forceinline__ float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::kRelu:
      return fmaxf(x, 0.0f);
    case Activation::kSilu:
      return x / (1.0f + __expf(-x));
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  }
  return x;
}

}  // namespace polar::backend::cuda
