#pragma once
// Decode attention over paged KV, dense and sparse alike; docs/kernels.md tells the design.
//
// A warp is a worker: it takes an equal, contiguous part of all pages of all units (stream-K) and
// walks it alone, with its own ring of blocks in shared memory, filled by bulk copies that run
// ahead across units. For a page of 16 tokens S^T = K Q^T and O^T += V^T P^T are m16n8k16 products:
// tokens stand on M, the query heads of the group on N. A unit that lies in one warp's share is
// written directly; what is cut is merged in shared memory first, and what several blocks share is
// merged through global memory by the block that arrives last, in block order.

#include "backend/cuda/attention_unit.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/ranges.h"

namespace polar::backend::cuda {

inline constexpr int kMetaEntries = 64;  // two windows of 32 pages
inline constexpr int kMaxSlots = 16;

/// What a build of the kernel is for: the others take one thing away or look on, for benchmarks.
enum class DecodeMode { kProduct, kCopyOnly, kTimed };
inline constexpr int kTimelineMarks = 8;

struct DecodeParams {
  DecodeAttention a;
  float scale_log2;
  int slots;            // blocks in flight per warp
  long long* timeline;  // kTimed: [blocks][kTimelineMarks] clocks
};

/// Warps of a block. One has a chain of about 700 clocks a page (products, maximum, exponentials,
/// products), and a page of 8 KB is due every 410 on a multiprocessor.
__host__ __device__ constexpr int decode_warps(int head_dim) {
  return head_dim > 128 ? 4 : 8;
}

/// A unit that a warp has only a part of.
struct CutUnit {
  int work, unit;
  int begins, ends;  // whether its first and its last page lie in this block's share
  int first_share, last_share;
};

/// Shared memory of one block, in this order.
template <int D>
struct DecodeShared {
  static constexpr int W = decode_warps(D);
  static __host__ __device__ int ring(int slots) { return W * slots * kv_block_bytes(D); }
  static __host__ __device__ int first(int group) { return W * group * D * 4; }
  static constexpr int kSums = 2 * W * 16 * 8;  // [entry][head] maximum, sum
  static constexpr int kEntries = 2 * W * sizeof(CutUnit);
  static constexpr int kFlags = 64;
  static constexpr int kBarriers = W * kMaxSlots * 8;
  static constexpr int kMeta = W * kMetaEntries * 8;
  static constexpr int kFixed = kSums + kEntries + kFlags + kBarriers + kMeta;
  static __host__ __device__ int bytes(int slots, int group) {
    return ring(slots) + first(group) + kFixed;
  }
};

/// Pages up to this unit's end.
__device__ __forceinline__ int work_end(const WorkUnit& unit) {
  return unit.first + walked_pages(unit.ranges);
}

/// Part i of n equal ones of `total`.
__device__ __forceinline__ int even_part(int total, int i, int n) {
  return static_cast<int>(static_cast<int64_t>(total) * i / n);
}

/// A worker's walk over its share: which block comes from where, 32 pages at a time, one per lane.
template <int D>
struct PageWalk {
  static constexpr int kSummaryBytes = 4 * D;  // mean key and mean value
  const DecodeParams& p;
  int2* meta;      // shared: [page % kMetaEntries] work, what is seen (UnitState::add_page)
  int begin, end;  // pages of the share
  int works;       // in the schedule
  int base;        // page of lane 0
  int work;        // that holds page `base`
  const std::byte* source;  // of this lane's page,
  bool newest;              // which is its unit's last
  uint32_t summaries;       // or bits of the summaries that it is made of, by
  int entry;                // the entries from here on; source: those of page 0

