// Pages that are seen by their summaries: plans page by page, attention in double precision.

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "backend/cpu/attention_fixture.h"
#include "backend/cpu/cpu_device.h"
#include "backend/cpu/isa.h"
#include "backend/cpu/kv_layout.h"

namespace polar::backend::cpu {
namespace {

/// The summaries of all full pages of a cache, from the tokens as stored and rounded to its type;
/// those of other pages are NaN.
class Summaries {
 public:
  explicit Summaries(const PagedCache& cache) : view_(cache.view()) {
    bytes_.assign(view_.summaries_bytes() * view_.pages, std::byte{0xff});
    view_.summaries = bytes_.data();
    for (int layer = 0; layer < view_.layers; ++layer) {
      for (int s = 0; s < cache.sequences(); ++s) {
        for (int page = 0; page < cache.length(s) / kPageTokens; ++page) {
          for (int head = 0; head < view_.kv_heads; ++head) summarize(cache, layer, s, page, head);
        }
      }
    }
  }
  const KvView& view() const { return view_; }
  /// half 0: the mean key, 1: the mean value.
  double value(int layer, int page, int kv_head, int half, int d) const {
    return load_element(view_.dtype, view_.summary_of(layer, page, kv_head),
                        half * view_.head_dim + d);
  }

 private:
  void summarize(const PagedCache& cache, int layer, int s, int page, int head) {
    std::byte* out = view_.summary_of(layer, cache.page(s, page), head);
    for (int d = 0; d < view_.head_dim; ++d) {
      double key = 0, value = 0;
      for (int slot = 0; slot < kPageTokens; ++slot) {
        key += cache.key(layer, s, page * kPageTokens + slot, head)[d];
        value += cache.value(layer, s, page * kPageTokens + slot, head)[d];
      }
      store_element(view_.dtype, out, d, static_cast<float>(key / kPageTokens));
      store_element(view_.dtype, out, view_.head_dim + d, static_cast<float>(value / kPageTokens));
    }
  }

