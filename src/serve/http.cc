#include "serve/http.h"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <csignal>
#include <optional>
#include <unordered_set>

namespace polar::serve {

namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

class Connection;

class Server final : public HttpServer {
 public:
  Server(HttpOptions options, HttpHandler handler)
      : options_(std::move(options)), handler_(std::move(handler)) {}

  Status open();
  int port() const override { return port_; }
  void run() override;
  void post(std::function<void()> task) override { asio::post(context_, std::move(task)); }
  void drain() override {
    asio::post(context_, [this] { begin_drain(); });
  }
  void stop() override {
    asio::post(context_, [this] { close_all(); });
  }

  // For connections.
  const HttpOptions& options() const { return options_; }
  const HttpHandler& handler() const { return handler_; }
  asio::io_context& context() { return context_; }
  bool draining() const { return draining_; }
  void remove(const std::shared_ptr<Connection>& connection);

 private:
  void accept();
  void begin_drain();
  void close_all();

  HttpOptions options_;
  HttpHandler handler_;
  asio::io_context context_{1};
  tcp::acceptor acceptor_{context_};
  asio::steady_timer timer_{context_};
  asio::signal_set signals_{context_};
  std::unordered_set<std::shared_ptr<Connection>> connections_;
  int port_ = 0;
  bool accepting_ = false;
  bool draining_ = false;
  bool stopped_ = false;
};

/// One client. Reads a request, hands it over, writes its answer, and begins again. While an answer
/// is under way it watches whether the client is still there.
class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Server& server, tcp::socket socket)
      : server_(server), socket_(std::move(socket)), timer_(server.context()) {}

  void read(bool first = false) {
    exchange_ = 0;
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(server_.options().max_header));
    parser_->body_limit(server_.options().max_body);
    limit(first ? server_.options().receive_seconds : server_.options().idle_seconds);
    http::async_read_header(
        socket_, buffer_, *parser_,
        [self = shared_from_this()](error_code error, size_t) { self->have_header(error); });
  }

  bool busy() const { return exchange_ != 0; }

  void close() {
    if (closed_) return;
    closed_ = true;
    error_code ignored;
    timer_.cancel(ignored);
    socket_.close(ignored);
    if (auto gone = std::exchange(gone_, nullptr); gone && !ended_) gone();
    server_.remove(shared_from_this());
  }

  // The answer to exchange number `exchange`; a responder that outlives it has no effect.
  void send(uint64_t exchange, int status, std::string_view type, const std::string& body,
            std::string_view headers) {
    if (!open(exchange) || begun_) return;
    head(status, type, fmt::format("Content-Length: {}\r\n{}", body.size(), headers));
    if (!is_head_) pending_ += body;
    finish();
  }
  void begin(uint64_t exchange, int status, std::string_view type) {
    if (!open(exchange) || begun_) return;
    chunked_ = version_ >= 11;
    keep_alive_ &= chunked_;
    head(status, type,
         chunked_ ? "Transfer-Encoding: chunked\r\nCache-Control: no-cache\r\n"
                  : "Cache-Control: no-cache\r\n");
    flush();
  }
  void write(uint64_t exchange, std::string_view piece) {
    if (!open(exchange) || !begun_ || piece.empty()) return;
    if (chunked_) pending_ += fmt::format("{:x}\r\n", piece.size());
    pending_ += piece;
    if (chunked_) pending_ += "\r\n";
    if (pending_.size() > server_.options().max_unread) return close();
    flush();
  }
  void end(uint64_t exchange) {
    if (!open(exchange) || !begun_) return;
    if (chunked_) pending_ += "0\r\n\r\n";
    finish();
  }
  void on_gone(uint64_t exchange, std::function<void()> gone) {
    if (exchange != exchange_ || ended_) return;
    if (closed_) return gone();
    gone_ = std::move(gone);
  }

 private:
  bool open(uint64_t exchange) const { return !closed_ && exchange == exchange_ && !ended_; }

  void limit(double seconds) {
    timer_.expires_after(milliseconds(seconds));
    timer_.async_wait([weak = weak_from_this()](error_code error) {
      const auto self = weak.lock();
      if (!error && self && self->timer_.expiry() <= asio::steady_timer::clock_type::now())
        self->close();
    });
  }

  void have_header(error_code error) {
    if (closed_) return;
    if (error) return have_request(error);
    limit(server_.options().receive_seconds);
    const auto expects = parser_->get()[http::field::expect];
    if (parser_->is_done() || expects.empty()) return read_body();
    pending_ = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(socket_, asio::buffer(pending_),
                      [self = shared_from_this()](error_code failed, size_t) {
                        self->pending_.clear();
                        if (failed) return self->close();
                        self->read_body();
                      });
  }

  void read_body() {
    if (closed_) return;
    http::async_read(
        socket_, buffer_, *parser_,
        [self = shared_from_this()](error_code error, size_t) { self->have_request(error); });
  }

  void have_request(error_code error) {
    if (closed_) return;
    error_code ignored;
    timer_.cancel(ignored);
    HttpRequest request;
    auto& message = parser_->get();
    if (error) {
      if (error.category() != make_error_code(http::error::bad_target).category() ||
          error == http::error::end_of_stream || error == http::error::partial_message)
        return close();
      const bool large = error == http::error::body_limit;
      const bool header = error == http::error::header_limit;
      request.refused = large ? 413 : header ? 431 : 400;
      request.refusal =
          large ? fmt::format("The body is larger than {} bytes.", server_.options().max_body)
          : header
              ? fmt::format("The header is larger than {} bytes.", server_.options().max_header)
              : "The request is not HTTP: " + error.message() + ".";
    }
    const auto target = message.target();
    request.method = std::string(message.method_string());
    request.path = std::string(target.substr(0, target.find('?')));
    request.authorization = std::string(message[http::field::authorization]);
    request.body = std::move(message.body());
    version_ = message.version();
    is_head_ = request.method == "HEAD";
    keep_alive_ = !error && message.keep_alive();
    begun_ = ended_ = chunked_ = false;
    exchange_ = ++last_exchange_;
    watch();
    server_.handler()(request, responder());
  }

  std::shared_ptr<HttpResponder> responder();

  void watch() {
    socket_.async_wait(tcp::socket::wait_read,
                       [self = shared_from_this(), exchange = exchange_](error_code error) {
                         if (error || self->closed_ || self->exchange_ != exchange || self->ended_)
                           return;
                         char byte;
                         error_code failed;
                         self->socket_.non_blocking(true, failed);
                         const size_t got = self->socket_.receive(
                             asio::buffer(&byte, 1), tcp::socket::message_peek, failed);
                         if (failed == asio::error::would_block) return self->watch();
                         if (failed || got == 0) self->close();
                         // Otherwise the next request is already here: a client that goes shows
                         // when writing fails.
                       });
  }

  static std::string_view reason(int status) {
    const auto text = http::obsolete_reason(static_cast<http::status>(status));
    return {text.data(), text.size()};
  }

  void head(int status, std::string_view type, std::string_view headers) {
    begun_ = true;
    keep_alive_ &= !server_.draining();
    pending_ +=
        fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\n{}Connection: {}\r\n\r\n", status,
                    reason(status), type, headers, keep_alive_ ? "keep-alive" : "close");
  }

  void finish() {
    ended_ = true;
    gone_ = nullptr;
    flush();
  }

  void flush() {
    if (writing_ || closed_) return;
    if (pending_.empty()) {
      // A stream that began before the drain promised to keep the connection.
      if (ended_) keep_alive_ && !server_.draining() ? read() : linger();
      return;
    }
    writing_ = true;
    out_ = std::exchange(pending_, {});
    limit(server_.options().receive_seconds);
    asio::async_write(socket_, asio::buffer(out_),
                      [self = shared_from_this()](error_code error, size_t) {
                        self->writing_ = false;
                        if (self->closed_) return;
                        if (error) return self->close();
                        error_code ignored;
                        self->timer_.cancel(ignored);
                        self->flush();
                      });
  }

  /// Says that nothing more comes and lets the client read to the end: closing at once while
  /// something of its request is unread would throw the answer away.
  void linger() {
    error_code failed;
    exchange_ = 0;
    socket_.shutdown(tcp::socket::shutdown_send, failed);
    if (failed) return close();
    limit(2);
    discard();
  }
  void discard() {
    socket_.async_read_some(asio::buffer(trash_),
                            [self = shared_from_this()](error_code error, size_t) {
                              if (self->closed_) return;
                              if (error) return self->close();
                              self->discard();
                            });
  }

  Server& server_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  boost::beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::string pending_, out_;
  std::array<char, 4096> trash_;
  std::function<void()> gone_;
  uint64_t exchange_ = 0, last_exchange_ = 0;  // 0: no request is being answered
  unsigned version_ = 11;
  bool keep_alive_ = false, is_head_ = false, chunked_ = false;
  bool begun_ = false, ended_ = false, writing_ = false, closed_ = false;
};

