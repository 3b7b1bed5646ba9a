#pragma once
// For tests: the whole server in this process, over loopback sockets, in front of a small model of
// random weights.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "model/small_config.h"
#include "serve/service.h"

namespace polar::serve {
using nlohmann::ordered_json;

inline const std::string kTokenizer = std::string(POLAR_GOLDEN_DIR) + "/text/gpt2.tokenizer.json";

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

inline std::string unchunked(std::string_view text) {
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
    auto weights = model::dummy_weights(
        **device, model::small_config({0, 0}, tokenizer->vocab_size(), 4096), DType::kF32, 7);
    ASSERT_TRUE(weights.ok()) << weights.error().message;
    model_ = std::make_unique<engine::LoadedModel>(engine::LoadedModel{
        std::move(*device), nullptr, std::make_unique<model::Weights>(std::move(*weights)),
        std::move(*tokenizer), std::nullopt, engine::SamplingParams{}, std::nullopt});
    make_engine();
  }
  void make_engine() {
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
    auto server = HttpServer::listen(http, [this](const auto& request, const auto& responder) {
      service_->handle(request, responder);
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
inline std::vector<ordered_json> events(const std::string& body) {
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

}  // namespace polar::serve
