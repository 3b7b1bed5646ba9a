#include "backend/cuda/cuda_ops.h"

#include <algorithm>

#include "backend/cuda/attention.h"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {

namespace {

constexpr size_t kPartialBytes = CublasProducts::kWorkspaceBytes;
constexpr int kSkinnyRows = 16;  // more rows than that: the library's kernels are as good
constexpr int kMostSkinnyRows = 64;

/// Rows [first, first + rows) of a batch, whose filled pages' indices are wanted. Half steps stand
/// behind the codes of all layers, so that codes are aligned.
PageIndex page_index(const Batch& batch, const KvView& kv, int layer, int first, int rows) {
  PageIndex index;
  index.position = batch.position + first;
  index.sequence = batch.sequence + first;
  index.rows = rows;
  index.kv_heads = kv.kv_heads;
  index.head_dim = kv.head_dim;
  index.table_stride = batch.table_stride;
  index.pages = batch.pages;
  index.kv = kv.block(layer, 0, 0);
  index.kv_dtype = kv.dtype;
  index.score = kv.page_score;
  index.data = kv.index_of(layer, 0, 0);
  if (kv.page_score == PageScore::kCodes) {
    const size_t blocks = static_cast<size_t>(kv.pages) * kv.kv_heads,
                 code_bytes = kv.index_bytes() - sizeof(float);
    index.data = kv.index + layer * blocks * code_bytes;
    index.half_steps =
        reinterpret_cast<float*>(kv.index + kv.layers * blocks * code_bytes) + layer * blocks;
  }
  return index;
}

}  // namespace

void* CudaOps::Grown::at_least(CudaDevice& device, size_t wanted) {
  if (wanted > bytes) {
    data = device.own(wanted);
    bytes = wanted;
  }
  return data;
}

