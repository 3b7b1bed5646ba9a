// Times the attention kernels on a GPU: one request per line of stdin, one JSON object per line of
// stdout, so that a driver can alternate it with a peer in a process of its own
// (bench/attention.py).
//
//   decode BATCH KV_HEADS GROUP HEAD_DIM TOKENS KIND PARAMETER IMPLEMENTATION
//     KIND dense | contiguous (pages not shuffled) | plan (dense, the plan kernel in front) | heads
//     (PARAMETER = share of units read, the others nothing) | window (the same, the others sink 1 +
//     recent 4) | pages, pages-codes (PARAMETER = share; scoring, by mean keys or codes, and
//     selection included) | select, select-codes (scoring and selection alone) | skew (one sequence
//     of 32,768 tokens, the others 512) IMPLEMENTATION 0 product | 1 no arithmetic | 2 not launched
//     early | 10 + n: n slots a warp | 100 + n: clocks at the kernel's marks
//   prefill BATCH KV_HEADS GROUP HEAD_DIM TOKENS
//
// Page ids are shuffled over at least 8 GB, no page is shared, KV sets rotate from launch to
// launch, a timing is a CUDA graph of at least 20 launches, and the median of several is reported.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "backend/cuda/attention_launch.cuh"
#include "backend/cuda/attention_reference.h"
#include "backend/ranges.h"

