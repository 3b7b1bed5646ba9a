#include <immintrin.h>

#define POLAR_ISA avx2
#define POLAR_ISA_NAME "avx2"
#define POLAR_ISA_LEVEL 1
#include "backend/cpu/isa_inl.h"

namespace polar::backend::cpu {
const Kernels& avx2_kernels() {
  return avx2::kKernels;
}
}  // namespace polar::backend::cpu
