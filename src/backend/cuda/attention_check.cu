// Checks decode attention, plans, page selection and prefill attention against float64 on the CPU:
// ragged lengths, page boundaries, every kind of plan, poisoned outputs and caches. Exit code 0 if
// all is right, 1 if not, 77 where there is no GPU. `--small` is quick enough for a memory checker.

#include <cstring>
#include <string>

#include "backend/cuda/attention_scene.cuh"
#include "backend/ranges.h"

namespace polar::backend::cuda::check {
namespace {

int failures = 0;

std::vector<int32_t> blocks_of(const std::vector<ReadCount>& read) {
  std::vector<int32_t> blocks;
  for (const ReadCount& row : read) blocks.push_back(row.blocks);
  return blocks;
}

void report(const std::string& name, bool ok, double error) {
  std::printf("%-72s %s  %.2e\n", name.c_str(), ok ? "ok" : "FAILED", error);
  std::fflush(stdout);
  failures += !ok;
}

PageRanges random_plan(std::mt19937& random, Scene& scene, int row, int position, int window,
                       int& list_used) {
  const int table = row * scene.table_stride, own = position / 16;
  switch (random() % 7) {
    case 0:
      return {0, 0, 0, 0};
    case 1:
      return full_ranges(position, window, table);
    case 2:
      return window_ranges(position, window, table, 1 + random() % 3, random() % 9);
    case 3:
      return {table, 0, table + own, 1};
    default:
      break;
  }
  std::vector<int32_t> list;  // full pages, seen whole also under the window
  for (int page = first_visible_page(position, window) + (window > 0); page < own; ++page) {
    if (random() % 3 == 0 && list_used + static_cast<int>(list.size()) < scene.list_capacity)
      list.push_back(scene.pages[table + page]);
  }
  const int begin = scene.list_begin() + list_used;
  std::copy(list.begin(), list.end(), scene.pages.begin() + begin);
  list_used += static_cast<int>(list.size());
  return {begin, static_cast<int>(list.size()), table + own, static_cast<int>(random() % 2)};
}

void check_decode(std::mt19937& random, int kv_heads, int group, int head_dim, DType type,
                  std::vector<int> lengths, int window, bool dense) {
  const int rows = static_cast<int>(lengths.size()), units = rows * kv_heads;
  int total = 0;
  for (int length : lengths) total += length;
  Scene scene(random, kv_heads, group, head_dim, type, lengths, total / 16 * kv_heads + 16);
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
    CUDA_OK(launch_decode_attention(a, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
    auto out = output.host();
    if (run == 0) first = out;
    same = same && out == first;
  }
  std::vector<std::vector<double>> want(static_cast<size_t>(units) * group);
  std::vector<int32_t> want_read(rows, 0);
  parallel(units, [&](int u) {
    const int r = u / kv_heads;
    const auto seen = visible_pages(plan[u], scene.pages.data(), scene.list_begin(),
                                    r * scene.table_stride, position[r], window);
    for (int g = 0; g < group; ++g) {
      want[u * group + g] = attend(seen, &query[(static_cast<size_t>(u) * group + g) * head_dim],
                                   head_dim, kv_heads, u % kv_heads, type, a.scale);
    }
  });
  for (int u = 0; u < units; ++u) want_read[u / kv_heads] += plan[u].count + plan[u].tail_count;
  const Errors e = compare(first, want, head_dim);
  const std::string name = "decode " + std::to_string(rows) + " rows x " +
                           std::to_string(kv_heads) + " x " + std::to_string(group) + " x " +
                           std::to_string(head_dim) + (type == DType::kF16 ? " f16" : " bf16") +
                           " window " + std::to_string(window) + (dense ? " dense" : " mixed") +
                           ", " + std::to_string(total) + " tokens";
  report(name, same && e.all < 4e-3 && e.worst < 2e-2 && blocks_of(read.host()) == want_read,
         e.all);
  if (!same) std::printf("  runs differ\n");
  if (e.worst >= 2e-2) std::printf("  worst head %.3e\n", e.worst);
}

/// Plans and page selection, compared with the ranges of ranges.h and a selection in float64.
void check_plan(std::mt19937& random, int kv_heads, int group, int head_dim,
                std::vector<int> lengths, int window) {
  const int rows = static_cast<int>(lengths.size()), units = rows * kv_heads, points = 3;
  Scene scene(random, kv_heads, group, head_dim, DType::kBF16, lengths, 0);
  scene.list_capacity = units * scene.table_stride;
  scene.pages.resize(scene.list_begin() + scene.list_capacity, -1);
  std::vector<UnitBudget> budgets(points * kv_heads);
  std::vector<PointLimits> limits(points);
  for (auto& l : limits)
    l = {static_cast<int>(random() % 3), static_cast<int>(1 + random() % 5),
         static_cast<int>(random() % kv_heads)};
  for (auto& b : budgets) {
    b.kind = static_cast<ReadKind>(random() % 5);
    b.fallback = static_cast<ReadKind>(random() % 2);
    b.pages_per_mille = 1 + random() % 1000;
  }
  std::vector<int32_t> position(rows), sequence(rows), point(rows);
  std::vector<float> router(units);
  for (int r = 0; r < rows; ++r) {
    position[r] = scene.lengths[r] - 1;
    sequence[r] = r;
    point[r] = random() % points;
  }
  for (auto& v : router) v = static_cast<float>(random() % 7);  // with ties
  std::vector<uint16_t> query_bits;
  const auto query =
      make_queries(static_cast<size_t>(units) * group * head_dim, random(), query_bits);

  DeviceArray<std::byte> kv(scene.kv_bytes());
  kv.fill(0xff);
  DeviceArray<int32_t> valid(scene.valid), pages(scene.pages), positions(position),
      sequences(sequence), point_of(point), arrivals(1);
  DeviceArray<ReadCount> read(rows);
  read.fill(0);
  arrivals.fill(0);
  fill_kv<<<1024, 256>>>(kv.data, valid.data, scene.page_count, kv_heads, head_dim, DType::kBF16);
  DeviceArray<UnitBudget> budget_array(budgets);
  DeviceArray<PointLimits> limit_array(limits);
  DeviceArray<float> routers(router),
      scores(page_scores_bytes(units, group, scene.table_stride) / sizeof(float));
  DeviceArray<uint16_t> queries(query_bits),
      means(static_cast<size_t>(scene.page_count) * kv_heads * head_dim);
  means.fill(0xff);
  DeviceArray<PageRanges> plans(units);
  plans.fill(0xff);
  const int blocks = attention_shares();
  DeviceArray<std::byte> schedule(schedule_bytes(units, blocks));

  // All full pages get their means by rows that fill them.
  std::vector<int32_t> mean_position, mean_sequence;
  for (int r = 0; r < rows; ++r) {
    for (int p = 0; p < scene.lengths[r]; ++p)
      mean_position.push_back(p), mean_sequence.push_back(r);
  }
  DeviceArray<int32_t> mean_positions(mean_position), mean_sequences(mean_sequence);
  PageSelection s;
  s.means = {mean_positions.data,
             mean_sequences.data,
             static_cast<int>(mean_position.size()),
             kv_heads,
             head_dim,
             scene.table_stride,
             pages.data,
             kv.data,
             DType::kBF16,
             means.data};
  CUDA_OK(launch_page_means(s.means, nullptr));
  s.means.position = positions.data;
  s.means.sequence = sequences.data;
  s.means.rows = rows;
  s.plan.position = positions.data;
  s.plan.sequence = sequences.data;
  s.plan.point = point_of.data;
  s.plan.rows = rows;
  s.plan.kv_heads = kv_heads;
  s.plan.table_stride = scene.table_stride;
  s.plan.window = window;
  s.plan.budgets = budget_array.data;
  s.plan.limits = limit_array.data;
  s.plan.router = routers.data;
  s.plan.plan = plans.data;
  s.plan.read = read.data;
  s.plan.schedule = schedule_at(schedule.data, blocks);
  s.query = queries.data;
  s.group = group;
  s.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  s.scores = scores.data;
  s.pages = pages.data;
  s.list_begin = scene.list_begin();
  s.list_capacity = scene.list_capacity;
  s.arrivals = arrivals.data;
  for (int run = 0; run < 2; ++run) {
    read.fill(0);
    CUDA_OK(launch_page_selection(s, nullptr));
    CUDA_OK(cudaDeviceSynchronize());
  }
  const auto got = plans.host();
  const auto lists = pages.host();
  const auto mean_bits = means.host();
  double worst = 0;
  bool ok = arrivals.host()[0] == 0;
  const auto fail = [&](const char* what, int unit) {
    if (ok) std::printf("  unit %d: %s\n", unit, what);
    ok = false;
  };
  const auto same = [](const PageRanges& a, const PageRanges& b) {
    return a.count == b.count && a.tail_count == b.tail_count &&
           (a.count == 0 || a.begin == b.begin) &&
           (a.tail_count == 0 || a.tail_begin == b.tail_begin);
  };
  std::vector<int32_t> want_read(rows, 0);
  for (int u = 0; u < units; ++u) {
    const int r = u / kv_heads, h = u % kv_heads, table = r * scene.table_stride;
    want_read[r] += got[u].count + got[u].tail_count;
    const PointLimits l = limits[point[r]];
    const UnitBudget* row_budgets = &budgets[point[r] * kv_heads];
    ReadKind kind = row_budgets[h].kind;
    if (kind == ReadKind::kRouted) {
      std::vector<int> order;
      for (int i = 0; i < kv_heads; ++i) {
        if (row_budgets[i].kind == ReadKind::kRouted) order.push_back(i);
      }
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return router[r * kv_heads + a] > router[r * kv_heads + b];
      });
      const auto at = std::find(order.begin(), order.end(), h) - order.begin();
      kind = at < l.routed ? ReadKind::kFull : row_budgets[h].fallback;
    }
    const PageRanges full = full_ranges(position[r], window, table);
    if (kind == ReadKind::kNone && !same(got[u], {})) fail("none", u);
    if (kind == ReadKind::kFull && !same(got[u], full)) fail("full", u);
    if (kind == ReadKind::kWindow &&
        !same(got[u], window_ranges(position[r], window, table, l.sink, l.recent)))
      fail("window", u);
    if (kind != ReadKind::kPages) continue;
    const int own = position[r] / 16, seen = full.tail_count;
    const int budget = (row_budgets[h].pages_per_mille * seen + 999) / 1000;
    const int in_all = got[u].count + got[u].tail_count;
    if (same(got[u], full)) {
      if (window == 0 && budget < seen && l.sink + l.recent + 1 < seen) fail("all pages read", u);
      continue;
    }
    const bool cut = window > 0 && position[r] >= window;
    const int sink = cut ? 0 : std::min(l.sink, own);
    const int tail = std::max(own - l.recent, cut ? first_visible_page(position[r], window) : sink);
    if (in_all != std::max(budget, sink + own + 1 - tail)) fail("wrong count", u);
    if (got[u].tail_begin + got[u].tail_count != table + own + 1) fail("newest", u);
    // Every page of the list is one of the row's, ascending, and scored no lower than those left
    // out.
    std::vector<int> logical;
    for (int i = 0; i < got[u].count; ++i) {
      const auto* begin = &scene.pages[table];
      const auto* at = std::find(begin, begin + own, lists[got[u].begin + i]);
      if (at == begin + own) fail("a page that is not the row's", u);
      logical.push_back(static_cast<int>(at - begin));
      if (i > 0 && logical[i] <= logical[i - 1]) fail("order", u);
    }
    for (int i = 0; i < sink; ++i) {
      if (logical[i] != i) fail("sink", u);
    }
    const int first = cut ? full.tail_begin - table + ((position[r] - window + 1) % 16 != 0) : sink;
    std::vector<double> mass(own, 0.0);
    for (int g = 0; g < group; ++g) {
      std::vector<double> score(own);
      double sum = 0;
      for (int page = first; page < tail; ++page) {
        const size_t mean =
            (static_cast<size_t>(scene.pages[table + page]) * kv_heads + h) * head_dim;
        for (int d = 0; d < head_dim; ++d) {
          double exact = 0;
          for (int t = 0; t < 16; ++t)
            exact += from_bits(
                DType::kBF16,
                to_bits(DType::kBF16, kv_value(scene.pages[table + page] * kv_heads + h, 0, t, d)));
          const double stored = from_bits(DType::kBF16, mean_bits[mean + d]);
          worst = std::max(worst, std::abs(stored - exact / 16));
          score[page] += stored * query[(static_cast<size_t>(u) * group + g) * head_dim + d];
        }
        score[page] = std::exp(score[page] * s.scale);
        sum += score[page];
      }
      for (int page = first; page < tail; ++page) mass[page] += score[page] / sum;
    }
    double least = 1e30, most = 0;
    for (int page = first; page < tail; ++page) {
      const bool chosen = std::find(logical.begin(), logical.end(), page) != logical.end();
      if (chosen)
        least = std::min(least, mass[page]);
      else
        most = std::max(most, mass[page]);
    }
    if (static_cast<int>(logical.size()) > sink && least < most * (1 - 1e-4))
      fail("not the best pages", u);
  }
  if (blocks_of(read.host()) != want_read) fail("blocks read", -1);
  const auto raw = schedule.host();
  std::vector<int32_t> header(2);
  std::memcpy(header.data(), raw.data(), 8);
  int before = 0, works = 0;
  for (int u = 0; u < units; ++u) {
    const int count = got[u].count + got[u].tail_count;
    if (count == 0) continue;
    WorkUnit w;
    std::memcpy(&w, raw.data() + schedule_header_bytes(blocks) + works * sizeof(w), sizeof(w));
    if (w.first != before || w.unit != u || std::memcmp(&w.ranges, &got[u], 16) != 0 ||
        w.position != position[u / kv_heads] ||
        w.table_begin != u / kv_heads * scene.table_stride || w.kv_head != u % kv_heads)
      fail("schedule", u);
    before += count;
    ++works;
  }
  if (header[0] != before || header[1] != works) fail("schedule header", -1);
  for (int i = 0; i < blocks * kShareParts && before > 0; ++i) {
    const auto bound = [&](int share) {
      return share < blocks ? share_begin(before, share, blocks) : before;
    };
    const int share = i / kShareParts;
    const int page = part_begin(bound(share), bound(share + 1), i % kShareParts);
    if (page >= bound(share + 1)) continue;
    int start;
    std::memcpy(&start, raw.data() + 8 + i * 4, 4);
    WorkUnit work{};
    if (start >= 0 && start < works)
      std::memcpy(&work, raw.data() + schedule_header_bytes(blocks) + start * sizeof(work),
                  sizeof(work));
    const int work_pages = work.ranges.count + work.ranges.tail_count;
    if (page < work.first || page >= work.first + work_pages) fail("start of a part", i);
    if (work.first < bound(work.first_share) || work.first >= bound(work.first_share + 1) ||
        work.first + work_pages <= bound(work.last_share) ||
        work.first + work_pages > bound(work.last_share + 1))
      fail("shares of a unit", i);
  }
  report("plan " + std::to_string(rows) + " rows x " + std::to_string(kv_heads) + " x " +
             std::to_string(group) + " x " + std::to_string(head_dim) + " window " +
             std::to_string(window),
         ok && worst < 4e-3, worst);
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
  output.fill(0xff);
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
  CUDA_OK(launch_prefill_attention(a, nullptr));
  CUDA_OK(cudaDeviceSynchronize());
  const auto out = output.host();
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
         written && e.all < 4e-3 && e.worst < 2e-2, e.all);
}

