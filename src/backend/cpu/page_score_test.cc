// Page scores against their definitions in float64, and the indices they read against the keys.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "backend/cpu/isa.h"
#include "backend/cpu/kv_layout.h"
#include "backend/cpu/test_values.h"

namespace polar::backend::cpu {
namespace {

/// Full pages of random keys of one KV head, as stored, with a few channels much larger than the
/// others, as real keys have.
class Pages {
 public:
  Pages(const Kernels& kernels, std::mt19937& random, PageScore score, DType dtype, int head_dim,
        int count) {
    view_ = {nullptr, dtype, 1, count, 1, head_dim};
    view_.page_score = score;
    code_bytes_ = kernels.lanes == 16;  // AVX-512's
    blocks_.assign(view_.total_bytes(), std::byte{0xff});
    view_.data = blocks_.data();
    indices_.assign(view_.indices_bytes() * count, std::byte{0xff});
    view_.index = indices_.data();
    const std::vector<float> channel = random_values(random, head_dim, 2.0f);
    for (int page = 0; page < count; ++page) {
      for (int slot = 0; slot < kPageTokens; ++slot) {
        std::vector<float> key = random_values(random, head_dim);
        for (int d = 0; d < head_dim; ++d) key[d] *= channel[d];
        store_key(view_, view_.block(0, page, 0), slot, key.data());
      }
      if (score != PageScore::kMass) {
        kernels.index_page(
            {score, dtype, head_dim, view_.block(0, page, 0), view_.index_of(0, page, 0)});
      }
      pointers_.push_back(score == PageScore::kMass ? view_.block(0, page, 0)
                                                    : view_.index_of(0, page, 0));
    }
  }
  const KvView& view() const { return view_; }
  const std::byte* const* pointers() const { return pointers_.data(); }
  double key(int page, int slot, int d) const {
    return load_element(view_.dtype, view_.block(0, page, 0), d * kPageTokens + slot);
  }

  /// Channel d of a vector that is given by its channels, rotated: a Hadamard matrix by its
  /// definition.
  template <typename Value>
  double rotated(int d, Value value) const {
    const int width = rotated_channels(view_.head_dim), begin = d / width * width;
    double sum = 0;
    for (int j = 0; j < width; ++j)
      sum += std::popcount(static_cast<unsigned>((d - begin) & j)) % 2 == 0 ? value(begin + j)
                                                                            : -value(begin + j);
    return sum / std::sqrt(static_cast<double>(width));
  }
  double rotated_key(int page, int slot, int d) const {
    return rotated(d, [&](int j) { return key(page, slot, j); });
  }
  double root_mean_square(int page) const {
    double sum = 0;
    for (int slot = 0; slot < kPageTokens; ++slot)
      for (int d = 0; d < view_.head_dim; ++d) sum += key(page, slot, d) * key(page, slot, d);
    return std::sqrt(sum / (kPageTokens * view_.head_dim));
  }
  /// What the index says of a rotated channel, in half steps: -3, -1, 1 or 3.
  int code(int page, int slot, int d) const {
    if (code_bytes_) {
      const std::byte* group = view_.index_of(0, page, 0) + d / 16 * 64;
      return 2 * (std::to_integer<int>(group[slot * 4 + d % 4]) >> d % 16 / 4 * 2 & 3) - 3;
    }
    const std::byte* octet = view_.index_of(0, page, 0) + d / 8 * kPageTokens + slot;
    const std::byte low = octet[(view_.index_bytes() - 4) / 2];
    const auto sign = [&](std::byte bits) {
      return (std::to_integer<int>(bits) >> (d % 8) & 1) != 0 ? 1 : -1;
    };
    return 2 * sign(*octet) + sign(low);
  }

