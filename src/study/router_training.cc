#include "study/router_training.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace polar::study {

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// AdamW's state of one matrix.
struct Adam {
  RowMajor mean, square;
  int step = 0;

  void update(RowMajor& weight, const RowMajor& gradient, float rate, float decay) {
    if (step == 0) {
      mean = RowMajor::Zero(weight.rows(), weight.cols());
      square = mean;
    }
    ++step;
    mean = 0.9f * mean + 0.1f * gradient;
    square = 0.999f * square + 0.001f * gradient.cwiseProduct(gradient);
    const float first = 1 - std::pow(0.9f, static_cast<float>(step));
    const float second = 1 - std::pow(0.999f, static_cast<float>(step));
    weight.array() -= rate * ((mean.array() / first) / ((square.array() / second).sqrt() + 1e-8f) +
                              decay * weight.array());
  }
};

}  // namespace

sparsity::HeadRouter fit_head_router(const std::vector<float>& x,
                                     const std::vector<uint8_t>& positive, int hidden, int heads,
                                     int epochs, uint64_t seed) {
  const auto rows = static_cast<int>(x.size() / hidden);
  const Eigen::Map<const RowMajor> inputs(x.data(), rows, hidden);
  // Inputs as they are, at a low rate: the channels that vary most decide. Scaled alike, they would
  // teach routers more of the states that they train on, and less of those of their own sparse run.
  constexpr float kRate = 1e-4f;
  RowMajor weight = RowMajor::Zero(heads, hidden), bias = RowMajor::Zero(1, heads);
  Adam weight_state, bias_state;
  std::vector<int> order(rows);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937_64 random(seed);
  const int batch = std::min(256, rows), steps = rows / batch;
  RowMajor some(batch, hidden), error(batch, heads);
  for (int epoch = 0; epoch < epochs; ++epoch) {
    for (int i = rows - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
    const float done = static_cast<float>(epoch) / static_cast<float>(epochs);
    const float rate = kRate * 0.5f * (1 + std::cos(3.14159265f * done));
    for (int step = 0; step < steps; ++step) {
      for (int i = 0; i < batch; ++i) {
        const int row = order[step * batch + i];
        some.row(i) = inputs.row(row);
        for (int h = 0; h < heads; ++h)
          error(i, h) = -static_cast<float>(positive[static_cast<size_t>(row) * heads + h]);
      }
      const RowMajor logits = (some * weight.transpose()).rowwise() + bias.row(0);
      error.array() += (1 + (-logits.array()).exp()).inverse();
      error /= static_cast<float>(batch);
      weight_state.update(weight, error.transpose() * some, rate, 0.01f);
      bias_state.update(bias, error.colwise().sum(), rate, 0.0f);
    }
  }
  sparsity::HeadRouter router;
  router.weight.assign(weight.data(), weight.data() + weight.size());
  router.bias.assign(bias.data(), bias.data() + bias.size());
  return router;
}

}  // namespace polar::study
