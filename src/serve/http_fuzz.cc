// Any bytes on a connection, through the real server on a loopback socket: what it makes of them
// keeps the limits, what it answers is HTTP, and it goes on. The input's first byte says how many
// pieces the rest arrives in.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>

#include "core/error.h"
#include "serve/service.h"

namespace {

using namespace polar::serve;

/// A server for the life of the process: the service's routes without a model, and bodies of POST
/// read as completions and answered as a stream.
class FuzzedServer {
 public:
  FuzzedServer() : service_(options()) {
    HttpOptions http;
    http.port = 0;
    http.max_header = 2048;
    http.max_body = 4096;
    auto server = HttpServer::listen(http, [this](const auto& request, const auto& responder) {
      POLAR_CHECK(request.path.size() <= 2048 && request.body.size() <= 4096);
      if (request.refused == 0 && request.method == "POST") return stream(request, *responder);
      service_.handle(request, responder);
    });
    POLAR_CHECK(server.ok());
    server_ = std::move(*server);
    service_.attach(*server_);
    thread_ = std::thread([this] { server_->run(); });
  }
  ~FuzzedServer() {
    server_->stop();
    thread_.join();
  }
  int port() const { return server_->port(); }

 private:
  static ServiceOptions options() {
    ServiceOptions options;
    options.model_name = "fuzz";
    options.api_key = "k";
    return options;
  }
  static void stream(const HttpRequest& request, HttpResponder& responder) {
    const auto parsed = parse_completion(request.body, request.path.size() % 2 == 0, {});
    if (const auto* error = std::get_if<ApiError>(&parsed))
      return responder.send(error->status, "application/json", error->json());
    responder.begin(200, "text/event-stream");
    responder.write("data: " + request.path + "\n\n");
    responder.end();
  }

  Service service_;
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

std::string exchange(int port, std::string_view text, size_t pieces) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  POLAR_CHECK(socket >= 0);
  POLAR_CHECK(::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  const size_t piece = text.size() / pieces + 1;
  for (size_t at = 0; at < text.size(); at += piece) {
    const std::string_view part = text.substr(at, piece);
    if (::send(socket, part.data(), part.size(), MSG_NOSIGNAL) <= 0) break;  // it closed
  }
  ::shutdown(socket, SHUT_WR);
  std::string answer;
  char buffer[4096];
  for (ssize_t got; (got = ::recv(socket, buffer, sizeof(buffer), 0)) > 0;)
    answer.append(buffer, static_cast<size_t>(got));
  ::close(socket);
  return answer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static FuzzedServer server;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string answer = exchange(server.port(), text, size_t{1} + data[0] % 4);
  POLAR_CHECK(answer.empty() || answer.starts_with("HTTP/1.1 "));
  // Whatever came, the next client is served.
  if (data[0] % 16 == 0) {
    const std::string next = exchange(server.port(), "GET /version HTTP/1.1\r\n\r\n", 1);
    POLAR_CHECK(next.starts_with("HTTP/1.1 200 "));
  }
  return 0;
}
