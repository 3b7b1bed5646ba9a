#include "study/policy.h"

#include <gmock/gmock.h>

#include "model/small_config.h"

namespace polar::study {
namespace {

/// The sentence that a policy for a model of two KV heads gives; empty: it is good.
std::string complaint(const Policy& policy) {
  auto device = backend::make_cpu_device({});
  EXPECT_TRUE(device.ok());
  const auto planner = make_planner(policy, **device, model::small_config({0, 0}), {0, 1, 2, 3});
  return planner.ok() ? "" : planner.error().message;
}

TEST(Policy, SaysWhatIsWrong) {
  Policy policy;
  policy.kind = PolicyKind::kPages;
  EXPECT_EQ(complaint(policy), "");
  policy.pages = 0.0001;
  EXPECT_THAT(complaint(policy), testing::HasSubstr("--pages: found 0.000100, expected at least"));
  policy.kind = PolicyKind::kStatic;
  EXPECT_EQ(complaint(policy), "");  // chooses no pages
  policy.fallback = Fallback::kPages;
  EXPECT_THAT(complaint(policy), testing::HasSubstr("--pages"));
  policy.pages = 1.01;
  EXPECT_THAT(complaint(policy), testing::HasSubstr("a share in (0, 1]"));
  policy = {};
  policy.kind = PolicyKind::kRandom;
  policy.density = 0;
  EXPECT_THAT(complaint(policy), testing::HasSubstr("--density"));
  policy.density = 1;
  policy.dense_layers = {2};
  EXPECT_THAT(complaint(policy), testing::HasSubstr("--dense-layers: found 2"));
  policy = {};
  policy.kind = PolicyKind::kRouted;
  EXPECT_THAT(complaint(policy), testing::HasSubstr("no head routers"));
  policy.density = 0.25;
  EXPECT_THAT(complaint(policy), testing::HasSubstr("at least one of 2 heads"));
}

}  // namespace
}  // namespace polar::study
