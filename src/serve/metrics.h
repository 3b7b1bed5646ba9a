#pragma once
// What GET /metrics says, in Prometheus' text format: vLLM's names where there are any, since
// dashboards and gateways know them, and Polar's own beside them.

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace polar::serve {

/// Counts of values up to each bound, as Prometheus wants them.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds)
      : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void add(double value, int64_t times = 1);
  std::string text(const std::string& name, const std::string& labels) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;  // of values up to a bound and above the one before; last: the rest
  double sum_ = 0;
  int64_t total_ = 0;
};

/// What the server itself measures; times in seconds. Used on the server's thread only.
struct ServerMetrics {
  ServerMetrics();
  Histogram first_token, inter_token, end_to_end, queue, prefill, decode;
  Histogram first_token_steps;  // of the engine, from taking a request to its first token
  int64_t succeeded[2] = {};    // ended by "stop", by "length"
  int64_t gone = 0;             // clients that went away
  int64_t refused = 0;          // answers with a 4xx
  int64_t queue_full = 0;       // of them 429
};

/// `stats` null while the model is loading.
std::string metrics_text(const ServerMetrics& metrics, const engine::EngineStats* stats,
                         const std::string& model);

}  // namespace polar::serve
