#include "model/mlp_cost.h"

#include <gtest/gtest.h>

#include "model/routed_neurons.h"
#include "model/small_config.h"

namespace polar::model {
namespace {

/// 1 ms dense at one row and 4 ms at nine; a choice costs 0.2 ms and 1 or 10 us per neuron.
MlpCost known_cost() {
  return MlpCost({{1, 1e-3, 2e-4, 1e-6}, {9, 4e-3, 2e-4, 1e-5}});
}

TEST(MlpCost, AChoicePaysWhereItsTimeIsClearlyShorter) {
  const MlpCost cost = known_cost();
  EXPECT_TRUE(cost.pays(1, 779));   // 0.979 ms
  EXPECT_FALSE(cost.pays(1, 781));  // 0.981 ms
  EXPECT_TRUE(cost.pays(9, 371));   // 3.91 ms of 3.92
  EXPECT_FALSE(cost.pays(9, 373));
  // Half way between: 2.5 ms dense, 0.2 ms and 5.5 us per neuron.
  EXPECT_TRUE(cost.pays(5, 408));
  EXPECT_FALSE(cost.pays(5, 410));
  EXPECT_EQ(cost.pays(100, 371), cost.pays(9, 371));
  EXPECT_FALSE(cost.pays(100, 373));
}

ModelConfig relu_config() {
  ModelConfig config = small_config({0, 0});
  config.gated = false;
  config.activation = backend::Activation::kRelu;
  config.ffn = 512;
  return config;
}

TEST(MlpCost, IsMeasuredForReluModelsAlone) {
  auto device = backend::make_cpu_device({});
  ASSERT_TRUE(device.ok());
  auto relu = dummy_weights(**device, relu_config(), DType::kF32, 1);
  auto gated = dummy_weights(**device, small_config({0}), DType::kF32, 1);
  ASSERT_TRUE(relu.ok() && gated.ok());
  const auto cost = MlpCost::measure(**device, *relu);
  ASSERT_TRUE(cost.ok()) << cost.error().message;
  ASSERT_EQ(cost->samples().size(), 3u);
  for (const auto& sample : cost->samples()) EXPECT_GT(sample.dense_seconds, 0);
  EXPECT_FALSE(MlpCost::measure(**device, *gated).ok());
}

/// A router that wants a quarter of the neurons, under a cost by which that pays, and one by which
/// it does not.
TEST(RoutedNeurons, RunDenseWhereTheirChoiceDoesNotPay) {
  auto device = backend::make_cpu_device({});
  ASSERT_TRUE(device.ok());
  const ModelConfig config = relu_config();
  auto weights = dummy_weights(**device, config, DType::kF32, 1);
  ASSERT_TRUE(weights.ok());
  auto routers = std::make_shared<sparsity::Routers>();
  routers->hidden = config.hidden;
  routers->ffn = config.ffn;
  routers->batches = {1};
  routers->recalls = {0.99};
  sparsity::MlpRouter mlp;
  mlp.rank = 1;
  mlp.a.assign(config.hidden, 0.1f);
  mlp.b.assign(config.ffn, 1.0f);
  mlp.bias.assign(config.ffn, 0.0f);
  mlp.neurons = {128};
  routers->mlps.assign(config.layers, mlp);
  std::vector<float> x(config.hidden, 1.0f), scratch(config.ffn);
  const backend::Batch batch;  // who looks at one point does not look at rows
  const MlpContext context{**device,
                           config,
                           weights->layers[0],
                           0,
                           batch,
                           Tensor{x.data(), DType::kF32, {1, config.hidden, 1, 1}, 2},
                           Tensor{scratch.data(), DType::kF32, {1, config.ffn, 1, 1}, 2}};
  const auto share = [&](double seconds_per_neuron) {
    const std::vector<MlpCost::Sample> samples = {{1, 1.0, 0, seconds_per_neuron}};
    auto planner =
        RoutedNeurons::create(**device, routers, {0.99}, std::make_shared<const MlpCost>(samples));
    EXPECT_TRUE(planner.ok());
    (*planner)->plan(context);
    return (*planner)->share();
  };
  // A second dense: what the router itself takes does not matter.
  EXPECT_EQ(share(1e-3), 0.25);
  EXPECT_EQ(share(1e-2), 1.0);
}

}  // namespace
}  // namespace polar::model
