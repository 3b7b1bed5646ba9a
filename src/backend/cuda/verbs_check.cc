// Checks the CUDA verbs against float64 and against the CPU backend, on random inputs and poisoned
// outputs: a program of its own. Exit 77 and a sentence when there is no GPU.

#include "backend/cuda/verbs_fixture.h"

using namespace polar;                  // NOLINT
using namespace polar::backend;         // NOLINT
using namespace polar::backend::check;  // NOLINT

namespace {

std::vector<double> product(const std::vector<float>& x, const std::vector<float>& w, int rows,
                            int outputs, int k, const std::vector<float>* bias) {
  std::vector<double> y(static_cast<size_t>(rows) * outputs);
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < outputs; ++o) {
      double sum = bias != nullptr ? (*bias)[o] : 0;
      for (int i = 0; i < k; ++i) sum += static_cast<double>(x[r * k + i]) * w[o * k + i];
      y[r * outputs + o] = sum;
    }
  }
  return y;
}

void check_linear(Device& device, int rows, int outputs, int k, bool with_bias, DType type) {
  const auto x = random_values(static_cast<size_t>(rows) * k, 1),
             w = random_values(static_cast<size_t>(outputs) * k, 2), b = random_values(outputs, 3);
  const auto bits = narrowed(w);
  const auto matrix_w = weight(device, bits, outputs, k);
  const Buffer dx = activations(device, x), db = to_device(device, b),
               dy = poisoned(device, static_cast<size_t>(rows) * outputs, 4);
  LinearArgs args{matrix(dx, rows, k), matrix_w.get(), with_bias ? db.as<float>() : nullptr,
                  matrix(dy, rows, outputs, type)};
  device.ops().linear(args);
  char name[80];
  std::snprintf(name, sizeof(name), "linear %d x %d x %d%s %s", rows, outputs, k,
                with_bias ? " bias" : "", dtype_info(type).name.data());
  expect_near(name, from_device(device, dy, static_cast<size_t>(rows) * outputs, type),
              product(x, w, rows, outputs, k, with_bias ? &b : nullptr),
              type == DType::kF32 ? 1e-3 : 0.03);
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return x;
}

void check_mlp(Device& device, int rows, int hidden, int ffn, Activation activation, bool gated,
               int neurons, DType type) {
  const auto x = random_values(static_cast<size_t>(rows) * hidden, 4);
  const auto up = random_values(static_cast<size_t>(gated ? 2 : 1) * ffn * hidden, 5, 0.1f);
  const auto down = random_values(static_cast<size_t>(hidden) * ffn, 6, 0.1f);
  const auto up_bias = random_values((gated ? 2 : 1) * ffn, 7),
             down_bias = random_values(hidden, 8);
  const bool gathers = activation == Activation::kRelu && !gated;
  const auto up_bits = narrowed(up), down_bits = narrowed(down);
  const auto up_w = weight(device, up_bits, (gated ? 2 : 1) * ffn, hidden);
  const auto down_w = weight(device, down_bits, hidden, ffn, gathers);
  std::vector<int32_t> index(ffn);
  for (int i = 0; i < ffn; ++i) index[i] = i;
  std::mt19937 random(9);
  if (neurons > 0) {
    std::shuffle(index.begin(), index.end(), random);
    index.resize(neurons);
    std::sort(index.begin(), index.end());
  }
  const Buffer dx = activations(device, x), dub = to_device(device, up_bias),
               ddb = to_device(device, down_bias), di = to_device(device, index),
               dy = poisoned(device, static_cast<size_t>(rows) * hidden, 4),
               ds = poisoned(device, static_cast<size_t>(rows) * ffn * (gated ? 2 : 1));
  const NeuronSet set{di.as<int32_t>(), neurons};
  MlpArgs args{matrix(dx, rows, hidden),
               up_w.get(),
               dub.as<float>(),
               down_w.get(),
               ddb.as<float>(),
               activation,
               gated,
               neurons > 0 ? &set : nullptr,
               matrix(ds, rows, ffn * (gated ? 2 : 1)),
               matrix(dy, rows, hidden, type)};
  device.ops().mlp(args);
  const auto h = product(x, up, rows, (gated ? 2 : 1) * ffn, hidden, &up_bias);
  std::vector<double> want(static_cast<size_t>(rows) * hidden);
  for (int r = 0; r < rows; ++r) {
    const double* row = h.data() + static_cast<size_t>(r) * ffn * (gated ? 2 : 1);
    std::vector<double> a(ffn, 0.0);
    for (const int j : index) a[j] = activated(activation, row[j]) * (gated ? row[ffn + j] : 1.0);
    for (int o = 0; o < hidden; ++o) {
      double sum = down_bias[o];
      for (const int j : index) sum += a[j] * down[static_cast<size_t>(o) * ffn + j];
      want[static_cast<size_t>(r) * hidden + o] = sum;
    }
  }
  char name[80];
  std::snprintf(name, sizeof(name), "mlp %d x %d x %d act %d%s neurons %d", rows, hidden, ffn,
                static_cast<int>(activation), gated ? " gated" : "", neurons);
  expect_near(name, from_device(device, dy, want.size(), type), want, 0.04);
}

