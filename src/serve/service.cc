#include "serve/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

#include "serve/profile_json.h"
#include "serve/web.h"

namespace polar::serve {

namespace {

using nlohmann::ordered_json;

constexpr std::string_view kJson = "application/json";
constexpr size_t kMostTokenized = 1 << 20;  // bytes of text for /tokenize, whatever the context
constexpr std::string_view kPostRoutes[] = {"/v1/completions", "/v1/chat/completions", "/tokenize",
                                            "/detokenize"};
/// Beside the page's files.
constexpr std::string_view kGetRoutes[] = {"/health",    "/version",      "/metrics",
                                           "/v1/models", "/polar/status", "/polar/profile"};
/// The page needs nothing but its own files, and nobody else may put it into a frame.
constexpr std::string_view kPageHeaders =
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Cache-Control: no-cache\r\n";

std::string dump(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

uint64_t random_seed() {
  static std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

}  // namespace

bool equal_in_constant_time(std::string_view given, std::string_view secret) {
  unsigned differs = given.size() != secret.size();
  for (size_t i = 0; i < given.size(); ++i) {
    const char other = secret.empty() ? '\0' : secret[i % secret.size()];
    differs |= static_cast<unsigned char>(given[i] ^ other);
  }
  return differs == 0;
}

void Service::ready(const engine::LoadedModel& model, engine::Engine& engine) {
  model_ = &model;
  engine_ = &engine;
  size_t longest = 1;
  for (int id = 0; id < model.tokenizer.vocab_size(); ++id)
    longest = std::max(longest, model.tokenizer.piece(id).size());
  most_text_ = 4 * longest * static_cast<size_t>(engine.max_length());
}

void Service::cancel_all() {
  for (const auto& answer : answers_) answer->cancel();
}

void Service::refuse(const Responder& responder, const ApiError& error, std::string_view allow) {
  if (error.status < 500) ++metrics_.refused;
  if (error.status == 429) ++metrics_.queue_full;
  const std::string_view headers = error.status == 429 || error.status == 503 ? "Retry-After: 1\r\n"
                                   : error.status == 401 ? "WWW-Authenticate: Bearer\r\n"
                                                         : allow;
  responder->send(error.status, kJson, error.json(), headers);
}

bool Service::authorized(const HttpRequest& request) const {
  constexpr std::string_view kBearer = "Bearer ";
  if (options_.api_key.empty()) return true;
  std::string_view given = request.authorization;
  if (!given.starts_with(kBearer)) return false;
  given.remove_prefix(kBearer.size());
  return equal_in_constant_time(given, options_.api_key);
}

void Service::handle(const HttpRequest& request, const Responder& responder) {
  if (request.refused != 0)
    return refuse(responder, {request.refused, request.refusal, "", "bad_request"});
  const bool is_get = request.method == "GET" || request.method == "HEAD";
  if (is_get &&
      (request.path == "/health" || request.path == "/metrics" || request.path == "/version"))
    return get(request, responder);  // probes and scrapers have no key
  if (const WebFile* file = is_get ? find_web_file(request.path) : nullptr; file != nullptr)
    return responder->send(200, file->type, std::string(file->body), kPageHeaders);
  if (!authorized(request))
    return refuse(responder, {401, "The API key is missing or wrong.", "", "invalid_api_key"});
  if (is_get) return get(request, responder);
  if (request.method == "POST") return post(request, responder);
  refuse_method(request, responder);
}

/// What asks for a route with a method that it does not have: 405, or 404 where there is no route.
void Service::refuse_method(const HttpRequest& request, const Responder& responder) {
  const auto is = [&](std::string_view path) { return request.path == path; };
  const bool posts = std::any_of(std::begin(kPostRoutes), std::end(kPostRoutes), is);
  const bool gets = std::any_of(std::begin(kGetRoutes), std::end(kGetRoutes), is) ||
                    find_web_file(request.path) != nullptr;
  if (!posts && !gets)
    return refuse(responder, {404, "Nothing is found at " + request.path + ".", "", "not_found"});
  refuse(responder,
         {405,
          fmt::format("{} takes {}, not {}.", request.path, posts ? "POST" : "GET", request.method),
          "", "method_not_allowed"},
         posts ? "Allow: POST\r\n" : "Allow: GET, HEAD\r\n");
}

void Service::get(const HttpRequest& request, const Responder& responder) {
  if (request.path == "/health") {
    if (model_ == nullptr || draining_)
      return refuse(responder,
                    {503, draining_ ? "The server is draining." : "The model is loading.", "",
                     "unavailable"});
    return responder->send(200, kJson, R"({"status":"ok"})");
  }
  if (request.path == "/version")
    return responder->send(200, kJson, dump({{"version", options_.version}}));
  if (request.path == "/metrics") {
    std::optional<engine::EngineStats> stats;
    if (engine_ != nullptr) stats = engine_->stats();
    return responder->send(200, "text/plain; version=0.0.4; charset=utf-8",
                           metrics_text(metrics_, stats ? &*stats : nullptr, options_.model_name));
  }
  if (request.path == "/v1/models") return responder->send(200, kJson, models_json());
  if (request.path == "/polar/status") return responder->send(200, kJson, status_json());
  if (request.path == "/polar/profile") {
    if (model_ == nullptr)
      return refuse(responder, {503, "The model is loading.", "", "unavailable"});
    return responder->send(200, kJson, profile_json(*model_, engine_->config()));
  }
  refuse_method(request, responder);
}

std::string Service::models_json() const {
  ordered_json model = {{"id", options_.model_name},
                        {"object", "model"},
                        {"created", static_cast<int64_t>(std::time(nullptr))},
                        {"owned_by", "polar"}};
  if (engine_ != nullptr) {
    model["max_model_len"] = engine_->max_length();
    ordered_json points = ordered_json::array();
    if (model_->profile) {
      for (const auto& point : model_->profile->points) {
        points.push_back({{"name", point.name},
                          {"perplexity_ratio", point.quality.perplexity_ratio},
                          {"kv_density", point.quality.effective_density}});
      }
    } else {
      points.push_back({{"name", "dense"}});
    }
    model["polar"] = {{"points", std::move(points)}, {"default_point", options_.point}};
  }
  return dump({{"object", "list"}, {"data", ordered_json::array({std::move(model)})}});
}

/// The numbers of /metrics that a page draws, cheap enough to be asked once a second.
std::string Service::status_json() const {
  const auto up = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_);
  ordered_json json = {{"state", draining_           ? "draining"
                                 : model_ == nullptr ? "loading"
                                                     : "ready"},
                       {"seconds", up.count()},
                       {"model", options_.model_name},
                       {"version", options_.version}};
  if (engine_ != nullptr) {
    const engine::EngineStats s = engine_->stats();
    json.update({{"running", s.running},
                 {"waiting", s.waiting},
                 {"max_batch", engine_->max_batch()},
                 {"max_model_len", engine_->max_length()},
                 {"pages", s.pages},
                 {"pages_used", s.pages - s.free_pages},
                 {"prompt_tokens", s.prompt_tokens},
                 {"output_tokens", s.output_tokens},
                 {"kv_bytes_read", s.kv_bytes_read},
                 {"kv_bytes_dense", s.kv_bytes_dense}});
  }
  return dump(json);
}

void Service::post(const HttpRequest& request, const Responder& responder) {
  const bool chat = request.path == "/v1/chat/completions";
  if (std::find(std::begin(kPostRoutes), std::end(kPostRoutes), request.path) ==
      std::end(kPostRoutes))
    return refuse_method(request, responder);
  if (model_ == nullptr || draining_)
    return refuse(responder, {503, draining_ ? "The server is draining." : "The model is loading.",
                              "", "unavailable"});
  if (request.path == "/tokenize") return tokenize(request.body, responder);
  if (request.path == "/detokenize") return detokenize(request.body, responder);
  auto parsed = parse_completion(request.body, chat, model_->defaults);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return refuse(responder, *error);
  complete(std::get<CompletionRequest>(std::move(parsed)), responder);
}

ApiResult<std::string> Service::render(const std::string& messages,
                                       const std::string& tools) const {
  if (!model_->chat)
    return ApiError{400, "messages: found some, expected a model with a chat template", "messages",
                    "no_chat_template"};
  auto text = model_->chat->render(ordered_json::parse(messages),
                                   tools.empty() ? ordered_json() : ordered_json::parse(tools));
  if (!text.ok()) return ApiError{400, text.error().message, "messages", "chat_template"};
  return std::move(text).value();
}

ApiResult<std::vector<int32_t>> Service::tokens_of(const CompletionRequest& request,
                                                   const Prompt& prompt) {
  if (const auto* tokens = std::get_if<std::vector<int32_t>>(&prompt)) return *tokens;
  const auto& text = std::get<std::string>(prompt);
  if (text.size() > most_text_)
    return ApiError{400,
                    fmt::format("prompt: found {} bytes, expected at most {}, more than {} tokens "
                                "can be",
                                text.size(), most_text_, engine_->max_length()),
                    request.chat ? "messages" : "prompt", "invalid_value"};
  if (request.chat || !request.add_special_tokens) return model_->tokenizer.encode(text, false);
  return model_->encode_prompt(text);
}

/// "auto" is the default sparse point, but dense for a request whose prompt and output leave the
/// context lengths that the profile was measured for, and where the point reads nearly everything.
ApiResult<int> Service::choose_point(const std::string& asked, size_t prompt_tokens,
                                     int max_tokens) const {
  const std::string& name = asked.empty() ? options_.point : asked;
  if (name == "auto") {
    if (!model_->profile) return 0;
    const auto longest =
        static_cast<int64_t>(prompt_tokens) + std::min(max_tokens, engine_->max_length());
    const sparsity::Profile& profile = *model_->profile;
    if (longest < profile.context_min) return 0;
    if (profile.context_max > 0 && longest > profile.context_max) return 0;
    const int point = model_->point("").value();
    const sparsity::Quality& quality = profile.points[static_cast<size_t>(point)].quality;
    // What it costs to plan is not won back where next to nothing is skipped.
    const bool measured = quality.perplexity_ratio > 0;
    return measured && quality.effective_density > 0.95 ? 0 : point;
  }
  auto point = model_->point(name);
  if (point.ok()) return *point;
  std::string names = "dense, auto";
  for (size_t i = 1; model_->profile && i < model_->profile->points.size(); ++i)
    names += ", " + model_->profile->points[i].name;
  return ApiError{400, fmt::format("polar.point: found '{}', expected one of {}", name, names),
                  "polar.point", "invalid_value"};
}

std::string Service::point_name(int point) const {
  return model_->profile ? model_->profile->points[static_cast<size_t>(point)].name : "dense";
}

void Service::complete(CompletionRequest request, const Responder& responder) {
  if (!request.model.empty() && request.model != options_.model_name)
    return refuse(responder, {404, fmt::format("The model '{}' does not exist.", request.model),
                              "model", "model_not_found"});
  if (request.chat) {
    auto text = render(request.messages, request.tools);
    if (const auto* error = std::get_if<ApiError>(&text)) return refuse(responder, *error);
    request.prompts.emplace_back(std::get<std::string>(std::move(text)));
  }
  const auto wanted = static_cast<int64_t>(request.prompts.size()) * request.n;
  if (open_ > 0 && open_ + wanted > options_.max_waiting + engine_->max_batch())
    return refuse(responder, {429, "The queue is full.", "", "queue_full"});

  const std::string id = fmt::format("{}-{:016x}{:04x}", request.chat ? "chatcmpl" : "cmpl",
                                     random_seed(), ++next_id_);
  const std::string asked = request.point;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<int> points;
  for (const Prompt& prompt : request.prompts) {
    auto tokens = tokens_of(request, prompt);
    if (const auto* error = std::get_if<ApiError>(&tokens)) return refuse(responder, *error);
    prompts.push_back(std::get<std::vector<int32_t>>(std::move(tokens)));
    if (prompts.back().size() > static_cast<size_t>(engine_->max_length()))  // before the next one
      return refuse(responder, {400,
                                fmt::format("prompt: found {} tokens, expected at most {}",
                                            prompts.back().size(), engine_->max_length()),
                                request.chat ? "messages" : "prompt", "invalid_value"});
    const auto point = choose_point(asked, prompts.back().size(), request.request.max_tokens);
    if (const auto* error = std::get_if<ApiError>(&point)) return refuse(responder, *error);
    points.push_back(std::get<int>(point));
  }
  request.point = point_name(points[0]);
  const CompletionRequest ask = request;
  auto answer = std::make_shared<CompletionAnswer>(std::move(request), id, options_.model_name,
                                                   model_->tokenizer, metrics_, responder);
  const uint64_t seed = ask.seed ? *ask.seed : random_seed();
  for (size_t p = 0; p < prompts.size(); ++p) {
    for (int i = 0; i < ask.n; ++i) {
      engine::GenerationRequest one = ask.request;
      one.prompt = prompts[p];
      one.point = points[p];
      one.sampling.seed = seed + static_cast<uint64_t>(i);
      // On the engine's thread, which must not hold the answer: letting go of it last would end the
      // answer, and with it a connection, there.
      one.on_news = [this, weak = std::weak_ptr(answer), scheduled = answer->scheduled] {
        if (scheduled->exchange(true)) return;
        server_->post([this, weak] {
          if (const auto strong = weak.lock()) news(strong);
        });
      };
      auto generation = engine_->submit(std::move(one));
      if (!generation.ok()) {
        answer->cancel();
        return refuse(responder, from_engine(generation.error()));
      }
      answer->add_choice(std::move(generation).value(), ask.prompts[p], prompts[p]);
    }
  }
  answers_.insert(answer);
  open_ += wanted;
  responder->on_gone([this, weak = std::weak_ptr(answer)] {
    ++metrics_.gone;
    if (const auto strong = weak.lock()) strong->cancel();
  });
  answer->begin();
  news(answer);  // what came before the answer was kept
}

void Service::news(const std::shared_ptr<CompletionAnswer>& answer) {
  if (!answers_.contains(answer)) return;
  const int before = answer->open_choices();
  const bool over = answer->pump();
  open_ -= before - answer->open_choices();
  if (over) answers_.erase(answer);
}

void Service::tokenize(const std::string& body, const Responder& responder) {
  auto parsed = parse_tokenize(body);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return refuse(responder, *error);
  auto& request = std::get<TokenizeRequest>(parsed);
  const bool chat = !request.prompt;
  auto text = chat ? render(request.messages, request.tools)
                   : ApiResult<std::string>(std::move(*request.prompt));
  if (const auto* error = std::get_if<ApiError>(&text)) return refuse(responder, *error);
  const auto& whole = std::get<std::string>(text);
  const size_t most = std::max(most_text_, kMostTokenized);
  if (whole.size() > most)
    return refuse(
        responder,
        {400, fmt::format("prompt: found {} bytes, expected at most {}", whole.size(), most),
         chat ? "messages" : "prompt", "invalid_value"});
  const auto tokens = model_->tokenizer.encode(whole, !chat && request.add_special_tokens);
  responder->send(200, kJson,
                  dump({{"count", tokens.size()},
                        {"max_model_len", engine_->max_length()},
                        {"tokens", tokens}}));
}

void Service::detokenize(const std::string& body, const Responder& responder) {
  auto parsed = parse_detokenize(body);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return refuse(responder, *error);
  const auto& tokens = std::get<std::vector<int32_t>>(parsed);
  const int32_t largest = engine_->config().vocabulary - 1;
  for (const int32_t token : tokens) {
    if (token <= largest) continue;
    return refuse(responder,
                  {400, fmt::format("tokens: found {}, expected ids from 0 to {}", token, largest),
                   "tokens", "invalid_value"});
  }
  responder->send(200, kJson, dump({{"prompt", model_->tokenizer.decode(tokens, false)}}));
}

}  // namespace polar::serve
