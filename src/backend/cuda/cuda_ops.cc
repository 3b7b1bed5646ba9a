#include "backend/cuda/cuda_ops.h"

#include <algorithm>

#include "backend/cuda/attention.h"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {

namespace {

constexpr size_t kPartialBytes = CublasProducts::kWorkspaceBytes;

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
  workspace_ = device.own(kPartialBytes);
  counters_ = static_cast<int32_t*>(device.own(kSplitCounters * sizeof(int32_t)));
  next_tile_ = static_cast<uint32_t*>(device.own(sizeof(uint32_t)));
  flush_bytes_ = size_t{160} << 20;
  flush_ = device.own(flush_bytes_);
  shares_ = attention_shares();
  POLAR_CUDA(cudaStreamCreateWithFlags(&plan_stream_, cudaStreamNonBlocking));
  POLAR_CUDA(cudaEventCreateWithFlags(&plan_inputs_, cudaEventDisableTiming));
}

CudaOps::~CudaOps() {
  for (const LayerPlan& plan : layer_plans_) cudaEventDestroy(plan.done);
  cudaEventDestroy(plan_inputs_);
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

void CudaOps::fastest(const Choice& key, int rows, const std::vector<std::function<void()>>& ways) {
  const auto found = chosen_.find(key);
  if (found != chosen_.end()) return ways[found->second]();
  if (device_.capturing() || rows > 256 || ways.size() == 1) return ways[0]();
  cudaEvent_t begin, end;
  POLAR_CUDA(cudaEventCreate(&begin));
  POLAR_CUDA(cudaEventCreate(&end));
  int best = 0;
  float best_time = 1e30f;
  for (size_t way = 0; way < ways.size(); ++way) {
    float least = 1e30f;
    for (int round = 0; round < 4; ++round) {
      // Weights of a step come from memory: drive them out of the cache before each trial.
      POLAR_CUDA(cudaMemsetAsync(flush_, round, flush_bytes_, device_.stream()));
      POLAR_CUDA(cudaEventRecord(begin, device_.stream()));
      ways[way]();
      POLAR_CUDA(cudaEventRecord(end, device_.stream()));
      POLAR_CUDA(cudaEventSynchronize(end));
      float time = 0;
      POLAR_CUDA(cudaEventElapsedTime(&time, begin, end));
      if (round > 0) least = std::min(least, time);
    }
    if (least < best_time) {
      best_time = least;
      best = static_cast<int>(way);
    }
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  chosen_[key] = best;
  ways[best]();
}

ProductWorkspace CudaOps::product_workspace() const {
  return {workspace_, kPartialBytes, counters_, device_.processors()};
}

void CudaOps::skinny(const SkinnyLaunch& launch) {
  launch_skinny(launch, product_workspace(), device_.stream());
}

void CudaOps::skinny_rows(const SkinnyLaunch& launch) {
  const int rows = launch.rows;
  const int64_t y_bytes = launch.y_stride * (launch.y_f32 ? 4 : 2);
  for (int first = 0; first < rows; first += kMostSkinnyRows) {
    SkinnyLaunch some = launch;
    some.rows = std::min(kMostSkinnyRows, rows - first);
    some.x = static_cast<const std::byte*>(launch.x) + first * launch.x_stride * 2;
    some.y = static_cast<std::byte*>(launch.y) + first * y_bytes;
    skinny(some);
  }
}

void CudaOps::product(const void* x, int64_t x_stride, int rows, const Weight& weight,
                      const float* bias, bool relu, void* y, int64_t y_stride, bool f32) {
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
  const void* data = w.data();
  const void* its_bias = bias == nullptr || f32 ? bias : bias_in_bf16(bias, shape.outputs);
  std::vector<std::function<void()>> ways;
  for (int i = 0; i < cublas_.algorithms(shape); ++i) {
    ways.push_back(
        [=, this] { cublas_.run(shape, i, x, data, its_bias, y, workspace_, device_.stream()); });
  }
  if ((rows <= kMostSkinnyRows || ways.empty()) && !w.gathers() && shape.k % 8 == 0 &&
      x_stride % 8 == 0) {
    SkinnyLaunch launch{x,        x_stride,
                        rows,     data,
                        nullptr,  shape.outputs,
                        shape.k,  bias,
                        relu,     Activation::kRelu,
                        false,    y,
                        y_stride, f32};
    ways.push_back([=, this] { skinny_rows(launch); });
  }
  if (rows <= kMostSkinnyRows && w.gathers() && !f32 && !relu && shape.outputs % 8 == 0 &&
      x_stride % 8 == 0) {
    GatherDownLaunch launch{x, x_stride, rows, data, nullptr, shape.k, shape.outputs, bias, y};
    ways.push_back(
        [=, this] { launch_gather_down(launch, product_workspace(), device_.stream()); });
  }
  POLAR_CHECK(!ways.empty());
  fastest({shape, false}, rows, ways);
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::embed(const EmbedArgs& args) {
  dense_plan_ = {};
  plans_began_ = false;
  counting_ = false;
  if (device_.capturing()) POLAR_CUDA(cudaEventRecord(plan_inputs_, device_.stream()));
  const Batch& batch = *args.batch;
  const CudaWeight& table = cuda(*args.table);
  const auto width = static_cast<int>(table.columns());
  EmbedLaunch launch{batch.token,      args.last_token, batch.position, batch.rows,
                     table.data(),     width,           nullptr,        0,
                     args.hidden.data, args.rope,       args.rotation};
  const void* positions = args.positions != nullptr ? cuda(*args.positions).data() : nullptr;
  if (args.projection == nullptr) {
    launch.positions = positions;
    launch.position_offset = args.position_offset;
    launch_embed(launch, device_.stream());
  } else {
    void* embedded = embedded_.at_least(device_, static_cast<size_t>(batch.rows) * width * 2);
    launch.out = embedded;
    launch_embed(launch, device_.stream());
    const int64_t hidden = args.hidden.shape[1];
    product(embedded, width, batch.rows, *args.projection, nullptr, false, args.hidden.data, hidden,
            false);
    if (positions != nullptr)
      launch_add_positions(batch.position, batch.rows, static_cast<int>(hidden), positions,
                           args.position_offset, args.hidden.data, device_.stream());
  }
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::norm(const NormArgs& args) {
  launch_norm(args.residual.data, args.add.data, args.norm, args.out.data,
              static_cast<int>(args.residual.shape[0]), static_cast<int>(args.residual.shape[1]),
              nullptr, device_.stream());
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
          false, args.y.data, args.y.shape[1], false);
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
  NeuronChoiceLaunch launch;
  auto* logits = static_cast<float*>(
      neuron_logits_.at_least(device_, static_cast<size_t>(rows) * ffn * sizeof(float)));
  const CudaWeight& wide = cuda(*args.wide);
  if (wide.four_bits()) {
    launch_four_bit({x, width, rows, wide.data(), wide.scales(), ffn, static_cast<int>(width),
                     args.bias, logits},
                    device_.stream());
  } else {
    product(x, width, rows, wide, args.bias, false, logits, ffn, true);
  }
  launch.logits = logits;
  launch.rows = rows;
  launch.ffn = ffn;
  launch.inverse_unit = 1.0f / args.unit;
  launch.by = args.by;
  launch.count = args.count;
  // The keys, and behind them the counters.
  launch.keys = static_cast<uint32_t*>(
      neuron_keys_.at_least(device_, (kMostNeurons + kNeuronBins + 1) * sizeof(uint32_t)));
  launch.bins = reinterpret_cast<int32_t*>(launch.keys + kMostNeurons);
  launch.arrived = launch.bins + kNeuronBins;
  launch.index = args.index;
  launch_choose_neurons(launch, device_.stream());
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::sparse_mlp(const MlpArgs& args) {
  const auto rows = static_cast<int>(args.x.shape[0]);
  const int64_t hidden = args.x.shape[1], outputs = args.y.shape[1];
  const int count = args.neurons->count;
  const int64_t stride = (count + 7) / 8 * 8;  // the second product reads 16 bytes at a time
  POLAR_CHECK(!args.gated && cuda(*args.down).gathers() && stride <= args.scratch.shape[1]);
  for (int first = 0; first < rows; first += kMostSkinnyRows) {
    const int some = std::min(kMostSkinnyRows, rows - first);
    auto* scratch = args.scratch.as<std::byte>() + first * stride * 2;
    SkinnyLaunch up{args.x.as<std::byte>() + first * hidden * 2,
                    hidden,
                    some,
                    cuda(*args.up).data(),
                    args.neurons->index,
                    count,
                    static_cast<int>(hidden),
                    args.up_bias,
                    true,
                    args.activation,
                    false,
                    scratch,
                    stride,
                    false};
    skinny(up);
    const GatherDownLaunch down{scratch,
                                stride,
                                some,
                                cuda(*args.down).data(),
                                args.neurons->index,
                                count,
                                static_cast<int>(outputs),
                                args.down_bias,
                                args.y.as<std::byte>() + first * outputs * 2};
    launch_gather_down(down, product_workspace(), device_.stream());
  }
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::mlp(const MlpArgs& args) {
  if (args.neurons != nullptr) return sparse_mlp(args);
  const auto rows = static_cast<int>(args.x.shape[0]);
  const int64_t hidden = args.x.shape[1], ffn = args.down->columns(),
                stride = args.gated ? 2 * ffn : ffn;
  const bool relu = !args.gated && args.activation == Activation::kRelu;
  const CudaWeight& up = cuda(*args.up);
  const auto plain = [&] {
    product(args.x.data, hidden, rows, *args.up, args.up_bias, relu, args.scratch.data, stride,
            false);
    if (!relu)
      launch_activate(args.scratch.data, stride, args.scratch.data, stride, rows,
                      static_cast<int>(ffn), args.activation, args.gated, device_.stream());
  };
  if (relu || rows > kMostSkinnyRows || hidden % 8 != 0) {
    plain();
  } else {
    const SkinnyLaunch fused{args.x.data,
                             hidden,
                             rows,
                             up.data(),
                             nullptr,
                             static_cast<int>(ffn),
                             static_cast<int>(hidden),
                             args.up_bias,
                             true,
                             args.activation,
                             args.gated,
                             args.scratch.data,
                             stride,
                             false};
    ProductShape shape{rows,
                       static_cast<int>(ffn),
                       static_cast<int>(hidden),
                       hidden,
                       stride,
                       false,
                       false,
                       args.up_bias != nullptr,
                       false};
    if (!device_.capturing() && !chosen_.contains({shape, true}))
      plain();  // chooses its algorithm first
    fastest({shape, true}, rows, {plain, [&] { skinny(fused); }});
  }
  product(args.scratch.data, stride, rows, *args.down, args.down_bias, false, args.y.data,
          args.y.shape[1], false);
}

void CudaOps::head(const HeadArgs& args) {
  const Batch& batch = *args.batch;
  const int rows = batch.logit_rows;
  const int64_t hidden = args.hidden.shape[1], embedding = args.weight->columns();
  launch_norm(args.hidden.data, args.add.data, args.norm, args.scratch.data, rows,
              static_cast<int>(hidden), batch.logit_row, device_.stream());
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
