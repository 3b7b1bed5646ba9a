// polar serve: an OpenAI server in front of one engine.

#include "serve/service.h"

#include <fmt/format.h>
#include <pthread.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "cli/open_model.h"

namespace polar::cli {

namespace {

struct ServeFlags {
  ModelFlags model;
  serve::HttpOptions http;
  serve::ServiceOptions service;
  double max_body_mib = 64;
};

/// The name under which clients know the model: the last part of its path.
std::string default_name(const std::string& path) {
  std::filesystem::path name(path);
  if (!name.has_filename()) name = name.parent_path();
  return name.filename().string();
}

Result<int> serve(ServeFlags flags) {
  if (flags.service.model_name.empty()) flags.service.model_name = default_name(flags.model.model);
  if (const char* key = std::getenv("POLAR_API_KEY");
      key != nullptr && flags.service.api_key.empty())
    flags.service.api_key = key;
  flags.service.version = POLAR_VERSION;
  // The default point is the profile's first sparse one; `auto` is resolved request by request.
  flags.service.point = flags.model.point;
  if (flags.model.point == "auto") flags.model.point.clear();
  flags.http.max_body = static_cast<size_t>(flags.max_body_mib * 1048576.0);
  flags.http.handle_signals = true;

  // In the order of their lives: the engine's news go through the server to the service.
  serve::Service service(flags.service);
  flags.http.on_drain = [&service] { service.drain(); };
  flags.http.on_drain_timeout = [&service] { service.cancel_all(); };
  POLAR_ASSIGN(
      const std::unique_ptr<serve::HttpServer> server,
      serve::HttpServer::listen(flags.http, [&service](const auto& request, const auto& responder) {
        service.handle(request, responder);
      }));
  service.attach(*server);
  std::thread thread([&server] {
    ::pthread_setname_np(::pthread_self(), "polar-http");  // so that its share can be told
    server->run();
  });
  Result<OpenModel> open = open_model(flags.model);
  if (!open.ok()) {
    server->stop();
    thread.join();
    return open.error();
  }
  server->post([&] {
    service.ready(*open->model, *open->engine);
    fmt::print(stderr, "polar: serving {} at http://{}:{}\n", flags.service.model_name,
               flags.http.host, server->port());
  });
  thread.join();
  open->engine.reset();  // before the server that its news go to
  return kOk;
}

}  // namespace

void add_serve(CLI::App& app, Run& run) {
  auto* command =
      app.add_subcommand("serve", "Answer OpenAI's HTTP API; SIGTERM drains and ends it");
  auto flags = std::make_shared<ServeFlags>();
  add_model_flags(*command, flags->model);
  command->add_option("--host", flags->http.host, "Address to listen on")->capture_default_str();
  command->add_option("--port", flags->http.port, "Port to listen on; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command->add_option("--served-model-name", flags->service.model_name,
                      "Name for clients (default: the last part of MODEL)");
  command->add_option("--api-key", flags->service.api_key,
                      "Key that clients must send (default: POLAR_API_KEY of the environment)");
  command
      ->add_option("--max-waiting", flags->service.max_waiting,
                   "Answers that may wait for a place in the batch; more are refused with 429")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--max-connections", flags->http.max_connections, "Most open connections")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--max-body", flags->max_body_mib, "Largest body of a request in MiB")
      ->check(CLI::Range(0.001, 1024.0))
      ->capture_default_str();
  command
      ->add_option("--drain-seconds", flags->http.drain_seconds,
                   "Time for answers to end after SIGTERM")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  command->callback([flags, &run] { run = [flags] { return serve(*flags); }; });
}

}  // namespace polar::cli
