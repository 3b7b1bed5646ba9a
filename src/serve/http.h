#pragma once
// A small HTTP/1.1 server: one thread serves every connection. Boost.Beast stays behind this header
// (http.cc is the only file that includes it).

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "core/error.h"

namespace polar::serve {

/// One request, whole. `refused` is not 0 when it could not be read: the status that says why, with
/// a sentence in `refusal`; the connection closes after the answer.
struct HttpRequest {
  std::string method;
  std::string path;  // without the query
  std::string authorization;
  std::string body;
  int refused = 0;
  std::string refusal;
};

/// Where the answer to one request goes. Used on the server's thread only; may be kept for as long
/// as the answer takes. After the client has gone, calls do nothing.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  /// The whole answer. `headers`: further lines, each ended by CR LF.
  virtual void send(int status, std::string_view content_type, std::string body,
                    std::string_view headers = {}) = 0;
  /// An answer in pieces: begin, any number of writes, end.
  virtual void begin(int status, std::string_view content_type) = 0;
  virtual void write(std::string_view piece) = 0;
  virtual void end() = 0;
  /// Called once if the client goes away (or reads too slowly) before the answer has ended.
  virtual void on_gone(std::function<void()> gone) = 0;
};

using HttpHandler = std::function<void(const HttpRequest&, const std::shared_ptr<HttpResponder>&)>;

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8000;                      // 0: any free one
  size_t max_header = 32 << 10;         // bytes
  size_t max_body = 64 << 20;           // bytes
  size_t max_unread = 8 << 20;          // bytes of an answer that wait for a slow reader
  int max_connections = 4096;           // further ones wait in the kernel's queue
  double receive_seconds = 30;          // for a request to arrive, and for a write to make way
  double idle_seconds = 75;             // between two requests of a connection
  double drain_seconds = 30;            // for answers to end after a signal to terminate
  bool handle_signals = false;          // SIGTERM and SIGINT drain
  std::function<void()> on_drain = {};  // when that begins, on the server's thread
  std::function<void()> on_drain_timeout = {};  // answers are still open and will be cut
};

class HttpServer {
 public:
  /// Binds and listens; nothing is answered before run(). Errors: an address that cannot be had.
  static Result<std::unique_ptr<HttpServer>> listen(HttpOptions options, HttpHandler handler);
  virtual ~HttpServer() = default;

  virtual int port() const = 0;
  /// Serves on the calling thread until the server has drained or stopped.
  virtual void run() = 0;
  /// From any thread: runs `task` on the server's thread.
  virtual void post(std::function<void()> task) = 0;
  /// From any thread: accepts no more, waits for the answers that are under way, and ends run().
  virtual void drain() = 0;
  /// From any thread: closes everything and ends run().
  virtual void stop() = 0;
};

}  // namespace polar::serve
