// Plans and attention: what the verbs queue, on which stream, in which memory.

#include <algorithm>

#include "backend/cuda/attention.h"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/cuda_ops.h"
#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {

namespace {

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
  if (kv.summaries != nullptr) index.summaries = kv.summary_of(layer, 0, 0);
  if (kv.index == nullptr) return index;
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

/// What every plan of a batch's planned rows begins with.
PlanLaunch plan_launch(const Batch& batch, const KvView& kv, int window, PageRanges* units) {
  PlanLaunch launch;
  launch.position = batch.position + batch.prefill_rows;
  launch.sequence = batch.sequence + batch.prefill_rows;
  launch.point = batch.point + batch.prefill_rows;
  launch.rows = batch.planned_rows();
  launch.kv_heads = kv.kv_heads;
  launch.table_stride = batch.table_stride;
  launch.window = window;
  launch.plan = units;
  return launch;
}

}  // namespace

void CudaOps::plan(const PlanArgs& args) {
  const Batch& batch = *args.batch;
  if (batch.planned_rows() == 0) return;
  const int first = batch.prefill_rows, units = batch.planned_rows() * args.kv.kv_heads;
  // Choosing pages writes the indices of the pages that its rows fill, unless rows of one sequence
  // may choose what others of them fill.
  const bool chooses = args.kv.index != nullptr && args.query.data != nullptr;
  const bool alone = batch.rows == batch.sequences;
  if (!(chooses && alone))
    write_page_index(batch, args.kv, args.layer, first, batch.planned_rows());
  const DensePlan dense{batch.position,     batch.planned_rows(), args.kv.kv_heads,
                        batch.table_stride, args.window,          args.plan.units};
  if (args.budgets == nullptr && dense == dense_plan_) {  // as in the layer before
    if (args.plan.read != nullptr) {
      uncounted_ = args.plan;
      ++uncounted_layers_;
    }
    scheduled_ = args.plan.units;
    shares_plan_ = true;
    return;
  }
  shares_plan_ = false;
  count_layers(batch.planned_rows(), args.kv.kv_heads);
  const float* logits = router_logits(args);
  PlanLaunch launch = plan_launch(batch, args.kv, args.window, args.plan.units);
  launch.budgets = args.budgets;
  launch.limits = args.limits;
  launch.router = logits;
  launch.list_begin = batch.list_begin();
  launch.list_capacity = chooses ? batch.list_capacity : 0;
  launch.read = args.plan.read;
  scheduled_ = args.plan.units;
  if (device_.capturing() && args.budgets != nullptr &&
      attention_supported(args.kv.dtype, args.kv.head_dim, args.heads / args.kv.kv_heads)) {
    const LayerPlan& own = plan_beside(args.layer, launch);
    if (chooses) choose_pages(args, launch, alone);
    POLAR_CUDA(cudaStreamWaitEvent(device_.stream(), own.done));
    beside_ = &own;
    return;
  }
  launch.schedule = schedule_for(units);
  POLAR_CUDA(launch_plan(launch, device_.stream()));
  if (chooses) choose_pages(args, launch, alone);
  dense_plan_ = args.budgets == nullptr ? dense : DensePlan{};
}

void CudaOps::count_layers(int rows, int kv_heads) {
  if (uncounted_layers_ > 0)
    launch_count_pages(uncounted_.units, uncounted_.read, rows, kv_heads, uncounted_layers_,
                       device_.stream());
  uncounted_layers_ = 0;
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

Schedule CudaOps::schedule_for(int units) {
  if (units > schedule_units_) {
    schedule_units_ = std::max(units, 2 * schedule_units_);
    schedule_ = device_.own(schedule_bytes(schedule_units_, shares_));
  }
  return schedule_at(schedule_, shares_);
}

void CudaOps::write_page_index(const Batch& batch, const KvView& kv, int layer, int first,
                               int rows) {
  if (kv.index == nullptr && kv.summaries == nullptr) return;
  POLAR_CUDA(launch_page_index(page_index(batch, kv, layer, first, rows), device_.stream()));
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
  if (args.layer == kv.layers - 1) count_layers(planned, kv.kv_heads);
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
                                   args.output.data,
                                   next_tile_};
    POLAR_CUDA(launch_prefill_attention(prefill, device_.stream()));
  }
  if (planned == 0) return;
  const int units = planned * kv.kv_heads;
  if (scheduled_ != args.plan->units) {  // a plan that the host wrote
    PlanLaunch launch = plan_launch(batch, kv, args.window, args.plan->units);
    launch.schedule = schedule_for(units);
    POLAR_CUDA(launch_schedule(launch, device_.stream()));
    dense_plan_ = {};
  }
  scheduled_ = nullptr;
  const size_t offset = static_cast<size_t>(first) * args.heads * kv.head_dim * 2;
  const DecodeAttention decode{
      .kv = layer,
      .summaries =
          kv.summaries != nullptr && !shares_plan_ ? kv.summary_of(args.layer, 0, 0) : nullptr,
      .kv_dtype = kv.dtype,
      .head_dim = kv.head_dim,
      .kv_heads = kv.kv_heads,
      .group = group,
      .units = units,
      .window = args.window,
      .scale = args.scale,
      .pages = batch.pages,
      .list_begin = batch.list_begin(),
      .schedule = schedule_at(beside_ != nullptr ? beside_->schedule : schedule_, shares_),
      .plan = beside_ != nullptr ? beside_->ranges : args.plan->units,
      .query = args.query.as<std::byte>() + offset,
      .output = args.output.as<std::byte>() + offset,
      .scratch =
          attention_scratch_at(attention_scratch(units, group, kv.head_dim), units, shares_, group),
      .early = beside_ == nullptr,
      // One row a sequence: what this step writes lies in last pages.
      .settled = shares_plan_ && first == 0 && batch.rows == batch.sequences};
  beside_ = nullptr;
  shares_plan_ = false;
  POLAR_CUDA(launch_decode_attention(decode, device_.stream()));
}

}  // namespace polar::backend::cuda
