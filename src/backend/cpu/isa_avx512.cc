#include <immintrin.h>

#define POLAR_ISA avx512
#define POLAR_ISA_NAME "avx512"
#define POLAR_ISA_LEVEL 2
#include "backend/cpu/isa_inl.h"

namespace polar::backend::cpu {
const Kernels& avx512_kernels() {
  return avx512::kKernels;
}
}  // namespace polar::backend::cpu