/// Holds its connection weakly: answers may outlive the server, and a connection must not, since
/// its socket and timer live in the server's context. While it is open the server holds it.
class Responder final : public HttpResponder {
 public:
  Responder(std::weak_ptr<Connection> connection, uint64_t exchange)
      : connection_(std::move(connection)), exchange_(exchange) {}
  void send(int status, std::string_view type, std::string body,
            std::string_view headers) override {
    if (const auto open = connection_.lock()) open->send(exchange_, status, type, body, headers);
  }
  void begin(int status, std::string_view type) override {
    if (const auto open = connection_.lock()) open->begin(exchange_, status, type);
  }
  void write(std::string_view piece) override {
    if (const auto open = connection_.lock()) open->write(exchange_, piece);
  }
  void end() override {
    if (const auto open = connection_.lock()) open->end(exchange_);
  }
  void on_gone(std::function<void()> gone) override {
    if (const auto open = connection_.lock()) return open->on_gone(exchange_, std::move(gone));
    gone();
  }

 private:
  std::weak_ptr<Connection> connection_;
  uint64_t exchange_;
};

std::shared_ptr<HttpResponder> Connection::responder() {
  return std::make_shared<Responder>(weak_from_this(), exchange_);
}

Status Server::open() {
  const std::string where = fmt::format("{}:{}", options_.host, options_.port);
  error_code error;
  tcp::resolver resolver(context_);
  const auto found =
      resolver.resolve(options_.host, std::to_string(options_.port), tcp::resolver::passive, error);
  if (error || found.empty())
    return bad_input("command line", "--host", "'" + options_.host + "'",
                     "an address of this host");
  const tcp::endpoint endpoint = *found.begin();
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(1024, error);
  if (!error) port_ = acceptor_.local_endpoint(error).port();
  if (error)
    return bad_input("command line", "--port", where + " (" + error.message() + ")",
                     "an address that is free");
  if (options_.handle_signals) {
    signals_.add(SIGTERM);
    signals_.add(SIGINT);
    signals_.async_wait([this](error_code failed, int) {
      if (!failed) begin_drain();
    });
  }
  return {};
}

