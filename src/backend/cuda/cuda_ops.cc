#include "backend/cuda/cuda_ops.h"

#include <algorithm>

#include "backend/cuda/attention.h"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {

namespace {

constexpr size_t kTrialBytes = size_t{128} << 20;  // more than a cache holds

}  // namespace

void* CudaOps::Grown::at_least(CudaDevice& device, size_t wanted) {
  if (wanted > bytes) {
    data = device.own(wanted);
    bytes = wanted;
  }
  return data;
}

CudaOps::CudaOps(CudaDevice& device, const CublasLibrary& library)
    : device_(device), cublas_(library) {
  workspace_ = device.own(CublasProducts::kWorkspaceBytes);
  trial_bytes_ = device.own(kTrialBytes);
  launch_dummy(trial_bytes_, kTrialBytes / 2, 0.02f, 1, device.stream());
  limits_ = {device.processors(), static_cast<int>(device.properties().sharedMemPerBlockOptin),
             code_version() >= 90};
  POLAR_CUDA(cudaEventCreate(&trial_begin_));
  POLAR_CUDA(cudaEventCreate(&trial_end_));
  next_tile_ = static_cast<uint32_t*>(device.own(sizeof(uint32_t)));
  shares_ = attention_shares();
  POLAR_CUDA(cudaStreamCreateWithFlags(&plan_stream_, cudaStreamNonBlocking));
  POLAR_CUDA(cudaEventCreateWithFlags(&plan_inputs_, cudaEventDisableTiming));
}

CudaOps::~CudaOps() {
  for (const LayerPlan& plan : layer_plans_) cudaEventDestroy(plan.done);
  cudaEventDestroy(plan_inputs_);
  cudaEventDestroy(trial_begin_);
  cudaEventDestroy(trial_end_);
  cudaStreamDestroy(plan_stream_);
}

void CudaOps::changed(const void* data) {
  dense_plan_ = {};
  biases_.erase(static_cast<const float*>(data));
  if (data == scheduled_) scheduled_ = nullptr;
}

void CudaOps::forget(const void* data) {
  dense_plan_ = {};
  biases_.clear();  // any of them may have stood inside it
  if (data == scheduled_) scheduled_ = nullptr;
}

const void* CudaOps::bias_in_bf16(const float* bias, int count) {
  void*& converted = biases_[bias];
  if (converted == nullptr) {
    converted = device_.own(static_cast<size_t>(count) * 2);
    launch_f32_to_bf16(bias, converted, count, device_.stream());
  }
  return converted;
}

std::pair<float, size_t> CudaOps::try_way(int rows, const std::function<void()>& way) {
  constexpr int kTrials = 8, kSmall = 4096;
  cudaStream_t stream = device_.stream();
  // As in a step: in a graph, where the next begins while this one ends, behind a small kernel, and
  // with nothing of the weight in the cache.
  POLAR_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kTrials; ++i) {
    launch_read(trial_bytes_, kTrialBytes, limits_.processors, workspace_, stream);
    launch_activate(trial_bytes_, kSmall, trial_bytes_, kSmall, std::min(rows, 64), kSmall,
                    Activation::kRelu, false, stream);
    way();
  }
  cudaGraph_t graph;
  cudaGraphExec_t trial;
  size_t nodes = 0;
  POLAR_CUDA(cudaStreamEndCapture(stream, &graph));
  POLAR_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
  POLAR_CUDA(cudaGraphInstantiate(&trial, graph, 0));
  float least = 1e30f;
  for (int round = 0; round < 6; ++round) {
    POLAR_CUDA(cudaEventRecord(trial_begin_, stream));
    POLAR_CUDA(cudaGraphLaunch(trial, stream));
    POLAR_CUDA(cudaEventRecord(trial_end_, stream));
    POLAR_CUDA(cudaEventSynchronize(trial_end_));
    float time = 0;
    POLAR_CUDA(cudaEventElapsedTime(&time, trial_begin_, trial_end_));
    if (round > 0) least = std::min(least, time);
  }
  POLAR_CUDA(cudaGraphExecDestroy(trial));
  POLAR_CUDA(cudaGraphDestroy(graph));
  return {least * 1e3f / kTrials, nodes / kTrials - 2};
}

