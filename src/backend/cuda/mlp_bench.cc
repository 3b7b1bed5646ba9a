// Times the selective MLP beside cuBLAS's dense one, and its router of four bits, in CUDA graphs of
// 20 launches: one JSON object per line.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "backend/device.h"
#include "backend/ops.h"

using namespace polar;           // NOLINT
using namespace polar::backend;  // NOLINT

namespace {

constexpr int kLaunches = 20;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Buffer memory(Device& device, size_t bytes) {
  auto buffer = device.allocate(bytes, "a benchmark");
  POLAR_CHECK(buffer.ok());
  device.fill_zero(buffer->data(), bytes);
  return std::move(buffer).value();
}

void bench(Device& device, int hidden, int ffn, uint64_t& key) {
  auto up = device.dummy(ffn, hidden, DType::kBF16, false, 1);
  auto down = device.dummy(hidden, ffn, DType::kBF16, true, 2);
  auto dense_down = device.dummy(hidden, ffn, DType::kBF16, false, 3);
  POLAR_CHECK(up.ok() && down.ok() && dense_down.ok());
  std::vector<std::byte> codes(dtype_bytes(DType::kQ4_0, static_cast<size_t>(ffn) * hidden));
  std::mt19937 random(5);
  for (size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<std::byte>(i % 18 == 1 ? 0x20 : random());  // scales of about 0.01
  std::vector<std::unique_ptr<Weight>> routers;
  for (int i = 0; i < 8; ++i) {
    const Tensor view{codes.data(), DType::kQ4_0, {ffn, hidden, 1, 1}, 2};
    auto made = device.prepare({"router", {view}, false, true});
    POLAR_CHECK(made.ok());
    routers.push_back(std::move(made).value());
  }
  std::vector<uint16_t> inputs(static_cast<size_t>(64) * hidden);
  for (uint16_t& v : inputs) v = f32_to_bf16(std::normal_distribution<float>()(random));
  const Buffer bias = memory(device, ffn * sizeof(float)),
               index = memory(device, ffn * sizeof(int32_t));
  for (const int batch : {1, 16, 64}) {
    const Buffer x = memory(device, static_cast<size_t>(batch) * hidden * 2),
                 y = memory(device, static_cast<size_t>(batch) * hidden * 2),
                 scratch = memory(device, static_cast<size_t>(batch) * ffn * 2);
    device.upload(x.data(), inputs.data(), static_cast<size_t>(batch) * hidden * 2);
    const auto view = [&](const Buffer& b, int64_t w) {
      return Tensor{b.data(), DType::kBF16, {batch, w, 1, 1}, 2};
    };
    // Microseconds of what `launch` queues, in graphs.
    const auto time = [&](const auto& launch) {
      const uint64_t mine = ++key;
      std::vector<double> seconds;
      for (int round = 0; round < 13; ++round) {
        const double begin = now();
        device.replay(mine, [&] {
          for (int i = 0; i < kLaunches; ++i) launch(i);
        });
        device.synchronize();
        if (round > 2) seconds.push_back((now() - begin) / kLaunches);
      }
      std::nth_element(seconds.begin(), seconds.begin() + 5, seconds.end());
      return seconds[5] * 1e6;
    };
    const auto time_mlp = [&](const Weight& second, const NeuronSet* neurons) {
      const MlpArgs args{view(x, hidden), up->get(),        bias.as<float>(),
                         &second,         bias.as<float>(), Activation::kRelu,
                         false,           neurons,          view(scratch, ffn),
                         view(y, hidden)};
      return time([&](int) { device.ops().mlp(args); });
    };
    const auto time_router = [&](int count) {
      NeuronArgs args;
      args.x = view(x, hidden);
      args.bias = bias.as<float>();
      args.by = UnionBy::kLikely;
      args.scratch = view(scratch, ffn);
      args.count = count;
      args.index = index.as<int32_t>();
      // Together more than a cache holds.
      return time([&](int i) {
        args.wide = routers[i % routers.size()].get();
        device.ops().neurons(args);
      });
    };
    for (const double density : {0.1, 0.3, 0.5}) {
      std::vector<int32_t> all(ffn);
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), std::mt19937(4));
      all.resize(static_cast<size_t>(ffn * density) / 128 * 128);
      std::sort(all.begin(), all.end());
      device.upload(index.data(), all.data(), all.size() * sizeof(int32_t));
      const NeuronSet set{index.as<int32_t>(), static_cast<int>(all.size())};
      const double dense = time_mlp(**dense_down, nullptr), sparse = time_mlp(**down, &set);
      const double router = time_router(set.count);
      const double bytes = 4.0 * hidden * all.size();
      std::printf(
          "{\"bench\":\"mlp\",\"hidden\":%d,\"ffn\":%d,\"batch\":%d,\"neurons\":%zu,\"dense_us\":%."
          "1f,"
          "\"sparse_us\":%.1f,\"speedup\":%.2f,\"sparse_tb_per_s\":%.2f,\"router_us\":%.1f,"
          "\"router_tb_per_s\":%.2f}\n",
          hidden, ffn, batch, all.size(), dense, sparse, dense / sparse, bytes / sparse / 1e6,
          router, static_cast<double>(routers[0]->bytes()) / router / 1e6);
      std::fflush(stdout);
    }
  }
}

}  // namespace

int main() {
  auto device = make_cuda_device();
  if (!device.ok()) {
    std::printf("skipped: %s\n", device.error().message.c_str());
    return 77;
  }
  uint64_t key = 0;
  bench(**device, 9216, 36864, key);
  bench(**device, 4096, 16384, key);
  return 0;
}
