// Checks decode and prefill attention against float64 on the CPU: ragged lengths, page boundaries,
// every kind of plan, poisoned outputs and caches. Exit code 0 if all is right, 1 if not, 77 where
// there is no GPU. `--small` is quick enough for a memory checker.

#include <cstring>

#include "backend/cuda/attention_scene.cuh"
#include "backend/ranges.h"

namespace polar::backend::cuda::check {
namespace {

PageRanges random_plan(std::mt19937& random, Scene& scene, int row, int position, int window,
                       int& list_used) {
  const int table = row * scene.table_stride, own = position / 16;
  switch (random() % 7) {
    case 0:
      return {0, 0, 0, 0};
    case 1:
      return full_ranges(position, window, table);
    case 2:
      return window_ranges(position, window, table,
                           {static_cast<int>(1 + random() % 3), static_cast<int>(random() % 9)},
                           random() % 2 == 0);
    case 3:
      return {table, 0, table + own, 1};
    default:
      break;
  }
  // Full pages, seen whole also under the window; others by their summaries, or not.
  const int first = std::min(first_visible_page(position, window) + (window > 0), own);
  const int rarely = random() % 8 == 0 ? 100 : 3;
  std::vector<int32_t> list, bits(own / kBitPages + 1, 0);
  for (int page = first; page < own; ++page) {
    if (random() % rarely != 0) continue;
    list.push_back(scene.pages[table + page]);
    bits[page / kBitPages] |= 1 << page % kBitPages;
  }
  PageRanges ranges{scene.list_begin() + list_used, static_cast<int>(list.size()), table + own,
                    static_cast<int>(random() % 2)};
  list.insert(list.end(), bits.begin(), bits.end());
  std::copy(list.begin(), list.end(), scene.pages.begin() + ranges.begin);
  list_used += static_cast<int>(list.size());
  if (random() % 2 == 0 || first == own) return ranges;
  ranges.summary_begin = first;
  ranges.summary_end = own;
  ranges.summaries = own - first - ranges.count;
  ranges.read_bits = ranges.begin + ranges.count;
  return ranges;
}

/// The summaries of all full pages, as rows that fill them write them.
void write_summaries(const Scene& scene, const std::byte* kv, const int32_t* pages,
                     std::byte* summaries) {
  std::vector<int32_t> position, sequence;
  for (size_t s = 0; s < scene.lengths.size(); ++s) {
    for (int page = 0; page < scene.lengths[s] / kPageTokens; ++page) {
      position.push_back(page * kPageTokens + kPageTokens - 1);
      sequence.push_back(static_cast<int32_t>(s));
    }
  }
  DeviceArray<int32_t> positions(position), sequences(sequence);
  PageIndex index;
  index.position = positions.data;
  index.sequence = sequences.data;
  index.rows = static_cast<int>(position.size());
  index.kv_heads = scene.kv_heads;
  index.head_dim = scene.head_dim;
  index.table_stride = scene.table_stride;
  index.pages = pages;
  index.kv = kv;
  index.kv_dtype = scene.type;
  index.summaries = summaries;
  CUDA_OK(launch_page_index(index, nullptr));
  CUDA_OK(cudaDeviceSynchronize());
}

void check_decode(std::mt19937& random, int kv_heads, int group, int head_dim, DType type,
                  std::vector<int> lengths, int window, bool dense) {
  const int rows = static_cast<int>(lengths.size()), units = rows * kv_heads;
  int total = 0;
  for (int length : lengths) total += length;
  Scene scene(random, kv_heads, group, head_dim, type, lengths,
              (total / 16 + total / 256 + rows) * kv_heads + 16);
  std::vector<PageRanges> plan(units);
  std::vector<int32_t> position(rows), sequence(rows);
  int list_used = 0;
  for (int r = 0; r < rows; ++r) {
    position[r] = scene.lengths[r] - 1;
    sequence[r] = r;
    for (int h = 0; h < kv_heads; ++h) {
      plan[r * kv_heads + h] = dense
                                   ? full_ranges(position[r], window, r * scene.table_stride)
                                   : random_plan(random, scene, r, position[r], window, list_used);
    }
  }
  std::vector<uint16_t> query_bits;
  const auto query =
      make_queries(static_cast<size_t>(units) * group * head_dim, random(), query_bits);

  const int blocks = attention_shares();
  DeviceArray<std::byte> kv(scene.kv_bytes());
  kv.fill(0xff);
  DeviceArray<int32_t> valid(scene.valid), pages(scene.pages), positions(position),
      sequences(sequence);
  DeviceArray<ReadCount> read(rows);
  read.fill(0);
  fill_kv<<<1024, 256>>>(kv.data, valid.data, scene.page_count, kv_heads, head_dim, type);
  DeviceArray<std::byte> summaries(scene.kv_bytes() / kPageTokens);
  summaries.fill(0xff);
  write_summaries(scene, kv.data, pages.data, summaries.data);
  DeviceArray<PageRanges> plans(plan);
  DeviceArray<uint16_t> queries(query_bits), output(query_bits.size());
  DeviceArray<std::byte> schedule(schedule_bytes(units, blocks)),
      scratch(attention_scratch_bytes(units, blocks, group, head_dim));
  schedule.fill(0xff);
  scratch.fill(0);

  PlanLaunch p;
  p.position = positions.data;
  p.sequence = sequences.data;
  p.rows = rows;
  p.kv_heads = kv_heads;
  p.table_stride = scene.table_stride;
  p.window = window;
  p.plan = plans.data;
  p.read = read.data;
  p.schedule = schedule_at(schedule.data, blocks);
  DecodeAttention a;
  a.kv = kv.data;
  a.summaries = summaries.data;
  a.kv_dtype = type;
  a.head_dim = head_dim;
  a.kv_heads = kv_heads;
  a.group = group;
  a.units = units;
  a.window = window;
  a.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  a.pages = pages.data;
  a.list_begin = scene.list_begin();
  a.schedule = p.schedule;
  a.plan = plans.data;
  a.query = queries.data;
  a.output = output.data;
  a.scratch = attention_scratch_at(scratch.data, units, blocks, group);
  CUDA_OK(launch_schedule(p, nullptr));
  std::vector<uint16_t> first;
  bool same = true;
  for (int run = 0; run < 3; ++run) {  // the counts must be back at zero, the result the same
    output.fill(0xff);
    a.settled = run == 1;
    CUDA_OK(launch_decode_attention(a, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
    auto out = output.host();
    if (run == 0) first = out;
    same = same && out == first;
  }
  std::vector<std::vector<double>> want(static_cast<size_t>(units) * group);
  std::vector<int32_t> want_read(rows, 0), want_summaries(rows, 0);
  parallel(units, [&](int u) {
    const int r = u / kv_heads;
    const auto seen = visible_pages(plan[u], scene.pages.data(), scene.list_begin(),
                                    r * scene.table_stride, position[r], window);
    for (int g = 0; g < group; ++g) {
      want[u * group + g] = attend(seen, &query[(static_cast<size_t>(u) * group + g) * head_dim],
                                   head_dim, kv_heads, u % kv_heads, type, a.scale);
    }
  });
  for (int u = 0; u < units; ++u) {
    want_read[u / kv_heads] += plan[u].count + plan[u].tail_count;
    want_summaries[u / kv_heads] += plan[u].summaries;
  }
  bool counted = true;
  const auto counts = read.host();
  for (int r = 0; r < rows; ++r)
    counted =
        counted && counts[r].blocks == want_read[r] && counts[r].summaries == want_summaries[r];
  const Errors e = compare(first, want, head_dim);
  const std::string name = "decode " + std::to_string(rows) + " rows x " +
                           std::to_string(kv_heads) + " x " + std::to_string(group) + " x " +
                           std::to_string(head_dim) + (type == DType::kF16 ? " f16" : " bf16") +
                           " window " + std::to_string(window) + (dense ? " dense" : " mixed") +
                           ", " + std::to_string(total) + " tokens";
  report(name, same && e.all < 4e-3 && e.worst < 2e-2 && counted, e.all);
  if (!same) std::printf("  runs differ\n");
  if (e.worst >= 2e-2) std::printf("  worst head %.3e\n", e.worst);
}

void check_prefill(std::mt19937& random, int kv_heads, int group, int head_dim, DType type,
                   std::vector<int> lengths, std::vector<int> chunks, int window) {
  Scene scene(random, kv_heads, group, head_dim, type, lengths, 0);
  std::vector<int32_t> position, begin = {0}, sequence;
  for (size_t s = 0; s < lengths.size(); ++s) {
    for (int i = 0; i < chunks[s]; ++i) {
      position.push_back(lengths[s] - chunks[s] + i);
      sequence.push_back(static_cast<int>(s));
    }
    begin.push_back(static_cast<int>(position.size()));
  }
  const int rows = static_cast<int>(position.size());
  std::vector<uint16_t> query_bits;
  const auto query =
      make_queries(static_cast<size_t>(rows) * kv_heads * group * head_dim, random(), query_bits);
  DeviceArray<std::byte> kv(scene.kv_bytes());
  kv.fill(0xff);
  DeviceArray<int32_t> valid(scene.valid), pages(scene.pages), positions(position), begins(begin);
  fill_kv<<<1024, 256>>>(kv.data, valid.data, scene.page_count, kv_heads, head_dim, type);
  DeviceArray<uint16_t> queries(query_bits), output(query_bits.size());
  DeviceArray<uint32_t> next_tile(1);
  next_tile.fill(0);
  PrefillAttention a;
  a.kv = kv.data;
  a.kv_dtype = type;
  a.head_dim = head_dim;
  a.kv_heads = kv_heads;
  a.group = group;
  a.window = window;
  a.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  a.pages = pages.data;
  a.table_stride = scene.table_stride;
  a.position = positions.data;
  a.chunk_begin = begins.data;
  a.sequences = static_cast<int>(lengths.size());
  a.prefill_rows = rows;
  a.query = queries.data;
  a.output = output.data;
  a.next_tile = next_tile.data;
  std::vector<uint16_t> out;
  bool same = true;
  for (int run = 0; run < 3; ++run) {  // the count must be back at zero, the result the same
    output.fill(0xff);
    CUDA_OK(launch_prefill_attention(a, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
    const auto again = output.host();
    if (run == 0) out = again;
    same = same && again == out && next_tile.host()[0] == 0;
  }
  const int heads = kv_heads * group;
  std::vector<int> tested;  // all rows of small cases, a sample of large ones
  for (int r = 0; r < rows; ++r) {
    if (rows < 600 || random() % (rows / 300) == 0 || r + 1 == rows) tested.push_back(r);
  }
  std::vector<std::vector<double>> want(tested.size() * heads);
  std::vector<uint16_t> picked(want.size() * head_dim);
  parallel(static_cast<int>(want.size()), [&](int i) {
    const int r = tested[i / heads], head = i % heads, table = sequence[r] * scene.table_stride;
    const size_t at = (static_cast<size_t>(r) * heads + head) * head_dim;
    const auto seen = visible_pages(full_ranges(position[r], window, table), scene.pages.data(),
                                    scene.list_begin(), table, position[r], window);
    want[i] = attend(seen, &query[at], head_dim, kv_heads, head / group, type, a.scale);
    std::copy_n(&out[at], head_dim, &picked[static_cast<size_t>(i) * head_dim]);
  });
  const bool written = std::find(out.begin(), out.end(), 0xffff) == out.end();
  const Errors e = compare(picked, want, head_dim);
  report("prefill " + std::to_string(rows) + " rows x " + std::to_string(kv_heads) + " x " +
             std::to_string(group) + " x " + std::to_string(head_dim) +
             (type == DType::kF16 ? " f16" : " bf16") + " window " + std::to_string(window),
         same && written && e.all < 4e-3 && e.worst < 2e-2, e.all);
  if (!same) std::printf("  runs differ\n");
  if (!written) std::printf("  some output was not written\n");
  if (e.worst >= 2e-2) std::printf("  worst head %.3e\n", e.worst);
}

/// Ragged chunks that begin anywhere, of sequences that end around pages and steps.
void check_ragged_prefill(std::mt19937& random, int sequences, int group, int head_dim, DType type,
                          int window) {
  const int edges[] = {1, 15, 16, 17, 127, 128, 129, 143, 144, 145, 255, 256, 257, 383, 400};
  std::vector<int> lengths, chunks;
  for (int i = 0; i < sequences; ++i) {
    lengths.push_back(edges[random() % std::size(edges)]);
    const int last = lengths.back();
    chunks.push_back(i % 3 == 0 ? last : i % 3 == 1 ? 1 + random() % last : std::min(last, 1));
  }
  check_prefill(random, group > 4 ? 1 : 2, group, head_dim, type, lengths, chunks, window);
}

int run(bool small) {
  if (!has_gpu()) return kSkipped;
  std::mt19937 random(20251123);
  const int longest = small ? 600 : 33000;
  const int dims[] = {64, 80, 96, 128, 256};
  for (int d : dims) {
    for (DType type : {DType::kBF16, DType::kF16}) {
      for (int group : small ? std::vector<int>{4} : std::vector<int>{1, 4, 8, 16}) {
        check_decode(random, 2, group, d, type, random_lengths(random, small ? 4 : 8, longest / 4),
                     0, false);
      }
    }
  }
  if (!small) {
    for (int group = 1; group <= 16; ++group)
      check_decode(random, 3, group, 128, DType::kBF16, random_lengths(random, 7, 4000),
                   group % 2 ? 0 : 100 * group, group % 3 == 0);
    check_decode(random, 32, 1, 128, DType::kBF16, random_lengths(random, 48, 3000), 0, false);
    check_decode(random, 8, 4, 128, DType::kBF16, {33000, 1, 16, 17, 20000}, 0, true);
    check_decode(random, 1, 4, 128, DType::kBF16, {1}, 0, true);
    check_decode(random, 1, 1, 64, DType::kBF16, {33000}, 0, true);
    check_decode(random, 8, 4, 128, DType::kBF16, {9000, 5000, 4096, 4095, 4097}, 4096, true);
    check_decode(random, 8, 7, 80, DType::kF16, random_lengths(random, 200, 500), 0, false);
  }
  for (int d : {64, 128}) {
    for (DType type : {DType::kBF16, DType::kF16}) {
      const int windows[] = {0, 1, 16, 100, 128, 200};
      for (int group = 1; group <= 16; group += small ? 5 : 1)
        check_ragged_prefill(random, 4, group, d, type, group % 2 ? 0 : windows[random() % 6]);
      check_ragged_prefill(random, 70, 4, d, type, 0);
    }
  }
  for (int d : dims) {
    check_prefill(random, 2, 3, d, d == 96 ? DType::kF16 : DType::kBF16, {100, 17, 300, 16, 1},
                  {100, 1, 65, 16, 1}, 0);
  }
  if (!small) {
    for (int group : {1, 2, 4, 5, 8, 16})
      check_prefill(random, 2, group, 128, DType::kBF16, {2048, 777, 500}, {2048, 300, 129},
                    group % 2 ? 0 : 256);
    check_prefill(random, 1, 4, 128, DType::kBF16, {33000}, {9000}, 0);
    check_prefill(random, 2, 1, 64, DType::kF16, {8000, 3000}, {4000, 2999}, 1000);
  }
  return verdict();
}

}  // namespace
}  // namespace polar::backend::cuda::check

int main(int argc, char** argv) {
  return polar::backend::cuda::check::run(argc > 1 && std::strcmp(argv[1], "--small") == 0);
}
