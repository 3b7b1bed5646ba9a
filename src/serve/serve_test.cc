// The whole server in this process, over loopback sockets, in front of a small model of random
// weights. The oracle of an answer is the engine asked directly.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "serve/service.h"

namespace polar::serve {
namespace {

using nlohmann::ordered_json;

const std::string kTokenizer = std::string(POLAR_GOLDEN_DIR) + "/text/gpt2.tokenizer.json";

model::ModelConfig small_config(int vocabulary) {
  model::ModelConfig config;
  config.architecture = "llama";
  config.layers = 2;
  config.hidden = 48;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.ffn = 80;
  config.vocabulary = vocabulary;
  config.embedding = 48;
  config.max_positions = 4096;
  config.rope.dim = 16;
  config.sliding_window = {0, 0};
  return config;
}

struct Reply {
  int status = 0;
  std::string head, body;
  ordered_json json() const { return ordered_json::parse(body, nullptr, false); }
};

class Client {
 public:
  explicit Client(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    const timeval limit{60, 0};
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  ~Client() { ::close(socket_); }
  bool connected() const { return connected_; }
  void write(const std::string& text) const {
    for (size_t sent = 0; sent < text.size();) {
      const ssize_t n = ::send(socket_, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += static_cast<size_t>(n);
    }
  }
  /// Some bytes; empty at the end.
  std::string some() const {
    char buffer[4096];
    const ssize_t n = ::recv(socket_, buffer, sizeof buffer, 0);
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : "";
  }
  std::string all() const {
    std::string text;
    for (std::string piece = some(); !piece.empty(); piece = some()) text += piece;
    return text;
  }

 private:
  int socket_;
  bool connected_;
};

std::string unchunked(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t size = std::stoul(std::string(text.substr(0, text.find('\r'))), nullptr, 16);
    text.remove_prefix(text.find("\r\n") + 2);
    out += text.substr(0, size);
    if (size == 0) break;
    text.remove_prefix(size + 2);
  }
  return out;
}

class ServeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = text::Tokenizer::from_json_file(kTokenizer);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    auto device = backend::make_cpu_device({1});
    ASSERT_TRUE(device.ok());
    auto weights =
        model::dummy_weights(**device, small_config(tokenizer->vocab_size()), DType::kF32, 7);
    ASSERT_TRUE(weights.ok()) << weights.error().message;
    model_.reset(new engine::LoadedModel{
        std::move(*device), nullptr, std::make_unique<model::Weights>(std::move(*weights)),
        std::move(*tokenizer), std::nullopt, engine::SamplingParams{}, std::nullopt});
    engine::EngineOptions options;
    options.kv_dtype = DType::kF32;
    options.kv_bytes = 8 << 20;
    options.max_batch = 8;
    options.max_length = 2048;
    auto engine = model_->make_engine(options);
    ASSERT_TRUE(engine.ok()) << engine.error().message;
    engine_ = std::move(*engine);
  }
  void TearDown() override {
    stop();
    engine_.reset();
  }

  void start(ServiceOptions options = {}, bool ready = true) {
    options.model_name = "tiny";
    service_ = std::make_unique<Service>(options);
    HttpOptions http;
    http.port = 0;
    http.max_body = 1 << 20;
    http.max_header = 8 << 10;
    http.drain_seconds = 20;
    http.on_drain = [this] { service_->drain(); };
    auto server = HttpServer::listen(http, [this](auto request, auto responder) {
      service_->handle(std::move(request), std::move(responder));
    });
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
    service_->attach(*server_);
    if (ready) make_ready();
    thread_ = std::thread([this] { server_->run(); });
  }
  void make_ready() {
    server_->post([this] { service_->ready(*model_, *engine_); });
  }
  void stop() {
    if (!thread_.joinable()) return;
    server_->stop();
    thread_.join();
  }

