// The verbs against sums in double precision, on every instruction set of this machine, with one
// and with several threads. Attention and plan have tests of their own.

#include "backend/ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "backend/cpu/cpu_device.h"
#include "backend/cpu/cpu_weight.h"
#include "backend/cpu/isa.h"
#include "backend/cpu/test_values.h"

namespace polar::backend::cpu {
namespace {

constexpr float kPoison = 7654321.0f;

struct Setup {
  const Kernels* kernels;
  int threads;
};

class CpuOpsTest : public testing::TestWithParam<Setup> {
 protected:
  CpuOpsTest() : device_(*GetParam().kernels, GetParam().threads) {}

  Ops& ops() { return device_.ops(); }

  std::unique_ptr<Weight> prepare(const std::vector<StoredMatrix*>& parts,
                                  bool gather_columns = false) {
    WeightSource source{"test", {}, gather_columns};
    for (StoredMatrix* part : parts) {
      source.parts.push_back(
          Tensor{part->stored.data(), part->dtype, {part->rows, part->columns, 1, 1}, 2});
    }
    auto weight = device_.prepare(source);
    EXPECT_TRUE(weight.ok());
    return std::move(*weight);
  }

  std::mt19937 random_{17};
  CpuDevice device_;
};

std::vector<Setup> setups() {
  std::vector<Setup> all;
  for (const Kernels* kernels : runnable_kernels()) {
    all.push_back({kernels, 1});
    all.push_back({kernels, 3});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuOpsTest, testing::ValuesIn(setups()), [](const auto& info) {
  return std::string(info.param.kernels->name) + "_" + std::to_string(info.param.threads);
});

Tensor view(std::vector<float>& values, int64_t rows) {
  return Tensor{
      values.data(), DType::kF32, {rows, static_cast<int64_t>(values.size()) / rows, 1, 1}, 2};
}

/// x [rows][k] times the values [n][k], in double precision.
std::vector<double> product(const std::vector<double>& x, int64_t rows,
                            const std::vector<float>& weight, int64_t n,
                            const std::vector<float>& bias = {}) {
  const int64_t k = static_cast<int64_t>(x.size()) / rows;
  std::vector<double> y(rows * n);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t o = 0; o < n; ++o) {
      double sum = bias.empty() ? 0.0 : bias[o];
      for (int64_t i = 0; i < k; ++i) sum += x[row * k + i] * weight[o * k + i];
      y[row * n + o] = sum;
    }
  }
  return y;
}

std::vector<double> wide(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

/// max |a - b| <= bound max |b|, which is what rounding in f32 keeps.
void expect_close(const std::vector<float>& found, const std::vector<double>& wanted,
                  double bound = 3e-6) {
  ASSERT_EQ(found.size(), wanted.size());
  double largest = 0;
  for (const double value : wanted) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < wanted.size(); ++i)
    ASSERT_NEAR(found[i], wanted[i], bound * largest) << "at " << i;
}

std::vector<double> exact_norm(const Norm& norm, const std::vector<double>& x, int64_t width) {
  std::vector<double> out(x);
  if (norm.weight == nullptr) return out;
  for (size_t begin = 0; begin < x.size(); begin += width) {
    double mean = 0, square = 0;
    if (norm.kind == NormKind::kLayer)
      mean = std::accumulate(x.begin() + begin, x.begin() + begin + width, 0.0) / width;
    for (int64_t i = 0; i < width; ++i) square += (x[begin + i] - mean) * (x[begin + i] - mean);
    const double scale = 1 / std::sqrt(square / width + norm.epsilon);
    for (int64_t i = 0; i < width; ++i) {
      out[begin + i] = (x[begin + i] - mean) * scale * norm.weight[i] +
                       (norm.bias != nullptr ? norm.bias[i] : 0.0f);
    }
  }
  return out;
}

TEST_P(CpuOpsTest, LinearOverStackedParts) {
  // Q, K and V may be stored in different types.
  StoredMatrix q = random_matrix(random_, DType::kQ4_1, 96, 64);
  StoredMatrix k = random_matrix(random_, DType::kBF16, 33, 64);
  StoredMatrix v = random_matrix(random_, DType::kF32, 31, 64);
  const auto weight = prepare({&q, &k, &v});
  EXPECT_EQ(weight->rows(), 160);
  EXPECT_EQ(weight->columns(), 64);
  EXPECT_EQ(weight->bytes(), 96 * 40u + 33 * 128u + 31 * 256u);
  std::vector<float> values(q.values);
  values.insert(values.end(), k.values.begin(), k.values.end());
  values.insert(values.end(), v.values.begin(), v.values.end());
  const std::vector<float> bias = random_values(random_, 160);
  for (const int rows : {1, 2, 5, 40}) {
    std::vector<float> x = random_values(random_, rows * 64), y(rows * 160, kPoison);
    ops().linear({view(x, rows), weight.get(), bias.data(), view(y, rows)});
    expect_close(y, product(wide(x), rows, values, 160, bias));
  }
}

TEST_P(CpuOpsTest, LinearOverTypesConvertedAtLoad) {
  for (const DType dtype : {DType::kQ5_0, DType::kQ5_1, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    StoredMatrix stored{dtype, 20, 512, dtype_bytes(dtype, 512), {}, {}};
    stored.stored.resize(stored.row_bytes * 20);
    const int block_bytes = dtype_info(dtype).block_bytes;
    for (std::byte& byte : stored.stored) byte = static_cast<std::byte>(random_());
    for (size_t block = 0; block < stored.stored.size(); block += block_bytes) {
      const uint16_t scale = f32_to_f16(0.001f + 0.0001f * static_cast<float>(random_() % 50));
      const int at = dtype == DType::kQ6_K ? 208 : 0;
      std::memcpy(stored.stored.data() + block + at, &scale, 2);
      if (dtype != DType::kQ6_K && dtype != DType::kQ5_0)
        std::memcpy(stored.stored.data() + block + 2, &scale, 2);
    }
    stored.values.resize(20 * 512);
    for (int row = 0; row < 20; ++row)
      dequantize_row(dtype, stored.stored.data() + row * stored.row_bytes,
                     stored.values.data() + row * 512, 512);
    const auto weight = prepare({&stored});
    std::vector<float> x = random_values(random_, 3 * 512), y(3 * 20, kPoison);
    ops().linear({view(x, 3), weight.get(), nullptr, view(y, 3)});
    expect_close(y, product(wide(x), 3, stored.values, 20), 3e-4);  // f16 keeps 11 bits
  }
}

TEST_P(CpuOpsTest, Norms) {
  const int rows = 7, width = 53;
  std::vector<float> scale = random_values(random_, width), bias = random_values(random_, width);
  for (const NormKind kind : {NormKind::kLayer, NormKind::kRms}) {
    for (const bool with_bias : {false, true}) {
      for (const bool with_add : {false, true}) {
        const Norm norm{kind, 1e-5f, scale.data(), with_bias ? bias.data() : nullptr};
        std::vector<float> residual = random_values(random_, rows * width, 3.0f);
        for (float& value : residual) value += 5;  // a mean that rounding must survive
        std::vector<float> add = random_values(random_, rows * width), out(rows * width, kPoison);
        std::vector<double> sum = wide(residual);
        if (with_add) {
          for (int i = 0; i < rows * width; ++i) sum[i] = residual[i] + add[i];
        }
        ops().norm(
            {view(residual, rows), with_add ? view(add, rows) : Tensor{}, norm, view(out, rows)});
        expect_close(out, exact_norm(norm, sum, width));
        for (int i = 0; i < rows * width; ++i) ASSERT_EQ(residual[i], static_cast<float>(sum[i]));
        // In place, as post-norm models run it.
        ops().norm({view(residual, rows), {}, norm, view(residual, rows)});
        EXPECT_EQ(residual, out);
      }
    }
  }
}

double exact_activation(Activation activation, double x) {
  switch (activation) {
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return x;
}

TEST_P(CpuOpsTest, MlpDense) {
  const int hidden = 64, ffn = 96;
  for (const Activation activation :
       {Activation::kRelu, Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    for (const bool gated : {false, true}) {
      for (const int rows : {1, 3, 20}) {
        StoredMatrix up = random_matrix(random_, DType::kF16, gated ? 2 * ffn : ffn, hidden);
        StoredMatrix down = random_matrix(random_, DType::kQ8_0, hidden, ffn);
        const auto up_weight = prepare({&up}), down_weight = prepare({&down});
        const std::vector<float> up_bias = random_values(random_, up.rows);
        const std::vector<float> down_bias = random_values(random_, hidden);
        std::vector<float> x = random_values(random_, rows * hidden, 0.2f);
        std::vector<float> scratch(rows * up.rows, kPoison), y(rows * hidden, kPoison);
        ops().mlp({view(x, rows), up_weight.get(), up_bias.data(), down_weight.get(),
                   down_bias.data(), activation, gated, nullptr, view(scratch, rows),
                   view(y, rows)});
        const std::vector<double> raised = product(wide(x), rows, up.values, up.rows, up_bias);
        std::vector<double> active(rows * ffn);
        for (int row = 0; row < rows; ++row) {
          for (int i = 0; i < ffn; ++i) {
            const double* values = raised.data() + row * up.rows;
            active[row * ffn + i] =
                exact_activation(activation, values[i]) * (gated ? values[ffn + i] : 1.0);
          }
        }
        expect_close(y, product(active, rows, down.values, hidden, down_bias));
      }
    }
  }
}

TEST_P(CpuOpsTest, MlpOverNeurons) {
  const int hidden = 72, ffn = 200;
  StoredMatrix up = random_matrix(random_, DType::kBF16, ffn, hidden);
  StoredMatrix down = random_matrix(random_, DType::kBF16, hidden, ffn);
  const auto up_weight = prepare({&up}), down_weight = prepare({&down}, true);
  EXPECT_EQ(down_weight->rows(), hidden);
  EXPECT_EQ(down_weight->columns(), ffn);
  const std::vector<float> up_bias = random_values(random_, ffn);
  const std::vector<float> down_bias = random_values(random_, hidden);
  std::vector<int32_t> index;
  for (int32_t j = 0; j < ffn; ++j)
    if (random_() % 4 == 0) index.push_back(j);
  const std::vector<int32_t> none;
  for (const int rows : {1, 4, 21}) {
    std::vector<float> x = random_values(random_, rows * hidden, 0.3f);
    std::vector<double> active = product(wide(x), rows, up.values, ffn, up_bias);
    for (double& value : active) value = std::max(value, 0.0);
    const auto run = [&](const NeuronSet* neurons) {
      std::vector<float> scratch(rows * ffn, kPoison), y(rows * hidden, kPoison);
      ops().mlp({view(x, rows), up_weight.get(), up_bias.data(), down_weight.get(),
                 down_bias.data(), Activation::kRelu, false, neurons, view(scratch, rows),
                 view(y, rows)});
      return y;
    };
    expect_close(run(nullptr), product(active, rows, down.values, hidden, down_bias));
    const NeuronSet some{index.data(), static_cast<int>(index.size())};
    std::vector<double> left(active.size(), 0.0);
    for (int row = 0; row < rows; ++row)
      for (const int32_t j : index) left[row * ffn + j] = active[row * ffn + j];
    expect_close(run(&some), product(left, rows, down.values, hidden, down_bias));
    // Every neuron that is not zero: the same bits as all of them.
    std::vector<int32_t> alive;
    for (int32_t j = 0; j < ffn; ++j) {
      bool any = false;
      for (int row = 0; row < rows; ++row) any |= active[row * ffn + j] > -1e-4;
      if (any) alive.push_back(j);
    }
    const NeuronSet live{alive.data(), static_cast<int>(alive.size())};
    EXPECT_EQ(run(&live), run(nullptr));
    const NeuronSet empty{index.data(), 0};
    const std::vector<float> bias_alone = run(&empty);
    for (int i = 0; i < rows * hidden; ++i) EXPECT_EQ(bias_alone[i], down_bias[i % hidden]);
  }
}

/// Two sequences, three rows: [0] is a prefill row of the first, [1], [2] of the second.
struct TinyBatch {
  std::vector<int32_t> token{5, 2, ~1}, position{17, 0, 1}, sequence{0, 1, 1}, point{0, 0, 0},
      chunk_begin{0, 1, 3}, pages{4, 1, 3, 0}, logit_row{0, 2};
  Batch batch;
  TinyBatch() {
    batch.rows = 3;
    batch.sequences = 2;
    batch.prefill_rows = 3;
    batch.token = token.data();
    batch.position = position.data();
    batch.sequence = sequence.data();
    batch.point = point.data();
    batch.chunk_begin = chunk_begin.data();
    batch.table_stride = 2;
    batch.pages = pages.data();
    batch.logit_row = logit_row.data();
    batch.logit_rows = 2;
  }
};

TEST_P(CpuOpsTest, EmbedWithSlotsPositionsAndProjection) {
  TinyBatch tiny;
  StoredMatrix table = random_matrix(random_, DType::kQ8_0, 11, 32);
  StoredMatrix positions = random_matrix(random_, DType::kF32, 30, 40);
  StoredMatrix projection = random_matrix(random_, DType::kF16, 40, 32);
  const auto table_weight = prepare({&table}), position_weight = prepare({&positions}),
             projection_weight = prepare({&projection});
  const std::vector<int32_t> last_token = {9, 7};  // row 2 takes slot 1: token 7
  const std::vector<float> frequency = {1.0f, 0.1f, 0.003f};
  std::vector<float> hidden(3 * 40, kPoison), rotation(3 * 3 * 2, kPoison);
  EmbedArgs args;
  args.batch = &tiny.batch;
  args.last_token = last_token.data();
  args.table = table_weight.get();
  args.positions = position_weight.get();
  args.position_offset = 2;
  args.projection = projection_weight.get();
  args.rope = Rope{6, false, 1.25f, frequency.data()};
  args.hidden = view(hidden, 3);
  args.rotation = rotation.data();
  ops().embed(args);
  std::vector<double> rows;
  for (const int token : {5, 2, 7}) {
    for (int i = 0; i < 32; ++i) rows.push_back(table.values[token * 32 + i]);
  }
  std::vector<double> wanted = product(rows, 3, projection.values, 40);
  for (int row = 0; row < 3; ++row)
    for (int i = 0; i < 40; ++i)
      wanted[row * 40 + i] += positions.values[(tiny.position[row] + 2) * 40 + i];
  expect_close(hidden, wanted);
  for (int row = 0; row < 3; ++row) {
    for (int i = 0; i < 3; ++i) {
      const double angle = static_cast<double>(tiny.position[row]) * frequency[i];
      EXPECT_NEAR(rotation[(row * 3 + i) * 2], 1.25 * std::cos(angle), 2e-6);
      EXPECT_NEAR(rotation[(row * 3 + i) * 2 + 1], 1.25 * std::sin(angle), 2e-6);
    }
  }
}

TEST_P(CpuOpsTest, HeadGathersRowsAddsNormsAndProjects) {
  TinyBatch tiny;
  StoredMatrix projection = random_matrix(random_, DType::kBF16, 32, 48);
  StoredMatrix weight = random_matrix(random_, DType::kQ4_0, 101, 32);
  const auto projection_weight = prepare({&projection}), head_weight = prepare({&weight});
  std::vector<float> hidden = random_values(random_, 3 * 48), add = random_values(random_, 3 * 48),
                     scale = random_values(random_, 48), scratch(2 * (48 + 32), kPoison),
                     logits(2 * 101, kPoison);
  HeadArgs args;
  args.batch = &tiny.batch;
  args.hidden = view(hidden, 3);
  args.add = view(add, 3);
  args.norm = {NormKind::kRms, 1e-6f, scale.data(), nullptr};
  args.projection = projection_weight.get();
  args.weight = head_weight.get();
  args.scratch = view(scratch, 2);
  args.logits = logits.data();
  ops().head(args);
  std::vector<double> rows;
  for (const int row : {0, 2})
    for (int i = 0; i < 48; ++i)
      rows.push_back(static_cast<double>(hidden[row * 48 + i]) + add[row * 48 + i]);
  const auto projected = product(exact_norm(args.norm, rows, 48), 2, projection.values, 32);
  expect_close(logits, product(projected, 2, weight.values, 101));
}

/// Reads a stored K or V value back, by the arrangement that kv_layout.h documents.
double stored(const KvView& kv, int page, int head, bool value, int slot, int d) {
  const std::byte* block = kv.block(1, page, head) + (value ? kv.half_bytes() : 0);
  const int64_t index = value ? slot * kv.head_dim + d : d * kPageTokens + slot;
  float out;
  dequantize_row(kv.dtype, block + index * kv.element_bytes(), &out, 1);
  return out;
}

TEST_P(CpuOpsTest, QkvNormsRotatesAndStores) {
  const int heads = 6, kv_heads = 2, dim = 16, hidden = 64, width = (heads + 2 * kv_heads) * dim;
  for (const bool interleaved : {false, true}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const bool with_norm : {false, true}) {
        TinyBatch tiny;
        StoredMatrix matrix = random_matrix(random_, DType::kF32, width, hidden);
        const auto weight = prepare({&matrix});
        std::vector<float> x = random_values(random_, 3 * hidden, 0.1f),
                           bias = random_values(random_, width),
                           query_scale = random_values(random_, dim),
                           key_scale = random_values(random_, dim);
        const int rope_dim = 12;  // partial: the last four dimensions stay
        std::vector<float> rotation(3 * rope_dim);
        for (int i = 0; i < 3 * rope_dim / 2; ++i) {
          rotation[2 * i] = std::cos(0.7f * static_cast<float>(i));
          rotation[2 * i + 1] = std::sin(0.7f * static_cast<float>(i));
        }
        std::vector<std::byte> cache(2 * 5 * kv_heads * 2 * 16 * dim * 4, std::byte{0x5a});
        const std::vector<std::byte> before = cache;
        KvView kv{cache.data(), dtype, 2, 5, kv_heads, dim};
        std::vector<float> query(3 * heads * dim, kPoison), scratch(3 * width, kPoison);
        QkvArgs args;
        args.batch = &tiny.batch;
        args.x = view(x, 3);
        args.weight = weight.get();
        args.bias = bias.data();
        if (with_norm) {
          args.query_norm = {NormKind::kRms, 1e-6f, query_scale.data(), nullptr};
          args.key_norm = {NormKind::kRms, 1e-6f, key_scale.data(), nullptr};
        }
        args.rope = Rope{rope_dim, interleaved, 1.0f, nullptr};
        args.rotation = rotation.data();
        args.kv = kv;
        args.layer = 1;
        args.heads = heads;
        args.query = view(query, 3);
        args.scratch = view(scratch, 3);
        ops().qkv(args);

        const std::vector<double> all = product(wide(x), 3, matrix.values, width, bias);
        size_t touched = 0;
        for (int row = 0; row < 3; ++row) {
          for (int h = 0; h < heads + 2 * kv_heads; ++h) {
            const auto begin = all.begin() + row * width + h * dim;
            std::vector<double> head(begin, begin + dim);
            if (h < heads) head = exact_norm(args.query_norm, head, dim);
            if (h >= heads && h < heads + kv_heads) head = exact_norm(args.key_norm, head, dim);
            if (h < heads + kv_heads) {
              for (int i = 0; i < rope_dim / 2; ++i) {
                const int a = interleaved ? 2 * i : i;
                const int b = interleaved ? 2 * i + 1 : i + rope_dim / 2;
                const double cos = rotation[(row * rope_dim / 2 + i) * 2];
                const double sin = rotation[(row * rope_dim / 2 + i) * 2 + 1];
                const double left = head[a], right = head[b];
                head[a] = left * cos - right * sin;
                head[b] = right * cos + left * sin;
              }
            }
            const int page = tiny.pages[tiny.sequence[row] * 2 + tiny.position[row] / kPageTokens];
            const double relative = dtype == DType::kF32   ? 1e-5
                                    : dtype == DType::kF16 ? 1e-3
                                                           : 5e-3;
            for (int d = 0; d < dim; ++d) {
              if (h < heads) {
                ASSERT_NEAR(query[(row * heads + h) * dim + d], head[d], 2e-5);
                continue;
              }
              const bool value = h >= heads + kv_heads;
              const double found = stored(kv, page, (h - heads) % kv_heads, value,
                                          tiny.position[row] % kPageTokens, d);
              ASSERT_NEAR(found, head[d], relative * std::abs(head[d]) + 2e-5)
                  << "row " << row << " head " << h << " d " << d;
              touched += kv.element_bytes();
            }
          }
        }
        // Nothing else in the cache was written. (A stored byte may equal the poison by chance.)
        size_t changed = 0;
        for (size_t i = 0; i < cache.size(); ++i) changed += cache[i] != before[i] ? 1 : 0;
        EXPECT_LE(changed, touched);
        EXPECT_GE(changed, touched * 9 / 10);
      }
    }
  }
}

TEST(CpuDeviceTest, AllocationsThatCannotBeAreErrors) {
  auto device = make_cpu_device({2});
  ASSERT_TRUE(device.ok());
  const auto buffer = (*device)->allocate(size_t{1} << 60, "a test");
  ASSERT_FALSE(buffer.ok());
  EXPECT_NE(buffer.error().message.find("a test"), std::string::npos);
  auto small = (*device)->allocate(1000, "a test");
  ASSERT_TRUE(small.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(small->data()) % 64, 0u);
  (*device)->fill_zero(small->data(), 1000);
  EXPECT_EQ(small->as<char>()[999], 0);
  EXPECT_TRUE((*device)->info().is_cpu);
}

TEST_P(CpuOpsTest, DummyWeightsHaveTheirShape) {
  for (const bool gathers : {false, true}) {
    auto weight = device_.dummy(40, 72, DType::kBF16, gathers, 5);
    ASSERT_TRUE(weight.ok());
    EXPECT_EQ((*weight)->rows(), 40);
    EXPECT_EQ((*weight)->columns(), 72);
    EXPECT_EQ((*weight)->bytes(), 40 * 72 * 2u);
    std::vector<float> x(72, 0.0f), y(40, kPoison);
    x[3] = 1;
    ops().linear({view(x, 1), weight->get(), nullptr, view(y, 1)});
    for (const float value : y) EXPECT_LE(std::abs(value), 1.0f / std::sqrt(72.0f));
  }
}

}  // namespace
}  // namespace polar::backend::cpu
