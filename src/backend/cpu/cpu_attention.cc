// Attention over page tables. Every query runs over pieces of kPiecePages pages, in the order of
// its plan, and merges them in that order: a row's result is the same alone, in any batch,
// prefilled or decoded.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_ops.h"
#include "backend/ranges.h"

namespace polar::backend::cpu {

namespace {

int pages_of(const PageRanges& unit) {
  return unit.count + unit.tail_count;
}
int page_pieces(const PageRanges& unit) {
  return (pages_of(unit) + kPiecePages - 1) / kPiecePages;
}
constexpr int kPieceGroups = kPieceSummaries / kBitPages;
int summary_pieces(const PageRanges& unit) {
  return (summary_groups(unit).count + kPieceGroups - 1) / kPieceGroups;
}

/// The running softmax of one query: what its pieces add up to.
class Merger {
 public:
  explicit Merger(float* output, int head_dim) : output_(output), head_dim_(head_dim) {
    std::memset(output, 0, head_dim * sizeof(float));
  }

  void add(const Query& piece) {
    if (piece.sum == 0.0f) return;
    if (sum_ == 0.0f) {
      std::memcpy(output_, piece.output, head_dim_ * sizeof(float));
      max_ = piece.max;
      sum_ = piece.sum;
      return;
    }
    const float top = std::max(max_, piece.max);
    const float old_scale = std::exp(max_ - top), new_scale = std::exp(piece.max - top);
    for (int d = 0; d < head_dim_; ++d)
      output_[d] = output_[d] * old_scale + piece.output[d] * new_scale;
    sum_ = sum_ * old_scale + piece.sum * new_scale;
    max_ = top;
  }

  void finish() {
    if (sum_ == 0.0f) return;
    const float scale = 1.0f / sum_;
    for (int d = 0; d < head_dim_; ++d) output_[d] *= scale;
  }

 private:
  float* output_;
  int head_dim_;
  float max_ = 0.0f;
  float sum_ = 0.0f;
};

/// Looks up where the pages of a plan are.
class PageWalk {
 public:
  PageWalk(const AttentionArgs& args, int sequence, int kv_head)
      : batch_(*args.batch),
        kv_(args.kv),
        layer_(args.layer),
        kv_head_(kv_head),
        table_begin_(sequence * args.batch->table_stride) {}

  PageSlice at(int32_t entry) const {
    const std::byte* block = kv_.block(layer_, batch_.pages[entry], kv_head_);
    if (entry >= batch_.list_begin()) return {block, kAllVisible};
    return {block, (entry - table_begin_) * kPageTokens};
  }

  /// The summaries of one piece of a unit's; returns their number.
  int list_summaries(const PageRanges& unit, int piece, const std::byte** out) const {
    const SummaryGroups groups = summary_groups(unit);
    const int end = std::min((piece + 1) * kPieceGroups, groups.count);
    const std::byte* base = kv_.summary_of(layer_, 0, kv_head_);
    const size_t page_bytes = kv_.summary_bytes() * kv_.kv_heads;
    int count = 0;
    for (int group = piece * kPieceGroups; group < end; ++group) {
      const int32_t first = groups.first + group;
      const int32_t* pages = batch_.pages + table_begin_ + first * kBitPages;
      for (uint32_t bits = summary_bits(unit, first, batch_.pages); bits != 0; bits &= bits - 1)
        out[count++] = base + pages[std::countr_zero(bits)] * page_bytes;
    }
    return count;
  }