void CudaOps::fastest(const Choice& key, const void* weight, const std::vector<Way>& ways) {
  const auto found = chosen_.find(key);
  if (found != chosen_.end()) return ways[found->second](weight);
  POLAR_CHECK(!ways.empty());
  const int rows = std::get<ProductShape>(key).rows;
  if (!device_.tries() || rows > 256 || ways.size() == 1) return ways[0](weight);
  constexpr float kAsFast = 1.03f;  // trials differ by nearly as much
  const float others = try_way(rows, [] {}).first;
  std::vector<std::pair<float, size_t>> costs;
  float least = 1e30f;
  for (const Way& way : ways) {
    costs.push_back(try_way(rows, [&] { way(weight); }));
    costs.back().first -= others;
    least = std::min(least, costs.back().first);
  }
  size_t best = ways.size();
  for (size_t i = 0; i < ways.size(); ++i) {
    const auto& [time, nodes] = costs[i];
    if (time > least * kAsFast) continue;
    if (best == ways.size() ||
        std::pair(nodes, time) < std::pair(costs[best].second, costs[best].first))
      best = i;
  }
  chosen_[key] = static_cast<int>(best);
  ways[best](weight);
}

void CudaOps::add_ways(std::vector<Way>& ways, const SkinnyLaunch& launch) const {
  for (const ProductCut& cut :
       product_cuts(launch.gated ? 2 * launch.n : launch.n, product_tile(launch.rows), limits_)) {
    ways.push_back([=, this](const void* weight) {
      const int64_t y_bytes = launch.y_stride * (launch.y_f32 ? 4 : 2);
      for (int first = 0; first < launch.rows; first += kMostSkinnyRows) {
        SkinnyLaunch some = launch;
        some.weight = weight;
        some.rows = std::min(kMostSkinnyRows, launch.rows - first);
        some.x = static_cast<const std::byte*>(launch.x) + first * launch.x_stride * 2;
        some.y = static_cast<std::byte*>(launch.y) + first * y_bytes;
        launch_skinny(some, cut, device_.stream());
      }
    });
  }
}

void CudaOps::add_wide_ways(std::vector<Way>& ways, const SkinnyLaunch& launch,
                            bool by_outputs) const {
  if (launch.rows < kFewestWideRows || launch.rows > kMostSkinnyRows) return;
  for (const WideCut& cut : wide_cuts(launch.n, launch.k, launch.gated, by_outputs)) {
    ways.push_back([=, this](const void* weight) {
      SkinnyLaunch with = launch;
      with.weight = weight;
      launch_wide(with, by_outputs, cut, device_.stream());
    });
  }
}

void CudaOps::add_ways(std::vector<Way>& ways, const GatherDownLaunch& launch) const {
  for (const ProductCut& cut : product_cuts(launch.outputs, kGatherDownTile, limits_)) {
    ways.push_back([=, this](const void* weight) {
      GatherDownLaunch with = launch;
      with.weight = weight;
      launch_gather_down(with, cut, device_.stream());
    });
  }
}

