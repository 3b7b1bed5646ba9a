#define POLAR_ISA portable
#define POLAR_ISA_NAME "portable"
#define POLAR_ISA_LEVEL 0
#include "backend/cpu/isa_inl.h"

namespace polar::backend::cpu {
const Kernels& portable_kernels() {
  return portable::kKernels;
}
}  // namespace polar::backend::cpu