 private:
  const Batch& batch_;
  const KvView& kv_;
  int layer_, kv_head_;
  int32_t table_begin_;
};

int32_t lowest_visible(int32_t position, int window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

}  // namespace

void CpuOps::attention(const AttentionArgs& args) {
  if (args.batch->prefill_rows > 0) attend_prefill(args);
  if (args.batch->planned_rows() > 0) attend_planned(args);
}

/// Work items are pieces of units, of pages and then of summaries; their partial results are merged
/// in a second pass.
void CpuOps::attend_planned(const AttentionArgs& args) {
  const Batch& batch = *args.batch;
  const int kv_heads = args.kv.kv_heads, dim = args.kv.head_dim, group = args.heads / kv_heads;
  const int units = batch.planned_rows() * kv_heads;
  std::vector<int> first_item(units + 1, 0);
  for (int unit = 0; unit < units; ++unit) {
    const PageRanges& plan = args.plan->units[unit];
    first_item[unit + 1] = first_item[unit] + std::max(1, page_pieces(plan) + summary_pieces(plan));
  }
  const int items = first_item[units];
  const size_t item_values = static_cast<size_t>(group) * (dim + 2);  // outputs, then max and sum
  if (partials_.size() < items * item_values) partials_.resize(items * item_values);

  const auto unit_of = [&](int64_t item) {
    const auto behind = std::upper_bound(first_item.begin(), first_item.end(), item);
    return static_cast<int>(behind - first_item.begin()) - 1;
  };
  // The first pages of an item, at most `most` of them; returns their number.
  const auto list_pages = [&](int64_t item, int most, PageSlice* out) {
    const int unit = unit_of(item);
    const PageRanges& plan = args.plan->units[unit];
    const int first = static_cast<int>(item - first_item[unit]) * kPiecePages;
    const int count = std::min(pages_of(plan) - first, most);
    const PageWalk walk(args, batch.sequence[batch.prefill_rows + unit / kv_heads],
                        unit % kv_heads);
    for (int page = first; page < first + count; ++page) {
      *out++ = walk.at(page < plan.count ? plan.begin + page : plan.tail_begin + page - plan.count);
    }
    return std::max(count, 0);
  };

  // A claim is a few items: the pages of the next one are fetched while one is computed.
  const int64_t claim = std::clamp(items / (2 * pool_.threads()), 1, 4);
  pool_.parallel_for(items, claim, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) {
      const int unit = unit_of(item);
      const int row = batch.prefill_rows + unit / kv_heads, kv_head = unit % kv_heads;
      PageSlice pages[kPiecePages + kStripPages];
      const int page_count = list_pages(item, kPiecePages, pages);
      const PageRanges& plan = args.plan->units[unit];
      const int summary_piece = static_cast<int>(item - first_item[unit]) - page_pieces(plan);
      const std::byte* summaries[kPieceSummaries];
      const int summary_count = summary_piece < 0 || plan.summaries == 0
                                    ? 0
                                    : PageWalk(args, batch.sequence[row], kv_head)
                                          .list_summaries(plan, summary_piece, summaries);
      const int next_count =
          item + 1 < end ? list_pages(item + 1, kStripPages, pages + page_count) : 0;
      float* partial = partials_.data() + item * item_values;
      const float* query =
          args.query.as<float>() + (static_cast<int64_t>(row) * args.heads + kv_head * group) * dim;
      const int32_t position = batch.position[row];
      for (int q = 0; q < group; q += kMostQueries) {
        const int count = std::min(kMostQueries, group - q);
        Query queries[kMostQueries];
        for (int i = 0; i < count; ++i) {
          queries[i] = {query + (q + i) * dim,
                        lowest_visible(position, args.window),
                        position + 1,
                        partial + (q + i) * dim,
                        0.0f,
                        0.0f};
        }
        if (page_count > 0) {
          kernels_.attend({queries, count, pages, page_count, page_count + next_count,
                           args.kv.dtype, dim, args.scale,
                           scratch(thread, kMostQueries * kStripTokens)});
        } else if (summary_count > 0) {
          kernels_.attend_summaries({queries, count, summaries, summary_count, args.kv.dtype, dim,
                                     args.scale, scratch(thread, kMostQueries * kStripTokens)});
        }
        for (int i = 0; i < count; ++i) {
          partial[group * dim + (q + i) * 2] = queries[i].max;
          partial[group * dim + (q + i) * 2 + 1] = queries[i].sum;
        }
      }
    }
  });

