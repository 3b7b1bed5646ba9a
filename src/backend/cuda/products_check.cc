// The products of few rows, called directly: the verbs choose them only where they are fastest.

#include <cuda_runtime_api.h>

#include "backend/cuda/kernels.h"
#include "backend/cuda/verbs_fixture.h"

namespace polar::backend::check {
namespace {

using cuda::ProductWorkspace;

struct Case {
  int rows, n, k;
  bool gated, gathered, bias, f32;
  int processors;  // that the work is shared among
};

std::vector<int32_t> some_rows(int count, int all, std::mt19937& random) {
  std::vector<int32_t> index(all);
  for (int i = 0; i < all; ++i) index[i] = i;
  std::shuffle(index.begin(), index.end(), random);
  index.resize(count);
  return index;
}

/// Memory that every product leaves as it found it.
struct Workspace {
  explicit Workspace(Device& device)
      : partial(poisoned(device, size_t{32} << 20, 1)),
        counters(to_device(device, std::vector<int32_t>(cuda::kSplitCounters))) {}
  ProductWorkspace with(int processors) const {
    return {partial.data(), partial.bytes(), counters.as<int32_t>(), processors};
  }
  Buffer partial, counters;
};

/// y = act(x W[index]^T + b), of a gated pair times the other half; y has a stride of its own, and
/// what lies between its rows stays.
void check_by_inputs(Device& device, const Workspace& workspace, const Case& c) {
  std::mt19937 random(c.n * 31 + c.k + c.rows);
  const int stored = c.gathered ? 2 * c.n : c.n, halves = c.gated ? 2 : 1;
  const int64_t x_stride = c.k + 8, y_stride = c.n + 5;
  const auto x = random_values(c.rows * x_stride, random());
  const auto w = random_values(static_cast<size_t>(halves) * stored * c.k, random(), 0.1f);
  const auto b = random_values(static_cast<size_t>(halves) * stored, random());
  const auto index = some_rows(c.n, stored, random);
  const Buffer dx = activations(device, x), dw = activations(device, w), db = to_device(device, b),
               di = to_device(device, index),
               dy = poisoned(device, c.rows * y_stride, c.f32 ? 4 : 2);
  cuda::SkinnyLaunch launch;
  launch.x = dx.data();
  launch.x_stride = x_stride;
  launch.rows = c.rows;
  launch.weight = dw.data();
  launch.index = c.gathered ? di.as<int32_t>() : nullptr;
  launch.n = c.n;
  launch.k = c.k;
  launch.bias = c.bias ? db.as<float>() : nullptr;
  launch.activate = true;
  launch.activation = c.gated ? Activation::kSilu : Activation::kRelu;
  launch.gated = c.gated;
  launch.y = dy.data();
  launch.y_stride = y_stride;
  launch.y_f32 = c.f32;
  device.synchronize();
  cuda::launch_skinny(launch, workspace.with(c.processors), nullptr);
  POLAR_CHECK(cudaDeviceSynchronize() == cudaSuccess);

  std::vector<double> want;
  std::vector<float> got;
  const size_t values = c.rows * y_stride;
  std::vector<float> y(values);
  if (c.f32) {
    device.download(y.data(), dy.data(), values * 4);
  } else {
    y = from_device(device, dy, values);
  }
  bool between_stays = true;
  for (int r = 0; r < c.rows; ++r) {
    for (int j = 0; j < y_stride; ++j) {
      const float v = y[r * y_stride + j];
      if (j >= c.n) {
        between_stays = between_stays && std::isnan(v);
        continue;
      }
      const int row = c.gathered ? index[j] : j;
      const auto sum = [&](int64_t of) {
        double s = c.bias ? b[of] : 0.0;
        for (int i = 0; i < c.k; ++i) s += double{x[r * x_stride + i]} * w[of * c.k + i];
        return s;
      };
      const double first = sum(row);
      want.push_back(c.gated ? first / (1 + std::exp(-first)) * sum(row + c.n)
                             : std::max(first, 0.0));
      got.push_back(v);
    }
  }
  char name[96];
  std::snprintf(name, sizeof(name), "product %d x %d x %d%s%s%s, %d shares", c.rows, c.n, c.k,
                c.gated ? " gated" : "", c.gathered ? " gathered" : "", c.f32 ? " f32" : "",
                c.processors);
  // bf16 rounds the largest values of a product of two by several hundredths of the mean square.
  expect_near(name, got, want, c.f32 ? 1e-3 : c.gated ? 0.06 : 0.02);
  expect("between the rows of y", between_stays);
}

/// y = a W[index] + b, rows of W along the outputs.
void check_by_outputs(Device& device, const Workspace& workspace, const Case& c) {
  std::mt19937 random(c.n * 37 + c.k + c.rows);
  const int stored = c.gathered ? 2 * c.k : c.k;
  const int64_t stride = (c.k + 7) / 8 * 8;
  const auto a = random_values(c.rows * stride, random());
  const auto w = random_values(static_cast<size_t>(stored) * c.n, random(), 0.1f);
  const auto b = random_values(c.n, random());
  const auto index = some_rows(c.k, stored, random);
  const Buffer da = activations(device, a), dw = activations(device, w), db = to_device(device, b),
               di = to_device(device, index),
               dy = poisoned(device, static_cast<size_t>(c.rows) * c.n);
  cuda::GatherDownLaunch launch;
  launch.a = da.data();
  launch.a_stride = stride;
  launch.rows = c.rows;
  launch.weight = dw.data();
  launch.index = c.gathered ? di.as<int32_t>() : nullptr;
  launch.count = c.k;
  launch.outputs = c.n;
  launch.bias = c.bias ? db.as<float>() : nullptr;
  launch.y = dy.data();
  device.synchronize();
  cuda::launch_gather_down(launch, workspace.with(c.processors), nullptr);
  POLAR_CHECK(cudaDeviceSynchronize() == cudaSuccess);
  std::vector<double> want;
  for (int r = 0; r < c.rows; ++r) {
    for (int n = 0; n < c.n; ++n) {
      double s = c.bias ? b[n] : 0.0;
      for (int j = 0; j < c.k; ++j)
        s += double{a[r * stride + j]} *
             w[static_cast<int64_t>(c.gathered ? index[j] : j) * c.n + n];
      want.push_back(s);
    }
  }
  char name[96];
  std::snprintf(name, sizeof(name), "product by outputs %d x %d x %d%s, %d shares", c.rows, c.n,
                c.k, c.gathered ? " gathered" : "", c.processors);
  expect_near(name, from_device(device, dy, want.size()), want, 0.02);
}

}  // namespace

void check_products(Device& device) {
  const Workspace workspace(device);
  for (const int rows : {1, 8, 9, 16, 31, 33, 64}) {
    for (const int processors : {1, 3, 16, 100}) {
      const bool odd = (rows + processors) % 2 == 1;
      check_by_inputs(device, workspace, {rows, 700, 328, false, false, odd, odd, processors});
      check_by_inputs(device, workspace, {rows, 333, 136, false, true, !odd, false, processors});
      check_by_inputs(device, workspace, {rows, 300, 456, true, false, odd, !odd, processors});
      check_by_outputs(device, workspace, {rows, 712, 333, false, true, odd, false, processors});
      check_by_outputs(device, workspace, {rows, 136, 1, false, odd, true, false, processors});
    }
    // Long shares: tiles of 256 outputs.
    check_by_inputs(device, workspace, {rows, 1031, 1600, false, true, true, false, 7});
    check_by_outputs(device, workspace, {rows, 1032, 1603, false, true, true, false, 7});
  }
  std::vector<int32_t> counters(cuda::kSplitCounters);
  device.download(counters.data(), workspace.counters.data(), counters.size() * sizeof(int32_t));
  expect("counters are zero again",
         std::all_of(counters.begin(), counters.end(), [](int32_t v) { return v == 0; }));
}

}  // namespace polar::backend::check
