#pragma once
// A paged cache of random tokens and the steps over it, for tests and benchmarks of attention.

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "backend/cpu/kv_layout.h"
#include "backend/ops.h"
#include "backend/ranges.h"

namespace polar::backend::cpu {

inline float stored_as(DType dtype, float value) {
  if (dtype == DType::kF16) return f16_to_f32(f32_to_f16(value));
  if (dtype == DType::kBF16) return bf16_to_f32(f32_to_bf16(value));
  return value;
}

struct CacheShape {
  DType dtype = DType::kF16;
  int layers = 1;
  int kv_heads = 2;
  int head_dim = 64;
  int extra_pages = 3;  // of the pool, never used
};

/// Sequences of given lengths whose pages are scattered over a pool. Slots that no token was
/// written to hold NaN.
class PagedCache {
 public:
  PagedCache(const CacheShape& shape, const std::vector<int>& lengths, std::mt19937& random)
      : lengths_(lengths), first_page_(lengths.size() + 1, 0) {
    for (size_t s = 0; s < lengths.size(); ++s)
      first_page_[s + 1] = first_page_[s] + (lengths[s] + kPageTokens - 1) / kPageTokens;
    view_ = {nullptr,        shape.dtype,   shape.layers, first_page_.back() + shape.extra_pages,
             shape.kv_heads, shape.head_dim};
    // Huge pages, as the device allocates.
    const size_t bytes = (view_.total_bytes() / kHugePage + 1) * kHugePage;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(kHugePage, bytes)));
    view_.data = data_.get();
    madvise(view_.data, bytes, MADV_HUGEPAGE);
    std::memset(view_.data, 0xff, bytes);
    physical_.resize(view_.pages);
    std::iota(physical_.begin(), physical_.end(), 0);
    std::shuffle(physical_.begin(), physical_.end(), random);
    std::normal_distribution<float> normal;
    values_.resize(1 << 16);
    for (float& value : values_) value = stored_as(shape.dtype, normal(random));
    for (int layer = 0; layer < shape.layers; ++layer)
      for (size_t s = 0; s < lengths.size(); ++s)
        for (int position = 0; position < lengths[s]; ++position) write(layer, s, position);
  }
  PagedCache(const PagedCache&) = delete;
  PagedCache& operator=(const PagedCache&) = delete;

  const KvView& view() const { return view_; }
  int sequences() const { return static_cast<int>(lengths_.size()); }
  int length(int sequence) const { return lengths_[sequence]; }
  int pages_of(int sequence) const { return first_page_[sequence + 1] - first_page_[sequence]; }
  /// Physical page of a logical one.
  int32_t page(int sequence, int logical) const {
    return physical_[first_page_[sequence] + logical];
  }
  /// Logical token 0 of a physical page, as (sequence, position).
  std::pair<int, int> owner(int32_t page) const {
    const auto index =
        static_cast<int>(std::find(physical_.begin(), physical_.end(), page) - physical_.begin());
    int sequence = 0;
    while (first_page_[sequence + 1] <= index) ++sequence;
    return {sequence, (index - first_page_[sequence]) * kPageTokens};
  }
  const float* key(int layer, int sequence, int position, int kv_head) const {
    return token_values(layer, sequence, position, kv_head, 0);
  }
  const float* value(int layer, int sequence, int position, int kv_head) const {
    return token_values(layer, sequence, position, kv_head, 1);
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;

  void write(int layer, int sequence, int position) {
    for (int head = 0; head < view_.kv_heads; ++head) {
      std::byte* block = view_.block(layer, page(sequence, position / kPageTokens), head);
      store_key(view_, block, position % kPageTokens, key(layer, sequence, position, head));
      store_value(view_, block, position % kPageTokens, value(layer, sequence, position, head));
    }
  }
  const float* token_values(int layer, int sequence, int position, int kv_head, int half) const {
    uint64_t name = ((static_cast<uint64_t>(layer) * 131 + sequence) << 20) + position;
    name = (name * 64 + kv_head) * 2 + half;
    name *= 0x9e3779b97f4a7c15u;
    return values_.data() + (name >> 32) % (values_.size() - view_.head_dim);
  }

  std::vector<int> lengths_, first_page_;
  KvView view_;
  std::unique_ptr<std::byte, decltype(&std::free)> data_{nullptr, std::free};
  std::vector<int32_t> physical_;
  std::vector<float> values_;
};

/// The rows [begin, begin + rows) of a sequence of a PagedCache.
struct Chunk {
  int sequence;  // of the cache
  int begin, rows;
};