  /// Looks up pages [base, base + 32): a schedule's units all have pages, so these lie in at most
  /// 32 units from `work` on.
  __device__ void load() {
    const int lane = threadIdx.x & 31;
    const WorkUnit* units = p.a.schedule.work;
    const int first = work + lane < works ? units[work + lane].first : INT32_MAX;
    const int page = base + lane;
    int ahead = 0;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      if (__shfl_sync(~0u, first, ahead + step) <= page) ahead += step;
    }
    bool ends = false;
    entry = -1;
    if (page < end) {
      const WorkUnit unit = units[work + ahead];
      const PageRanges& r = unit.ranges;
      const SummaryGroups groups = summary_groups(r);
      const int offset = page - unit.first - groups.count;  // negative: a group of summaries
      ends = offset + 1 == r.count + r.tail_count;
      int seen = kAllTokens;
      if (offset < 0) {
        const int group = groups.first + groups.count + offset;
        summaries = summary_bits(r, group, p.a.pages);
        seen = summaries | kSummaries;
        entry = unit.table_begin + group * kBitPages;
        source = p.a.summaries + unit.kv_head * kSummaryBytes;
      } else {
        entry = offset < r.count ? r.begin + offset : r.tail_begin + (offset - r.count);
        if (entry < p.a.list_begin) {
          const int token = (entry - unit.table_begin) * kPageTokens;
          const int high = min(max(unit.position + 1 - token, 0), kPageTokens);
          seen = (1 << high) - 1;
          if (p.a.window > 0)
            seen &= -1 << min(max(unit.position - p.a.window + 1 - token, 0), kPageTokens);
        }
        const int64_t block = static_cast<int64_t>(p.a.pages[entry]) * p.a.kv_heads + unit.kv_head;
        source = p.a.kv + block * kv_block_bytes(D);
        entry = -1;
      }
      meta[(page - begin) & (kMetaEntries - 1)] = make_int2(work + ahead, seen);
    }
    __syncwarp();
    newest = ends;
    work += __shfl_sync(~0u, ahead + (ends ? 1 : 0), 31);
  }

  __device__ void start(int share_first, int share_end, int first_work) {
    begin = base = share_first;
    end = share_end;
    work = first_work;
    load();
  }

  /// Copies `page` into a slot; called by all lanes, done by the one that holds the page.
  __device__ __forceinline__ void issue(int page, uint32_t slot, uint32_t barrier) {
    if (page >= end) return;
    if (page >= base + 32) {
      base += 32;
      load();
    }
    if (p.a.summaries != nullptr && __shfl_sync(~0u, entry, page - base) >= 0)
      return gather(page - base, slot, barrier);
    if (static_cast<int>(threadIdx.x & 31) == page - base) {
      barrier_expect(barrier, kv_block_bytes(D));
      bulk_copy_once(slot, source, kv_block_bytes(D), barrier);
    }
  }

  /// Makes a block of the summaries that lane `holder` knows of: one lane copies each, row by row.
  __device__ __forceinline__ void gather(int holder, uint32_t slot, uint32_t barrier) const {
    const int lane = threadIdx.x & 31;
    const uint32_t bits = __shfl_sync(~0u, summaries, holder);
    const int first = __shfl_sync(~0u, entry, holder);
    const auto base_address = reinterpret_cast<uint64_t>(source);
    const auto* rows = reinterpret_cast<const std::byte*>(__shfl_sync(~0u, base_address, holder));
    if (lane == holder) barrier_expect(barrier, __popc(bits) * kSummaryBytes);
    __syncwarp();
    if (lane >= kPageTokens || (bits >> lane & 1) == 0) return;
    const int64_t page = p.a.pages[first + lane];
    const std::byte* row = rows + page * p.a.kv_heads * kSummaryBytes;
    constexpr int kPieces = kv_row_pieces(D), kBytes = kv_piece_bytes(D);
#pragma unroll
    for (int piece = 0; piece < 2 * kPieces; ++piece) {
      const int half = piece / kPieces;
      bulk_copy_once(slot + half * kv_half_bytes(D) + kv_piece_offset(D, lane, piece % kPieces),
                     row + piece * kBytes, kBytes, barrier);
    }
  }
};

/// Units that read nothing give zeros. Each warp looks after its share of all units; `empty` says
/// it of unit share_begin + lane, looked up ahead.
template <int D>
struct EmptyUnits {
  const DecodeAttention& a;
  int begin, end;
  bool empty;

