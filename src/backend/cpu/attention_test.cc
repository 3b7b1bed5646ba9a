#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <set>

#include "backend/cpu/attention_fixture.h"
#include "backend/cpu/cpu_device.h"
#include "backend/cpu/isa.h"

namespace polar::backend::cpu {
namespace {

/// Softmax attention of one (row, head) in double precision over (sequence, position) tokens.
std::vector<double> reference(AttentionStep& step, int layer, int row, int head, float scale,
                              const std::vector<std::pair<int, int>>& tokens) {
  const PagedCache& cache = step.cache();
  const int dim = cache.view().head_dim, kv_head = head / (step.heads() / cache.view().kv_heads);
  const float* query = step.query(row) + head * dim;
  std::vector<double> scores, out(dim, 0.0);
  double top = -1e300, sum = 0;
  for (const auto& [sequence, position] : tokens) {
    const float* key = cache.key(layer, sequence, position, kv_head);
    double score = 0;
    for (int d = 0; d < dim; ++d) score += static_cast<double>(query[d]) * key[d];
    scores.push_back(score * scale);
    top = std::max(top, scores.back());
  }
  for (double& score : scores) sum += score = std::exp(score - top);
  for (size_t t = 0; t < tokens.size(); ++t) {
    const float* value = cache.value(layer, tokens[t].first, tokens[t].second, kv_head);
    for (int d = 0; d < dim; ++d) out[d] += scores[t] / sum * value[d];
  }
  return out;
}

/// What a row sees of one unit, by the words of step.h.
std::vector<std::pair<int, int>> visible(AttentionStep& step, int row, int kv_head, int window) {
  const Batch& batch = step.batch();
  const int position = batch.position[row], sequence = step.cache_sequence(row);
  const int oldest = window > 0 ? position - window + 1 : 0;
  std::vector<std::pair<int, int>> tokens;
  if (row < batch.prefill_rows) {
    for (int p = std::max(0, oldest); p <= position; ++p) tokens.emplace_back(sequence, p);
    return tokens;
  }
  const PageRanges& unit = step.unit(row - batch.prefill_rows, kv_head);
  for (int i = 0; i < unit.count + unit.tail_count; ++i) {
    const int entry = i < unit.count ? unit.begin + i : unit.tail_begin + i - unit.count;
    const bool list = entry >= batch.list_begin();
    const auto [owner, first] = step.cache().owner(batch.pages[entry]);
    for (int slot = 0; slot < kPageTokens; ++slot) {
      const int p = first + slot;
      if (list || (p <= position && p >= oldest)) tokens.emplace_back(owner, p);
    }
  }
  return tokens;
}

void expect_close(AttentionStep& step, int layer, int window, float scale) {
  const int dim = step.cache().view().head_dim;
  const int group = step.heads() / step.cache().view().kv_heads;
  for (int row = 0; row < step.batch().rows; ++row) {
    for (int head = 0; head < step.heads(); ++head) {
      const auto tokens = visible(step, row, head / group, window);
      const auto expected = reference(step, layer, row, head, scale, tokens);
      for (int d = 0; d < dim; ++d) {
        ASSERT_NEAR(step.output(row)[head * dim + d], expected[d], 1e-5)
            << "row " << row << " head " << head << " dimension " << d << " tokens "
            << tokens.size();
      }
    }
  }
}

/// Random ranges: nothing, everything, sink and newest, or a list of full pages and the row's own.
void random_plan(AttentionStep& step, int window, std::mt19937& random) {
  const Batch& batch = step.batch();
  int next = 0;
  for (int row = 0; row < batch.planned_rows(); ++row) {
    const int position = batch.position[batch.prefill_rows + row];
    const int sequence = batch.sequence[batch.prefill_rows + row];
    const int table = sequence * batch.table_stride;
    for (int head = 0; head < step.cache().view().kv_heads; ++head) {
      PageRanges& unit = step.unit(row, head);
      switch (random() % 4) {
        case 0:
          unit = {};
          break;
        case 1:
          unit = full_ranges(position, window, table);
          break;
        case 2:
          unit = window_ranges(position, window, table,
                               {static_cast<int>(random() % 3), static_cast<int>(random() % 5)});
          break;
        default:
          unit = {batch.list_begin() + next, 0, table + position / kPageTokens, 1};
          for (int page = 0; page < position / kPageTokens && next < batch.list_capacity; ++page) {
            if (random() % 2) continue;
            step.lists()[next++] = batch.pages[table + page];
            ++unit.count;
          }
      }
    }
  }
}

class AttentionTest : public testing::TestWithParam<const Kernels*> {};

TEST_P(AttentionTest, EqualsDoublePrecisionOnRandomSteps) {
  std::mt19937 random(1);
  CpuDevice device(*GetParam(), 2);
  const int dims[] = {20, 64, 80, 96, 128, 256, 7};
  const int groups[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  for (int round = 0; round < 30; ++round) {
    const int group = groups[round % 10], dim = dims[round % 7];
    const int kv_heads = 1 + static_cast<int>(random() % 3);
    const int window = round % 3 == 2 ? 1 + static_cast<int>(random() % 100) : 0;
    const std::vector<int> lengths = {1, 16, 17, 33 + static_cast<int>(random() % 300), 600, 47};
    const PagedCache cache({dtypes[(round / 2) % 3], 2, kv_heads, dim, 3}, lengths, random);
    const int middle = static_cast<int>(random() % 30);
    AttentionStep step(cache, group, {{2, 0, 17}, {5, middle, 47 - middle}},
                       {{0, 0, 1}, {1, 15, 1}, {3, lengths[3] - 3, 3}, {4, 599, 1}}, 400, random);
    random_plan(step, window, random);
    step.poison_output();
    device.ops().attention(step.args(1, window));
    expect_close(step, 1, window, step.args(1, window).scale);
    if (HasFatalFailure()) FAIL() << "group " << group << " head_dim " << dim << " round " << round;
  }
}

TEST_P(AttentionTest, ReadsNothingForAnEmptyPlan) {
  std::mt19937 random(2);
  CpuDevice device(*GetParam(), 2);
  const PagedCache cache({DType::kF16, 1, 2, 64, 0}, {40, 20}, random);
  AttentionStep step(cache, 3, {}, {{0, 39, 1}, {1, 19, 1}}, 0, random);
  for (int row = 0; row < 2; ++row)
    for (int head = 0; head < 2; ++head) step.unit(row, head) = {};
  step.poison_output();
  device.ops().attention(step.args(0, 0));
  for (int row = 0; row < 2; ++row)
    for (int i = 0; i < step.row_values(); ++i) ASSERT_EQ(step.output(row)[i], 0.0f);
}

/// A prompt of 1,100 tokens (three pieces of pages): whole, in chunks, and as planned dense rows,
/// alone or beside others, with 1 to 3 threads: the same bits.
TEST_P(AttentionTest, IsExactlyTheSameHoweverARowIsRun) {
  // All nine pairs take minutes under sanitizers: three of them meet every window and group.
  const bool few = std::getenv("POLAR_SANITIZED") != nullptr;
  for (const int window : {0, 90, 700}) {
    for (const int group : {1, 3, 7}) {
      if (few && group != (window == 0 ? 1 : window == 90 ? 3 : 7)) continue;
      std::mt19937 random(3);
      const int length = 1100;
      const PagedCache cache({DType::kF16, 1, 2, 64, 3}, {length, 300, 50}, random);
      CpuDevice device(*GetParam(), 2), alone(*GetParam(), 1), three(*GetParam(), 3);
      AttentionStep whole(cache, group, {{0, 0, length}}, {}, 0, random);
      whole.poison_output();
      device.ops().attention(whole.args(0, window));
      const auto expect_equal = [&](CpuDevice& other, const std::vector<Chunk>& prefill,
                                    const std::vector<Chunk>& planned) {
        AttentionStep step(cache, group, prefill, planned, 0, random);
        const Batch& batch = step.batch();
        for (int row = 0; row < batch.rows; ++row) {
          if (step.cache_sequence(row) == 0) {
            std::memcpy(step.query(row), whole.query(batch.position[row]),
                        step.row_values() * sizeof(float));
          }
          for (int head = 0; head < 2 && row >= batch.prefill_rows; ++head) {
            step.unit(row - batch.prefill_rows, head) =
                full_ranges(batch.position[row], window, batch.sequence[row] * batch.table_stride);
          }
        }
        step.poison_output();
        other.ops().attention(step.args(0, window));
        for (int row = 0; row < batch.rows; ++row) {
          if (step.cache_sequence(row) != 0) continue;
          for (int i = 0; i < step.row_values(); ++i) {
            ASSERT_EQ(step.output(row)[i], whole.output(batch.position[row])[i])
                << "position " << batch.position[row] << " value " << i;
          }
        }
      };
      expect_equal(alone, {{0, 0, length}}, {});
      expect_equal(three, {{1, 7, 30}, {0, 0, 513}}, {{2, 49, 1}});
      expect_equal(device, {{0, 513, length - 513}}, {{1, 200, 4}});
      expect_equal(three, {}, {{0, 500, 40}, {1, 299, 1}});
      for (const int position : {0, 15, 16, 511, 512, 513, 1023, 1024, 1099})
        expect_equal(alone, {}, {{0, position, 1}});
    }
  }
}

TEST_P(AttentionTest, KeepsItsPrecisionWhenOneTokenTakesAll) {
  std::mt19937 random(4);
  CpuDevice device(*GetParam(), 2);
  const PagedCache cache({DType::kF32, 1, 1, 64, 0}, {1000}, random);
  AttentionStep step(cache, 2, {}, {{0, 999, 1}}, 0, random);
  step.unit(0, 0) = full_ranges(999, 0, 0);
  for (int i = 0; i < step.row_values(); ++i)
    step.query(0)[i] = cache.key(0, 0, 700, 0)[i % 64] * 20.0f;  // scores up to about 160
  step.poison_output();
  device.ops().attention(step.args(0, 0));
  expect_close(step, 0, 0, step.args(0, 0).scale);
}

INSTANTIATE_TEST_SUITE_P(Isa, AttentionTest, testing::ValuesIn(runnable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace polar::backend::cpu