/// One attention step: first the prefill chunks, then the planned ones. Outputs begin as NaN.
class AttentionStep {
 public:
  AttentionStep(const PagedCache& cache, int group, const std::vector<Chunk>& prefill,
                const std::vector<Chunk>& planned, int list_capacity, std::mt19937& random)
      : cache_(cache), heads_(cache.view().kv_heads * group) {
    std::vector<Chunk> chunks = prefill;
    chunks.insert(chunks.end(), planned.begin(), planned.end());
    int stride = 1;
    for (const Chunk& chunk : chunks) stride = std::max(stride, cache.pages_of(chunk.sequence));
    stride += static_cast<int>(random() % 3);
    pages_.assign(chunks.size() * stride + list_capacity, -1);
    for (size_t c = 0; c < chunks.size(); ++c) {
      chunk_begin_.push_back(static_cast<int32_t>(position_.size()));
      for (int page = 0; page < cache.pages_of(chunks[c].sequence); ++page)
        pages_[c * stride + page] = cache.page(chunks[c].sequence, page);
      for (int row = 0; row < chunks[c].rows; ++row) {
        position_.push_back(chunks[c].begin + row);
        sequence_.push_back(static_cast<int32_t>(c));
        cache_sequence_.push_back(chunks[c].sequence);
      }
      if (c + 1 == prefill.size()) batch_.prefill_rows = static_cast<int>(position_.size());
    }
    batch_.rows = static_cast<int>(position_.size());
    chunk_begin_.push_back(batch_.rows);
    point_.assign(batch_.rows, 0);
    batch_.sequences = static_cast<int>(chunks.size());
    batch_.position = position_.data();
    batch_.sequence = sequence_.data();
    batch_.point = point_.data();
    batch_.chunk_begin = chunk_begin_.data();
    batch_.table_stride = stride;
    batch_.pages = pages_.data();
    batch_.list_capacity = list_capacity;
    units_.resize(static_cast<size_t>(batch_.planned_rows()) * cache.view().kv_heads);
    read_.assign(batch_.planned_rows(), {});
    query_.resize(static_cast<size_t>(batch_.rows) * heads_ * cache.view().head_dim);
    std::normal_distribution<float> normal;
    for (float& value : query_) value = normal(random);
    output_.resize(query_.size());
  }
  AttentionStep(const AttentionStep&) = delete;
  AttentionStep& operator=(const AttentionStep&) = delete;

  const PagedCache& cache() const { return cache_; }
  const Batch& batch() const { return batch_; }
  int heads() const { return heads_; }
  int cache_sequence(int row) const { return cache_sequence_[row]; }
  PageRanges& unit(int planned_row, int kv_head) {
    return units_[planned_row * cache_.view().kv_heads + kv_head];
  }
  int32_t* lists() { return pages_.data() + batch_.list_begin(); }
  std::vector<int32_t>& points() { return point_; }
  std::vector<ReadCount>& read() { return read_; }
  float* query(int row) { return query_.data() + static_cast<size_t>(row) * row_values(); }
  const float* output(int row) const {
    return output_.data() + static_cast<size_t>(row) * row_values();
  }
  int row_values() const { return heads_ * cache_.view().head_dim; }

  AttentionArgs args(int layer, int window) {
    AttentionArgs args;
    args.batch = &batch_;
    args.kv = cache_.view();
    args.layer = layer;
    args.heads = heads_;
    args.window = window;
    args.scale = 1.0f / std::sqrt(static_cast<float>(args.kv.head_dim));
    plan_ = {units_.data(), read_.data()};
    args.plan = &plan_;
    args.query = {query_.data(), DType::kF32, {batch_.rows, row_values(), 1, 1}, 2};
    args.output = {output_.data(), DType::kF32, {batch_.rows, row_values(), 1, 1}, 2};
    return args;
  }
  PlanArgs plan_args(int layer, int window) {
    PlanArgs args;
    args.batch = &batch_;
    args.kv = cache_.view();
    args.layer = layer;
    args.window = window;
    args.plan = {units_.data(), read_.data()};
    return args;
  }
  void poison_output() {
    std::fill(output_.begin(), output_.end(), std::numeric_limits<float>::quiet_NaN());
  }

 private:
  const PagedCache& cache_;
  int heads_;
  Batch batch_;
  std::vector<int32_t> position_, sequence_, point_, chunk_begin_, pages_, cache_sequence_;
  std::vector<PageRanges> units_;
  std::vector<ReadCount> read_;
  std::vector<float> query_, output_;
  ReadPlan plan_;
};

}  // namespace polar::backend::cpu
