// The plan verb on both backends: every kind of unit, routers, several planned rows of a sequence,
// rows that fill pages.

#include "backend/cuda/verbs_fixture.h"
#include "backend/ranges.h"

namespace polar::backend::check {
namespace {

struct Case {
  int heads, kv_heads, dim, window;
  PageScore score;
  std::vector<int> length;   // of each sequence, prefilled
  std::vector<int> planned;  // rows of it in the planned step, behind the prefilled ones
};

/// What a backend makes of a case: lists are written out as the pages they name.
struct Planned {
  std::vector<std::vector<int32_t>> pages;  // [unit] read, in order; then those seen by summaries
  std::vector<ReadCount> read;
};

/// One device's model of a single layer: embeddings, QKV weights of large spread, a router.
class Layer {
 public:
  static constexpr int kHidden = 256, kVocabulary = 997;

  Layer(Device& device, const Case& c) : device_(device), c_(c) {
    const int width = (c.heads + 2 * c.kv_heads) * c.dim;
    // The CPU's weights stay where they are stored.
    stored_ = {narrowed(random_values(size_t{kVocabulary} * kHidden, 40)),
               narrowed(random_values(static_cast<size_t>(width) * kHidden, 41, 0.2f)),
               narrowed(random_values(static_cast<size_t>(c.kv_heads) * kHidden, 42))};
    table_ = weight(device, stored_[0], kVocabulary, kHidden);
    qkv_ = weight(device, stored_[1], width, kHidden);
    router_ = weight(device, stored_[2], c.kv_heads, kHidden);
    router_bias_ = to_device(device, random_values(c.kv_heads, 43));
    gain_ = to_device(device, std::vector<float>(c.dim, 3.0f));
    frequency_ = to_device(device, std::vector<float>(c.dim / 2, 0.01f));
    const int longest = *std::max_element(c.length.begin(), c.length.end());
    stride_ = longest / kPageTokens + 2;
    const auto sequences = static_cast<int>(c.length.size());
    kv_ = {nullptr, DType::kBF16, 1, sequences * stride_, c.kv_heads, c.dim, c.score};
    cache_ = poisoned(device, kv_.total_bytes(), 1);
    index_ = poisoned(device, kv_.indices_bytes() * kv_.pages, 1);
    kv_.data = cache_.as<std::byte>();
    kv_.index = index_.as<std::byte>();
    summaries_ = poisoned(device, kv_.summaries_bytes() * kv_.pages, 1);
    kv_.summaries = summaries_.as<std::byte>();
  }

  Planned run() {
    step(false);
    return step(true);
  }

 private:
  Planned step(bool planned) {
    StepRows step(
        device_, planned ? c_.length : std::vector<int>(c_.length.size()),
        planned ? c_.planned : c_.length, planned,
        [](int s, int i) { return (i * 31 + s * 7) % kVocabulary; },
        [](int s, int i) { return (s + i) % 3; });
    Batch& batch = step.batch;
    const int rows = batch.rows, sequences = batch.sequences;
    const int list_capacity = planned ? rows * c_.kv_heads * list_entries(stride_) : 0;
    std::vector<int32_t> pages(static_cast<size_t>(sequences) * stride_ + list_capacity, -1);
    for (int i = 0; i < kv_.pages; ++i) pages[i] = kv_.pages - 1 - i;
    const Buffer dp = to_device(device_, pages);
    batch.table_stride = stride_;
    batch.pages = dp.as<int32_t>();
    batch.list_capacity = list_capacity;
    const int64_t width = (c_.heads + 2 * c_.kv_heads) * c_.dim;
    const Buffer x = values(rows * kHidden), rotation = poisoned(device_, rows * c_.dim, 4),
                 query = values(rows * c_.heads * c_.dim), scratch = values(rows * width);
    const Rope rope{c_.dim, false, 1.0f, frequency_.as<float>()};
    EmbedArgs embed;
    embed.batch = &batch;
    embed.table = table_.get();
    embed.rope = rope;
    embed.hidden = view(x, kHidden);
    embed.rotation = rotation.as<float>();
    device_.ops().embed(embed);
    QkvArgs qkv;
    qkv.batch = &batch;
    qkv.x = view(x, kHidden);
    qkv.weight = qkv_.get();
    qkv.query_norm = qkv.key_norm = Norm{NormKind::kRms, 1e-6f, gain_.as<float>(), nullptr};
    qkv.rope = rope;
    qkv.rotation = rotation.as<float>();
    qkv.kv = kv_;
    qkv.heads = c_.heads;
    qkv.query = view(query, c_.heads * c_.dim);
    qkv.scratch = view(scratch, width);
    device_.ops().qkv(qkv);
    if (!planned) return {};

    // Point 0 is dense; 1 mixes all kinds; 2 chooses pages everywhere.
    std::vector<UnitBudget> budgets(3 * c_.kv_heads);
    const ReadKind kinds[] = {ReadKind::kPages,  ReadKind::kRouted, ReadKind::kWindow,
                              ReadKind::kRouted, ReadKind::kNone,   ReadKind::kFull};
    for (int h = 0; h < c_.kv_heads; ++h) {
      budgets[c_.kv_heads + h] = {kinds[h % 6], h % 2 == 0 ? ReadKind::kNone : ReadKind::kWindow,
                                  300, 0, h % 4 == 2};
      budgets[2 * c_.kv_heads + h] = {ReadKind::kPages, ReadKind::kWindow,
                                      static_cast<uint16_t>(50 + 100 * h), 5, h % 2 == 0};
    }
    const std::vector<PointLimits> limits = {{}, {1, 2, 1}, {2, 1, 0}};
    const int units = rows * c_.kv_heads;
    const Buffer dbu = to_device(device_, budgets), dli = to_device(device_, limits),
                 du = poisoned(device_, units, sizeof(PageRanges)),
                 dc = to_device(device_, std::vector<ReadCount>(rows));
    PlanArgs args;
    args.batch = &batch;
    args.kv = kv_;
    args.window = c_.window;
    args.budgets = dbu.as<UnitBudget>();
    args.limits = dli.as<PointLimits>();
    args.heads = c_.heads;
    args.scale = 1.0f / std::sqrt(static_cast<float>(c_.dim));
    args.query = view(query, c_.heads * c_.dim);
    args.x = view(x, kHidden);
    args.router = router_.get();
    args.router_bias = router_bias_.as<float>();
    args.plan = {du.as<PageRanges>(), dc.as<ReadCount>()};
    device_.ops().plan(args);

    Planned out;
    out.read.resize(rows);
    device_.download(out.read.data(), dc.data(), rows * sizeof(ReadCount));
    device_.download(pages.data(), dp.data(), pages.size() * sizeof(int32_t));
    std::vector<PageRanges> ranges(units);
    device_.download(ranges.data(), du.data(), units * sizeof(PageRanges));
    for (const PageRanges& r : ranges) {
      out.pages.emplace_back();
      for (int i = 0; i < r.count; ++i) out.pages.back().push_back(pages[r.begin + i]);
      for (int i = 0; i < r.tail_count; ++i) out.pages.back().push_back(pages[r.tail_begin + i]);
      const size_t unit = out.pages.size() - 1;
      const int table = step.sequence_of(static_cast<int>(unit) / c_.kv_heads) * stride_;
      for (int page = r.summary_begin; page < r.summary_end; ++page) {
        if ((summary_bits(r, page / kBitPages, pages.data()) >> page % kBitPages & 1) != 0)
          out.pages.back().push_back(pages[table + page]);
      }
    }
    return out;
  }