void check_norm(Device& device, NormKind kind, int rows, int hidden, DType type) {
  auto residual = random_values(static_cast<size_t>(rows) * hidden, 10);
  const auto add = random_values(residual.size(), 11), gain = random_values(hidden, 12),
             bias = random_values(hidden, 13);
  const Buffer dr = values_in(device, residual, type), da = values_in(device, add, type),
               dg = to_device(device, gain), db = to_device(device, bias),
               dy = poisoned(device, residual.size());
  Norm norm{kind, 1e-5f, dg.as<float>(), kind == NormKind::kLayer ? db.as<float>() : nullptr};
  device.ops().norm({matrix(dr, rows, hidden, type), matrix(da, rows, hidden, type), norm,
                     matrix(dy, rows, hidden)});
  std::vector<double> want(residual.size()), summed(residual.size());
  for (int r = 0; r < rows; ++r) {
    double mean = 0, squares = 0;
    for (int i = 0; i < hidden; ++i)
      mean += summed[r * hidden + i] =
          static_cast<double>(residual[r * hidden + i]) + add[r * hidden + i];
    mean = kind == NormKind::kLayer ? mean / hidden : 0;
    for (int i = 0; i < hidden; ++i) squares += std::pow(summed[r * hidden + i] - mean, 2);
    for (int i = 0; i < hidden; ++i)
      want[r * hidden + i] =
          (summed[r * hidden + i] - mean) / std::sqrt(squares / hidden + 1e-5) * gain[i] +
          (kind == NormKind::kLayer ? bias[i] : 0);
  }
  char name[80];
  std::snprintf(name, sizeof(name), "norm %d %d x %d", static_cast<int>(kind), rows, hidden);
  expect_near(name, from_device(device, dy, want.size()), want, 0.03);
  expect_near("  residual", from_device(device, dr, want.size(), type), summed,
              type == DType::kF32 ? 1e-6 : 0.01);
}

/// Runs sampling on both devices; tokens must agree but for near ties of the random number.
void check_sample(Device& gpu, Device& cpu, int vocabulary) {
  const int rows = 48;
  std::mt19937 random(14);
  std::normal_distribution<float> normal(0.0f, 2.5f);
  std::vector<float> logits(static_cast<size_t>(rows) * vocabulary);
  for (float& l : logits) l = std::round(normal(random) * 64) / 64;  // ties abound
  std::vector<SampleParams> params(rows);
  std::vector<LogitEdit> edits;
  for (int r = 0; r < rows; ++r) {
    SampleParams& p = params[r];
    p.slot = r;
    p.seed = 77 + r;
    p.step = r * 3;
    p.temperature = r % 4 == 0 ? 0.0f : 0.5f + 0.1f * (r % 7);
    p.top_k = r % 3 == 0 ? 1 + r : 0;
    p.top_p = r % 5 < 2 ? 0.3f + 0.1f * (r % 6) : 1.0f;
    p.min_p = r % 7 == 0 ? 0.05f : 0.0f;
    p.logprobs = r % 6 - 1 < 0 ? -1 : (r % 6 - 1) * 5;
    if (r % 2 == 0) {
      p.repetition_penalty = 1.3f;
      p.presence_penalty = 0.5f;
      p.frequency_penalty = 0.25f;
      p.edit_begin = static_cast<int32_t>(edits.size());
      p.edit_count = 5;
      for (int i = 0; i < 5; ++i)
        edits.push_back({(r * 131 + i * 17) % vocabulary, i == 4 ? 3.0f : 0.0f, i % 2, i});
    }
  }
  std::vector<Sampled> got[2] = {std::vector<Sampled>(rows), std::vector<Sampled>(rows)};
  Device* devices[2] = {&cpu, &gpu};
  std::vector<int32_t> last[2] = {std::vector<int32_t>(rows, -5), std::vector<int32_t>(rows, -5)};
  for (int d = 0; d < 2; ++d) {
    Device& device = *devices[d];
    const Buffer dl = to_device(device, logits), dp = to_device(device, params),
                 de = to_device(device, edits), dt = to_device(device, last[d]),
                 ds = to_device(device, got[d]);
    device.ops().sample({dl.as<float>(), rows, vocabulary, dp.as<SampleParams>(),
                         de.as<LogitEdit>(), dt.as<int32_t>(), ds.as<Sampled>()});
    device.download(got[d].data(), ds.data(), rows * sizeof(Sampled));
    device.download(last[d].data(), dt.data(), rows * sizeof(int32_t));
  }
  int different = 0;
  double worst = 0;
  for (int r = 0; r < rows; ++r) {
    const Sampled &a = got[0][r], &b = got[1][r];
    different += a.token != b.token;
    expect("greedy token", params[r].temperature > 0 || a.token == b.token);
    expect("last token", last[1][r] == b.token);
    expect("alternatives", a.top_count == b.top_count);
    if (a.token == b.token) worst = std::max<double>(worst, std::abs(a.logprob - b.logprob));
    for (int i = 0; i < a.top_count; ++i) {
      expect("alternative", a.top_token[i] == b.top_token[i]);
      worst = std::max<double>(worst, std::abs(a.top_logprob[i] - b.top_logprob[i]));
    }
  }
  std::printf("sample: %d of %d tokens differ from the CPU's, log-probabilities by %.1e\n",
              different, rows, worst);
  expect("sampled tokens", different <= 2);
  expect("log-probabilities", worst < 1e-4);
}

