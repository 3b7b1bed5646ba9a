#include "core/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

namespace polar {
namespace {

std::vector<char> read_golden(const std::string& name) {
  std::ifstream in(std::string(POLAR_GOLDEN_DIR) + "/io/" + name, std::ios::binary);
  EXPECT_TRUE(in) << name;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// The value of a finite half from the definition of IEEE 754, in double precision.
double half_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(DTypeTest, EveryHalfBecomesTheFloatOfItsValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = f16_to_f32(half);
    if ((half & 0x7FFF) > 0x7C00) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(value)))) << bits;
    } else if ((half & 0x7FFF) == 0x7C00) {
      EXPECT_TRUE(std::isinf(value)) << bits;
    } else {
      EXPECT_EQ(static_cast<double>(value), half_value(half)) << bits;
    }
    EXPECT_EQ(std::signbit(value), (half & 0x8000) != 0) << bits;
    if (!std::isnan(value)) {
      EXPECT_EQ(f32_to_f16(value), half);
    }
  }
}

TEST(DTypeTest, FloatsRoundToTheNearestHalfTiesToEven) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (uint16_t low = 0; low < 0x7BFF; ++low) {
    const auto high = static_cast<uint16_t>(low + 1);
    const auto middle = static_cast<float>((half_value(low) + half_value(high)) / 2);  // exact
    ASSERT_EQ(f32_to_f16(middle), low % 2 == 0 ? low : high) << low;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 0.0F)), low) << low;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, kInfinity)), high) << low;
    ASSERT_EQ(f32_to_f16(-middle), 0x8000 | (low % 2 == 0 ? low : high)) << low;
  }
  EXPECT_EQ(f32_to_f16(std::nextafter(65520.0F, 0.0F)), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0F), 0x7C00);
  EXPECT_EQ(f32_to_f16(-kInfinity), 0xFC00);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(std::bit_cast<float>(0x7F800001U)))));
}

TEST(DTypeTest, BfloatRoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F808000U)), 0x3F80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3F818000U)), 0x3F82);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_EQ(f32_to_bf16(-0.0F), 0x8000);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7F800001U)))));
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0xFFFFFFFFU)))));
}

TEST(DTypeTest, ConversionsEqualNumpyAndTorch) {
  struct Record {
    uint32_t f32;
    uint16_t f16, bf16;
  };
  const std::vector<char> bytes = read_golden("conversions.bin");
  ASSERT_GT(bytes.size(), 4000 * sizeof(Record));
  for (size_t at = 0; at + sizeof(Record) <= bytes.size(); at += sizeof(Record)) {
    Record record;
    std::copy_n(bytes.data() + at, sizeof(record), reinterpret_cast<char*>(&record));
    const auto value = std::bit_cast<float>(record.f32);
    ASSERT_EQ(f32_to_f16(value), record.f16) << value;
    ASSERT_EQ(f32_to_bf16(value), record.bf16) << value;
  }
}

class DequantizeTest : public testing::TestWithParam<DType> {};

TEST_P(DequantizeTest, EqualsTheGgufPackageBitForBit) {
  const DTypeInfo& info = dtype_info(GetParam());
  const std::string name(info.name);
  const std::vector<char> blocks = read_golden("dequantize/" + name + ".blocks");
  const std::vector<char> expected = read_golden("dequantize/" + name + ".f32");
  const size_t values = expected.size() / sizeof(float);
  ASSERT_GT(values, 0U);
  ASSERT_EQ(dtype_bytes(GetParam(), values), blocks.size());
  std::vector<uint32_t> found(values + 1, 0x7FC0DEADU);
  dequantize_row(GetParam(), blocks.data(), reinterpret_cast<float*>(found.data()), values);
  EXPECT_EQ(found.back(), 0x7FC0DEADU);  // nothing behind the row
  for (size_t i = 0; i < values; ++i) {
    uint32_t bits;
    std::copy_n(expected.data() + i * sizeof(bits), sizeof(bits), reinterpret_cast<char*>(&bits));
    ASSERT_EQ(found[i], bits) << name << " value " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, DequantizeTest,
                         testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                                         DType::kQ5_1, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K),
                         [](const auto& test) { return std::string(dtype_info(test.param).name); });

TEST(QuantizeTest, Q4_0EqualsTheGgufPackageBitForBit) {
  const std::vector<char> bytes = read_golden("quantize/q4_0.f32");
  const std::vector<char> expected = read_golden("quantize/q4_0.blocks");
  std::vector<float> values(bytes.size() / sizeof(float));
  ASSERT_GT(values.size(), 0U);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(values.data()));
  std::vector<std::byte> blocks(dtype_bytes(DType::kQ4_0, values.size()) + 1, std::byte{0xAB});
  ASSERT_EQ(blocks.size(), expected.size() + 1);
  quantize_q4_0(values.data(), blocks.data(), values.size());
  EXPECT_EQ(blocks.back(), std::byte{0xAB});  // nothing behind them
  for (size_t i = 0; i < expected.size(); ++i)
    ASSERT_EQ(static_cast<char>(blocks[i]), expected[i])
        << "block " << i / 18 << ", byte " << i % 18;
}

TEST(DTypeTest, PlainTypesAreReadAsTheyAre) {
  const std::vector<float> floats = {1.5F, -0.0F, 3e38F};
  std::vector<float> out(3, 99.0F);
  dequantize_row(DType::kF32, floats.data(), out.data(), 3);
  EXPECT_EQ(out, floats);
  const std::vector<uint16_t> halves = {0x3E00, 0x8000, 0x0001};
  dequantize_row(DType::kF16, halves.data(), out.data(), 3);
  EXPECT_EQ(out, (std::vector<float>{1.5F, -0.0F, 0x1p-24F}));
  const std::vector<uint16_t> brains = {0x3FC0, 0x8000, 0x0001};
  dequantize_row(DType::kBF16, brains.data(), out.data(), 3);
  EXPECT_EQ(out, (std::vector<float>{1.5F, -0.0F, 0x1p-133F}));
  const std::vector<int32_t> integers = {1, -2, 1 << 20};
  dequantize_row(DType::kI32, integers.data(), out.data(), 3);
  EXPECT_EQ(out, (std::vector<float>{1.0F, -2.0F, 1048576.0F}));
}

}  // namespace
}  // namespace polar
