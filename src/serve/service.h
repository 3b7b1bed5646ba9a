#pragma once
// The server's routes: what is asked over HTTP, given to the engine, and answered.

#include <chrono>
#include <memory>
#include <string>
#include <unordered_set>

#include "engine/loaded_model.h"
#include "serve/answer.h"
#include "serve/http.h"
#include "serve/metrics.h"

namespace polar::serve {

struct ServiceOptions {
  std::string model_name;
  std::string version;
  std::string api_key;     // empty: nobody has to show one
  std::string point;       // default operating point by name; "auto": see choose_point()
  int max_waiting = 1024;  // answers under way beyond those that run together
};

/// All but the constructor is used on the server's thread (HttpServer::post).
class Service {
 public:
  explicit Service(ServiceOptions options) : options_(std::move(options)) {}

  /// The server whose thread this lives on; must outlive the engine, whose news go through it.
  void attach(HttpServer& server) { server_ = &server; }
  /// From now on requests are answered. Both must outlive the service's last call.
  void ready(const engine::LoadedModel& model, engine::Engine& engine);
  void drain() { draining_ = true; }
  void cancel_all();

  void handle(const HttpRequest& request, const std::shared_ptr<HttpResponder>& responder);

 private:
  using Responder = std::shared_ptr<HttpResponder>;

  /// `allow`: a header that a 405 needs.
  void refuse(const Responder& responder, const ApiError& error, std::string_view allow = {});
  void refuse_method(const HttpRequest& request, const Responder& responder);
  bool authorized(const HttpRequest& request) const;
  void get(const HttpRequest& request, const Responder& responder);
  void post(const HttpRequest& request, const Responder& responder);
  void complete(CompletionRequest request, const Responder& responder);
  void tokenize(const std::string& body, const Responder& responder);
  void detokenize(const std::string& body, const Responder& responder);
  ApiResult<std::vector<int32_t>> tokens_of(const CompletionRequest& request, const Prompt& prompt);
  ApiResult<std::string> render(const std::string& messages, const std::string& tools) const;
  ApiResult<int> choose_point(const std::string& asked, size_t prompt_tokens, int max_tokens) const;
  std::string point_name(int point) const;
  void news(const std::shared_ptr<CompletionAnswer>& answer);
  std::string models_json() const;
  std::string status_json() const;

  ServiceOptions options_;
  HttpServer* server_ = nullptr;
  const engine::LoadedModel* model_ = nullptr;  // null while loading
  engine::Engine* engine_ = nullptr;
  bool draining_ = false;
  ServerMetrics metrics_;
  std::unordered_set<std::shared_ptr<CompletionAnswer>> answers_;
  int64_t open_ = 0;  // generations under way
  uint64_t next_id_ = 0;
  // Bytes of a prompt. What is longer has too many tokens, and is refused without counting them:
  // other clients would wait for that. Four times what the tokens can spell, for normalizers.
  size_t most_text_ = 0;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

/// Whether two strings are equal, in a time that depends on the length of `given` alone.
bool equal_in_constant_time(std::string_view given, std::string_view secret);

}  // namespace polar::serve
