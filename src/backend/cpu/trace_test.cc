#include <gtest/gtest.h>

#include <vector>

#include "backend/device.h"
#include "backend/ops.h"

namespace polar::backend {
namespace {

TEST(Trace, TellsVerbsApartAndComputesWhatAnUntracedStepDoes) {
  constexpr int kRows = 2, kWidth = 64;
  auto device = make_cpu_device({2});
  ASSERT_TRUE(device.ok());
  auto weight = (*device)->dummy(kWidth, kWidth, DType::kF32, false, 7);
  ASSERT_TRUE(weight.ok());
  std::vector<float> x(kRows * kWidth, 0.5f), plain(x.size()), traced(x.size()), sum(x.size());
  const auto view = [&](std::vector<float>& values) {
    return Tensor{values.data(), DType::kF32, {kRows, kWidth, 1, 1}, 2};
  };
  const auto step = [&](std::vector<float>& y) {
    Ops& ops = (*device)->ops();
    ops.linear({view(x), weight->get(), nullptr, view(y)});
    ops.norm({view(y), {}, {}, view(sum)});
    ops.linear({view(x), weight->get(), nullptr, view(y)});
  };
  step(plain);
  const std::vector<VerbCost> costs = (*device)->trace([&] { step(traced); });
  EXPECT_EQ(plain, traced);
  ASSERT_EQ(costs.size(), 2u);
  EXPECT_EQ(costs[0].verb, "linear");
  EXPECT_EQ(costs[0].calls, 2);
  EXPECT_EQ(costs[1].verb, "norm");
  EXPECT_EQ(costs[1].calls, 1);
  for (const VerbCost& cost : costs) {
    EXPECT_GT(cost.seconds, 0);
    EXPECT_EQ(cost.nodes, 0);  // nothing is recorded
  }
}

}  // namespace
}  // namespace polar::backend
