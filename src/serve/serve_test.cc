// The whole server in this process, over loopback sockets, in front of a small model of random
// weights. The oracle of an answer is the engine asked directly.

#include "serve/serve_fixture.h"

namespace polar::serve {
namespace {

TEST_F(ServeTest, SaysWhetherItIsReady) {
  start({}, false);
  EXPECT_EQ(get("/health").status, 503);
  EXPECT_EQ(post("/v1/completions", {{"prompt", "a"}}).status, 503);
  make_ready();
  EXPECT_EQ(get("/health").status, 200);
  const Reply models = get("/v1/models");
  EXPECT_EQ(models.json()["data"][0]["id"], "tiny");
  EXPECT_EQ(models.json()["data"][0]["max_model_len"], 2048);
}

TEST_F(ServeTest, AnswersAsTheEngineDoes) {
  start();
  const std::vector<int32_t> prompt = {5, 17, 100, 42, 3};
  std::vector<engine::TokenInfo> scores;
  const auto expected = lone(prompt, 12, &scores);
  const ordered_json ask = {{"model", "tiny"}, {"prompt", prompt},   {"max_tokens", 12},
                            {"n", 2},          {"ignore_eos", true}, {"temperature", 0},
                            {"logprobs", 1},   {"echo", true}};
  const Reply reply = post("/v1/completions", ask);
  ASSERT_EQ(reply.status, 200) << reply.body;
  const ordered_json json = reply.json();
  ASSERT_EQ(json["choices"].size(), 2u);
  for (const auto& choice : json["choices"]) {
    EXPECT_EQ(choice["text"], model_->tokenizer.decode(prompt, false) + text_of_tokens(expected));
    EXPECT_EQ(choice["finish_reason"], "length");
    const auto& logprobs = choice["logprobs"]["token_logprobs"];
    ASSERT_EQ(logprobs.size(), prompt.size() + expected.size());
    EXPECT_TRUE(logprobs[0].is_null());
    for (size_t i = 0; i < scores.size(); ++i)
      EXPECT_NEAR(logprobs[i + 1].get<float>(), scores[i].logprob, 1e-4);
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_NEAR(logprobs[i + prompt.size()].get<float>(), expected[i].logprob, 1e-4);
    // Greedy: the token is the likeliest of those beside it.
    for (size_t i = prompt.size(); i < logprobs.size(); ++i) {
      for (const auto& [text, logprob] : choice["logprobs"]["top_logprobs"][i].items())
        EXPECT_LE(logprob.get<float>(), logprobs[i].get<float>() + 1e-6);
    }
  }
  EXPECT_EQ(json["usage"]["prompt_tokens"], 5);
  EXPECT_EQ(json["usage"]["completion_tokens"], 24);
  EXPECT_EQ(json["usage"]["polar"]["kv_density"], 1.0);
}

TEST_F(ServeTest, StreamsWhatItAnswersAtOnce) {
  start();
  ordered_json ask = {{"prompt", {"Hello there", "a b c"}}, {"max_tokens", 20}, {"logprobs", 0}};
  const ordered_json whole = post("/v1/completions", ask).json();
  ask["stream"] = true;
  ask["stream_options"] = {{"include_usage", true}};
  const Reply reply = post("/v1/completions", ask);
  ASSERT_EQ(reply.status, 200) << reply.body;
  std::vector<std::string> texts(2), reasons(2);
  std::vector<size_t> tokens(2);
  ordered_json usage;
  for (const ordered_json& event : events(reply.body)) {
    if (event["choices"].empty()) usage = event["usage"];
    for (const auto& choice : event["choices"]) {
      const size_t index = choice["index"];
      texts[index] += choice["text"].get<std::string>();
      tokens[index] += choice["logprobs"]["tokens"].size();
      if (!choice["finish_reason"].is_null()) reasons[index] = choice["finish_reason"];
    }
  }
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(texts[i], whole["choices"][i]["text"]);
    EXPECT_EQ(reasons[i], whole["choices"][i]["finish_reason"]);
    EXPECT_EQ(tokens[i], whole["choices"][i]["logprobs"]["tokens"].size());
  }
  EXPECT_EQ(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
}

TEST_F(ServeTest, StopsAtAStopString) {
  start();
  const ordered_json ask = {{"prompt", "Hello"}, {"max_tokens", 30}, {"ignore_eos", true}};
  const std::string whole = post("/v1/completions", ask).json()["choices"][0]["text"];
  // Some whole characters out of the middle.
  size_t at = whole.size() / 2;
  while (at < whole.size() && static_cast<unsigned char>(whole[at]) >= 0x80) ++at;
  ASSERT_LT(at, whole.size());
  ordered_json stopped = ask;
  stopped["stop"] = whole.substr(at, 1);
  const ordered_json choice = post("/v1/completions", stopped).json()["choices"][0];
  EXPECT_EQ(choice["text"], whole.substr(0, whole.find(whole[at])));
  EXPECT_EQ(choice["finish_reason"], "stop");
}

TEST_F(ServeTest, RefusesNamingTheField) {
  start();
  const std::pair<ordered_json, const char*> cases[] = {
      {{{"max_tokens", 3}}, "prompt"},
      {{{"prompt", ordered_json::array()}}, "prompt"},
      {{{"prompt", {1, "a"}}}, "prompt"},
      {{{"prompt", {99999999}}}, "prompt"},
      {{{"prompt", "a"}, {"temperature", -1}}, "temperature"},
      {{{"prompt", "a"}, {"temperature", "hot"}}, "temperature"},
      {{{"prompt", "a"}, {"top_p", 1.5}}, "top_p"},
      {{{"prompt", "a"}, {"n", 0}}, "n"},
      {{{"prompt", "a"}, {"max_tokens", -1}}, "max_tokens"},
      {{{"prompt", "a"}, {"max_tokens", 1e30}}, "max_tokens"},
      {{{"prompt", "a"}, {"stop", 5}}, "stop"},
      {{{"prompt", "a"}, {"logit_bias", {{"x", 1}}}}, "logit_bias"},
      {{{"prompt", "a"}, {"logprobs", 1000}}, "logprobs"},
      {{{"prompt", "a"}, {"seed", 1.5}}, "seed"},
      {{{"prompt", "a"}, {"stream", "yes"}}, "stream"},
      {{{"prompt", "a"}, {"suffix", "b"}}, "suffix"},
      {{{"prompt", "a"}, {"response_format", {{"type", "json_schema"}}}}, "response_format"},
      {{{"prompt", "a"}, {"polar", {{"point", "2%"}}}}, "polar.point"},
      {{{"prompt", std::vector<int>(5000, 1)}}, "prompt"},
      {{{"prompt", {"a", std::string(900000, ' ')}}}, "prompt"},
  };
  for (const auto& [body, field] : cases) {
    const Reply reply = post("/v1/completions", body);
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_EQ(reply.json()["error"]["param"], field) << reply.body;
    EXPECT_EQ(reply.json()["error"]["type"], "invalid_request_error");
  }
  EXPECT_EQ(post("/v1/completions", {{"prompt", "a"}, {"model", "other"}}).status, 404);
  EXPECT_EQ(post("/v1/chat/completions", {{"messages", "a"}}).json()["error"]["param"], "messages");
  for (const ordered_json& content : {ordered_json(5), ordered_json::array({"a"}),
                                      ordered_json::array({{{"type", "image_url"}}})}) {
    const ordered_json message = {{"role", "user"}, {"content", content}};
    const Reply reply = post("/v1/chat/completions", {{"messages", {message}}});
    EXPECT_EQ(reply.status, 400) << content;
    EXPECT_EQ(reply.json()["error"]["param"], "messages");
  }
  EXPECT_EQ(post("/detokenize", {{"tokens", {5, 99999999}}}).json()["error"]["param"], "tokens");
  EXPECT_EQ(raw(text_of("POST", "/v1/completions", "{")).status, 400);
  EXPECT_EQ(raw(text_of("POST", "/v1/completions", std::string(9999, '['))).status, 400);
  EXPECT_EQ(post("/v1/completions", {{"prompt", "a"}, {"a field of tomorrow", {1}}}).status, 200);
}

TEST_F(ServeTest, StandsWhatIsNotHttp) {
  start();
  EXPECT_EQ(raw("nonsense\r\n\r\n").status, 400);
  EXPECT_EQ(get("/../../etc/passwd").status, 404);
  EXPECT_EQ(raw(text_of("DELETE", "/v1/models", "")).status, 405);
  EXPECT_EQ(get("/v1/completions").status, 405);
  EXPECT_NE(get("/tokenize").head.find("Allow: POST"), std::string::npos);
  EXPECT_EQ(raw(text_of("POST", "/health", "{}")).status, 405);
  EXPECT_EQ(raw(text_of("PUT", "/nowhere", "")).status, 404);
  EXPECT_EQ(get("/health", "X: " + std::string(20000, 'a') + "\r\n").status, 431);
  const Reply large = raw(text_of("POST", "/v1/completions", std::string(2 << 20, 'a')));
  EXPECT_EQ(large.status, 413);
  EXPECT_TRUE(large.json().contains("error"));
  {
    Client half(server_->port());
    half.write("POST /v1/completions HTTP/1.1\r\nContent-");
  }
  {
    Client half(server_->port());
    half.write(text_of("POST", "/tokenize", "{}").substr(0, 80));
  }
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(ServeTest, AsksForTheKey) {
  ServiceOptions options;
  options.api_key = "secret";
  start(options);
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/v1/models").status, 401);
  EXPECT_EQ(get("/v1/models", "Authorization: Bearer secreT\r\n").status, 401);
  EXPECT_EQ(get("/v1/models", "Authorization: Bearer secretsecret\r\n").status, 401);
  EXPECT_EQ(get("/v1/models", "Authorization: Bearer \r\n").status, 401);
  EXPECT_EQ(get("/v1/models", "Authorization: Bearer secret\r\n").status, 200);
}

TEST_F(ServeTest, TokenizesAndBack) {
  start();
  const std::string text = "Hello, wörld! 你好";
  const ordered_json tokens = post("/tokenize", {{"prompt", text}}).json();
  EXPECT_EQ(tokens["tokens"], model_->tokenizer.encode(text, true));
  EXPECT_EQ(post("/detokenize", {{"tokens", tokens["tokens"]}}).json()["prompt"], text);
}

TEST_F(ServeTest, FreesWhatAClientThatWentAwayHeld) {
  start();
  const ordered_json ask = {
      {"prompt", "Hello"}, {"max_tokens", 2000}, {"ignore_eos", true}, {"stream", true}};
  {
    Client client(server_->port());
    client.write(text_of("POST", "/v1/completions", ask.dump()));
    ASSERT_NE(client.some(), "");
  }
  for (int i = 0; i < 500 && engine_->stats().cancelled == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const engine::EngineStats stats = engine_->stats();
  EXPECT_EQ(stats.cancelled, 1);
  EXPECT_EQ(stats.running + stats.waiting, 0);
  EXPECT_EQ(stats.free_pages, stats.pages);
  EXPECT_NE(get("/metrics").body.find("polar:clients_gone_total{model_name=\"tiny\"} 1"),
            std::string::npos);
}

TEST_F(ServeTest, RefusesWhenTheQueueIsFull) {
  ServiceOptions options;
  options.max_waiting = 0;
  start(options);
  const ordered_json slow = {
      {"prompt", "Hello"}, {"max_tokens", 2000}, {"ignore_eos", true}, {"stream", true}, {"n", 8}};
  Client client(server_->port());
  client.write(text_of("POST", "/v1/completions", slow.dump()));
  ASSERT_NE(client.some(), "");
  const Reply reply = post("/v1/completions", {{"prompt", "a"}});
  EXPECT_EQ(reply.status, 429);
  EXPECT_NE(reply.head.find("Retry-After:"), std::string::npos);
}

TEST_F(ServeTest, AnswersManyAtOnceAsAlone) {
  start();
  std::vector<std::future<std::string>> texts;
  for (int i = 0; i < 48; ++i) {
    texts.push_back(std::async(std::launch::async, [this, i] {
      const ordered_json ask = {{"prompt", {i + 1, 2 * i + 1, 7}},
                                {"max_tokens", 5 + i % 9},
                                {"ignore_eos", true},
                                {"stream", i % 2 == 0}};
      const Reply reply = post("/v1/completions", ask);
      if (i % 2 != 0) return reply.json()["choices"][0]["text"].get<std::string>();
      std::string text;
      for (const auto& event : events(reply.body))
        text += event["choices"][0]["text"].get<std::string>();
      return text;
    }));
  }
  for (int i = 0; i < 48; ++i)
    EXPECT_EQ(texts[static_cast<size_t>(i)].get(),
              text_of_tokens(lone({i + 1, 2 * i + 1, 7}, 5 + i % 9)));
  EXPECT_EQ(engine_->stats().free_pages, engine_->stats().pages);
}

TEST_F(ServeTest, DrainsBeforeItEnds) {
  start();
  const ordered_json ask = {
      {"prompt", "Hello"}, {"max_tokens", 300}, {"ignore_eos", true}, {"stream", true}};
  Client client(server_->port());
  client.write(text_of("POST", "/v1/completions", ask.dump()));
  std::string all = client.some();
  server_->drain();
  all += client.all();
  EXPECT_NE(all.find("data: [DONE]"), std::string::npos);
  thread_.join();
  EXPECT_FALSE(Client(server_->port()).connected());
}

TEST_F(ServeTest, KeepsAConnection) {
  start();
  Client client(server_->port());
  for (int i = 0; i < 3; ++i) {
    client.write("GET /version HTTP/1.1\r\nHost: a\r\n\r\n");
    std::string reply;
    while (reply.find('}') == std::string::npos) {
      const std::string piece = client.some();
      ASSERT_NE(piece, "");
      reply += piece;
    }
    EXPECT_TRUE(reply.starts_with("HTTP/1.1 200 OK"));
  }
}

TEST(ConstantTime, ComparesWholeStrings) {
  EXPECT_TRUE(equal_in_constant_time("abc", "abc"));
  EXPECT_FALSE(equal_in_constant_time("abd", "abc"));
  EXPECT_FALSE(equal_in_constant_time("abcabc", "abc"));
  EXPECT_FALSE(equal_in_constant_time("ab", "abc"));
  EXPECT_FALSE(equal_in_constant_time("", "abc"));
}

}  // namespace
}  // namespace polar::serve
