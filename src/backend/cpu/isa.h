#pragma once

#include <vector>

#include "backend/cpu/kernels.h"
#include "core/error.h"

namespace polar::backend::cpu {

/// The kernels of the best instruction set that this CPU and its operating system support, or of
/// the one that the environment variable POLAR_CPU_ISA names (portable, avx2, avx512, amx). Errors:
/// an unknown name, one that this CPU does not have.
Result<const Kernels*> choose_kernels();

/// All kernels that run on this CPU, the portable ones first: for tests.
std::vector<const Kernels*> runnable_kernels();

}  // namespace polar::backend::cpu
