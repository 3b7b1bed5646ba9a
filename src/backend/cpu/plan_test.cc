// The plan verb against the definitions of what units read, page by page.

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "backend/cpu/attention_fixture.h"
#include "backend/cpu/cpu_device.h"
#include "backend/cpu/isa.h"
#include "backend/cpu/kv_layout.h"
#include "backend/cpu/test_values.h"

namespace polar::backend::cpu {
namespace {

/// The plan verb against the pages' definition, one by one.
TEST(PlanTest, EqualsBruteForceMasks) {
  std::mt19937 random(5);
  CpuDevice device(portable_kernels(), 1);
  for (int round = 0; round < 300; ++round) {
    const int length = 1 + static_cast<int>(random() % 400);
    const int window = round % 2 ? 1 + static_cast<int>(random() % 200) : 0;
    const PagedCache cache({DType::kF16, 1, 3, 4, 0}, {length, 5}, random);
    const int rows = std::min(length, 1 + static_cast<int>(random() % 3));
    AttentionStep step(cache, 1, {{1, 0, 5}}, {{0, length - rows, rows}}, 0, random);
    for (int row = 0; row < rows; ++row) step.points()[5 + row] = static_cast<int>(random() % 2);
    const UnitBudget budgets[] = {{}, {}, {}, {ReadKind::kNone}, {ReadKind::kWindow}, {}};
    PointLimits limits[2];
    limits[1].sink = static_cast<int>(random() % 4);
    limits[1].recent = static_cast<int>(random() % 6);
    PlanArgs args = step.plan_args(0, window);
    if (round % 5 != 0) {
      args.budgets = budgets;
      args.limits = limits;
    }
    step.read().assign(rows, {100, 0});
    device.ops().plan(args);
    for (int row = 0; row < rows; ++row) {
      const int position = length - rows + row, own = position / kPageTokens;
      int blocks = 100;
      for (int head = 0; head < 3; ++head) {
        const bool sparse = args.budgets != nullptr && step.points()[5 + row] == 1;
        std::set<int> expected;
        for (int page = 0; page <= own && !(sparse && head == 0); ++page) {
          const bool seen = window == 0 || page * kPageTokens + 15 > position - window;
          const bool kept =
              !(sparse && head == 1) || page < limits[1].sink || page >= own - limits[1].recent;
          if (seen && kept) expected.insert(page);
        }
        const PageRanges& unit = step.unit(row, head);
        std::vector<int> pages;
        for (int i = 0; i < unit.count; ++i) pages.push_back(unit.begin + i);
        for (int i = 0; i < unit.tail_count; ++i) pages.push_back(unit.tail_begin + i);
        for (int& page : pages) page -= step.batch().table_stride;  // the second sequence's table
        EXPECT_EQ(pages, std::vector<int>(expected.begin(), expected.end()))
            << "position " << position << " window " << window << " head " << head;
        blocks += static_cast<int>(expected.size());
      }
      EXPECT_EQ(step.read()[row].blocks, blocks);
    }
  }
}

/// Mean keys of all full pages of a cache, from the tokens as stored, kept as f16.
class MeanKeys {
 public:
  explicit MeanKeys(const PagedCache& cache) : cache_(cache), view_(cache.view()) {
    values_.assign(view_.indices_bytes() * view_.pages / 2, 0x7e00);  // NaN
    view_.index = reinterpret_cast<std::byte*>(values_.data());
    for (int layer = 0; layer < view_.layers; ++layer) {
      for (int s = 0; s < cache.sequences(); ++s) {
        for (int page = 0; page < cache.length(s) / kPageTokens; ++page) {
          for (int head = 0; head < view_.kv_heads; ++head) {
            for (int d = 0; d < view_.head_dim; ++d)
              value(layer, cache.page(s, page), head, d) =
                  f32_to_f16(static_cast<float>(exact(layer, s, page, head, d)));
          }
        }
      }
    }
  }
  const KvView& view() const { return view_; }
  double stored(int layer, int sequence, int page, int head, int d) {
    return f16_to_f32(value(layer, cache_.page(sequence, page), head, d));
  }