  KvView view_;
  std::vector<std::byte> bytes_;
};

/// Logical pages that a unit of planned row `row` reads, and those that it sees by their summaries.
struct Seen {
  std::vector<int> read, summarized;
};
Seen seen_by(AttentionStep& step, int row, int kv_head) {
  const Batch& batch = step.batch();
  const int table = batch.sequence[batch.prefill_rows + row] * batch.table_stride;
  const PageRanges& unit = step.unit(row, kv_head);
  Seen seen;
  for (int i = 0; i < unit.count + unit.tail_count; ++i) {
    const int entry = i < unit.count ? unit.begin + i : unit.tail_begin + i - unit.count;
    seen.read.push_back(entry < batch.list_begin()
                            ? entry - table
                            : step.cache().owner(batch.pages[entry]).second / kPageTokens);
  }
  for (int page = unit.summary_begin; page < unit.summary_end; ++page) {
    const bool read =
        unit.read_bits != 0 && (batch.pages[unit.read_bits + page / 16] >> page % 16 & 1) != 0;
    if (!read) seen.summarized.push_back(page);
  }
  EXPECT_EQ(unit.summaries, seen.summarized.size());
  return seen;
}

class SummaryTest : public testing::TestWithParam<const Kernels*> {};
INSTANTIATE_TEST_SUITE_P(Isa, SummaryTest, testing::ValuesIn(runnable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

/// Every whole visible page is read or seen by its summary, never both; attention over both equals
/// the definition in step.h; and the step counts what it reads.
TEST_P(SummaryTest, StandForWhatWindowsAndChoicesLeaveOut) {
  std::mt19937 random(31);
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  const int dims[] = {16, 64, 20, 80, 128, 7};
  for (int round = 0; round < 48; ++round) {
    CpuDevice device(*GetParam(), 1 + round % 3);
    const int dim = dims[round % 6], group = 1 + static_cast<int>(random() % 9);
    // Now and then more summaries than a piece or a strip holds.
    const int length = round % 12 == 11 ? 9000 : 1 + static_cast<int>(random() % 1200);
    const int window = round % 4 == 3 ? 1 + static_cast<int>(random() % 600) : 0;
    const PagedCache cache({dtypes[round % 3], 2, 4, dim, 3}, {length, 40}, random);
    Summaries summaries(cache);
    KvView kv = summaries.view();
    kv.page_score = PageScore::kMass;  // needs no index
    const int rows = std::min(length, 1 + static_cast<int>(random() % 4));
    AttentionStep step(cache, group, {{1, 0, 5}}, {{0, length - rows, rows}},
                       rows * 4 * list_entries((length + 15) / 16 + 2), random);
    const auto share = static_cast<uint16_t>(1 + random() % (round % 2 ? 999 : 200));
    const auto least = static_cast<uint16_t>(random() % 9);
    const UnitBudget budgets[] = {{ReadKind::kWindow, ReadKind::kWindow, 0, 0, true},
                                  {ReadKind::kPages, ReadKind::kWindow, share, least, true},
                                  {ReadKind::kNone},
                                  {}};
    const PointLimits limits{static_cast<int>(random() % 3), static_cast<int>(random() % 5), 0};
    PlanArgs plan = step.plan_args(1, window);
    AttentionArgs attention = step.args(1, window);
    plan.kv = attention.kv = kv;
    plan.budgets = budgets;
    plan.limits = &limits;
    plan.heads = attention.heads;
    plan.scale = attention.scale;
    plan.query = attention.query;
    device.ops().plan(plan);
    step.poison_output();
    device.ops().attention(attention);

    for (int row = 0; row < rows; ++row) {
      const int position = length - rows + row;
      ReadCount expected;
      for (int head = 0; head < 4; ++head) {
        const Seen seen = seen_by(step, row, head);
        expected.blocks += static_cast<int>(seen.read.size());
        expected.summaries += static_cast<int>(seen.summarized.size());
        const std::set<int> read(seen.read.begin(), seen.read.end());
        for (const int page : seen.summarized) ASSERT_FALSE(read.contains(page));
        std::set<int> all = read;
        all.insert(seen.summarized.begin(), seen.summarized.end());
        for (int page = 0; page * kPageTokens <= position && head != 2; ++page) {
          const bool whole = window == 0 || page * kPageTokens > position - window;
          ASSERT_TRUE(!whole || all.contains(page)) << page << " of " << length;
        }
        ASSERT_TRUE(head < 2 || seen.summarized.empty());
        for (int q = 0; q < group; ++q) {
          const float* query = step.query(5 + row) + (head * group + q) * dim;
          std::vector<double> out(dim, 0.0);
          double sum = 0;
          const auto add = [&](auto key, auto value, double tokens) {
            double score = 0;
            for (int d = 0; d < dim; ++d) score += static_cast<double>(query[d]) * key(d);
            const double weight = tokens * std::exp(score * plan.scale);
            sum += weight;
            for (int d = 0; d < dim; ++d) out[d] += weight * value(d);
          };
          for (const int page : seen.read) {
            for (int p = page * 16; p < page * 16 + 16 && p <= position; ++p) {
              if (window > 0 && p <= position - window) continue;
              const float* key = cache.key(1, 0, p, head);
              const float* value = cache.value(1, 0, p, head);
              add([&](int d) { return key[d]; }, [&](int d) { return value[d]; }, 1);
            }
          }
          for (const int page : seen.summarized) {
            const int physical = cache.page(0, page);
            add([&](int d) { return summaries.value(1, physical, head, 0, d); },
                [&](int d) { return summaries.value(1, physical, head, 1, d); }, kPageTokens);
          }
          for (int d = 0; d < dim; ++d) {
            ASSERT_NEAR(step.output(5 + row)[(head * group + q) * dim + d],
                        sum > 0 ? out[d] / sum : 0.0, 2e-5)
                << "round " << round << " head " << head << " dimension " << d;
          }
        }
      }
      EXPECT_EQ(step.read()[row].blocks, expected.blocks);
      EXPECT_EQ(step.read()[row].summaries, expected.summaries);
    }
  }
}

}  // namespace
}  // namespace polar::backend::cpu
