#pragma once
// What the checks of the CUDA verbs share: inputs on both backends, and comparisons that count.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "backend/device.h"
#include "backend/ops.h"

namespace polar::backend::check {

inline int failures = 0;

inline std::vector<float> random_values(size_t count, uint64_t seed, float scale = 1.0f) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> v(count);
  for (float& x : v) x = bf16_to_f32(f32_to_bf16(uniform(random)));
  return v;
}
inline std::vector<uint16_t> narrowed(const std::vector<float>& v) {
  std::vector<uint16_t> bits(v.size());
  for (size_t i = 0; i < v.size(); ++i) bits[i] = f32_to_bf16(v[i]);
  return bits;
}

template <typename T>
Buffer to_device(Device& device, const std::vector<T>& v) {
  auto buffer = device.allocate(std::max<size_t>(v.size() * sizeof(T), 4), "a check");
  POLAR_CHECK(buffer.ok());
  device.upload(buffer->data(), v.data(), v.size() * sizeof(T));
  return std::move(buffer).value();
}
inline Buffer activations(Device& device, const std::vector<float>& v) {
  return to_device(device, narrowed(v));
}
inline Buffer poisoned(Device& device, size_t values, size_t bytes = 2) {
  return to_device(device, std::vector<uint8_t>(values * bytes, 0xff));  // not a number
}
inline std::vector<float> from_device(Device& device, const Buffer& buffer, size_t count) {
  std::vector<uint16_t> bits(count);
  device.download(bits.data(), buffer.data(), count * 2);
  std::vector<float> v(count);
  for (size_t i = 0; i < count; ++i) v[i] = bf16_to_f32(bits[i]);
  return v;
}
inline Tensor matrix(const Buffer& buffer, int64_t rows, int64_t width) {
  return Tensor{buffer.data(), DType::kBF16, {rows, width, 1, 1}, 2};
}

/// Values in the type of the residual stream, or in that of activations.
inline Buffer values_in(Device& device, const std::vector<float>& v, DType type) {
  return type == DType::kF32 ? to_device(device, v) : activations(device, v);
}
inline Tensor matrix(const Buffer& buffer, int64_t rows, int64_t width, DType type) {
  return Tensor{buffer.data(), type, {rows, width, 1, 1}, 2};
}
inline std::vector<float> from_device(Device& device, const Buffer& buffer, size_t count,
                                      DType type) {
  if (type != DType::kF32) return from_device(device, buffer, count);
  std::vector<float> v(count);
  device.download(v.data(), buffer.data(), count * sizeof(float));
  return v;
}

/// Largest difference, relative to the reference's root mean square.
inline void expect_near(const char* what, const std::vector<float>& got,
                        const std::vector<double>& want, double bound) {
  double worst = 0, squares = 0;
  for (const double w : want) squares += w * w;
  const double scale = std::sqrt(squares / static_cast<double>(want.size())) + 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(got[i] - want[i]) / scale;
    if (!(error <= worst)) worst = error;
  }
  const bool good = worst <= bound;
  std::printf("%-44s %.2e %s\n", what, worst, good ? "ok" : "WRONG");
  if (!good) ++failures;
}
inline void expect(const char* what, bool good) {
  if (!good) {
    std::printf("%-44s WRONG\n", what);
    ++failures;
  }
}

inline std::unique_ptr<Weight> weight(Device& device, const std::vector<uint16_t>& bits,
                                      int64_t rows, int64_t columns, bool gathers = false) {
  WeightSource source{
      "check",
      {Tensor{const_cast<uint16_t*>(bits.data()), DType::kBF16, {rows, columns, 1, 1}, 2}},
      gathers};
  auto made = device.prepare(source);
  POLAR_CHECK(made.ok());
  return std::move(made).value();
}

/// Rows of one step on a device: `count[s]` consecutive positions of every sequence s, from
/// `first[s]`, all prefill or all planned. Tables of pages are the caller's.
class StepRows {
 public:
  StepRows(Device& device, const std::vector<int>& first, const std::vector<int>& count,
           bool planned, int (*token_of)(int sequence, int position),
           int (*point_of)(int sequence, int position)) {
    std::vector<int32_t> token, position, sequence, point, begin;
    for (int s = 0; s < static_cast<int>(first.size()); ++s) {
      begin.push_back(static_cast<int32_t>(token.size()));
      for (int i = first[s]; i < first[s] + count[s]; ++i) {
        token.push_back(token_of(s, i));
        position.push_back(i);
        sequence.push_back(s);
        point.push_back(point_of(s, i));
      }
    }
    batch.rows = static_cast<int>(token.size());
    begin.push_back(batch.rows);
    batch.sequences = static_cast<int>(first.size());
    batch.prefill_rows = planned ? 0 : batch.rows;
    batch.token = keep(device, token);
    batch.position = keep(device, position);
    batch.sequence = keep(device, sequence);
    sequence_ = sequence;
    batch.point = keep(device, point);
    batch.chunk_begin = keep(device, begin);
  }
  Batch batch;
  /// Of a row.
  int sequence_of(int row) const { return sequence_[row]; }

 private:
  const int32_t* keep(Device& device, const std::vector<int32_t>& values) {
    arrays_.push_back(to_device(device, values));
    return arrays_.back().as<int32_t>();
  }
  std::vector<Buffer> arrays_;
  std::vector<int32_t> sequence_;
};

/// The plan verb beside the CPU's (plan_verb_check.cc).
void check_plans(Device& gpu, Device& cpu);
/// The products of few rows (products_check.cc).
void check_products(Device& device);
/// The choice of neurons (neurons_check.cc).
void check_neurons(Device& device);

}  // namespace polar::backend::check
