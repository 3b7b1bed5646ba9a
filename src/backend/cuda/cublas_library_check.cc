// cuBLASLt is found, with all its functions, and not before it is asked for. Needs no GPU.

#include "backend/cuda/cublas_library.h"

#include <cstdio>
#include <fstream>
#include <string>

using polar::backend::cuda::CublasLibrary;

namespace {

/// Whether the running program has mapped cuBLASLt.
bool is_mapped() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);)
    if (line.find("libcublasLt") != std::string::npos) return true;
  return false;
}

}  // namespace

int main() {
  POLAR_CHECK(!is_mapped());
  const auto library = CublasLibrary::load();
  if (!library.ok()) {
    std::printf("%s\n", library.error().message.c_str());
    return 1;
  }
  POLAR_CHECK(is_mapped());
  POLAR_CHECK(CublasLibrary::load().value() == library.value());
}
