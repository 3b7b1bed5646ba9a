#include "engine/prompt_line.h"

#include <gtest/gtest.h>

namespace polar::engine {
namespace {

PromptLine parsed(std::string_view text, const SamplingParams& defaults = {}) {
  auto line = parse_prompt_line(text, 3, defaults);
  EXPECT_TRUE(line.ok()) << line.error().message;
  return line.ok() ? std::move(line).value() : PromptLine();
}

std::string refused(std::string_view text) {
  const auto line = parse_prompt_line(text, 3, {});
  return line.ok() ? "accepted" : line.error().message;
}

TEST(PromptLine, ReadsEveryKey) {
  const PromptLine line = parsed(
      R"({"id":"a","prompt":"x","max_tokens":3,"temperature":0.5,"top_k":4,"top_p":0.75,"min_p":0.25,)"
      R"("seed":18446744073709551615,"stop":["a","b"],"stop_token_ids":[1,2],"ignore_eos":true,)"
      R"("min_tokens":1,"repetition_penalty":1.5,"presence_penalty":-0.5,"frequency_penalty":2,)"
      R"("logit_bias":{"12":-1.5},"n":2,"logprobs":3,"prompt_logprobs":0,"point":"1%","mine":[]})");
  EXPECT_EQ(line.id, "a");
  EXPECT_EQ(line.prompt, "x");
  EXPECT_FALSE(line.tokens || line.messages);
  EXPECT_EQ(line.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(line.point, "1%");
  EXPECT_EQ(line.n, 2);
  const GenerationRequest& request = line.request;
  EXPECT_EQ(request.max_tokens, 3);
  EXPECT_EQ(request.min_tokens, 1);
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_EQ(request.stop_token_ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(request.logprobs, 3);
  EXPECT_EQ(request.prompt_logprobs, 0);
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.top_k, 4);
  EXPECT_EQ(request.sampling.top_p, 0.75f);
  EXPECT_EQ(request.sampling.min_p, 0.25f);
  EXPECT_EQ(request.sampling.seed, UINT64_MAX);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(request.sampling.presence_penalty, -0.5f);
  EXPECT_EQ(request.sampling.frequency_penalty, 2.0f);
  EXPECT_EQ(request.sampling.logit_bias, (std::vector<std::pair<int32_t, float>>{{12, -1.5f}}));
}

TEST(PromptLine, FillsInWhatIsNotSaid) {
  SamplingParams defaults;
  defaults.temperature = 0.7f;
  defaults.top_k = 40;
  const PromptLine line = parsed(R"({"tokens":[5,6],"top_k":null})", defaults);
  EXPECT_EQ(line.id, "2");  // the number of the line, from 0
  EXPECT_EQ(line.tokens, (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(line.request.max_tokens, 16);
  EXPECT_EQ(line.request.logprobs, -1);
  EXPECT_EQ(line.request.prompt_logprobs, -1);
  EXPECT_EQ(line.request.sampling.temperature, 0.7f);
  EXPECT_EQ(line.request.sampling.top_k, 40);
  EXPECT_EQ(parsed(R"({"prompt":"", "id":17})").id, "17");
  EXPECT_EQ(parsed(R"({"prompt":"x", "stop":"\n"})").stop, std::vector<std::string>{"\n"});
}

TEST(PromptLine, SaysWhatIsWrongAndWhere) {
  const struct {
    const char* line;
    const char* says;
  } cases[] = {
      {"", "not JSON"},
      {"{\"prompt\":\"x\"", "not JSON"},
      {"[1]", "a JSON object"},
      {"{}", "prompt: found nothing, expected one of prompt, messages and tokens"},
      {R"({"prompt":"x","tokens":[1]})", "one of prompt, messages and tokens"},
      {R"({"prompt":1})", "prompt: found 1, expected a string"},
      {R"({"tokens":[1.5]})", "tokens: found [1.5]"},
      {R"({"tokens":[-1]})", "tokens: found [-1]"},
      {R"({"tokens":[4294967296]})", "tokens"},
      {R"({"messages":[]})", "messages"},
      {R"({"messages":[{"content":"x"}]})", "messages"},
      {R"({"prompt":"x","max_tokens":-1})", "max_tokens: found -1"},
      {R"({"prompt":"x","max_tokens":1.5})", "max_tokens: found 1.5"},
      {R"({"prompt":"x","max_tokens":99999999999999999999})", "max_tokens"},
      {R"({"prompt":"x","temperature":"hot"})", "temperature: found \"hot\", expected a number"},
      {R"({"prompt":"x","temperature":1e300})", "temperature"},
      {R"({"prompt":"x","n":0})", "n: found 0"},
      {R"({"prompt":"x","n":1000000})", "n: found 1000000"},
      {R"({"prompt":"x","logprobs":21})", "logprobs: found 21"},
      {R"({"prompt":"x","stop":[1]})", "stop"},
      {R"({"prompt":"x","logit_bias":{"a":1}})", "logit_bias"},
      {R"({"prompt":"x","ignore_eos":1})", "ignore_eos: found 1, expected true or false"},
      {R"({"prompt":"x","seed":1.5})", "seed"},
  };
  for (const auto& [line, says] : cases) {
    const std::string message = refused(line);
    EXPECT_EQ(message.rfind("line 3: ", 0), 0u) << message;
    EXPECT_NE(message.find(says), std::string::npos) << line << " gave: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(PromptLine, DeepNestingIsRefusedNotFollowed) {
  EXPECT_NE(refused(std::string(1000000, '[')).find("not JSON"), std::string::npos);
  EXPECT_EQ(parsed(R"({"prompt":"[[[[[\"[[[["})").prompt, "[[[[[\"[[[[");
}

TEST(PromptLine, ALongValueIsShortenedAtACharacter) {
  std::string line = R"({"prompt":"x","temperature":"a)";
  for (int i = 0; i < 100; ++i) line += "é";
  const std::string message = refused(line + "\"}");
  EXPECT_LT(message.size(), 140u);
  EXPECT_NE(message.find("é..."), std::string::npos) << message;
}

}  // namespace
}  // namespace polar::engine