void Server::run() {
  accept();
  context_.run();
}

void Server::accept() {
  if (accepting_ || draining_ || !acceptor_.is_open() ||
      connections_.size() >= static_cast<size_t>(options_.max_connections))
    return;
  accepting_ = true;
  acceptor_.async_accept([this](error_code error, tcp::socket socket) {
    accepting_ = false;
    if (draining_ || stopped_) return;
    if (error) {  // no descriptors left, perhaps: wait until some are given back
      timer_.expires_after(std::chrono::milliseconds(100));
      timer_.async_wait([this](error_code failed) {
        if (!failed) accept();
      });
      return;
    }
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    auto connection = std::make_shared<Connection>(*this, std::move(socket));
    connections_.insert(connection);
    connection->read(true);
    accept();
  });
}

void Server::remove(const std::shared_ptr<Connection>& connection) {
  connections_.erase(connection);
  if (stopped_) return;
  if (draining_ && connections_.empty()) return close_all();
  accept();
}

void Server::begin_drain() {
  if (draining_ || stopped_) return;
  draining_ = true;
  error_code ignored;
  acceptor_.close(ignored);
  timer_.cancel(ignored);
  if (options_.on_drain) options_.on_drain();
  const auto all = connections_;
  for (const auto& connection : all) {
    if (!connection->busy()) connection->close();
  }
  if (connections_.empty()) return close_all();
  timer_.expires_after(milliseconds(options_.drain_seconds));
  timer_.async_wait([this](error_code failed) {
    if (failed || stopped_) return;
    if (options_.on_drain_timeout) options_.on_drain_timeout();
    close_all();
  });
}

void Server::close_all() {
  if (stopped_) return;
  stopped_ = draining_ = true;
  error_code ignored;
  acceptor_.close(ignored);
  signals_.cancel(ignored);
  timer_.cancel(ignored);
  const auto all = std::exchange(connections_, {});
  for (const auto& connection : all) connection->close();
  context_.stop();
}

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::listen(HttpOptions options, HttpHandler handler) {
  auto server = std::make_unique<Server>(std::move(options), std::move(handler));
  POLAR_RETURN_IF_ERROR(server->open());
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace polar::serve