  __device__ EmptyUnits(const DecodeAttention& args, int worker, int workers)
      : a(args),
        begin(even_part(args.units, worker, workers)),
        end(even_part(args.units, worker + 1, workers)),
        empty(look(begin)) {}
  __device__ bool look(int base) const {
    const int unit = base + static_cast<int>(threadIdx.x & 31);
    if (unit >= end) return false;
    const PageRanges& r = a.plan[unit];
    return r.count + r.tail_count + r.summaries == 0;
  }
  __device__ void zero() {
    const int lane = threadIdx.x & 31;
    for (int base = begin; base < end; base += 32) {
      if (base != begin) empty = look(base);
      for (unsigned left = __ballot_sync(~0u, empty); left != 0; left &= left - 1) {
        const int64_t which = base + __ffs(left) - 1;
        const int vectors = a.group * D / 8;  // of 16 bytes
        auto* out = static_cast<uint4*>(a.output) + which * vectors;
        for (int i = lane; i < vectors; i += 32) out[i] = make_uint4(0, 0, 0, 0);
      }
    }
  }
};

/// Writes four dims of a finished unit.
template <int D>
__device__ __forceinline__ void write_four(const DecodeAttention& a, int unit, int item,
                                           const Merged& all) {
  const float inverse = all.sum > 0.0f ? 1.0f / all.sum : 0.0f;
  const float4 v = all.value;
  const uint2 bits = {pack<__nv_bfloat16>(v.x * inverse, v.y * inverse),
                      pack<__nv_bfloat16>(v.z * inverse, v.w * inverse)};
  reinterpret_cast<uint2*>(a.output)[static_cast<int64_t>(unit) * a.group * (D / 4) + item] = bits;
}

