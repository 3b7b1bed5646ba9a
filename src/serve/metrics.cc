#include "serve/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace polar::serve {

namespace {

/// A label's value as the format wants it.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

std::string one(const char* type, const std::string& name, const std::string& labels,
                double value) {
  return fmt::format("# TYPE {0} {1}\n{0}{{{2}}} {3}\n", name, type, labels, value);
}

}  // namespace

void Histogram::add(double value, int64_t times) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(at)] += times;
  sum_ += value * static_cast<double>(times);
  total_ += times;
}

std::string Histogram::text(const std::string& name, const std::string& labels) const {
  std::string out = fmt::format("# TYPE {} histogram\n", name);
  int64_t count = 0;
  for (size_t i = 0; i < bounds_.size(); ++i) {
    count += counts_[i];
    out += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bounds_[i], count);
  }
  out +=
      fmt::format("{0}_bucket{{{1},le=\"+Inf\"}} {2}\n{0}_sum{{{1}}} {3}\n{0}_count{{{1}}} {2}\n",
                  name, labels, total_, sum_);
  return out;
}

namespace {
const std::vector<double> kRequestBounds = {0.3, 0.5, 0.8, 1,  1.5, 2,  2.5, 5,   10,
                                            15,  20,  30,  40, 50,  60, 120, 240, 480};
}  // namespace

ServerMetrics::ServerMetrics()
    : first_token({0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5,
                   10, 20, 40, 80}),
      inter_token({0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                   0.75, 1, 2.5}),
      end_to_end(kRequestBounds),
      queue(kRequestBounds),
      prefill(kRequestBounds),
      decode(kRequestBounds),
      first_token_steps({1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256}) {}

std::string metrics_text(const ServerMetrics& metrics, const engine::EngineStats* stats,
                         const std::string& model) {
  const std::string labels = fmt::format("model_name=\"{}\"", escaped(model));
  std::string out;
  if (stats != nullptr) {
    const engine::EngineStats& s = *stats;
    const auto gauge = [&](const char* name, double value) {
      out += one("gauge", name, labels, value);
    };
    const auto counter = [&](const char* name, double value) {
      out += one("counter", name, labels, value);
    };
    gauge("vllm:num_requests_running", s.running);
    gauge("vllm:num_requests_waiting", s.waiting);
    gauge("vllm:kv_cache_usage_perc",
          s.pages == 0 ? 0 : double(s.pages - s.free_pages) / double(s.pages));
    out += one("gauge", "vllm:cache_config_info",
               fmt::format("{},block_size=\"16\",num_gpu_blocks=\"{}\"", labels, s.pages), 1);
    counter("vllm:prompt_tokens_total", double(s.prompt_tokens));
    counter("vllm:generation_tokens_total", double(s.output_tokens));
    counter("vllm:prefix_cache_queries_total", double(s.prompt_tokens));
    counter("vllm:prefix_cache_hits_total", double(s.cached_tokens));
    counter("vllm:num_preemptions_total", double(s.preemptions));
    counter("polar:engine_steps_total", double(s.steps));
    counter("polar:requests_total", double(s.requests));
    counter("polar:requests_finished_total", double(s.finished));
    counter("polar:requests_cancelled_total", double(s.cancelled));
    counter("polar:kv_bytes_read_total", s.kv_bytes_read);
    counter("polar:kv_bytes_skipped_total", std::max(0.0, s.kv_bytes_dense - s.kv_bytes_read));
    gauge("polar:kv_density", s.kv_bytes_dense > 0 ? s.kv_bytes_read / s.kv_bytes_dense : 1);
    gauge("polar:head_density",
          s.kv_blocks_dense > 0 ? double(s.kv_blocks_read) / double(s.kv_blocks_dense) : 1);
    gauge("polar:neuron_density", s.neuron_density);
    if (s.plan_seconds) counter("polar:router_seconds_total", *s.plan_seconds);
    gauge("polar:pages_cached", s.cached_pages);
  }
  out += "# TYPE vllm:request_success_total counter\n";
  const char* const reasons[] = {"stop", "length"};
  for (int i = 0; i < 2; ++i) {
    out += fmt::format("vllm:request_success_total{{{},finished_reason=\"{}\"}} {}\n", labels,
                       reasons[i], metrics.succeeded[i]);
  }
  out += metrics.first_token.text("vllm:time_to_first_token_seconds", labels);
  out += metrics.inter_token.text("vllm:inter_token_latency_seconds", labels);
  out += metrics.end_to_end.text("vllm:e2e_request_latency_seconds", labels);
  out += metrics.queue.text("vllm:request_queue_time_seconds", labels);
  out += metrics.prefill.text("vllm:request_prefill_time_seconds", labels);
  out += metrics.decode.text("vllm:request_decode_time_seconds", labels);
  out += metrics.first_token_steps.text("polar:first_token_steps", labels);
  out += one("counter", "polar:clients_gone_total", labels, double(metrics.gone));
  out += one("counter", "polar:requests_refused_total", labels, double(metrics.refused));
  out += one("counter", "polar:queue_full_total", labels, double(metrics.queue_full));
  return out;
}

}  // namespace polar::serve
