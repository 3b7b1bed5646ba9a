// Times products of few rows by this backend's kernels, cut in every way, beside the best of
// cuBLASLt's algorithms: graphs of 20 products, weights that rotate through more than a cache
// holds. Large tiles mark them evict-first, of which a cache keeps some all the same. One JSON
// object per line.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/cublas_library.h"
#include "backend/cuda/cublas_products.h"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"

using namespace polar::backend::cuda;  // NOLINT

namespace {

constexpr int kProducts = 20;
constexpr size_t kWeightBytes = size_t{1} << 30;

struct Bench {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  ProductLimits limits;
  void *weights = nullptr, *x = nullptr, *y = nullptr, *workspace = nullptr;

  /// Microseconds of one product; `launch` takes the offset of its weight.
  double time(size_t weight_bytes, const std::function<void(const void*)>& launch) const {
    const size_t others = std::max<size_t>(1, kWeightBytes / weight_bytes);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    POLAR_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kProducts; ++i)
      launch(static_cast<std::byte*>(weights) + i % others * weight_bytes);
    POLAR_CUDA(cudaStreamEndCapture(stream, &graph));
    POLAR_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<float> times;
    for (int round = 0; round < 8; ++round) {
      POLAR_CUDA(cudaEventRecord(begin, stream));
      POLAR_CUDA(cudaGraphLaunch(exec, stream));
      POLAR_CUDA(cudaEventRecord(end, stream));
      POLAR_CUDA(cudaEventSynchronize(end));
      float ms = 0;
      POLAR_CUDA(cudaEventElapsedTime(&ms, begin, end));
      if (round > 0) times.push_back(ms);
    }
    POLAR_CUDA(cudaGraphExecDestroy(exec));
    POLAR_CUDA(cudaGraphDestroy(graph));
    std::nth_element(times.begin(), times.begin() + 3, times.end());
    return times[3] * 1e3 / kProducts;
  }
};

void bench(const Bench& b, CublasProducts& cublas, int outputs, int k, int rows, bool gated,
           bool by_outputs) {
  const size_t bytes = size_t{2} * outputs * k;
  const ProductShape shape{rows, outputs, k, k, outputs, by_outputs, false, false, false};
  double library = 1e30;
  for (int i = 0; i < cublas.algorithms(shape); ++i)
    library = std::min(library, b.time(bytes, [&](const void* weight) {
      cublas.run(shape, i, b.x, weight, nullptr, b.y, b.workspace, b.stream);
    }));
  SkinnyLaunch launch;
  launch.x = b.x;
  launch.x_stride = k;
  launch.rows = rows;
  launch.n = gated ? outputs / 2 : outputs;
  launch.k = k;
  launch.activate = gated;
  launch.activation = polar::backend::Activation::kSilu;
  launch.gated = gated;
  launch.y = b.y;
  launch.y_stride = outputs;
  std::string cuts, wide_cuts_text;
  double best = 1e30, wide = 1e30;
  char text[64];
  if (!by_outputs) {
    for (const ProductCut& cut : product_cuts(outputs, product_tile(rows), b.limits)) {
      const double time = b.time(bytes, [&](const void* weight) {
        launch.weight = weight;
        launch_skinny(launch, cut, b.stream);
      });
      best = std::min(best, time);
      std::snprintf(text, sizeof(text), "%s[%d,%d,%.1f]", cuts.empty() ? "" : ",", cut.parts,
                    cut.per_processor, time);
      cuts += text;
    }
  }
  for (const WideCut& cut : wide_cuts(launch.n, k, gated, by_outputs)) {
    const double time = b.time(bytes, [&](const void* weight) {
      launch.weight = weight;
      launch_wide(launch, by_outputs, cut, b.stream);
    });
    wide = std::min(wide, time);
    std::snprintf(text, sizeof(text), "%s[%d,%d,%.1f]", wide_cuts_text.empty() ? "" : ",", cut.tile,
                  cut.parts, time);
    wide_cuts_text += text;
  }
  std::printf(
      "{\"bench\":\"product\",\"outputs\":%d,\"inputs\":%d,\"rows\":%d,\"gated\":%s,\"by_outputs\":"
      "%s,"
      "\"cublas_us\":%.1f,\"best_us\":%.1f,\"wide_us\":%.1f,\"cuts\":[%s],\"wide\":[%s]}\n",
      outputs, k, rows, gated ? "true" : "false", by_outputs ? "true" : "false", library, best,
      wide, cuts.c_str(), wide_cuts_text.c_str());
  std::fflush(stdout);
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    std::printf("skipped: no GPU\n");
    return 77;
  }
  auto library = CublasLibrary::load();
  POLAR_CHECK(library.ok());
  CublasProducts cublas(**library);
  Bench b;
  b.limits = {properties.multiProcessorCount, static_cast<int>(properties.sharedMemPerBlockOptin),
              code_version() >= 90};
  POLAR_CUDA(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking));
  POLAR_CUDA(cudaEventCreate(&b.begin));
  POLAR_CUDA(cudaEventCreate(&b.end));
  POLAR_CUDA(cudaMalloc(&b.weights, kWeightBytes));
  POLAR_CUDA(cudaMalloc(&b.x, size_t{64} * 65536 * 2));
  POLAR_CUDA(cudaMalloc(&b.y, size_t{64} * 262144 * 4));
  POLAR_CUDA(cudaMalloc(&b.workspace, CublasProducts::kWorkspaceBytes));
  launch_dummy(b.weights, kWeightBytes / 2, 0.02f, 1, b.stream);
  launch_dummy(b.x, size_t{64} * 65536, 1.0f, 2, b.stream);
  struct Shape {
    int outputs, inputs;
    bool gated = false, by_outputs = false;
  };
  for (const int rows : {1, 16, 48, 64}) {
    for (const Shape& s : std::vector<Shape>{{12288, 4096},
                                             {4096, 4096},
                                             {22016, 4096, true},
                                             {4096, 11008},
                                             {6144, 4096},
                                             {28672, 4096, true},
                                             {4096, 14336},
                                             {16384, 4096},
                                             {4096, 16384, false, true},
                                             {21504, 7168},
                                             {7168, 7168},
                                             {28672, 7168},
                                             {7168, 28672, false, true},
                                             {36864, 9216},
                                             {50272, 4096},
                                             {1728, 576},
                                             {576, 576}})
      bench(b, cublas, s.outputs, s.inputs, rows, s.gated, s.by_outputs);
  }
  return 0;
}
