#pragma once
// One step as plain data: which rows run (Batch), where the cache is (KvView), and what attention
// reads of it (ReadPlan). These structs are all that the engine, the sparsity code and the kernels
// share. Every pointer is to memory of the device that runs the step.

#include <cstddef>
#include <cstdint>

#include "backend/page_score.h"
#include "core/dtype.h"

namespace polar::backend {

/// Tokens in one KV page.
inline constexpr int kPageTokens = 16;

/// One ragged step: R rows (tokens) of S sequences. The rows of a sequence are consecutive, with
/// consecutive positions: a chunk. Prefill chunks come first; behind them the planned rows: decode
/// rows, and rows that are teacher-forced as if they were decoded. A prefill row reads everything
/// before it; a planned row reads what the ReadPlan says.
struct Batch {
  int rows = 0;                       // R
  int sequences = 0;                  // S
  int prefill_rows = 0;               // rows [0, prefill_rows) are prefill, the others are planned
  const int32_t* token = nullptr;     // [R] token id, or ~slot: whatever that slot sampled last
  const int32_t* position = nullptr;  // [R] position in the sequence, from 0
  const int32_t* sequence = nullptr;  // [R] index of the row's page table
  const int32_t* point = nullptr;     // [R] operating point of the profile; 0 = dense
  const int32_t* chunk_begin =
      nullptr;  // [S + 1] first row of each sequence's chunk, then R; chunk s belongs to sequence s
  int table_stride = 0;  // T: entries per page table
  int32_t* pages =
      nullptr;  // [S][T] physical page ids by position / kPageTokens; behind them, lists (ReadPlan)
  int list_capacity = 0;               // entries behind the tables
  const int32_t* logit_row = nullptr;  // [L] the rows whose logits are wanted, ascending
  int logit_rows = 0;                  // L
  /// The operating point whose neurons the step computes: of its rows', the one that wants the most
  /// (NeuronPlanner::common_point). Fixed in a recorded step.
  int neuron_point = 0;

  int planned_rows() const { return rows - prefill_rows; }
  int list_begin() const { return sequences * table_stride; }
};

/// What a planned row has read so far in a step, summed over layers and KV heads.
struct ReadCount {
  int32_t blocks = 0;     // of KV (KvView::block_bytes each)
  int32_t scored = 0;     // indices of pages, to choose among them (KvView::index_bytes each)
  int32_t summaries = 0;  // of pages that are not read (KvView::summary_bytes each)
};

/// The paged KV cache: [layer][page][kv_head] blocks, each holding the K and V of kPageTokens
/// tokens of one KV head. A block is contiguous, so what is skipped is whole blocks. Inside it K
/// comes before V; the arrangement of each half is the backend's own.
struct KvView {
  std::byte* data = nullptr;
  DType dtype = DType::kF16;  // f32, f16 or bf16
  int layers = 0;
  int pages = 0;
  int kv_heads = 0;
  int head_dim = 0;
  /// What pages are scored by, per (layer, page, KV head), written once, when the page becomes
  /// full: for kMean 16-bit values of the backend's own kind. Null where no operating point selects
  /// pages, and for kMass.
  PageScore page_score = PageScore::kMean;
  std::byte* index = nullptr;
  /// What stands for a page that is not read, per (layer, page, KV head): its mean key, then its
  /// mean value, [head_dim] each in the cache's type, in the backend's own arrangement. Written
  /// when the page becomes full. Null where no budget says so (UnitBudget::summaries).
  std::byte* summaries = nullptr;