/// 200,000 draws of 5 tokens by top-p: frequencies against the truth.
void check_distribution(Device& gpu) {
  const int vocabulary = 5, rows = 4096;
  const float logits[5] = {1.0f, 0.0f, 2.0f, -1.0f, 0.5f};
  std::vector<float> all;
  std::vector<SampleParams> params(rows);
  for (int r = 0; r < rows; ++r) {
    all.insert(all.end(), logits, logits + 5);
    params[r] = {1.0f, 0, 0.9f};
    params[r].seed = r;
    params[r].slot = r;
  }
  std::vector<Sampled> got(rows);
  std::vector<int32_t> last(rows);
  const Buffer dl = to_device(gpu, all), dp = to_device(gpu, params), dt = to_device(gpu, last),
               ds = to_device(gpu, got);
  gpu.ops().sample({dl.as<float>(), rows, vocabulary, dp.as<SampleParams>(), nullptr,
                    dt.as<int32_t>(), ds.as<Sampled>()});
  gpu.download(got.data(), ds.data(), rows * sizeof(Sampled));
  double count[5] = {}, truth[5] = {}, total = 0;
  for (const Sampled& s : got) ++count[s.token];
  for (const int t : {2, 0, 4, 1})
    total += truth[t] = std::exp(logits[t]);  // 0.9 keeps four of five
  double chi = 0;
  for (const int t : {2, 0, 4, 1})
    chi += std::pow(count[t] - rows * truth[t] / total, 2) / (rows * truth[t] / total);
  std::printf("distribution of %d draws: chi^2 %.1f of 3 degrees\n", rows, chi);
  expect("distribution", chi < 16.3 && count[3] == 0);  // one in a thousand
}

