// Which neurons a step computes: the choice beside choose_neurons(), the verb beside double
// precision.

#include <cuda_runtime_api.h>

#include <cmath>
#include <set>

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/verbs_fixture.h"
#include "backend/neuron_choice.h"

namespace polar::backend::check {
namespace {

/// Ascending, and no neuron that was left is better than one that was taken by more than `slack`.
bool takes_the_best(const std::vector<int32_t>& index, const std::vector<float>& scores,
                    float slack) {
  const std::set<int32_t> taken(index.begin(), index.end());
  if (taken.size() != index.size() || !std::is_sorted(index.begin(), index.end())) return false;
  if (*taken.begin() < 0 || *taken.rbegin() >= static_cast<int>(scores.size())) return false;
  float worst = INFINITY, best_left = -INFINITY;
  for (int n = 0; n < static_cast<int>(scores.size()); ++n) {
    if (taken.contains(n)) {
      worst = std::min(worst, scores[n]);
    } else {
      best_left = std::max(best_left, scores[n]);
    }
  }
  return best_left <= worst + slack;
}

std::vector<int32_t> downloaded(Device& device, const Buffer& buffer, int count) {
  std::vector<int32_t> values(count);
  device.download(values.data(), buffer.data(), values.size() * sizeof(int32_t));
  return values;
}

/// Sums of few small whole numbers: exact, and with many ties.
void check_choice(Device& device, int rows, int ffn, int count, UnionBy by) {
  std::mt19937 random(rows * 131 + ffn + count);
  std::vector<float> logits(static_cast<size_t>(rows) * ffn);
  for (float& v : logits)
    v = by == UnionBy::kSum ? static_cast<float>(static_cast<int>(random() % 15) - 8)
                            : std::normal_distribution<float>(-2.0f, 3.0f)(random);
  const Buffer dl = to_device(device, logits), index = poisoned(device, count, 4),
               keys = poisoned(device, ffn, 4),
               zeros = to_device(device, std::vector<int32_t>(cuda::kNeuronBins));
  device.synchronize();
  for (int run = 0; run < 2; ++run) {
    const cuda::NeuronScores scores{by, 0.5f, keys.as<uint32_t>(), zeros.as<int32_t>()};
    cuda::launch_score_neurons(dl.as<float>(), rows, ffn, scores, nullptr);
    cuda::launch_list_neurons(scores, ffn, count, index.as<int32_t>(), nullptr);
    POLAR_CHECK(cudaDeviceSynchronize() == cudaSuccess);
  }
  for (float& v : logits) v *= 0.5f;
  const std::vector<int32_t> got = downloaded(device, index, count);
  char name[80];
  std::snprintf(name, sizeof(name), "%d of %d neurons, %d rows", count, ffn, rows);
  if (by == UnionBy::kSum) {
    expect(name, got == choose_neurons(logits.data(), rows, ffn, count, by));
  } else {
    expect(name, takes_the_best(got, union_scores(logits.data(), rows, ffn, by), 1e-4f * rows));
  }
}

/// `four_bits`: the router's wide matrix.
void check_verb(Device& device, int rows, int hidden, int ffn, int rank, int count,
                bool four_bits) {
  std::mt19937 random(rows + hidden + ffn + rank);
  const int width = rank > 0 ? rank : hidden;
  const auto x = random_values(static_cast<size_t>(rows) * hidden, random());
  const auto a = random_values(static_cast<size_t>(rank) * hidden, random(), 0.1f);
  auto b = random_values(static_cast<size_t>(ffn) * width, random(), 0.1f);
  const auto bias = random_values(ffn, random());
  const auto a_bits = narrowed(a), b_bits = narrowed(b);
  const auto narrow = rank > 0 ? weight(device, a_bits, rank, hidden) : nullptr;
  std::unique_ptr<Weight> wide;
  if (four_bits) {
    std::vector<std::byte> blocks(dtype_bytes(DType::kQ4_0, b.size()));
    quantize_q4_0(b.data(), blocks.data(), b.size());
    dequantize_row(DType::kQ4_0, blocks.data(), b.data(), b.size());
    const Tensor view{blocks.data(), DType::kQ4_0, {ffn, width, 1, 1}, 2};
    auto made = device.prepare({"check", {view}, false, true});
    POLAR_CHECK(made.ok());
    wide = std::move(made).value();
    const size_t rows_padded = (ffn + 15) / 16 * 16, padded = (width + 511) / 512 * 512;
    expect("bytes of four bits", wide->bytes() == dtype_bytes(DType::kQ4_0, rows_padded * padded));
  } else {
    wide = weight(device, b_bits, ffn, width);
  }
  const Buffer dx = activations(device, x), db = to_device(device, bias),
               scratch = poisoned(device, static_cast<size_t>(rows) * ffn),
               index = poisoned(device, count, 4);
  NeuronArgs args;
  args.x = matrix(dx, rows, hidden);
  args.narrow = narrow.get();
  args.wide = wide.get();
  args.bias = db.as<float>();
  args.unit = 0.75f;
  args.by = UnionBy::kLikely;
  args.scratch = matrix(scratch, rows, ffn);
  args.count = count;
  args.index = index.as<int32_t>();
  device.ops().neurons(args);

  std::vector<float> logits(static_cast<size_t>(rows) * ffn);
  for (int r = 0; r < rows; ++r) {
    std::vector<double> in(x.begin() + r * hidden, x.begin() + (r + 1) * hidden);
    if (rank > 0) {
      std::vector<double> low(rank);
      for (int i = 0; i < rank; ++i)
        for (int k = 0; k < hidden; ++k) low[i] += in[k] * a[i * hidden + k];
      in = low;
    }
    for (int n = 0; n < ffn; ++n) {
      double sum = bias[n];
      for (int k = 0; k < width; ++k) sum += in[k] * b[static_cast<size_t>(n) * width + k];
      logits[static_cast<size_t>(r) * ffn + n] = static_cast<float>(sum / 0.75);
    }
  }
  char name[80];
  std::snprintf(name, sizeof(name), "neurons of %d rows, %d x %d, rank %d%s", rows, hidden, ffn,
                rank, four_bits ? ", four bits" : "");
  // In bf16 are the inner product of a low rank, and what four bits stand for.
  expect(name, takes_the_best(downloaded(device, index, count),
                              union_scores(logits.data(), rows, ffn, args.by),
                              rank > 0 || four_bits ? 0.02f * rows : 1e-3f * rows));
}

/// The product of some numbers of rows with a matrix of four bits, directly: verbs mostly rank what
/// it gives.
void check_four_bits(Device& device, const std::vector<int>& numbers, int n, int k) {
  std::mt19937 random(n + k);
  const int64_t x_stride = k + 8;
  const auto x = random_values(numbers.back() * x_stride, random());
  auto w = random_values(static_cast<size_t>(n) * k, random(), 0.1f);
  const auto bias = random_values(n, random());
  std::vector<std::byte> blocks(dtype_bytes(DType::kQ4_0, w.size()));
  quantize_q4_0(w.data(), blocks.data(), w.size());
  dequantize_row(DType::kQ4_0, blocks.data(), w.data(), w.size());
  const Tensor view{blocks.data(), DType::kQ4_0, {n, k, 1, 1}, 2};
  const auto made = device.prepare({"check", {view}, false, true});
  POLAR_CHECK(made.ok());
  const cuda::CudaWeight& weight = cuda::cuda(**made);
  const Buffer dx = activations(device, x), db = to_device(device, bias);
  for (const int rows : numbers) {
    const Buffer dy = poisoned(device, static_cast<size_t>(rows) * n, 4);
    cuda::FourBitLaunch launch;
    launch.x = dx.data();
    launch.x_stride = x_stride;
    launch.rows = rows;
    launch.matrix = weight.data();
    launch.n = n;
    launch.k = k;
    launch.unit = weight.unit();
    launch.bias = db.as<float>();
    launch.y = dy.as<float>();
    device.synchronize();
    std::vector<float> got(static_cast<size_t>(rows) * n), again(got.size());
    for (std::vector<float>* to : {&got, &again}) {
      cuda::launch_four_bit(launch, nullptr);
      POLAR_CHECK(cudaDeviceSynchronize() == cudaSuccess);
      device.download(to->data(), dy.data(), to->size() * sizeof(float));
    }
    double off = 0.0, all = 0.0;
    const int step = n > 4096 ? 7 : 1;
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < n; i += step) {
        double sum = bias[i];
        for (int j = 0; j < k; ++j)
          sum += static_cast<double>(x[r * x_stride + j]) * w[static_cast<size_t>(i) * k + j];
        const double d = got[static_cast<size_t>(r) * n + i] - sum;
        off += d * d;
        all += sum * sum;
      }
    }
    char name[80];
    std::snprintf(name, sizeof(name), "four bits, %d rows, %d x %d: error %.1e", rows, n, k,
                  std::sqrt(off / all));
    expect(name, std::sqrt(off / all) < 5e-4 && got == again);
  }
}

}  // namespace