CudaOps::CudaOps(CudaDevice& device) : device_(device) {
  workspace_ = device.own(kPartialBytes);
  counters_ = static_cast<int32_t*>(device.own(kSplitCounters * sizeof(int32_t)));
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

void CudaOps::skinny(const SkinnyLaunch& launch) {
  launch_skinny(launch, workspace_, kPartialBytes, counters_, device_.processors(),
                device_.stream());
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
  if ((rows <= kSkinnyRows || ways.empty()) && !w.gathers() && shape.k % 32 == 0) {
    SkinnyLaunch launch{x,        x_stride,
                        rows,     data,
                        nullptr,  shape.outputs,
                        shape.k,  bias,
                        relu,     Activation::kRelu,
                        false,    y,
                        y_stride, f32};
    ways.push_back([=, this] { skinny_rows(launch); });
  }
  if (rows <= kSkinnyRows && w.gathers() && !f32 && !relu && shape.outputs % 8 == 0) {
    GatherDownLaunch launch{x, x_stride, rows, data, nullptr, shape.k, shape.outputs, bias, y};
    ways.push_back([=, this] {
      launch_gather_down(launch, workspace_, kPartialBytes, counters_, device_.processors(),
                         device_.stream());
    });
  }
  POLAR_CHECK(!ways.empty());
  fastest({shape, false}, rows, ways);
  POLAR_CUDA(cudaGetLastError());
}

void CudaOps::embed(const EmbedArgs& args) {
  dense_plan_ = {};
  plans_began_ = false;
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
  if (args.kv.index != nullptr && batch.prefill_rows > 0) {
    POLAR_CUDA(launch_page_index(page_index(batch, args.kv, args.layer, 0, batch.prefill_rows),
                                 device_.stream()));
  }
}

void CudaOps::plan(const PlanArgs& args) {
  const Batch& batch = *args.batch;
  if (batch.planned_rows() == 0) return;
  const int first = batch.prefill_rows, units = batch.planned_rows() * args.kv.kv_heads;
  // Choosing pages writes the indices of the pages that its rows fill, unless rows of one sequence
  // may choose what others of them fill.
  const bool chooses = args.kv.index != nullptr && args.query.data != nullptr;
  const bool alone = batch.rows == batch.sequences;
  if (args.kv.index != nullptr && !(chooses && alone)) {
    POLAR_CUDA(launch_page_index(
        page_index(batch, args.kv, args.layer, first, batch.planned_rows()), device_.stream()));
  }
  const DensePlan dense{batch.position,     batch.planned_rows(), args.kv.kv_heads,
                        batch.table_stride, args.window,          args.plan.units};
  if (args.budgets == nullptr && dense == dense_plan_) {  // as in the layer before
    if (args.plan.read != nullptr)
      launch_count_pages(args.plan.units, args.plan.read, batch.planned_rows(), args.kv.kv_heads,
                         device_.stream());
    scheduled_ = args.plan.units;
    return;
  }
  const float* logits = router_logits(args);
  PlanLaunch launch{batch.position + first,
                    batch.sequence + first,
                    batch.point + first,
                    batch.planned_rows(),
                    args.kv.kv_heads,
                    batch.table_stride,
                    args.window,
                    args.budgets,
                    args.limits,
                    logits,
                    batch.list_begin(),
                    chooses ? batch.list_capacity : 0,
                    args.plan.units,
                    args.plan.read,
                    {}};
  scheduled_ = args.plan.units;
  if (device_.capturing() && args.budgets != nullptr &&
      attention_supported(args.kv.dtype, args.kv.head_dim, args.heads / args.kv.kv_heads)) {
    const LayerPlan& own = plan_beside(args.layer, launch);
    if (chooses) choose_pages(args, launch, alone);
    POLAR_CUDA(cudaStreamWaitEvent(device_.stream(), own.done));
    beside_ = &own;
    return;
  }
  if (units > schedule_units_) {
    schedule_units_ = std::max(units, 2 * schedule_units_);
    schedule_ = device_.own(schedule_bytes(schedule_units_, shares_));
  }
  launch.schedule = schedule_at(schedule_, shares_);
  POLAR_CUDA(launch_plan(launch, device_.stream()));
  if (chooses) choose_pages(args, launch, alone);
  dense_plan_ = args.budgets == nullptr ? dense : DensePlan{};
}

const CudaOps::LayerPlan& CudaOps::plan_beside(int layer, PlanLaunch plan) {
  if (static_cast<int>(layer_plans_.size()) <= layer) layer_plans_.resize(layer + 1);
  LayerPlan& own = layer_plans_[layer];
  const int units = plan.rows * plan.kv_heads;
  if (own.done == nullptr) POLAR_CUDA(cudaEventCreateWithFlags(&own.done, cudaEventDisableTiming));
  if (units > own.units) {
    own.units = std::max(units, 2 * own.units);
    own.ranges = static_cast<PageRanges*>(device_.own(own.units * sizeof(PageRanges)));
    own.schedule = device_.own(schedule_bytes(own.units, shares_));
  }
  plan.plan = own.ranges;
  plan.schedule = schedule_at(own.schedule, shares_);
  if (plan.router != nullptr) POLAR_CUDA(cudaEventRecord(plan_inputs_, device_.stream()));
  if (plan.router != nullptr || !plans_began_)
    POLAR_CUDA(cudaStreamWaitEvent(plan_stream_, plan_inputs_));
  plans_began_ = true;
  POLAR_CUDA(launch_plan(plan, plan_stream_, false));
  POLAR_CUDA(cudaEventRecord(own.done, plan_stream_));
  return own;
}

/// The routers' logits [planned rows][kv_heads], or null.
const float* CudaOps::router_logits(const PlanArgs& args) {
  if (args.router == nullptr) return nullptr;
  const Batch& batch = *args.batch;
  const int rows = batch.planned_rows();
  const int64_t width = args.x.shape[1], kv_heads = args.kv.kv_heads;
  auto* logits = static_cast<float*>(
      router_logits_.at_least(device_, static_cast<size_t>(rows * kv_heads) * sizeof(float)));
  product(args.x.as<std::byte>() + batch.prefill_rows * width * 2, width, rows, *args.router,
          args.router_bias, false, logits, kv_heads, true);
  return logits;
}

void CudaOps::choose_pages(const PlanArgs& args, const PlanLaunch& plan, bool writes_index) {
  const Batch& batch = *args.batch;
  const int first = batch.prefill_rows, units = plan.rows * plan.kv_heads,
            group = args.heads / plan.kv_heads;
  auto* scores = static_cast<float*>(
      page_scores_.at_least(device_, page_scores_bytes(units, group, batch.table_stride)));
  PageSelection selection;
  selection.plan = plan;
  selection.index = page_index(batch, args.kv, args.layer, first, writes_index ? plan.rows : 0);
  selection.query =
      args.query.as<std::byte>() + static_cast<size_t>(first) * args.heads * args.kv.head_dim * 2;
  selection.group = group;
  selection.scale = args.scale;
  selection.scores = scores;
  selection.pages = batch.pages;
  POLAR_CUDA(launch_page_selection(selection, device_.stream()));
}

void* CudaOps::attention_scratch(int units, int group, int head_dim) {
  void*& memory = attention_scratch_[{units, group, head_dim}];
  if (memory == nullptr)
    memory = device_.own(attention_scratch_bytes(units, shares_, group, head_dim));
  return memory;
}

void CudaOps::attention(const AttentionArgs& args) {
  const Batch& batch = *args.batch;
  const KvView& kv = args.kv;
  const int group = args.heads / kv.kv_heads, planned = batch.planned_rows(),
            first = batch.prefill_rows;
  if (!attention_supported(kv.dtype, kv.head_dim, group)) {
    launch_simple_attention(args, device_.stream());
    POLAR_CUDA(cudaGetLastError());
    return;
  }
  const std::byte* layer = kv.block(args.layer, 0, 0);
  if (first > 0) {
    const PrefillAttention prefill{layer,
                                   kv.dtype,
                                   kv.head_dim,
                                   kv.kv_heads,
                                   group,
                                   args.window,
                                   args.scale,
                                   batch.pages,
                                   batch.table_stride,
                                   batch.position,
                                   batch.chunk_begin,
                                   batch.sequences,
                                   first,
                                   args.query.data,
                                   args.output.data};
    POLAR_CUDA(launch_prefill_attention(prefill, device_.stream()));
  }
  if (planned == 0) return;
  const int units = planned * kv.kv_heads;
  if (scheduled_ != args.plan->units) {  // a plan that the host wrote
    if (units > schedule_units_) {
      schedule_units_ = units;
      schedule_ = device_.own(schedule_bytes(units, shares_));
    }
    const PlanLaunch launch{batch.position + first,
                            batch.sequence + first,
                            batch.point + first,
                            planned,
                            kv.kv_heads,
                            batch.table_stride,
                            args.window,
                            nullptr,
                            nullptr,
                            nullptr,
                            0,
                            0,
                            args.plan->units,
                            nullptr,
                            schedule_at(schedule_, shares_)};
    POLAR_CUDA(launch_schedule(launch, device_.stream()));
    dense_plan_ = {};
  }
  scheduled_ = nullptr;
  const size_t offset = static_cast<size_t>(first) * args.heads * kv.head_dim * 2;
  const DecodeAttention decode{
      layer,
      kv.dtype,
      kv.head_dim,
      kv.kv_heads,
      group,
      units,
      args.window,
      args.scale,
      batch.pages,
      batch.list_begin(),
      schedule_at(beside_ != nullptr ? beside_->schedule : schedule_, shares_),
      beside_ != nullptr ? beside_->ranges : args.plan->units,
      args.query.as<std::byte>() + offset,
      args.output.as<std::byte>() + offset,
      attention_scratch_at(attention_scratch(units, group, kv.head_dim), units, shares_, group),
      beside_ == nullptr};
  beside_ = nullptr;
  POLAR_CUDA(launch_decode_attention(decode, device_.stream()));
}

void CudaOps::linear(const LinearArgs& args) {
  product(args.x.data, args.x.shape[1], static_cast<int>(args.x.shape[0]), *args.weight, args.bias,
          false, args.y.data, args.y.shape[1], false);
}

void CudaOps::sparse_mlp(const MlpArgs& args) {
  const auto rows = static_cast<int>(args.x.shape[0]);
  const int64_t hidden = args.x.shape[1], outputs = args.y.shape[1];
  const int count = args.neurons->count;
  POLAR_CHECK(!args.gated && cuda(*args.down).gathers() && hidden % 32 == 0);
  for (int first = 0; first < rows; first += kMostSkinnyRows) {
    const int some = std::min(kMostSkinnyRows, rows - first);
    auto* scratch = args.scratch.as<std::byte>() + static_cast<size_t>(first) * count * 2;
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
                    count,
                    false};
    skinny(up);
    const GatherDownLaunch down{scratch,
                                count,
                                some,
                                cuda(*args.down).data(),
                                args.neurons->index,
                                count,
                                static_cast<int>(outputs),
                                args.down_bias,
                                args.y.as<std::byte>() + first * outputs * 2};
    launch_gather_down(down, workspace_, kPartialBytes, counters_, device_.processors(),
                       device_.stream());
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
  if (relu || rows > kSkinnyRows || hidden % 32 != 0) {
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
