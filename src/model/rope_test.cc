// Rotary frequencies against transformers' modeling_rope_utils (tests/golden/rope/make.py), from
// config.json on.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/test_files.h"
#include "model/config_reader.h"

namespace polar::model {
namespace {

using nlohmann::json;

TEST(Rope, FrequenciesEqualTransformers) {
  const io::TempFolder folder;
  const json cases = json::parse(io::read_file(std::string(POLAR_GOLDEN_DIR) + "/rope/rope.json"));
  ASSERT_EQ(cases.size(), 10U);
  for (const json& expected : cases) {
    SCOPED_TRACE(expected["config"]["rope_parameters"].dump());
    const auto config = read_config_json(folder.write("config.json", expected["config"].dump()));
    ASSERT_TRUE(config.ok()) << config.error().message;
    const RopeTable table = rope_table(config->rope);
    EXPECT_NEAR(table.scale, expected["scale"].get<double>(), 1e-6);
    ASSERT_EQ(table.inverse_frequency.size(), expected["inverse_frequency"].size());
    for (size_t i = 0; i < table.inverse_frequency.size(); ++i) {
      const double wanted = expected["inverse_frequency"][i];
      // transformers computes in f32, so its own last digits wander.
      EXPECT_NEAR(table.inverse_frequency[i], wanted, 3e-6 * wanted) << "pair " << i;
    }
  }
}

TEST(Rope, GgufFactorsDivideEachFrequency) {
  RopeConfig rope;
  rope.dim = 8;
  const RopeTable plain = rope_table(rope);
  rope.frequency_factors = {1.0f, 2.0f, 4.0f, 8.0f};
  const RopeTable divided = rope_table(rope);
  for (int i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(divided.inverse_frequency[i],
                    plain.inverse_frequency[i] / rope.frequency_factors[i]);
  }
  EXPECT_EQ(divided.scale, 1.0f);
}

}  // namespace
}  // namespace polar::model
