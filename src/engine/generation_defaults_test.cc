#include "engine/generation_defaults.h"

#include <gtest/gtest.h>

namespace polar::engine {
namespace {

SamplingParams read(const char* json) {
  const auto params = parse_generation_config(json, "generation_config.json");
  EXPECT_TRUE(params.ok()) << params.error().message;
  return params.ok() ? *params : SamplingParams();
}

TEST(GenerationDefaults, FollowTheModelsMakers) {
  const SamplingParams llama =
      read(R"({"do_sample":true,"temperature":0.6,"top_p":0.9,"eos_token_id":[1,2],"top_k":null})");
  EXPECT_EQ(llama.temperature, 0.6f);
  EXPECT_EQ(llama.top_p, 0.9f);
  EXPECT_EQ(llama.top_k, 0);
  const SamplingParams qwen = read(
      R"({"do_sample":true,"temperature":0.7,"top_k":20,"top_p":0.8,"repetition_penalty":1.05})");
  EXPECT_EQ(qwen.top_k, 20);
  EXPECT_EQ(qwen.repetition_penalty, 1.05f);
  EXPECT_EQ(read("{}").temperature, 0.0f);
  EXPECT_EQ(read(R"({"do_sample":true})").temperature, 1.0f);
  EXPECT_EQ(read(R"({"do_sample":false,"temperature":0.6})").temperature, 0.0f);
  EXPECT_EQ(read(R"({"temperature":0.6})").temperature, 0.6f);
}

TEST(GenerationDefaults, RefuseNonsense) {
  for (const char* json : {"", "[]", "{", R"({"temperature":"hot"})", R"({"top_p":2})",
                           R"({"top_k":-3})", R"({"temperature":-1})"}) {
    const auto params = parse_generation_config(json, "g.json");
    ASSERT_FALSE(params.ok()) << json;
    EXPECT_EQ(params.error().message.rfind("g.json: ", 0), 0u);
  }
}

}  // namespace
}  // namespace polar::engine
