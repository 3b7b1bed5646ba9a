// The products of few rows, called directly: the verbs choose them only where they are fastest.

#include <cuda_runtime_api.h>

#include "backend/cuda/kernels.h"
#include "backend/cuda/verbs_fixture.h"

namespace polar::backend::check {
namespace {

struct Case {
  int rows, n, k;
  bool gated, gathered, bias, f32;
  int parts;  // blocks that share a tile
  int per_processor = 3;
  int wide = 0;  // stored rows of a wide product's tile
};

std::vector<int32_t> some_rows(int count, int all, std::mt19937& random) {
  std::vector<int32_t> index(all);
  for (int i = 0; i < all; ++i) index[i] = i;
  std::shuffle(index.begin(), index.end(), random);
  index.resize(count);
  return index;
}

cuda::ProductCut cut(const Case& c) {
  return {c.parts, c.per_processor};
}

/// y = act(x W[index]^T + b), of a gated pair times the other half; y has a stride of its own, and
/// what lies between its rows stays.
void check_by_inputs(Device& device, const Case& c) {
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
  if (c.wide > 0) {
    cuda::launch_wide(launch, false, {c.wide, c.parts}, nullptr);
  } else {
    cuda::launch_skinny(launch, cut(c), nullptr);
  }
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
  std::snprintf(name, sizeof(name), "product %d x %d x %d%s%s%s, %d parts, %d a processor, tile %d",
                c.rows, c.n, c.k, c.gated ? " gated" : "", c.gathered ? " gathered" : "",
                c.f32 ? " f32" : "", c.parts, c.per_processor, c.wide);
  // bf16 rounds the largest values of a product of two by several hundredths of the mean square.
  expect_near(name, got, want, c.f32 ? 1e-3 : c.gated ? 0.06 : 0.03);
  expect("between the rows of y", between_stays);
}

/// y = a W[index] + b, rows of W along the outputs.
void check_by_outputs(Device& device, const Case& c) {
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
  device.synchronize();
  if (c.wide > 0) {
    cuda::launch_wide({.x = da.data(),
                       .x_stride = stride,
                       .rows = c.rows,
                       .weight = dw.data(),
                       .n = c.n,
                       .k = c.k,
                       .bias = c.bias ? db.as<float>() : nullptr,
                       .y = dy.data(),
                       .y_stride = c.n},
                      true, {c.wide, c.parts}, nullptr);
  } else {
    cuda::launch_gather_down({.a = da.data(),
                              .a_stride = stride,
                              .rows = c.rows,
                              .weight = dw.data(),
                              .index = c.gathered ? di.as<int32_t>() : nullptr,
                              .count = c.k,
                              .outputs = c.n,
                              .bias = c.bias ? db.as<float>() : nullptr,
                              .y = dy.data()},
                             cut(c), nullptr);
  }
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
  std::snprintf(name, sizeof(name),
                "product by outputs %d x %d x %d%s, %d parts, %d a processor, tile %d", c.rows, c.n,
                c.k, c.gathered ? " gathered" : "", c.parts, c.per_processor, c.wide);
  expect_near(name, from_device(device, dy, want.size()), want, 0.02);
}

/// Large tiles by tensor copies: tiles that are no multiple of a warpgroup's rows, tiles that are
/// not full, chunks that are not, fewer chunks than stages, more chunks than a ring holds.
void check_wide(Device& device) {
  for (const int rows : {1, 16, 17, 32, 33, 48, 49, 64}) {
    for (int parts = 1; parts <= cuda::kMostParts; parts *= 2) {
      const bool odd = (rows + parts) % 2 == 1;
      for (const int tile : {16, 64, 112, 176, 192, 224, 336, 512}) {
        check_by_inputs(device, {rows, 712, 1088, false, false, odd, odd, parts, 1, tile});
        check_by_inputs(device, {rows, 328, 1216, true, false, !odd, false, parts, 1, tile});
        if (tile % 64 == 0)
          check_by_outputs(device, {rows, 704, 1320, false, false, odd, false, parts, 1, tile});
      }
    }
  }
  check_by_inputs(device, {48, 264, 3264, false, false, true, false, 1, 1, 192});
  check_by_inputs(device, {64, 2504, 4160, true, false, true, false, 2, 1, 464});
}

}  // namespace

void check_products(Device& device) {
  const int most = cuda::code_version() >= 90 ? cuda::kMostParts : 1;
  if (cuda::wide_can(64, 64, false)) check_wide(device);
  for (const int rows : {1, 8, 9, 16, 31, 33, 47, 64}) {
    for (int parts = 1; parts <= most; parts *= 2) {
      const bool odd = (rows + parts) % 2 == 1;
      const int per = 2 + (rows / 2 + parts) % 2;
      check_by_inputs(device, {rows, 700, 328, false, false, odd, odd, parts, per});
      check_by_inputs(device, {rows, 333, 136, false, true, !odd, false, parts, per});
      check_by_inputs(device, {rows, 300, 456, true, false, odd, !odd, parts, per});
      check_by_outputs(device, {rows, 712, 333, false, true, odd, false, parts, per});
      check_by_outputs(device, {rows, 136, 1, false, odd, true, false, parts, per});
      // More chunks than a ring holds.
      check_by_inputs(device, {rows, 261, 3200, odd, true, true, false, parts, per});
      check_by_outputs(device, {rows, 264, 1603, false, true, true, false, parts, per});
    }
  }
}

}  // namespace polar::backend::check