  Buffer values(size_t count) const {
    return poisoned(device_, count, device_.info().is_cpu ? 4 : 2);
  }
  Tensor view(const Buffer& b, int64_t width) const {
    return Tensor{
        b.data(),
        device_.info().activation,
        {static_cast<int64_t>(b.bytes()) / (device_.info().is_cpu ? 4 : 2) / width, width, 1, 1},
        2};
  }

  Device& device_;
  const Case& c_;
  std::vector<std::vector<uint16_t>> stored_;
  std::unique_ptr<Weight> table_, qkv_, router_;
  Buffer router_bias_, gain_, frequency_, cache_, index_, summaries_;
  KvView kv_;
  int stride_ = 0;
};

void check_plan(Device& gpu, Device& cpu, const Case& c) {
  const Planned want = Layer(cpu, c).run(), got = Layer(gpu, c).run();
  // Kinds and counts are exact; which pages are the best may differ where two are as good but for
  // rounding, and by the codes' own rounding.
  size_t all = 0, different = 0;
  bool counts = got.pages.size() == want.pages.size();
  for (size_t u = 0; counts && u < want.pages.size(); ++u) {
    counts = got.pages[u].size() == want.pages[u].size();
    for (const int32_t page : want.pages[u]) {
      ++all;
      different += std::find(got.pages[u].begin(), got.pages[u].end(), page) == got.pages[u].end();
    }
  }
  bool read = true;
  for (size_t r = 0; r < want.read.size(); ++r)
    read = read && got.read[r].blocks == want.read[r].blocks &&
           got.read[r].scored == want.read[r].scored &&
           got.read[r].summaries == want.read[r].summaries;
  std::printf("plan by %s, %d / %d x %d, window %d: %zu of %zu pages differ\n",
              page_score_name(c.score), c.heads, c.kv_heads, c.dim, c.window, different, all);
  expect("  pages read by each unit", counts);
  expect("  counts of blocks, scored pages and summaries", read);
  expect("  the same pages", static_cast<double>(different) < 0.03 * static_cast<double>(all));
}

}  // namespace

void check_plans(Device& gpu, Device& cpu) {
  for (const PageScore score : {PageScore::kMean, PageScore::kCodes}) {
    check_plan(gpu, cpu, {8, 4, 64, 0, score, {37, 640, 1, 511}, {1, 1, 1, 1}});
    check_plan(gpu, cpu, {8, 8, 128, 0, score, {640, 31, 300}, {3, 20, 1}});
    check_plan(gpu, cpu, {9, 3, 64, 200, score, {500, 15, 199}, {2, 1, 17}});
    check_plan(gpu, cpu, {6, 6, 80, 0, score, {1000, 700}, {1, 1}});
  }
}

}  // namespace polar::backend::check