  pool_.parallel_for(units, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = batch.prefill_rows + unit / kv_heads;
      float* out = args.output.as<float>() + (row * args.heads + unit % kv_heads * group) * dim;
      for (int q = 0; q < group; ++q) {
        Merger merger(out + q * dim, dim);
        for (int item = first_item[unit]; item < first_item[unit + 1]; ++item) {
          float* partial = partials_.data() + item * item_values;
          const float* state = partial + group * dim + q * 2;
          merger.add({nullptr, 0, 0, partial + q * dim, state[0], state[1]});
        }
        merger.finish();
      }
    }
  });
}

/// Tiles of up to kMostQueries queries (rows times the group) share each page; later tiles are
/// longer and go first.
void CpuOps::attend_prefill(const AttentionArgs& args) {
  const Batch& batch = *args.batch;
  const int kv_heads = args.kv.kv_heads, dim = args.kv.head_dim, group = args.heads / kv_heads;
  const int tile_rows = std::max(1, kMostQueries / group);
  struct Tile {
    int row, rows, sequence;
  };
  std::vector<Tile> tiles;
  for (int s = 0; s < batch.sequences && batch.chunk_begin[s] < batch.prefill_rows; ++s) {
    for (int row = batch.chunk_begin[s]; row < batch.chunk_begin[s + 1]; row += tile_rows) {
      tiles.push_back({row, std::min(tile_rows, batch.chunk_begin[s + 1] - row), s});
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(), [&](const Tile& a, const Tile& b) {
    return batch.position[a.row] > batch.position[b.row];
  });

  pool_.parallel_for(
      static_cast<int64_t>(tiles.size()) * kv_heads, 1,
      [&](int64_t begin, int64_t end, int thread) {
        for (int64_t item = begin; item < end; ++item) {
          const Tile& tile = tiles[item / kv_heads];
          const int kv_head = static_cast<int>(item % kv_heads);
          const PageWalk walk(args, tile.sequence, kv_head);
          const int count = tile.rows * group;
          float* weights = scratch(thread, static_cast<size_t>(count) * (kStripTokens + dim));
          float* outputs = weights + static_cast<size_t>(count) * kStripTokens;
          std::vector<Merger> mergers;
          std::vector<Query> queries(count);
          for (int i = 0; i < count; ++i) {
            const int64_t row = tile.row + i / group;
            const int64_t head = row * args.heads + kv_head * group + i % group;
            const int32_t position = batch.position[row];
            mergers.emplace_back(args.output.as<float>() + head * dim, dim);
            queries[i] = {args.query.as<float>() + head * dim,
                          lowest_visible(position, args.window),
                          position + 1,
                          outputs + static_cast<int64_t>(i) * dim,
                          0.0f,
                          0.0f};
          }
          // A row's pieces begin at its first visible page, as its plan would: rows of a tile that
          // begin at different pages go apart.
          for (int i = 0; i < count;) {
            const int32_t first_page = first_visible_page(queries[i].high - 1, args.window);
            int same = i + 1;
            while (same < count &&
                   first_visible_page(queries[same].high - 1, args.window) == first_page)
              ++same;
            const int32_t end_page = (queries[same - 1].high - 1) / kPageTokens + 1;
            for (int32_t page = first_page; page < end_page; page += kPiecePages) {
              PageSlice pages[kPiecePages + kStripPages];
              const int in_piece = std::min(kPiecePages, end_page - page);
              const int listed = std::min(kPiecePages + kStripPages, end_page - page);
              for (int p = 0; p < listed; ++p)
                pages[p] = walk.at(tile.sequence * batch.table_stride + page + p);
              for (int q = i; q < same; q += kMostQueries) {
                kernels_.attend({queries.data() + q, std::min(kMostQueries, same - q), pages,
                                 in_piece, listed, args.kv.dtype, dim, args.scale, weights});
              }
              for (int q = i; q < same; ++q) mergers[q].add(queries[q]);
            }
            i = same;
          }
          for (Merger& merger : mergers) merger.finish();
        }
      });
}

}  // namespace polar::backend::cpu