namespace polar::backend::cuda {
namespace {

#define CUDA_OK(call)                                                                      \
  do {                                                                                     \
    const cudaError_t error_ = (call);                                                     \
    if (error_ != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_)); \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (0)

__global__ void fill_random(uint4* data, size_t count) {
  for (size_t i = blockIdx.x * size_t{256} + threadIdx.x; i < count; i += size_t{gridDim.x} * 256) {
    uint32_t words[4];
    for (int w = 0; w < 4; ++w) {  // bf16 of magnitude 1/8 to 2, either sign
      const uint32_t h =
          check::mix(static_cast<uint32_t>(i >> 30), static_cast<uint32_t>(i * 4 + w));
      words[w] = 0x3e003e00u + (h & 0x81ff81ffu);
    }
    data[i] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

std::vector<void*> owned;
template <typename T>
T* upload(const std::vector<T>& host) {
  T* device = nullptr;
  CUDA_OK(cudaMalloc(&device, host.size() * sizeof(T)));
  CUDA_OK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  owned.push_back(device);
  return device;
}
template <typename T>
T* allocate(size_t count, int byte = 0) {
  T* device = nullptr;
  CUDA_OK(cudaMalloc(&device, count * sizeof(T)));
  CUDA_OK(cudaMemset(device, byte, count * sizeof(T)));
  owned.push_back(device);
  return device;
}

struct Pool {
  std::byte* kv = nullptr;
  std::byte* index = nullptr;
  size_t bytes = 0;
};

struct Request {
  int batch, kv_heads, group, head_dim, tokens;
  std::string kind;
  double parameter = 1.0;
  int implementation = 0;
};

/// Runs `queue` in a graph and says the median seconds of one of its `launches`.
template <typename F>
double time_graph(int launches, F queue) {
  cudaStream_t stream;
  CUDA_OK(cudaStreamCreate(&stream));
  CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < launches; ++i) queue(i, stream);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_OK(cudaStreamEndCapture(stream, &graph));
  CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CUDA_OK(cudaEventCreate(&begin));
  CUDA_OK(cudaEventCreate(&end));
  std::vector<float> times;
  float warm = 0;  // milliseconds
  for (int rep = 0; times.size() < 11; ++rep) {
    CUDA_OK(cudaEventRecord(begin, stream));
    CUDA_OK(cudaGraphLaunch(exec, stream));
    CUDA_OK(cudaEventRecord(end, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
    float ms;
    CUDA_OK(cudaEventElapsedTime(&ms, begin, end));
    if (rep >= 2 && warm > 40) times.push_back(ms);
    warm += ms;
  }
  CUDA_OK(cudaGraphExecDestroy(exec));
  CUDA_OK(cudaGraphDestroy(graph));
  CUDA_OK(cudaEventDestroy(begin));
  CUDA_OK(cudaEventDestroy(end));
  CUDA_OK(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] / 1e3 / launches;
}

cudaError_t launch_variant(int implementation, DecodeAttention a, cudaStream_t stream) {
  using Bf16 = __nv_bfloat16;
  switch (implementation) {
    case 0:
      return launch_decode_attention(a, stream);
    case 1:
      return launch_decode_instance<128, Bf16, 1, DecodeMode::kCopyOnly>(a, stream);
    case 2:
      a.early = false;
      return launch_decode_attention(a, stream);
    default:
      return launch_decode_instance<128, Bf16, 1>(a, stream, implementation % 10);
  }
}

/// Runs a launch a few times and says when its blocks passed the kernel's marks, in clocks since
/// their own begin: least, mean and most over the blocks.
void print_timeline(const std::vector<DecodeAttention>& attention, int slots) {
  const int blocks = attention[0].schedule.shares;
  auto* marks = allocate<long long>(static_cast<size_t>(blocks) * kTimelineMarks);
  for (DecodeAttention a : attention) {
    a.early = false;
    CUDA_OK(cudaMemset(marks, 0, sizeof(long long) * blocks * kTimelineMarks));
    CUDA_OK((launch_decode_instance<128, __nv_bfloat16, 1, DecodeMode::kTimed>(a, nullptr, slots,
                                                                               marks)));
    CUDA_OK(cudaDeviceSynchronize());
  }
  std::vector<long long> host(blocks * kTimelineMarks);
  CUDA_OK(cudaMemcpy(host.data(), marks, host.size() * sizeof(long long), cudaMemcpyDeviceToHost));
  std::printf("{\"us\": 0, \"timeline\": [");
  for (int m = 1; m < 8; ++m) {
    double least = 1e30, most = 0, sum = 0;
    int count = 0;
    for (int b = 0; b < blocks; ++b) {
      const double t = static_cast<double>(host[b * kTimelineMarks + m] - host[b * kTimelineMarks]);
      if (host[b * kTimelineMarks + m] == 0) continue;
      least = std::min(least, t), most = std::max(most, t), sum += t, ++count;
    }
    std::printf("%s[%.0f, %.0f, %.0f]", m > 1 ? ", " : "", least, sum / std::max(count, 1), most);
  }
  std::printf("]");
  std::printf("}\n");
}

/// The units of a row that are read in full: so many that the share over all rows is exact.
std::vector<bool> chosen_heads(std::mt19937& random, int row, int kv_heads, double share) {
  const int count = static_cast<int>(std::floor(share * kv_heads * (row + 1) + 1e-9)) -
                    static_cast<int>(std::floor(share * kv_heads * row + 1e-9));
  std::vector<bool> chosen(kv_heads);
  std::fill(chosen.begin(), chosen.begin() + count, true);
  std::shuffle(chosen.begin(), chosen.end(), random);
  return chosen;
}

void run_decode(const Request& r, const Pool& pool) {
  std::mt19937 random(7);
  std::vector<int> lengths(r.batch, r.tokens);
  if (r.kind == "skew") {
    std::fill(lengths.begin(), lengths.end(), 512);
    lengths[r.batch / 2] = 32768;
  }
  const int longest = *std::max_element(lengths.begin(), lengths.end());
  const int stride = (longest + 15) / 16;
  size_t set_pages = 0;
  for (int length : lengths) set_pages += (length + 15) / 16;
  const size_t block = kv_block_bytes(r.head_dim), page_bytes = block * r.kv_heads;
  const size_t set_bytes = set_pages * page_bytes;
  const int sets = static_cast<int>(std::max<size_t>(4, (size_t{600} << 20) / set_bytes + 1));
  const size_t want = std::max(size_t{8} << 30, sets * set_bytes);
  if (want > pool.bytes) {
    std::printf("{\"error\": \"the pool is too small\"}\n");
    return;
  }
  std::vector<int32_t> ids(want / page_bytes);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  if (r.kind != "contiguous") std::shuffle(ids.begin(), ids.end(), random);

  const int units = r.batch * r.kv_heads, blocks = attention_shares();
  const bool selects = r.kind.starts_with("select");
  const bool pages = r.kind.starts_with("pages") || selects;
  std::vector<uint16_t> query(static_cast<size_t>(units) * r.group * r.head_dim);
  for (size_t i = 0; i < query.size(); ++i)
    query[i] = check::to_bits(DType::kBF16, check::uniform(3, static_cast<uint32_t>(i)));
  std::vector<int32_t> position(r.batch), sequence(r.batch), point(r.batch, 0);
  for (int i = 0; i < r.batch; ++i) position[i] = lengths[i] - 1, sequence[i] = i;
  UnitBudget budget;
  budget.kind = ReadKind::kPages;
  budget.pages_per_mille = static_cast<uint16_t>(std::lround(r.parameter * 1000));

  DecodeAttention a;
  a.kv = pool.kv;
  a.head_dim = r.head_dim;
  a.kv_heads = r.kv_heads;
  a.group = r.group;
  a.units = units;
  a.scale = 1.0f / std::sqrt(static_cast<float>(r.head_dim));
  a.list_begin = r.batch * stride;
  a.query = upload(query);
  a.output = allocate<uint16_t>(query.size(), 0xff);
  a.scratch = attention_scratch_at(
      allocate<std::byte>(attention_scratch_bytes(units, blocks, r.group, r.head_dim)), units,
      blocks, r.group);
  PageSelection s;
  s.plan.position = upload(position);
  s.plan.sequence = upload(sequence);
  s.plan.point = upload(point);
  s.plan.rows = r.batch;
  s.plan.kv_heads = r.kv_heads;
  s.plan.table_stride = stride;
  if (pages) {
    s.plan.budgets = upload(std::vector<UnitBudget>(r.kv_heads, budget));
    s.plan.limits = upload(std::vector<PointLimits>(1));
    s.scores = allocate<float>(page_scores_bytes(units, r.group, stride) / sizeof(float));
  }
  s.index = {s.plan.position, s.plan.sequence, r.batch,      r.kv_heads,       r.head_dim, stride,
             nullptr,         pool.kv,         DType::kBF16, PageScore::kMean, pool.index};
  if (r.kind.ends_with("codes")) {
    s.index.score = PageScore::kCodes;
    s.index.half_steps = allocate<float>(pool.bytes / block, 0x3e);
  }
  s.query = a.query;
  s.group = r.group;
  s.scale = a.scale;
  s.plan.list_begin = a.list_begin;
  s.plan.list_capacity = pages ? units * stride : 0;
  std::vector<DecodeAttention> attention;
  std::vector<PageSelection> selection;
  size_t pages_read = 0;
  for (int set = 0; set < sets; ++set) {
    std::vector<int32_t> table(a.list_begin + s.plan.list_capacity);
    const int32_t* next = &ids[set * set_pages];
    std::vector<PageRanges> plan(units);
    for (int row = 0; row < r.batch; ++row) {
      const int own_pages = (lengths[row] + 15) / 16;
      std::copy_n(next, own_pages, &table[row * stride]);
      next += own_pages;
      const bool all = r.kind != "heads" && r.kind != "window";
      const auto chosen = chosen_heads(random, row, r.kv_heads, all ? 1.0 : r.parameter);
      for (int h = 0; h < r.kv_heads; ++h) {
        PageRanges& p = plan[row * r.kv_heads + h];
        if (chosen[h])
          p = full_ranges(position[row], 0, row * stride);
        else if (r.kind == "window")
          p = window_ranges(position[row], 0, row * stride, {1, 4});
      }
    }
    s.pages = upload(table);
    a.pages = s.pages;
    s.index.pages = s.pages;
    s.plan.plan = upload(plan);
    a.plan = s.plan.plan;
    s.plan.schedule = schedule_at(allocate<std::byte>(schedule_bytes(units, blocks)), blocks);
    a.schedule = s.plan.schedule;
    CUDA_OK(pages ? launch_plan(s.plan, nullptr) : launch_schedule(s.plan, nullptr));
    int32_t header[2];
    CUDA_OK(cudaMemcpy(header, a.schedule.header, sizeof(header), cudaMemcpyDeviceToHost));
    pages_read += header[0];
    // As in a dense step, whose layers share a plan.
    a.settled = r.kind == "dense" || r.kind == "skew";
    attention.push_back(a);
    selection.push_back(s);
  }
  if (r.implementation >= 100) return print_timeline(attention, r.implementation % 10);
  // Selecting pages: the plan and its schedule are written beside it, as in the product.
  cudaStream_t side;
  cudaEvent_t begun, planned;
  CUDA_OK(cudaStreamCreate(&side));
  CUDA_OK(cudaEventCreate(&begun));
  CUDA_OK(cudaEventCreate(&planned));
  const double seconds = time_graph(std::max(20, sets), [&](int i, cudaStream_t stream) {
    i %= sets;
    if (pages) {
      CUDA_OK(cudaEventRecord(begun, stream));
      CUDA_OK(cudaStreamWaitEvent(side, begun));
      CUDA_OK(launch_plan(selection[i].plan, side, false));
      CUDA_OK(cudaEventRecord(planned, side));
      CUDA_OK(launch_page_selection(selection[i], stream));
      CUDA_OK(cudaStreamWaitEvent(stream, planned));
      attention[i].early = false;
    }
    if (r.kind == "plan") CUDA_OK(launch_plan(selection[i].plan, stream));
    if (!selects) CUDA_OK(launch_variant(r.implementation, attention[i], stream));
  });
  const double bytes = static_cast<double>(pages_read) / sets * block;
  std::printf("{\"us\": %.3f, \"dense_bytes\": %.0f, \"read_bytes\": %.0f, \"tb_per_s\": %.3f}\n",
              seconds * 1e6, static_cast<double>(set_bytes), bytes, bytes / seconds / 1e12);
}

void run_prefill(const Request& r, const Pool& pool) {
  std::mt19937 random(7);
  const int stride = (r.tokens + 15) / 16, rows = r.batch * r.tokens, heads = r.kv_heads * r.group;
  const size_t page_bytes = static_cast<size_t>(kv_block_bytes(r.head_dim)) * r.kv_heads;
  std::vector<int32_t> table(pool.bytes / page_bytes), position(rows), begin(r.batch + 1);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  std::shuffle(table.begin(), table.end(), random);
  table.resize(static_cast<size_t>(r.batch) * stride);
  for (int i = 0; i < rows; ++i) position[i] = i % r.tokens;
  for (int i = 0; i <= r.batch; ++i) begin[i] = i * r.tokens;
  PrefillAttention a;
  a.kv = pool.kv;
  a.head_dim = r.head_dim;
  a.kv_heads = r.kv_heads;
  a.group = r.group;
  a.scale = 1.0f / std::sqrt(static_cast<float>(r.head_dim));
  a.pages = upload(table);
  a.table_stride = stride;
  a.position = upload(position);
  a.chunk_begin = upload(begin);
  a.sequences = r.batch;
  a.prefill_rows = rows;
  a.query = pool.index;  // random enough
  a.output = allocate<uint16_t>(static_cast<size_t>(rows) * heads * r.head_dim);
  a.next_tile = allocate<uint32_t>(1);
  const double seconds = time_graph(
      3, [&](int, cudaStream_t stream) { CUDA_OK(launch_prefill_attention(a, stream)); });
  const double flops = 2.0 * r.head_dim * heads * r.batch * r.tokens * (r.tokens + 1.0);
  std::printf("{\"us\": %.1f, \"tflop_per_s\": %.1f}\n", seconds * 1e6, flops / seconds / 1e12);
}

}  // namespace

int bench_main(int argc, char** argv) {
  Pool pool;
  pool.bytes = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 24) << 30;
  CUDA_OK(cudaMalloc(&pool.kv, pool.bytes));
  CUDA_OK(cudaMalloc(&pool.index, pool.bytes / 16));
  fill_random<<<2048, 256>>>(reinterpret_cast<uint4*>(pool.kv), pool.bytes / 16);
  fill_random<<<2048, 256>>>(reinterpret_cast<uint4*>(pool.index), pool.bytes / 16 / 16);
  CUDA_OK(cudaDeviceSynchronize());
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream in(line);
    std::string what;
    Request r;
    in >> what >> r.batch >> r.kv_heads >> r.group >> r.head_dim >> r.tokens;
    if (!in) break;
    if (what == "prefill") {
      run_prefill(r, pool);
    } else {
      in >> r.kind >> r.parameter >> r.implementation;
      run_decode(r, pool);
    }
    std::fflush(stdout);
    for (void* memory : owned) cudaFree(memory);
    owned.clear();
  }
  return 0;
}

}  // namespace polar::backend::cuda

int main(int argc, char** argv) {
  return polar::backend::cuda::bench_main(argc, argv);
}
