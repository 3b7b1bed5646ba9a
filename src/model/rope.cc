// Inverse frequencies as transformers' modeling_rope_utils computes them.

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/config.h"

namespace polar::model {

namespace {

/// Slow rotations are stretched by `factor`, fast ones kept, those between blended (LLaMA 3.1).
double llama3_frequency(const RopeConfig& rope, double frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double original = rope.original_max_positions;
  if (wavelength > original / rope.low_frequency_factor) return frequency / rope.factor;
  if (wavelength < original / rope.high_frequency_factor) return frequency;
  const double smooth = (original / wavelength - rope.low_frequency_factor) /
                        (rope.high_frequency_factor - rope.low_frequency_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

/// The dimension that turns `rotations` times over the original context (yarn, arXiv 2309.00071).
double yarn_dimension(const RopeConfig& rope, double rotations) {
  return rope.dim * std::log(rope.original_max_positions / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

}  // namespace

RopeTable rope_table(const RopeConfig& rope) {
  RopeTable table;
  double low = yarn_dimension(rope, rope.beta_fast), high = yarn_dimension(rope, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rope.dim - 1.0);
  if (low == high) high += 0.001;
  for (int i = 0; i < rope.dim / 2; ++i) {
    double frequency = 1.0 / std::pow(rope.theta, 2.0 * i / rope.dim);
    switch (rope.scaling) {
      case RopeScaling::kNone:
        break;
      case RopeScaling::kLinear:
        frequency /= rope.factor;
        break;
      case RopeScaling::kLlama3:
        frequency = llama3_frequency(rope, frequency);
        break;
      case RopeScaling::kYarn: {
        const double stretched = std::clamp((i - low) / (high - low), 0.0, 1.0);
        frequency = frequency / rope.factor * stretched + frequency * (1 - stretched);
        break;
      }
    }
    if (!rope.frequency_factors.empty()) frequency /= rope.frequency_factors[i];
    table.inverse_frequency.push_back(static_cast<float>(frequency));
  }
  if (rope.scaling == RopeScaling::kYarn) {
    const double by_factor = rope.factor > 1 ? 0.1 * std::log(rope.factor) + 1 : 1.0;
    table.scale = static_cast<float>(rope.attention_factor > 0 ? rope.attention_factor : by_factor);
  }
  return table;
}

}  // namespace polar::model
