#include "backend/cuda/cublas_library.h"

#include <dlfcn.h>

#include <string>

namespace polar::backend::cuda {

namespace {

#define POLAR_TEXT_INNER_(x) #x
#define POLAR_TEXT_(x) POLAR_TEXT_INNER_(x)
/// The name under which the library of these headers' major version is installed.
constexpr const char* kLibrary = "libcublasLt.so." POLAR_TEXT_(CUBLAS_VER_MAJOR);

Error not_loaded() {
  const char* why = dlerror();
  return bad_input(
      "device", "cuda", why != nullptr ? why : "no reason given",
      std::string(kLibrary) + " of the CUDA toolkit (LD_LIBRARY_PATH may name its folder)");
}

Result<CublasLibrary> open_library() {
  // The linker's search: LD_LIBRARY_PATH, the folder of the toolkit that Polar was built with
  // (CMakeLists.txt leaves it in the program), the system's folders.
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return not_loaded();
  CublasLibrary functions;
#define POLAR_CUBLAS_FIND(name)                                                                  \
  functions.name = reinterpret_cast<decltype(functions.name)>(dlsym(library, "cublasLt" #name)); \
  if (functions.name == nullptr) return not_loaded();
  POLAR_CUBLAS_FUNCTIONS(POLAR_CUBLAS_FIND)
#undef POLAR_CUBLAS_FIND
  return functions;
}

}  // namespace

Result<const CublasLibrary*> CublasLibrary::load() {
  static const Result<CublasLibrary> library = open_library();
  if (!library.ok()) return library.error();
  return &library.value();
}

}  // namespace polar::backend::cuda