std::vector<int> random_lengths(std::mt19937& random, int count, int longest) {
  std::vector<int> out;
  const int edges[] = {1, 15, 16, 17, 32, 33, 255, 256, 257};
  for (int i = 0; i < count; ++i) {
    if (i % 3 == 0)
      out.push_back(edges[random() % 9]);
    else
      out.push_back(static_cast<int>(
                        std::exp(std::uniform_real_distribution<>(0, std::log(longest))(random))) +
                    1);
  }
  return out;
}

int run(bool small) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU: nothing was checked\n");
    return 77;
  }
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
  check_plan(random, 8, 4, 128, random_lengths(random, 6, longest / 2), 0);
  check_plan(random, 4, 1, 64, random_lengths(random, 12, 3000), 0);
  if (!small) {
    check_plan(random, 3, 9, 80, random_lengths(random, 12, 7000), 1000);
    check_plan(random, 2, 2, 256, {16385, 33000, 100, 8192}, 0);
    check_plan(random, 2, 2, 96, {4000, 4096, 100, 3999}, 0);
    check_plan(random, 40, 1, 128, random_lengths(random, 64, 1000), 0);
    check_plan(random, 2, 4, 128, {131000, 70000}, 0);
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
  }
  std::printf(failures == 0 ? "all right\n" : "%d FAILED\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace polar::backend::cuda::check

int main(int argc, char** argv) {
  return polar::backend::cuda::check::run(argc > 1 && std::strcmp(argv[1], "--small") == 0);
}