 private:
  KvView view_;
  bool code_bytes_ = false;  // four codes of a token in a byte, else planes of bits
  std::vector<std::byte> blocks_, indices_;
  std::vector<const std::byte*> pointers_;
};

class PageScoreTest : public testing::TestWithParam<const Kernels*> {};
INSTANTIATE_TEST_SUITE_P(Isa, PageScoreTest, testing::ValuesIn(runnable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

/// What the kernel says each page draws: [count].
std::vector<float> page_mass(const Kernels& kernels, const Pages& pages,
                             const std::vector<float>& query, float scale) {
  const int head_dim = pages.view().head_dim, count = pages.view().pages;
  std::vector<float> scratch(static_cast<size_t>(kMassQueries) * padded_pages(count), NAN);
  std::vector<float> mass(padded_pages(count), NAN);
  kernels.page_mass({pages.view().page_score, query.data(),
                     static_cast<int>(query.size()) / head_dim, pages.pointers(),
                     pages.view().dtype, count, head_dim, scale, scratch.data(), mass.data()});
  mass.resize(count);
  return mass;
}

/// The sum over queries of the softmax of their scores [queries][count].
std::vector<double> softmax_sum(const std::vector<std::vector<double>>& scores) {
  std::vector<double> mass(scores[0].size(), 0.0);
  for (const std::vector<double>& row : scores) {
    double sum = 0;
    for (const double score : row) sum += std::exp(score);
    for (size_t i = 0; i < row.size(); ++i) mass[i] += std::exp(row[i]) / sum;
  }
  return mass;
}

struct Shape {
  int head_dim, count, queries;
  DType dtype;
};

Shape random_shape(std::mt19937& random) {
  const int dims[] = {1, 6, 12, 16, 40, 64, 80, 96, 128, 256};
  const DType types[] = {DType::kF32, DType::kF16, DType::kBF16};
  return {dims[random() % 10], 1 + static_cast<int>(random() % 70),
          1 + static_cast<int>(random() % 8), types[random() % 3]};
}

TEST_P(PageScoreTest, MassIsTheAttentionThatAPageDraws) {
  std::mt19937 random(31);
  for (int round = 0; round < 40; ++round) {
    const Shape shape = random_shape(random);
    const Pages pages(*GetParam(), random, PageScore::kMass, shape.dtype, shape.head_dim,
                      shape.count);
    const std::vector<float> query = random_values(random, shape.queries * shape.head_dim);
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    std::vector<std::vector<double>> scores(shape.queries, std::vector<double>(shape.count));
    for (int q = 0; q < shape.queries; ++q) {
      for (int page = 0; page < shape.count; ++page) {
        double sum = 0;
        for (int slot = 0; slot < kPageTokens; ++slot) {
          double dot = 0;
          for (int d = 0; d < shape.head_dim; ++d)
            dot += query[q * shape.head_dim + d] * pages.key(page, slot, d);
          sum += std::exp(dot * scale);
        }
        scores[q][page] = std::log(sum);
      }
    }
    const std::vector<double> expected = softmax_sum(scores);
    const std::vector<float> mass = page_mass(*GetParam(), pages, query, scale);
    for (int page = 0; page < shape.count; ++page)
      EXPECT_NEAR(mass[page], expected[page], 1e-4 * expected[page] + 1e-6);
  }
}

TEST_P(PageScoreTest, MeanIsTheMeanKey) {
  std::mt19937 random(32);
  for (int round = 0; round < 20; ++round) {
    const Shape shape = random_shape(random);
    const Pages pages(*GetParam(), random, PageScore::kMean, shape.dtype, shape.head_dim, 2);
    for (int d = 0; d < shape.head_dim; ++d) {
      double sum = 0, largest = 0;
      for (int slot = 0; slot < kPageTokens; ++slot) {
        sum += pages.key(1, slot, d);
        largest = std::max(largest, std::abs(pages.key(1, slot, d)));
      }
      uint16_t bits;
      std::memcpy(&bits, pages.view().index_of(0, 1, 0) + d * 2, 2);
      EXPECT_NEAR(f16_to_f32(bits), sum / kPageTokens,
                  6e-4 * std::abs(sum / kPageTokens) + 1e-6 * largest + 1e-7);
    }
  }
}

/// The codes by their definition; values next to a threshold may go either way.
TEST_P(PageScoreTest, CodesAreTheRotatedKeysInFourSteps) {
  std::mt19937 random(33);
  for (int round = 0; round < 30; ++round) {
    const Shape shape = random_shape(random);
    const Pages pages(*GetParam(), random, PageScore::kCodes, shape.dtype, shape.head_dim, 2);
    const double step = pages.root_mean_square(1);
    for (int d = 0; d < (shape.head_dim + 15) / 16 * 16; ++d) {
      for (int slot = 0; slot < kPageTokens; ++slot) {
        if (d >= shape.head_dim) {
          EXPECT_EQ(pages.code(1, slot, d), -3) << "padding has no bit set";
          continue;
        }
        const double value = pages.rotated_key(1, slot, d) / step;
        const double nearest = std::round(std::clamp(value, -1.0, 1.0));
        if (std::abs(value - nearest) < 1e-4) continue;
        const int expected = value > 1 ? 3 : value > 0 ? 1 : value > -1 ? -1 : -3;
        EXPECT_EQ(pages.code(1, slot, d), expected) << "channel " << d << " value " << value;
      }
    }
    float half_step;
    std::memcpy(&half_step, pages.view().index_of(0, 1, 0) + pages.view().index_bytes() - 4, 4);
    EXPECT_NEAR(half_step, step / 2, 1e-5 * step);
  }
}

/// The best token's product with its coded key. Table entries are rounded to 63 steps, so a score
/// may be off by half a step for each four channels and each plane, the high one twice; where the
/// query's channels are rounded to 127 steps, by three halves of one for each channel.
TEST_P(PageScoreTest, CodesScoreTheBestToken) {
  std::mt19937 random(35);
  for (int round = 0; round < 40; ++round) {
    const Shape shape = random_shape(random);
    const Pages pages(*GetParam(), random, PageScore::kCodes, shape.dtype, shape.head_dim,
                      shape.count);
    const std::vector<float> query = random_values(random, shape.queries * shape.head_dim);
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    std::vector<std::vector<double>> scores(shape.queries, std::vector<double>(shape.count));
    double error = 0;
    for (int q = 0; q < shape.queries; ++q) {
      const int groups = (shape.head_dim + 3) / 4;
      std::vector<double> rotated(groups * 4, 0.0);
      for (int d = 0; d < shape.head_dim; ++d)
        rotated[d] = pages.rotated(d, [&](int j) { return double{query[q * shape.head_dim + j]}; });
      double step = 0;
      for (int g = 0; g < groups; ++g) {
        double sum = 0;
        for (int j = 0; j < 4; ++j) {
          sum += std::abs(rotated[g * 4 + j]);
          step = std::max(step, 4 * std::abs(rotated[g * 4 + j]) / 127);
        }
        step = std::max(step, sum / 63);
      }
      for (int page = 0; page < shape.count; ++page) {
        double best = -1e30;
        for (int slot = 0; slot < kPageTokens; ++slot) {
          double sum = 0;
          for (int d = 0; d < shape.head_dim; ++d) sum += pages.code(page, slot, d) * rotated[d];
          best = std::max(best, sum);
        }
        const double unit = pages.root_mean_square(page) / 2 * scale;
        scores[q][page] = best * unit;
        error = std::max(error, 3 * groups * 0.5 * step * unit);
      }
    }
    const std::vector<double> expected = softmax_sum(scores);
    const std::vector<float> mass = page_mass(*GetParam(), pages, query, scale);
    for (int page = 0; page < shape.count; ++page) {
      EXPECT_LE(mass[page], expected[page] * std::exp(2 * error) * 1.0001 + 1e-6);
      EXPECT_GE(mass[page], expected[page] * std::exp(-2 * error) * 0.9999 - 1e-6);
    }
  }
}

}  // namespace
}  // namespace polar::backend::cpu