void CudaOps::product(const void* x, int64_t x_stride, int rows, const Weight& weight,
                      const float* bias, bool relu, void* y, int64_t y_stride, bool f32,
                      bool large_tiles) {
  const CudaWeight& w = cuda(weight);
  ProductShape shape{rows,
                     static_cast<int>(w.rows()),
                     static_cast<int>(w.columns()),
                     x_stride,
                     y_stride,
                     w.gathers(),
                     f32,
                     bias != nullptr,
                     relu};
  const void* its_bias = bias == nullptr || f32 ? bias : bias_in_bf16(bias, shape.outputs);
  std::vector<Way> ways;
  for (int i = 0; i < cublas_.algorithms(shape); ++i) {
    ways.push_back([=, this](const void* data) {
      cublas_.run(shape, i, x, data, its_bias, y, workspace_, device_.stream());
    });
  }
  const SkinnyLaunch launch{.x = x,
                            .x_stride = x_stride,
                            .rows = rows,
                            .n = shape.outputs,
                            .k = shape.k,
                            .bias = bias,
                            .activate = relu,
                            .y = y,
                            .y_stride = y_stride,
                            .y_f32 = f32};
  const bool aligned = x_stride % 8 == 0 && (w.gathers() || shape.k % 8 == 0);
  if ((rows <= kMostSkinnyRows || ways.empty()) && !w.gathers() && aligned) add_ways(ways, launch);
  if (large_tiles && aligned) add_wide_ways(ways, launch, w.gathers());
  if (rows <= kMostSkinnyRows && w.gathers() && !relu && shape.outputs % 8 == 0 && aligned) {
    add_ways(ways, GatherDownLaunch{.a = x,
                                    .a_stride = x_stride,
                                    .rows = rows,
                                    .count = shape.k,
                                    .outputs = shape.outputs,
                                    .bias = bias,
                                    .y = y,
                                    .y_f32 = f32});
  }
  fastest({large_tiles ? Product::kOfMlp : Product::kPlain, shape}, w.data(), ways);
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::activated_product(const MlpArgs& args) {
  const auto rows = static_cast<int>(args.x.shape[0]);
  const int64_t hidden = args.x.shape[1], ffn = args.down->columns(),
                width = args.gated ? 2 * ffn : ffn;
  const ProductShape shape{rows,
                           static_cast<int>(width),
                           static_cast<int>(hidden),
                           hidden,
                           width,
                           false,
                           false,
                           args.up_bias != nullptr,
                           false};
  const void* bias = args.up_bias == nullptr ? nullptr : bias_in_bf16(args.up_bias, shape.outputs);
  std::vector<Way> ways;
  for (int i = 0; i < cublas_.algorithms(shape); ++i) {
    ways.push_back([=, this](const void* weight) {
      cublas_.run(shape, i, args.x.data, weight, bias, args.scratch.data, workspace_,
                  device_.stream());
      launch_activate(args.scratch.data, width, args.scratch.data, width, rows,
                      static_cast<int>(ffn), args.activation, args.gated, device_.stream());
    });
  }
  const SkinnyLaunch launch{.x = args.x.data,
                            .x_stride = hidden,
                            .rows = rows,
                            .n = static_cast<int>(ffn),
                            .k = static_cast<int>(hidden),
                            .bias = args.up_bias,
                            .activate = true,
                            .activation = args.activation,
                            .gated = args.gated,
                            .y = args.scratch.data,
                            .y_stride = width};
  if ((rows <= kMostSkinnyRows || ways.empty()) && hidden % 8 == 0) add_ways(ways, launch);
  if (hidden % 8 == 0) add_wide_ways(ways, launch, false);
  fastest({Product::kActivated, shape}, cuda(*args.up).data(), ways);
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::embed(const EmbedArgs& args) {
  dense_plan_ = {};
  plans_began_ = false;
  uncounted_layers_ = 0;
  if (device_.capturing()) POLAR_CUDA(cudaEventRecord(plan_inputs_, device_.stream()));
  const Batch& batch = *args.batch;
  const CudaWeight& table = cuda(*args.table);
  const auto width = static_cast<int>(table.columns());
  const bool f32 = args.hidden.dtype == DType::kF32;
  EmbedLaunch launch{batch.token,      args.last_token,
                     batch.position,   batch.rows,
                     table.data(),     width,
                     nullptr,          0,
                     args.hidden.data, f32,
                     args.rope,        args.rotation};
  const void* positions = args.positions != nullptr ? cuda(*args.positions).data() : nullptr;
  if (args.projection == nullptr) {
    launch.positions = positions;
    launch.position_offset = args.position_offset;
    launch_embed(launch, device_.stream());
  } else {
    void* embedded = embedded_.at_least(device_, static_cast<size_t>(batch.rows) * width * 2);
    launch.out = embedded;
    launch.out_f32 = false;
    launch_embed(launch, device_.stream());
    const int64_t hidden = args.hidden.shape[1];
    product(embedded, width, batch.rows, *args.projection, nullptr, false, args.hidden.data, hidden,
            f32);
    if (positions != nullptr)
      launch_add_positions(batch.position, batch.rows, static_cast<int>(hidden), positions,
                           args.position_offset, args.hidden.data, f32, device_.stream());
  }
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::norm(const NormArgs& args) {
  POLAR_CHECK(args.add.data == nullptr || args.add.dtype == args.residual.dtype);
  launch_norm({.residual = args.residual.data,
               .add = args.add.data,
               .f32 = args.residual.dtype == DType::kF32,
               .norm = args.norm,
               .out = args.out.data,
               .rows = static_cast<int>(args.residual.shape[0]),
               .hidden = static_cast<int>(args.residual.shape[1])},
              device_.stream());
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::qkv(const QkvArgs& args) {
  const int64_t width = static_cast<int64_t>(args.heads + 2 * args.kv.kv_heads) * args.kv.head_dim;
  product(args.x.data, args.x.shape[1], args.batch->rows, *args.weight, nullptr, false,
          args.scratch.data, width, false);
  launch_rope_store(args, args.bias, device_.stream());
  POLAR_CUDA(cudaGetLastError());
  // The indices of the pages that planned rows fill are written by the plan verb.
  const Batch& batch = *args.batch;
  write_page_index(batch, args.kv, args.layer, 0, batch.prefill_rows);
}

void CudaOps::linear(const LinearArgs& args) {
  product(args.x.data, args.x.shape[1], static_cast<int>(args.x.shape[0]), *args.weight, args.bias,
          false, args.y.data, args.y.shape[1], args.y.dtype == DType::kF32);
}

void CudaOps::neurons(const NeuronArgs& args) {
  const auto rows = static_cast<int>(args.x.shape[0]), ffn = static_cast<int>(args.wide->rows());
  const void* x = args.x.data;
  int64_t width = args.x.shape[1];
  if (args.narrow != nullptr) {
    const int64_t rank = args.narrow->rows();
    void* narrow = narrow_.at_least(device_, static_cast<size_t>(rows) * rank * 2);
    product(x, width, rows, *args.narrow, nullptr, false, narrow, rank, false);
    x = narrow;
    width = rank;
  }
  NeuronScores scores{args.by, 1.0f / args.unit};
  // The keys, and behind them the counters.
  scores.keys = static_cast<uint32_t*>(
      neuron_keys_.at_least(device_, (kMostNeurons + kNeuronBins) * sizeof(uint32_t)));
  scores.bins = reinterpret_cast<int32_t*>(scores.keys + kMostNeurons);
  const CudaWeight& wide = cuda(*args.wide);
  const bool at_once = wide.four_bits() && rows <= kMostSkinnyRows;  // without logits
  auto* logits = at_once ? nullptr
                         : static_cast<float*>(neuron_logits_.at_least(
                               device_, static_cast<size_t>(rows) * ffn * sizeof(float)));
  if (wide.four_bits()) {
    launch_four_bit({x, width, rows, wide.data(), ffn, static_cast<int>(width), wide.unit(),
                     args.bias, logits, scores},
                    device_.stream());
  } else {
    product(x, width, rows, wide, args.bias, false, logits, ffn, true);
  }
  if (!at_once) launch_score_neurons(logits, rows, ffn, scores, device_.stream());
  launch_list_neurons(scores, ffn, args.count, args.index, device_.stream());
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::sparse_mlp(const MlpArgs& args) {
  const auto rows = static_cast<int>(args.x.shape[0]);
  const int64_t hidden = args.x.shape[1], outputs = args.y.shape[1];
  const int count = args.neurons->count;
  const bool f32 = args.y.dtype == DType::kF32;
  const int64_t stride = (count + 7) / 8 * 8;  // the second product reads 16 bytes at a time
  POLAR_CHECK(!args.gated && cuda(*args.down).gathers() && stride <= args.scratch.shape[1]);
  for (int first = 0; first < rows; first += kMostSkinnyRows) {
    const int some = std::min(kMostSkinnyRows, rows - first);
    void* scratch = args.scratch.as<std::byte>() + first * stride * 2;
    ProductShape shape{some, count, static_cast<int>(hidden), hidden, stride};
    std::vector<Way> up, down;
    add_ways(up, SkinnyLaunch{.x = args.x.as<std::byte>() + first * hidden * 2,
                              .x_stride = hidden,
                              .rows = some,
                              .index = args.neurons->index,
                              .n = count,
                              .k = static_cast<int>(hidden),
                              .bias = args.up_bias,
                              .activate = true,
                              .activation = args.activation,
                              .y = scratch,
                              .y_stride = stride});
    fastest({Product::kGatherUp, shape}, cuda(*args.up).data(), up);
    add_ways(down, GatherDownLaunch{.a = scratch,
                                    .a_stride = stride,
                                    .rows = some,
                                    .index = args.neurons->index,
                                    .count = count,
                                    .outputs = static_cast<int>(outputs),
                                    .bias = args.down_bias,
                                    .y = args.y.as<std::byte>() + first * outputs * (f32 ? 4 : 2),
                                    .y_f32 = f32});
    shape.outputs = static_cast<int>(outputs);
    shape.k = count;
    fastest({Product::kGatherDown, shape}, cuda(*args.down).data(), down);
  }
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::mlp(const MlpArgs& args) {
  if (args.neurons != nullptr) return sparse_mlp(args);
  const auto rows = static_cast<int>(args.x.shape[0]);
  const int64_t hidden = args.x.shape[1], ffn = args.down->columns(),
                stride = args.gated ? 2 * ffn : ffn;
  if (!args.gated && args.activation == Activation::kRelu) {
    product(args.x.data, hidden, rows, *args.up, args.up_bias, true, args.scratch.data, stride,
            false, true);
  } else {
    activated_product(args);
  }
  product(args.scratch.data, stride, rows, *args.down, args.down_bias, false, args.y.data,
          args.y.shape[1], args.y.dtype == DType::kF32, true);
}

void CudaOps::head(const HeadArgs& args) {
  const Batch& batch = *args.batch;
  const int rows = batch.logit_rows;
  const int64_t hidden = args.hidden.shape[1], embedding = args.weight->columns();
  launch_norm({.residual = args.hidden.data,
               .add = args.add.data,
               .f32 = args.hidden.dtype == DType::kF32,
               .norm = args.norm,
               .out = args.scratch.data,
               .rows = rows,
               .hidden = static_cast<int>(hidden),
               .rows_index = batch.logit_row},
              device_.stream());
  void* x = args.scratch.data;
  if (args.projection != nullptr) {
    void* projected = args.scratch.as<std::byte>() + static_cast<size_t>(rows) * hidden * 2;
    product(x, hidden, rows, *args.projection, nullptr, false, projected, embedding, false);
    x = projected;
  }
  product(x, embedding, rows, *args.weight, nullptr, false, args.logits, args.weight->rows(), true);
}

void CudaOps::sample(const SampleArgs& args) {
  if (args.rows > 0) launch_sample(args, device_.stream());
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::score(const ScoreArgs& args) {
  if (args.rows > 0) launch_score(args, device_.stream());
  POLAR_CUDA(cudaGetLastError());
}

}  // namespace polar::backend::cuda