template <int D, typename T, int NT, DecodeMode kMode>
__global__ void __launch_bounds__(decode_warps(D) * 32, 1)
    decode_attention_kernel(const DecodeParams p) {
  constexpr int W = decode_warps(D), kThreads = W * 32, kParts = kShareParts / W;
  using Shared = DecodeShared<D>;
  extern __shared__ __align__(1024) std::byte shared[];
  const DecodeAttention& a = p.a;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  std::byte* ring = shared + warp * p.slots * kv_block_bytes(D);
  auto* first_partials = reinterpret_cast<float*>(shared + Shared::ring(p.slots));
  std::byte* fixed = shared + Shared::ring(p.slots) + Shared::first(a.group);
  auto* sums = reinterpret_cast<float2*>(fixed);                      // [2 W][16]
  auto* entries = reinterpret_cast<CutUnit*>(fixed + Shared::kSums);  // [2 W]
  auto* flags = reinterpret_cast<int*>(fixed + Shared::kSums + Shared::kEntries);
  auto* barriers = fixed + Shared::kSums + Shared::kEntries + Shared::kFlags;
  auto* metas = reinterpret_cast<int2*>(barriers + Shared::kBarriers);
  const auto mark = [&](int which) {
    if constexpr (kMode == DecodeMode::kTimed) {
      if (threadIdx.x == 0) p.timeline[blockIdx.x * kTimelineMarks + which] = clock64();
    }
  };
  mark(0);
  const uint32_t ring_address = shared_address(ring);
  const uint32_t barrier_address = shared_address(barriers) + warp * kMaxSlots * 8;
  if (lane < p.slots) barrier_init(barrier_address + lane * 8, 1);
  barriers_are_set();
  if (lane < 2) entries[warp * 2 + lane].work = -1;
  if (threadIdx.x < 2) flags[threadIdx.x] = -1;
  let_next_begin();
  if (!a.settled) wait_for_previous();

  const Schedule& schedule = a.schedule;
  const int shares = gridDim.x;
  const int2 header = *reinterpret_cast<const int2*>(schedule.header);
  const int share = blockIdx.x;
  const int first_work = schedule.start[share * kShareParts + warp * kParts];
  EmptyUnits<D> empty_units(a, share * W + warp, shares * W);
  __syncwarp();
  const int block_begin = share_begin(header.x, share, shares);
  const int block_end = share + 1 < shares ? share_begin(header.x, share + 1, shares) : header.x;
  if (block_begin >= block_end) {
    if (a.settled) wait_for_previous();
    return empty_units.zero();
  }
  const int begin = part_begin(block_begin, block_end, warp * kParts);
  const int end =
      warp + 1 < W ? part_begin(block_begin, block_end, (warp + 1) * kParts) : block_end;
  PageWalk<D> walk{p, metas + warp * kMetaEntries};
  walk.works = header.y;
  if (begin < end) {
    walk.start(begin, end, first_work);
    const auto fill = [&](bool which) {  // all at once: the first window holds them
      which = which && lane < min(p.slots, end - begin);
      if (a.summaries != nullptr) {
        for (unsigned left = __ballot_sync(~0u, which && walk.entry >= 0); left != 0;
             left &= left - 1) {
          const int slot = __ffs(left) - 1;
          walk.gather(slot, ring_address + slot * kv_block_bytes(D), barrier_address + slot * 8);
        }
        which = which && walk.entry < 0;
      }
      if (!which) return;
      barrier_expect(barrier_address + lane * 8, kv_block_bytes(D));
      bulk_copy_once(ring_address + lane * kv_block_bytes(D), walk.source, kv_block_bytes(D),
                     barrier_address + lane * 8);
    };
    fill(!a.settled || !walk.newest);
    if (a.settled) wait_for_previous();
    fill(a.settled && walk.newest);
  } else if (a.settled) {
    wait_for_previous();
  }
  mark(1);

  UnitState<D, T, NT> state;
  int current = -1;
  WorkUnit unit;
  const auto finish = [&] {
    state.reduce();
    if (unit.first >= begin && work_end(unit) <= end) return state.write(a, unit.unit);
    const int which = unit.first < begin ? 0 : 1;
    const int entry = warp * 2 + which;
    // The last unit's partial may lie in the ring, which is empty by then; the first one's may not.
    state.save(which == 0 ? first_partials + warp * a.group * D : reinterpret_cast<float*>(ring),
               sums + entry * 16, a.group);
    if (lane == 0) {
      entries[entry] = {
          current,          unit.unit,      unit.first >= block_begin, work_end(unit) <= block_end,
          unit.first_share, unit.last_share};
    }
  };
  int slot = 0;
  uint32_t parity = 0;
  for (int page = begin; page < end; ++page) {
    const int2 meta = walk.meta[(page - begin) & (kMetaEntries - 1)];
    if (meta.x != current) {
      if (current >= 0) finish();
      current = meta.x;
      unit = schedule.work[current];
      state.begin(a, unit.unit);
    }
    const uint32_t slot_address = ring_address + slot * kv_block_bytes(D);
    if (page == begin) empty_units.zero();
    barrier_wait(barrier_address + slot * 8, parity);
    if (page == begin) mark(2);
    if constexpr (kMode != DecodeMode::kCopyOnly) {
      state.add_page(slot_address, meta.y, p.scale_log2);
    }
    __syncwarp();
    walk.issue(page + p.slots, slot_address, barrier_address + slot * 8);
    if (++slot == p.slots) slot = 0, parity ^= 1;
  }
  if (current >= 0) finish();
  if (begin == end) empty_units.zero();
  mark(3);
  __syncthreads();
  mark(4);

  // Partials of one unit stand in neighbouring entries: a run. All threads add up the runs'
  // partials, in order. What is whole then is written, the rest goes to the scratch of this share.
  const int vectors = a.group * (D / 4);
  auto* all_sums = reinterpret_cast<float2*>(a.scratch.partial_sum);
  auto* all_values = reinterpret_cast<float4*>(a.scratch.partial);
  const int own_work = lane < 2 * W ? entries[lane].work : -1;
  const unsigned used = __ballot_sync(~0u, own_work >= 0);
  const unsigned below = used & ((1u << lane) - 1);
  const int work_before = __shfl_sync(~0u, own_work, below != 0 ? 31 - __clz(below) : 0);
  const unsigned leads =
      __ballot_sync(~0u, own_work >= 0 && (below == 0 || work_before != own_work));
  const auto run_of = [&](int which) {  // first and last entry
    const int first = __fns(leads, 0, which + 1);
    const unsigned next = leads & ~((2u << first) - 1);
    const unsigned until = next != 0 ? used & ((next & -next) - 1) : used;
    return make_int2(first, 31 - __clz(until));
  };
#pragma unroll 1
  for (int at = threadIdx.x; at < __popc(leads) * vectors; at += kThreads) {
    const int item = at % vectors, head = item / (D / 4);
    const int2 run = run_of(at / vectors);
    const CutUnit cut = entries[run.x];
    // The first warp's part is entry 2 w or 2 w + 1; those of later warps begin their shares: 2 w.
    const auto entry_of = [&](int j) { return j == 0 ? run.x : (run.x / 2 + j) * 2; };
    const Merged all = merge_partials(
        0, 1, run.y / 2 - run.x / 2 + 1, [&](int j) { return sums[entry_of(j) * 16 + head]; },
        [&](int j) {
          const int from = entry_of(j) / 2;
          const void* outputs = (entry_of(j) & 1) == 0
                                    ? static_cast<const void*>(first_partials + from * a.group * D)
                                    : shared + from * p.slots * kv_block_bytes(D);
          return static_cast<const float4*>(outputs)[item];
        });
    if (cut.begins && entries[run.y].ends) {
      write_four<D>(a, cut.unit, item, all);
    } else {
      const int place = share * 2 + (cut.begins ? 1 : 0);
      all_values[place * vectors + item] = all.value;
      if (item % (D / 4) == 0) all_sums[place * a.group + head] = {all.maximum, all.sum};
    }
  }
  // Of the units that several blocks have a part of - at most the first and the last here - the
  // block that arrives last merges all parts.
  __syncthreads();
  if (threadIdx.x < 2 && used != 0) {
    const int2 run = run_of(threadIdx.x == 0 ? 0 : __popc(leads) - 1);
    const CutUnit cut = entries[run.x];
    const bool mine = threadIdx.x == 0 ? !cut.begins : cut.begins && !entries[run.y].ends;
    if (mine) {
      int* arrivals = &a.scratch.arrivals[cut.unit];
      int before;
      asm volatile("fence.acq_rel.gpu;\n atom.add.acq_rel.gpu.s32 %0, [%1], 1;"
                   : "=r"(before)
                   : "l"(arrivals)
                   : "memory");
      if (before == cut.last_share - cut.first_share) {
        *arrivals = 0;
        flags[threadIdx.x] = run.x;
      }
    }
  }
  mark(5);
  __syncthreads();
  mark(6);
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    if (flags[which] < 0) continue;
    const CutUnit cut = entries[flags[which]];
    const int count = cut.last_share - cut.first_share + 1;
    // The first share holds the unit's begin, in its second place; the others in their first.
    const auto place_of = [&](int j) { return (cut.first_share + j) * 2 + (j == 0); };
    // As many threads as there are share the partials of four dims, and meet in shared memory.
    const int teams = vectors < kThreads ? kThreads / vectors : 1;
    auto* meet = reinterpret_cast<Merged*>(shared);
#pragma unroll 1
    for (int at = threadIdx.x; at < vectors * teams; at += kThreads) {
      const int team = at / vectors, item = at % vectors, head = item / (D / 4);
      const Merged all = merge_partials(
          team, teams, count,
          [&](int j) { return __ldcg(all_sums + place_of(j) * a.group + head); },
          [&](int j) { return __ldcg(all_values + place_of(j) * vectors + item); });
      if (teams == 1)
        write_four<D>(a, cut.unit, item, all);
      else
        meet[at] = all;
    }
    if (teams == 1) continue;
    __syncthreads();
    if (threadIdx.x < vectors) {
      const Merged all = merge_partials(
          0, 1, teams,
          [&](int j) {
            const Merged& m = meet[j * vectors + threadIdx.x];
            return make_float2(m.maximum, m.sum);
          },
          [&](int j) { return meet[j * vectors + threadIdx.x].value; });
      write_four<D>(a, cut.unit, threadIdx.x, all);
    }
    __syncthreads();
  }
  mark(7);
}

}  // namespace polar::backend::cuda