  static std::string text_of(const std::string& method, const std::string& path,
                             const std::string& body, const std::string& headers = {}) {
    return method + " " + path + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + headers +
           "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  Reply raw(const std::string& text) const {
    Client client(server_->port());
    EXPECT_TRUE(client.connected());
    client.write(text);
    const std::string all = client.all();
    Reply reply;
    const size_t end = all.find("\r\n\r\n");
    if (!all.starts_with("HTTP/1.1 ") || end == std::string::npos) return reply;
    reply.status = std::stoi(all.substr(9, 3));
    reply.head = all.substr(0, end);
    reply.body = all.substr(end + 4);
    if (reply.head.find("chunked") != std::string::npos) reply.body = unchunked(reply.body);
    return reply;
  }
  Reply get(const std::string& path, const std::string& headers = {}) const {
    return raw(text_of("GET", path, "", headers));
  }
  Reply post(const std::string& path, const ordered_json& body) const {
    return raw(text_of("POST", path, body.dump()));
  }

  std::vector<engine::TokenInfo> lone(const std::vector<int32_t>& prompt, int tokens,
                                      std::vector<engine::TokenInfo>* scores = nullptr) {
    engine::GenerationRequest request;
    request.prompt = prompt;
    request.max_tokens = tokens;
    request.logprobs = 0;
    request.ignore_eos = true;
    if (scores != nullptr) request.prompt_logprobs = 0;
    auto generation = engine_->submit(request);
    EXPECT_TRUE(generation.ok());
    std::vector<engine::TokenInfo> out;
    while (auto event = (*generation)->next()) {
      out.insert(out.end(), event->tokens.begin(), event->tokens.end());
      if (scores != nullptr)
        scores->insert(scores->end(), event->prompt.begin(), event->prompt.end());
    }
    return out;
  }
  std::string text_of_tokens(const std::vector<engine::TokenInfo>& infos) const {
    std::vector<int32_t> ids;
    for (const auto& info : infos) ids.push_back(info.token);
    return model_->tokenizer.decode(ids, true);
  }

  std::unique_ptr<engine::LoadedModel> model_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<engine::Engine> engine_;
  std::thread thread_;
};

/// The pieces of a stream, which must end with [DONE].
std::vector<ordered_json> events(const std::string& body) {
  std::vector<ordered_json> out;
  std::string last;
  for (size_t at = 0, end; (end = body.find("\n\n", at)) != std::string::npos; at = end + 2) {
    last = body.substr(at, end - at);
    EXPECT_TRUE(last.starts_with("data: ")) << last;
    if (last != "data: [DONE]") out.push_back(ordered_json::parse(last.substr(6)));
  }
  EXPECT_EQ(last, "data: [DONE]");
  return out;
}

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
  };
  for (const auto& [body, field] : cases) {
    const Reply reply = post("/v1/completions", body);
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_EQ(reply.json()["error"]["param"], field) << reply.body;
    EXPECT_EQ(reply.json()["error"]["type"], "invalid_request_error");
  }
  EXPECT_EQ(post("/v1/completions", {{"prompt", "a"}, {"model", "other"}}).status, 404);
  EXPECT_EQ(post("/v1/chat/completions", {{"messages", "a"}}).json()["error"]["param"], "messages");
  EXPECT_EQ(raw(text_of("POST", "/v1/completions", "{")).status, 400);
  EXPECT_EQ(raw(text_of("POST", "/v1/completions", std::string(9999, '['))).status, 400);
  EXPECT_EQ(post("/v1/completions", {{"prompt", "a"}, {"a field of tomorrow", {1}}}).status, 200);
}

TEST_F(ServeTest, StandsWhatIsNotHttp) {
  start();
  EXPECT_EQ(raw("nonsense\r\n\r\n").status, 400);
  EXPECT_EQ(get("/../../etc/passwd").status, 404);
  EXPECT_EQ(raw(text_of("DELETE", "/v1/models", "")).status, 405);
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
    while (reply.find("}") == std::string::npos) {
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