void check_neurons(Device& device) {
  for (const int ffn : {1, 7, 256, 1000, 4096, 16384, 36864, 50000}) {
    for (const int rows : {1, 2, 5, 64, 100}) {
      for (const int count : {1, ffn / 20 + 1, ffn / 2 + 1, ffn}) {
        check_choice(device, rows, ffn, std::min(count, ffn), UnionBy::kSum);
        check_choice(device, rows, ffn, std::min(count, ffn), UnionBy::kLikely);
      }
    }
  }
  for (const int rows : {1, 3, 16, 33, 70}) {
    check_verb(device, rows, 264, 700, 0, 50, false);
    check_verb(device, rows, 256, 512, 40, 300, false);
    check_verb(device, rows, 288, 700, 0, 200, true);
    check_verb(device, rows, 1120, 512, 0, 30, true);
    check_verb(device, rows, 264, 1000, 96, 300, true);
  }
  for (const auto& [n, k] : {std::pair{17, 32}, {700, 1120}, {64, 3072}})
    check_four_bits(device, {1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 70}, n, k);
  // One or two warps for each strip of outputs, five warpgroups, two rounds.
  for (const int n : {16384, 28672, 36864, 50000}) check_four_bits(device, {3, 16, 27, 64}, n, 288);
}

}  // namespace polar::backend::check