 private:
  double exact(int layer, int s, int page, int head, int d) const {
    double sum = 0;
    for (int slot = 0; slot < kPageTokens; ++slot)
      sum += cache_.key(layer, s, page * kPageTokens + slot, head)[d];
    return sum / kPageTokens;
  }
  uint16_t& value(int layer, int page, int head, int d) {
    return values_[((static_cast<size_t>(layer) * view_.pages + page) * view_.kv_heads + head) *
                       view_.head_dim +
                   d];
  }

  const PagedCache& cache_;
  KvView view_;
  std::vector<uint16_t> values_;
};

class ChoosePagesTest : public testing::TestWithParam<const Kernels*> {};
INSTANTIATE_TEST_SUITE_P(Isa, ChoosePagesTest, testing::ValuesIn(runnable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

/// Budgets to the page and the best pages by definition: no page that is left out has a larger mass
/// than one that is read.
TEST_P(ChoosePagesTest, ReadsTheBestPagesAndExactlyTheBudget) {
  std::mt19937 random(11);
  for (int round = 0; round < 60; ++round) {
    CpuDevice device(*GetParam(), 1 + round % 3);
    const int group = 1 + static_cast<int>(random() % 9);
    const int head_dim = std::vector{16, 64, 80, 128}[random() % 4];
    const int length = 1 + static_cast<int>(random() % 900);
    const int window = round % 3 == 0 ? 1 + static_cast<int>(random() % 600) : 0;
    const PagedCache cache({DType::kF16, 2, 2, head_dim, 0}, {length, 40}, random);
    MeanKeys means(cache);
    const int rows = std::min(length, 1 + static_cast<int>(random() % 4));
    AttentionStep step(cache, group, {{1, 0, 5}}, {{0, length - rows, rows}}, rows * 2 * 64,
                       random);
    UnitBudget budgets[2];
    PointLimits limits[1];
    limits[0].sink = static_cast<int>(random() % 3);
    limits[0].recent = static_cast<int>(random() % 5);
    for (UnitBudget& budget : budgets) {
      budget.kind = ReadKind::kPages;
      budget.pages_per_mille = static_cast<uint16_t>(1 + random() % 1000);
    }
    PlanArgs args = step.plan_args(1, window);
    args.kv = means.view();
    args.budgets = budgets;
    args.limits = limits;
    args.heads = 2 * group;
    args.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    args.query = step.args(1, window).query;
    device.ops().plan(args);
    for (int row = 0; row < rows; ++row) {
      const int position = length - rows + row, own = position / kPageTokens;
      int blocks = 0, scored = 0;
      for (int head = 0; head < 2; ++head) {
        const PageRanges& unit = step.unit(row, head);
        // The logical pages that are read; a list holds physical ones.
        std::vector<int> read;
        for (int i = 0; i < unit.count; ++i) {
          const int entry = unit.begin + i;
          if (entry < step.batch().list_begin()) {
            read.push_back(entry - step.batch().table_stride);
          } else {
            const auto [sequence, first] = cache.owner(step.batch().pages[entry]);
            ASSERT_EQ(sequence, 0);
            read.push_back(first / kPageTokens);
          }
        }
        for (int i = 0; i < unit.tail_count; ++i)
          read.push_back(unit.tail_begin + i - step.batch().table_stride);
        blocks += static_cast<int>(read.size());
        const std::set<int> distinct(read.begin(), read.end());
        ASSERT_EQ(distinct.size(), read.size());
        ASSERT_TRUE(std::is_sorted(read.begin(), read.end()));

        // Visible pages, and among them those that are always read.
        std::vector<int> visible, candidates;
        std::set<int> always;
        const bool cut = window > 0 && position >= window;
        for (int page = 0; page <= own; ++page) {
          if (window > 0 && page * kPageTokens + 15 <= position - window) continue;
          visible.push_back(page);
          const bool whole = window == 0 || page * kPageTokens > position - window;
          const bool sink = page < limits[0].sink && !cut;
          if (sink || page >= own - limits[0].recent)
            always.insert(page);
          else if (whole)
            candidates.push_back(page);
        }
        const auto budget = static_cast<size_t>(
            std::ceil(budgets[head].pages_per_mille * static_cast<double>(visible.size()) / 1000));
        const size_t wanted =
            std::min(std::max(budget, always.size()), always.size() + candidates.size());
        if (wanted < always.size() + candidates.size() || !cut) {
          EXPECT_EQ(read.size(), wanted) << "position " << position << " window " << window
                                         << " per mille " << budgets[head].pages_per_mille;
        }
        for (const int page : always) EXPECT_TRUE(distinct.contains(page)) << page;
        if (wanted == always.size() || wanted == always.size() + candidates.size()) continue;
        scored += static_cast<int>(candidates.size());

        std::map<int, double> mass;
        for (int q = 0; q < group; ++q) {
          const float* query = step.query(5 + row) + (head * group + q) * head_dim;
          std::map<int, double> weight;
          double sum = 0;
          for (const int page : candidates) {
            double dot = 0;
            for (int d = 0; d < head_dim; ++d) dot += query[d] * means.stored(1, 0, page, head, d);
            sum += weight[page] = std::exp(dot * args.scale);
          }
          for (const auto& [page, value] : weight) mass[page] += value / sum;
        }
        double least_read = 1e30, most_left = 0;
        for (const auto& [page, value] : mass) {
          if (distinct.contains(page))
            least_read = std::min(least_read, value);
          else
            most_left = std::max(most_left, value);
        }
        EXPECT_GE(least_read, most_left * (1 - 1e-4));
      }
      EXPECT_EQ(step.read()[row].blocks, blocks);
      EXPECT_EQ(step.read()[row].scored, scored);
    }
  }
}

TEST_P(ChoosePagesTest, EqualPagesGoToTheLowerOne) {
  std::mt19937 random(3);
  CpuDevice device(*GetParam(), 2);
  const PagedCache cache({DType::kF16, 1, 1, 16, 0}, {800}, random);
  MeanKeys means(cache);
  AttentionStep step(cache, 2, {}, {{0, 799, 1}}, 64, random);
  std::fill_n(step.query(0), step.row_values(), 0.0f);  // every page draws the same
  UnitBudget budget;
  budget.kind = ReadKind::kPages;
  budget.pages_per_mille = 300;
  const PointLimits limits{1, 4, 0};
  PlanArgs args = step.plan_args(0, 0);
  args.kv = means.view();
  args.budgets = &budget;
  args.limits = &limits;
  args.heads = 2;
  args.query = step.args(0, 0).query;
  device.ops().plan(args);
  const PageRanges& unit = step.unit(0, 0);
  ASSERT_EQ(unit.count + unit.tail_count, 15);  // 300 per mille of 50 pages
  for (int i = 0; i < unit.count; ++i)
    EXPECT_EQ(step.batch().pages[unit.begin + i], cache.page(0, i));
}

/// Routed units: the largest logits of a row, ties to the lower head, the others fall back.
TEST_P(ChoosePagesTest, RoutedUnitsAreThoseWithTheLargestLogits) {
  std::mt19937 random(7);
  constexpr int kHeads = 6, kHidden = 32;
  for (int round = 0; round < 40; ++round) {
    CpuDevice device(*GetParam(), 1 + round % 2);
    const PagedCache cache({DType::kF16, 1, kHeads, 16, 0}, {300, 20}, random);
    const int rows = 1 + static_cast<int>(random() % 3);
    AttentionStep step(cache, 1, {{1, 0, 5}}, {{0, 300 - rows, rows}}, 0, random);
    UnitBudget budgets[kHeads];
    std::vector<int> routed;
    for (int head = 0; head < kHeads; ++head) {
      if (random() % 3 == 0) continue;
      budgets[head].kind = ReadKind::kRouted;
      budgets[head].fallback = random() % 2 ? ReadKind::kNone : ReadKind::kWindow;
      routed.push_back(head);
    }
    const PointLimits limits{1, 2, static_cast<int32_t>(random() % (kHeads + 1))};
    StoredMatrix router = random_matrix(random, DType::kF32, kHeads, kHidden);
    WeightSource source{"router", {}, false};
    source.parts.push_back(Tensor{router.stored.data(), router.dtype, {kHeads, kHidden, 1, 1}, 2});
    const auto weight = device.prepare(source);
    ASSERT_TRUE(weight.ok());
    const std::vector<float> bias = random_values(random, kHeads);
    std::vector<float> x = random_values(random, (5 + rows) * kHidden);
    PlanArgs args = step.plan_args(0, 0);
    args.budgets = budgets;
    args.limits = &limits;
    args.x = Tensor{x.data(), DType::kF32, {5 + rows, kHidden, 1, 1}, 2};
    args.router = weight->get();
    args.router_bias = bias.data();
    device.ops().plan(args);
    for (int row = 0; row < rows; ++row) {
      std::vector<double> logit(kHeads);
      for (int head = 0; head < kHeads; ++head) {
        logit[head] = bias[head];
        for (int i = 0; i < kHidden; ++i)
          logit[head] +=
              static_cast<double>(router.values[head * kHidden + i]) * x[(5 + row) * kHidden + i];
      }
      std::vector<int> order = routed;
      std::stable_sort(order.begin(), order.end(),
                       [&](int a, int b) { return logit[a] > logit[b]; });
      const std::set<int> chosen(
          order.begin(), order.begin() + std::min<ptrdiff_t>(limits.routed, std::ssize(order)));
      const int pages = (300 - rows + row) / kPageTokens + 1;
      for (int head = 0; head < kHeads; ++head) {
        const bool full = budgets[head].kind == ReadKind::kFull || chosen.contains(head);
        const int wanted = full ? pages : budgets[head].fallback == ReadKind::kNone ? 0 : 4;
        const PageRanges& unit = step.unit(row, head);
        EXPECT_EQ(unit.count + unit.tail_count, wanted) << "row " << row << " head " << head;
      }
    }
  }
}

/// A full page's summary is the mean of its keys and values as stored, to the cache's precision.
void expect_means(const KvView& kv, int layer, int page, int kv_head) {
  const std::byte* block = kv.block(layer, page, kv_head);
  const std::byte* summary = kv.summary_of(layer, page, kv_head);
  const double precision = kv.dtype == DType::kBF16 ? 0.01 : kv.dtype == DType::kF16 ? 1e-3 : 1e-5;
  for (int d = 0; d < kv.head_dim; ++d) {
    double key = 0, value = 0;
    for (int slot = 0; slot < kPageTokens; ++slot) {
      key += load_element(kv.dtype, block, d * kPageTokens + slot) / kPageTokens;
      value +=
          load_element(kv.dtype, block + kv.half_bytes(), slot * kv.head_dim + d) / kPageTokens;
    }
    ASSERT_NEAR(load_element(kv.dtype, summary, d), key, precision * (std::abs(key) + 0.1));
    ASSERT_NEAR(load_element(kv.dtype, summary, kv.head_dim + d), value,
                precision * (std::abs(value) + 0.1));
  }
}

/// Random appends to sequences whose pages are given back and used again: after every step, the
/// indices of the pages that are full equal those of the keys as stored.
TEST_P(ChoosePagesTest, IndicesFollowTheKeysThroughAppendsAndPageReuse) {
  std::mt19937 random(23);
  constexpr int kHeads = 2, kKvHeads = 2, kDim = 16, kHidden = 32, kPages = 12, kTable = 5;
  constexpr int kWidth = (kHeads + 2 * kKvHeads) * kDim;
  for (int round = 0; round < 6; ++round) {
    const DType dtype = std::vector{DType::kF32, DType::kF16, DType::kBF16}[round % 3];
    CpuDevice device(*GetParam(), 2);
    StoredMatrix matrix = random_matrix(random, DType::kF32, kWidth, kHidden);
    WeightSource source{"qkv", {}, false};
    source.parts.push_back(Tensor{matrix.stored.data(), matrix.dtype, {kWidth, kHidden, 1, 1}, 2});
    const auto weight = device.prepare(source);
    ASSERT_TRUE(weight.ok());
    KvView kv{nullptr, dtype, 2, kPages, kKvHeads, kDim};
    kv.page_score = round < 3 ? PageScore::kMean : PageScore::kCodes;
    std::vector<std::byte> cache(kv.total_bytes(), std::byte{0xff});
    std::vector<std::byte> indices(kv.indices_bytes() * kPages, std::byte{0xff});
    std::vector<std::byte> summaries(kv.summaries_bytes() * kPages, std::byte{0xff});
    kv.data = cache.data();
    kv.index = indices.data();
    kv.summaries = summaries.data();
    std::vector<int32_t> free(kPages);
    std::iota(free.begin(), free.end(), 0);
    std::vector<int32_t> tables(2 * kTable, -1);
    int lengths[2] = {0, 0};
    for (int step = 0; step < 60; ++step) {
      std::vector<int32_t> position, sequence, chunk_begin;
      for (int s = 0; s < 2; ++s) {
        chunk_begin.push_back(static_cast<int32_t>(position.size()));
        int rows = 1 + static_cast<int>(random() % 20);
        if (lengths[s] + rows > kTable * kPageTokens) {  // the sequence ends; another begins
          for (int page = 0; page < kTable; ++page) {
            if (tables[s * kTable + page] >= 0) free.push_back(tables[s * kTable + page]);
            tables[s * kTable + page] = -1;
          }
          lengths[s] = 0;
        }
        for (; rows > 0; --rows) {
          int32_t& page = tables[s * kTable + lengths[s] / kPageTokens];
          if (page < 0) {
            std::swap(free[random() % free.size()], free.back());
            page = free.back();
            free.pop_back();
          }
          position.push_back(lengths[s]++);
          sequence.push_back(s);
        }
      }
      const int rows = static_cast<int>(position.size());
      chunk_begin.push_back(rows);
      Batch batch;
      batch.rows = rows;
      batch.sequences = 2;
      batch.position = position.data();
      batch.sequence = sequence.data();
      batch.chunk_begin = chunk_begin.data();
      batch.table_stride = kTable;
      batch.pages = tables.data();
      std::vector<float> x = random_values(random, rows * kHidden);
      std::vector<float> query(rows * kHeads * kDim), scratch(rows * kWidth);
      const auto tensor = [&](std::vector<float>& values) {
        return Tensor{values.data(),
                      DType::kF32,
                      {rows, static_cast<int64_t>(values.size()) / rows, 1, 1},
                      2};
      };
      QkvArgs args;
      args.batch = &batch;
      args.x = tensor(x);
      args.weight = weight->get();
      args.kv = kv;
      args.layer = 1;
      args.heads = kHeads;
      args.query = tensor(query);
      args.scratch = tensor(scratch);
      device.ops().qkv(args);
      for (int s = 0; s < 2; ++s) {
        for (int page = 0; page < lengths[s] / kPageTokens; ++page) {
          for (int head = 0; head < kKvHeads; ++head) {
            const int32_t physical = tables[s * kTable + page];
            std::vector<std::byte> expected(kv.index_bytes());
            device.kernels().index_page({kv.page_score, kv.dtype, kv.head_dim,
                                         kv.block(1, physical, head), expected.data()});
            const std::byte* found = kv.index_of(1, physical, head);
            ASSERT_TRUE(std::equal(expected.begin(), expected.end(), found));
            expect_means(kv, 1, physical, head);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace polar::backend::cpu