/// Embedding, QKV, plan and attention on both backends: ragged prefill, then decode steps.
void check_attention(Device& gpu, Device& cpu, int heads, int kv_heads, int dim, DType kv_dtype,
                     bool windowed) {
  constexpr int hidden = 256, vocabulary = 100, stride = 8, sequences = 3;
  const std::vector<int> length = {1, 37, 90};
  const auto table = narrowed(random_values(static_cast<size_t>(vocabulary) * hidden, 20));
  const int width = (heads + 2 * kv_heads) * dim;
  const auto qkv = narrowed(random_values(static_cast<size_t>(width) * hidden, 21, 0.2f));
  const auto bias = random_values(width, 22), gain = random_values(dim, 23);
  std::vector<float> frequency(dim / 2);
  for (int i = 0; i < dim / 2; ++i) frequency[i] = std::pow(10000.0f, -2.0f * i / dim);
  std::vector<int32_t> pages(sequences * stride);
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(pages.size() - 1 - i);
  std::vector<float> out[2];
  std::vector<int32_t> read[2];
  Device* devices[2] = {&cpu, &gpu};
  for (int d = 0; d < 2; ++d) {
    Device& device = *devices[d];
    const size_t bytes = d == 0 ? 4 : 2;
    const auto table_w = weight(device, table, vocabulary, hidden),
               qkv_w = weight(device, qkv, width, hidden);
    const Buffer db = to_device(device, bias), dg = to_device(device, gain),
                 df = to_device(device, frequency), dp = to_device(device, pages);
    KvView kv{nullptr, kv_dtype, 1, sequences * stride, kv_heads, dim};
    const Buffer cache = poisoned(device, kv.total_bytes(), 1);
    device.fill_zero(cache.data(), kv.total_bytes());
    kv.data = cache.as<std::byte>();
    for (int planned = 0; planned < 2; ++planned) {
      StepRows step(
          device, planned ? length : std::vector<int>(sequences),
          planned ? std::vector<int>(sequences, 1) : length, planned,
          [](int s, int i) { return (i * 7 + s) % vocabulary; }, [](int s, int) { return s % 2; });
      Batch& batch = step.batch;
      const int rows = batch.rows;
      batch.table_stride = stride;
      batch.pages = dp.as<int32_t>();
      const Buffer x = poisoned(device, static_cast<size_t>(rows) * hidden, bytes),
                   rotation = poisoned(device, static_cast<size_t>(rows) * dim, 4),
                   query = poisoned(device, static_cast<size_t>(rows) * heads * dim, bytes),
                   scratch = poisoned(device, static_cast<size_t>(rows) * width, bytes),
                   result = poisoned(device, static_cast<size_t>(rows) * heads * dim, bytes);
      const DType type = device.info().activation;
      const auto view = [&](const Buffer& b, int64_t w) {
        return Tensor{b.data(), type, {rows, w, 1, 1}, 2};
      };
      const Rope rope{dim, false, 1.0f, df.as<float>()};
      EmbedArgs embed;
      embed.batch = &batch;
      embed.table = table_w.get();
      embed.rope = rope;
      embed.hidden = view(x, hidden);
      embed.rotation = rotation.as<float>();
      device.ops().embed(embed);
      QkvArgs args;
      args.batch = &batch;
      args.x = view(x, hidden);
      args.weight = qkv_w.get();
      args.bias = db.as<float>();
      args.query_norm = args.key_norm = Norm{NormKind::kRms, 1e-6f, dg.as<float>(), nullptr};
      args.rope = rope;
      args.rotation = rotation.as<float>();
      args.kv = kv;
      args.heads = heads;
      args.query = view(query, heads * dim);
      args.scratch = view(scratch, width);
      device.ops().qkv(args);
      std::vector<UnitBudget> budgets(2 * kv_heads);
      for (int h = 0; h < kv_heads; ++h) {
        if (h % 3 == 1) budgets[kv_heads + h].kind = ReadKind::kWindow;
        if (h % 3 == 2) budgets[kv_heads + h].kind = ReadKind::kNone;
      }
      const std::vector<PointLimits> limits(2, PointLimits{1, 1, 0});
      const Buffer dbu = to_device(device, budgets), dli = to_device(device, limits),
                   units =
                       poisoned(device, static_cast<size_t>(rows) * kv_heads, sizeof(PageRanges)),
                   count = to_device(device, std::vector<ReadCount>(rows));
      const ReadPlan plan{units.as<PageRanges>(), count.as<ReadCount>()};
      PlanArgs plan_args;
      plan_args.batch = &batch;
      plan_args.kv = kv;
      plan_args.window = windowed ? 40 : 0;
      plan_args.budgets = dbu.as<UnitBudget>();
      plan_args.limits = dli.as<PointLimits>();
      plan_args.plan = plan;
      if (planned) device.ops().plan(plan_args);
      AttentionArgs attention;
      attention.batch = &batch;
      attention.kv = kv;
      attention.heads = heads;
      attention.window = plan_args.window;
      attention.scale = 1.0f / std::sqrt(static_cast<float>(dim));
      attention.plan = &plan;
      attention.query = view(query, heads * dim);
      attention.output = view(result, heads * dim);
      device.ops().attention(attention);
      const size_t values = static_cast<size_t>(rows) * heads * dim;
      std::vector<float> got(values);
      if (d == 0) {
        device.download(got.data(), result.data(), values * 4);
      } else {
        got = from_device(device, result, values);
      }
      out[d].insert(out[d].end(), got.begin(), got.end());
      if (planned) {
        read[d].resize(rows);
        device.download(read[d].data(), count.data(), rows * sizeof(int32_t));
      }
    }
  }
  char name[80];
  std::snprintf(name, sizeof(name), "attention %d / %d x %d %s%s", heads, kv_heads, dim,
                std::string(dtype_info(kv_dtype).name).c_str(), windowed ? " window" : "");
  expect_near(name, out[1], std::vector<double>(out[0].begin(), out[0].end()), 0.15);
  expect("pages read", read[0] == read[1]);
}

