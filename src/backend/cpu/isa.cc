#include "backend/cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <string>

namespace polar::backend::cpu {

namespace {

#if defined(__x86_64__)
/// Whether the CPU has AMX with bf16 and Linux lets this process use it, which it must be asked
/// for.
bool may_use_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // CPUID 7, EDX
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBf16) == 0 || (d & kTile) == 0)
    return false;
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

std::vector<const Kernels*> runnable_kernels() {
  std::vector<const Kernels*> kernels = {&portable_kernels()};
#if defined(__x86_64__)
  // These look at CPUID and at what the operating system saves (XGETBV).
  unsigned a = 0, b = 0, c = 0, d = 0;  // clang 14 does not know "f16c"
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  if (f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    kernels.push_back(&avx2_kernels());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni")) {
      kernels.push_back(&avx512_kernels());
      if (may_use_amx()) kernels.push_back(&amx_kernels());
    }
  }
#endif
  return kernels;
}

Result<const Kernels*> choose_kernels() {
  const std::vector<const Kernels*> kernels = runnable_kernels();
  const char* forced = std::getenv("POLAR_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return kernels.back();
  std::string names;
  for (const Kernels* candidate : kernels) {
    if (std::string(forced) == candidate->name) return candidate;
    names += (names.empty() ? "" : ", ") + std::string(candidate->name);
  }
  return bad_input("environment", "POLAR_CPU_ISA", "'" + std::string(forced) + "'",
                   "one that this CPU has: " + names);
}

}  // namespace polar::backend::cpu
