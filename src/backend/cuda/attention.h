#pragma once
// Attention, plans and page scores: the launch functions. Raw device pointers and plain structs; no
// allocation, no synchronisation, nothing read back: all of it can be captured in a CUDA graph.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/step.h"
#include "core/dtype.h"

namespace polar::backend::cuda {

/// One unit that reads something, as the attention kernel walks it. `first` counts the pages of all
/// units before it: blocks of the kernel take equal shares of all pages, wherever units begin. A
/// group of 16 pages' summaries counts as a page: it is put together as one in shared memory.
struct WorkUnit {
  int32_t first;        // pages before this unit
  int32_t unit;         // planned row * kv_heads + kv_head
  PageRanges ranges;    // its groups of summaries, then its pages
  int32_t position;     // of the row
  int32_t table_begin;  // first entry of the row's page table
  int32_t first_share;  // the shares that its pages lie in
  int32_t last_share;
  int32_t kv_head;
  int32_t reserved;
};
static_assert(sizeof(WorkUnit) == 64);

/// A share of the pages (a block's) is cut into that many parts; a warp takes one or two of them.
inline constexpr int kShareParts = 8;

#ifdef __CUDACC__
#define POLAR_BOTH __host__ __device__
#else
#define POLAR_BOTH
#endif

/// Where share `share` of `shares` begins, in pages of all units: equal shares, and no more of them
/// than have a page for each part.
POLAR_BOTH inline int share_begin(int pages, int share, int shares) {
  const int useful = (pages + kShareParts - 1) / kShareParts;
  const int count = useful < shares ? useful : shares;
  return share < count ? static_cast<int>(static_cast<int64_t>(pages) * share / count) : pages;
}

/// Where part `part` of a share [begin, end) begins. Parts without a page come last.
POLAR_BOTH inline int part_begin(int begin, int end, int part) {
  const int pages = end - begin;
  if (pages < kShareParts) return part < pages ? begin + part : end;
  return begin + pages * part / kShareParts;
}

/// The units with pages, in order, and their sum: what one launch of decode attention reads. Device
/// memory, written by the plan kernels.
struct Schedule {
  int32_t* header = nullptr;  // [2] pages, units with pages
  int32_t* start = nullptr;   // [shares * kShareParts] the work in which each part begins
  WorkUnit* work = nullptr;   // [planned rows * kv_heads]
  int shares = 0;             // blocks of the decode kernel's launch
};
inline size_t schedule_header_bytes(int shares) {
  return (sizeof(int32_t) * (2 + static_cast<size_t>(shares) * kShareParts) + 255) / 256 * 256;
}
inline size_t schedule_bytes(int units, int shares) {
  return schedule_header_bytes(shares) + units * sizeof(WorkUnit);
}
inline Schedule schedule_at(void* memory, int shares) {
  auto* header = static_cast<int32_t*>(memory);
  auto* work = static_cast<std::byte*>(memory) + schedule_header_bytes(shares);
  return {header, header + 2, reinterpret_cast<WorkUnit*>(work), shares};
}

/// Partial results of units that several blocks share, and the counts by which the last of them
/// knows itself. The memory must be zero once, before the first launch; the kernel leaves the
/// counts zero.
struct AttentionScratch {
  int32_t* arrivals = nullptr;   // [units]
  float* partial = nullptr;      // [shares][2][group * head_dim]
  float* partial_sum = nullptr;  // [shares][2][group][maximum, sum]
};
size_t attention_scratch_bytes(int units, int shares, int group, int head_dim);
AttentionScratch attention_scratch_at(void* memory, int units, int shares, int group);

/// Decode attention over a schedule, dense or sparse alike.
struct DecodeAttention {
  const std::byte* kv = nullptr;         // blocks of the layer: [page][kv_head]
  const std::byte* summaries = nullptr;  // of the layer: [page][kv_head] (kv_layout.cuh); or null
  DType kv_dtype = DType::kBF16;         // bf16 or f16
  int head_dim = 0;                      // 64, 80, 96, 128, 256
  int kv_heads = 0;
  int group = 0;  // query heads per KV head, 1 to 16
  int units = 0;  // planned rows * kv_heads
  int window = 0;
  float scale = 1.0f;
  const int32_t* pages = nullptr;  // Batch::pages
  int32_t list_begin = 0;          // entries from here on are lists of whole pages
  Schedule schedule;
  const PageRanges* plan = nullptr;  // [units]: units that read nothing are zeroed by it
  const void* query = nullptr;       // [units][group][head_dim], bf16
  void* output = nullptr;            // [units][group][head_dim], bf16
  AttentionScratch scratch;
  bool early = true;  // may begin while the kernel before it in the stream still runs
  /// Schedule, plan and all pages but each unit's last stood before the kernels in front began:
  /// they are read before those have ended. A block fits beside no other one of this kernel, so
  /// that when it begins, one of the layer before has ended, and what that one waited for.
  bool settled = false;
};

/// Shares into which one launch is cut on the current device: one per multiprocessor.
int attention_shares();

/// Whether there is a kernel for this shape; they want bulk copies, which older GPUs than sm_90
/// lack.
bool attention_supported(DType kv_dtype, int head_dim, int group);
cudaError_t launch_decode_attention(const DecodeAttention& args, cudaStream_t stream);

/// What the plan kernels read. Pointers as in PlanArgs; row r below is planned row r.
struct PlanLaunch {
  const int32_t* position = nullptr;  // [rows], of the planned rows
  const int32_t* sequence = nullptr;  // [rows]
  const int32_t* point = nullptr;     // [rows]
  int rows = 0;
  int kv_heads = 0;
  int table_stride = 0;
  int window = 0;
  const UnitBudget* budgets = nullptr;  // [points][kv_heads]; null: every unit is full
  const PointLimits* limits = nullptr;  // [points]
  const float* router = nullptr;        // [rows][kv_heads] logits of routed units, or null
  int list_begin = 0;                   // where lists of chosen pages begin in Batch::pages, and
  int list_capacity = 0;                // entries for all units alike; 0: kPages reads everything
  PageRanges* plan = nullptr;           // [rows][kv_heads] out
  ReadCount* read = nullptr;            // [rows] increased; or null
  Schedule schedule;                    // out
};

/// Budgets to page ranges and their schedule. How much a unit reads does not depend on which pages
/// it chooses: their list is written by launch_page_selection, before or after. Routed units: the
/// `routed` ones with the largest logits of a row are full, the others fall back (ties: the lower
/// head). One block; a node. `early`: may begin while the kernel before it in the stream still
/// runs.
cudaError_t launch_plan(const PlanLaunch& args, cudaStream_t stream, bool early = true);

/// The schedule of ranges that stand in `plan` already: for plans that the host or a study wrote.
cudaError_t launch_schedule(const PlanLaunch& args, cudaStream_t stream);

/// What one layer's pages are scored by (page_score.h), per page and KV head, written once, when
/// the page becomes full.
struct PageIndex {
  const int32_t* position = nullptr;  // [rows]
  const int32_t* sequence = nullptr;  // [rows]
  int rows = 0;
  int kv_heads = 0;
  int head_dim = 0;  // as in DecodeAttention
  int table_stride = 0;
  const int32_t* pages = nullptr;  // Batch::pages
  const std::byte* kv = nullptr;   // blocks of the layer
  DType kv_dtype = DType::kBF16;
  PageScore score = PageScore::kMean;
  void* data = nullptr;            // out: [page][kv_head], mean keys [head_dim] bf16, or PageCodes
  float* half_steps = nullptr;     // out: [page][kv_head], of codes
  std::byte* summaries = nullptr;  // out, if wanted: [page][kv_head] of the layer
};

/// Writes the indices and summaries, where `data` and `summaries` want them, of the pages that
/// these rows fill (position % kPageTokens is the last). K and V must be stored. For prefill rows;
/// planned rows' pages are written by launch_page_selection.
cudaError_t launch_page_index(const PageIndex& args, cudaStream_t stream);

/// Page selection: the lists of the kPages units of a layer. Two nodes.
///
/// A unit's candidates are its full pages between the sink and the newest; each query head's scores
/// are normalised by a softmax over the candidates and added up over the group. The unit reads
/// ceil(pages_per_mille / 1000 * visible pages) pages in all, sink, newest and the page being
/// filled included; at least those. Ties go to the lower page.
struct PageSelection {
  PlanLaunch plan;
  PageIndex index;              // of the same planned rows; rows 0: it is written already
  const void* query = nullptr;  // [rows][kv_heads * group][head_dim] bf16
  int group = 0;
  float scale = 1.0f;
  float* scores = nullptr;   // scratch (page_scores_bytes)
  int32_t* pages = nullptr;  // Batch::pages, writable: the lists are written behind the tables
  int32_t list_begin = 0;
  int list_capacity = 0;  // entries; each unit has list_capacity / units of them
};
size_t page_scores_bytes(int units, int group, int table_stride);
cudaError_t launch_page_selection(const PageSelection& args, cudaStream_t stream);

/// Attention of prefill rows: every row sees all positions up to its own (within the window).
struct PrefillAttention {
  const std::byte* kv = nullptr;  // blocks of the layer
  DType kv_dtype = DType::kBF16;
  int head_dim = 0;
  int kv_heads = 0;
  int group = 0;
  int window = 0;
  float scale = 1.0f;
  const int32_t* pages = nullptr;  // Batch::pages
  int table_stride = 0;
  const int32_t* position = nullptr;     // [rows]
  const int32_t* chunk_begin = nullptr;  // [sequences + 1]
  int sequences = 0;
  int prefill_rows = 0;
  const void* query = nullptr;    // [rows][kv_heads * group][head_dim] bf16
  void* output = nullptr;         // likewise
  uint32_t* next_tile = nullptr;  // zero; zero again after each launch, of which one runs at a time
};
cudaError_t launch_prefill_attention(const PrefillAttention& args, cudaStream_t stream);

}  // namespace polar::backend::cuda