void check_replay(Device& device) {
  const int rows = 3, outputs = 512, k = 256;
  const auto bits = narrowed(random_values(outputs * k, 30));
  const auto w = weight(device, bits, outputs, k);
  const Buffer dy = poisoned(device, rows * outputs);
  std::vector<float> eager;
  const Buffer dx = poisoned(device, rows * k);
  for (int run = 0; run < 4; ++run) {
    const auto x = narrowed(random_values(rows * k, 31 + run / 3));
    device.upload(dx.data(), x.data(), x.size() * 2);
    device.replay(5, [&] {
      device.ops().linear({matrix(dx, rows, k), w.get(), nullptr, matrix(dy, rows, outputs)});
    });
    const auto y = from_device(device, dy, rows * outputs);
    if (run == 0) eager = y;
    expect("replay equals eager", run == 3 ? y != eager : y == eager);
  }
}

/// A traced step: its nodes are told apart by verb, and it computes what an untraced one does.
void check_trace(Device& device) {
  const auto x = random_values(3 * 256, 60), w = random_values(256 * 256, 61);
  const auto bits = narrowed(w);
  const auto matrix_w = weight(device, bits, 256, 256);
  const Buffer dx = activations(device, x), plain = poisoned(device, 3 * 256),
               traced = poisoned(device, 3 * 256);
  const auto step = [&](const Buffer& y) {
    for (int i = 0; i < 2; ++i)
      device.ops().linear({matrix(dx, 3, 256), matrix_w.get(), nullptr, matrix(y, 3, 256)});
  };
  step(plain);
  const auto costs = device.trace([&] { step(traced); });
  expect("a traced step's verbs", costs.size() == 1 && costs[0].verb == "linear" &&
                                      costs[0].calls == 2 && costs[0].nodes >= 2 &&
                                      costs[0].seconds > 0);
  expect("a traced step's values",
         from_device(device, plain, 3 * 256) == from_device(device, traced, 3 * 256));
}

}  // namespace

int main() {
  auto gpu = make_cuda_device();
  if (!gpu.ok()) {
    std::printf("skipped: %s\n", gpu.error().message.c_str());
    return 77;
  }
  auto cpu = make_cpu_device({4});
  POLAR_CHECK(cpu.ok());
  Device& device = **gpu;
  // What the residual stream has, and what it has in post-norm models.
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int rows : {1, 2, 7, 16, 17, 33, 64, 100})
      for (const bool bias : {false, true})
        check_linear(device, rows, 200 + 8 * rows, 320, bias, type);
    check_linear(device, 5, 264, 576, true, type);
    for (const int rows : {1, 3, 16, 40, 70}) {
      check_mlp(device, rows, 256, 512, Activation::kSilu, true, 0, type);
      check_mlp(device, rows, 256, 512, Activation::kGelu, false, 0, type);
      check_mlp(device, rows, 256, 512, Activation::kRelu, false, 0, type);
    }
    for (const int rows : {1, 2, 16, 20, 33, 64, 70})
      for (const int neurons : {1, 30, 128, 333})
        check_mlp(device, rows, 288, 512, Activation::kRelu, false, neurons, type);
    for (const int hidden : {64, 576, 4096, 9216}) {
      check_norm(device, NormKind::kRms, 3, hidden, type);
      check_norm(device, NormKind::kLayer, 5, hidden, type);
    }
  }
  for (const DType type : {DType::kBF16, DType::kF16, DType::kF32}) {
    check_attention(device, **cpu, 8, 8, 64, type, false);
    check_attention(device, **cpu, 8, 2, 128, type, true);
  }
  check_attention(device, **cpu, 3, 1, 72, DType::kBF16, false);
  check_products(device);
  check_neurons(device);
  check_plans(device, **cpu);
  check_trace(device);
  check_sample(device, **cpu, 1000);
  check_sample(device, **cpu, 50272);
  check_distribution(device);
  check_replay(device);
  std::printf("read bandwidth %.0f GB/s\n", device.measure_read_bandwidth() / 1e9);
  std::printf(failures == 0 ? "all right\n" : "%d wrong\n", failures);
  return failures == 0 ? 0 : 1;
}