  size_t element_bytes() const { return dtype == DType::kF32 ? 4 : 2; }
  /// Bytes of one half (K or V) of a block.
  size_t half_bytes() const {
    return static_cast<size_t>(kPageTokens) * head_dim * element_bytes();
  }
  size_t block_bytes() const { return 2 * half_bytes(); }
  size_t page_bytes() const { return block_bytes() * kv_heads * layers; }
  size_t total_bytes() const { return page_bytes() * pages; }
  double bytes(ReadCount read) const {
    return static_cast<double>(read.blocks) * static_cast<double>(block_bytes()) +
           static_cast<double>(read.scored) * static_cast<double>(index_bytes()) +
           static_cast<double>(read.summaries) * static_cast<double>(summary_bytes());
  }
  size_t index_bytes() const { return page_index_bytes(page_score, head_dim); }
  /// Bytes of one page's indices: all layers, all KV heads.
  size_t indices_bytes() const { return index_bytes() * kv_heads * layers; }
  std::byte* block(int layer, int page, int kv_head) const {
    return data +
           ((static_cast<size_t>(layer) * pages + page) * kv_heads + kv_head) * block_bytes();
  }
  std::byte* index_of(int layer, int page, int kv_head) const {
    return index +
           ((static_cast<size_t>(layer) * pages + page) * kv_heads + kv_head) * index_bytes();
  }
  size_t summary_bytes() const { return 2 * static_cast<size_t>(head_dim) * element_bytes(); }
  /// Bytes of one page's summaries: all layers, all KV heads.
  size_t summaries_bytes() const { return summary_bytes() * kv_heads * layers; }
  std::byte* summary_of(int layer, int page, int kv_head) const {
    return summaries +
           ((static_cast<size_t>(layer) * pages + page) * kv_heads + kv_head) * summary_bytes();
  }
};

/// What one unit (row, KV head) reads: two ranges of entries of Batch::pages, in this order. An
/// entry inside the page tables stands for the page at that logical index, seen up to the row's own
/// position (and not before a sliding window's begin). An entry behind the tables (a list) stands
/// for a full page that is visible whole. Both counts zero: the unit reads nothing and its output
/// is zero.
///
/// Beside them, full pages that are not read but seen by their summaries: each is one more token
/// with the page's mean key and mean value, whose score counts for all of the page's tokens
/// (log kPageTokens is added to it).
struct PageRanges {
  int32_t begin = 0, count = 0;            // full head: empty; otherwise the sink pages, or a list
  int32_t tail_begin = 0, tail_count = 0;  // the pages up to the row's own
  /// Logical pages [summary_begin, summary_end) of the row's sequence are seen by their summaries,
  /// but for those that `read_bits` names.
  int32_t summary_begin = 0, summary_end = 0;
  int32_t summaries = 0;  // how many pages that are
  /// Entry of Batch::pages where a unit's bits begin: bit p % 16 of the word at read_bits + p / 16
  /// is set if logical page p is read. 0: no page of the range is.
  int32_t read_bits = 0;
};
static_assert(sizeof(PageRanges) == 32);

/// What one layer's attention reads for the planned rows.
struct ReadPlan {
  PageRanges* units = nullptr;  // [planned row][kv_head]
  ReadCount* read = nullptr;    // [planned row], increased by every layer's plan
};

/// What a unit (layer, KV head) of an operating point may read.
enum class ReadKind : uint8_t { kNone, kWindow, kPages, kFull, kRouted };

/// Policy as data: one entry of a profile's table budget[layer][kv_head].
struct UnitBudget {
  ReadKind kind = ReadKind::kFull;
  ReadKind fallback = ReadKind::kWindow;  // of a routed unit that is not chosen
  uint16_t pages_per_mille =
      0;  // kPages: share of the sequence's pages, sink and newest included, rounded up
  uint16_t least = 0;      // kPages: pages read at least, where there are so many
  bool summaries = false;  // whether pages that a window or a choice leaves out are seen by these
};

/// What holds for all units of an operating point. The page being filled comes on top of `recent`.
struct PointLimits {
  int32_t sink = 1;    // pages always read at the begin
  int32_t recent = 4;  // full pages always read at the end
  int32_t routed = 0;  // routed units chosen per row and layer (scope layer)
};

/// The neurons of an MLP that are computed in this step: one set for the whole batch.
struct NeuronSet {
  const int32_t* index = nullptr;  // ascending
  int count = 0;
};

}  // namespace polar::backend
