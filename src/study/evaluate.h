#pragma once
// Quality, measured by the code that serves: perplexity of the same tokens dense and sparse
// (CONTRACT.md, `polar eval`).

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/decoder.h"

namespace polar::study {

/// Tokens cut into windows of `context` tokens, one after the other.
struct Windows {
  std::vector<int32_t> tokens;
  int context = 0;
  int count = 0;

  std::span<const int32_t> at(int window) const {
    return std::span(tokens).subspan(static_cast<size_t>(window) * context, context);
  }
};

/// The documents of a text: separated by lines that hold only the byte 0x1E.
std::vector<std::string> split_documents(const std::string& text);

/// Encodes each document alone and cuts all of them, concatenated, into windows; `limit` 0: all.
/// Errors: fewer tokens than one window.
Result<Windows> make_windows(const std::string& where, const std::vector<std::string>& documents,
                             const std::function<std::vector<int32_t>(const std::string&)>& encode,
                             int context, int limit);

struct EvaluateOptions {
  int prompt = 0;  // tokens of each window that are prefilled dense and not scored
  DType kv_dtype = DType::kF16;
  int rows_per_step = 256;
  /// Windows that advance in lock-step. A planner that chooses neurons sees one row of each window
  /// in a step, as a server's decode step has them; of one window, it sees each row alone.
  int batch = 1;
  /// When given, the dense half is not run again; KL and agreement are not measured then.
  double known_dense_perplexity = 0;
  std::function<void(int done, int windows)> progress;
};

/// Quality of the scored tokens at positions [begin, end) of their windows.
struct PositionBucket {
  int begin = 0, end = 0;
  int64_t tokens = 0;
  double dense_perplexity = 0, sparse_perplexity = 0;
  double kl = 0, agreement = 0;  // as in Evaluation
};

struct Evaluation {
  int64_t tokens = 0;  // scored
  double dense_perplexity = 0;
  double sparse_perplexity = 0;
  double kl = 0;         // mean KL(dense || sparse) per scored token, nats
  double agreement = 0;  // share of scored tokens whose likeliest next token is the same
  double kv_bytes = 0, dense_kv_bytes = 0;  // read by the scored rows, page indices included
  double neuron_share = 1;  // neurons computed / all, over the steps of scored rows and layers
  /// Eighths of the context that hold scored tokens, in their order.
  std::vector<PositionBucket> positions;

  double ratio() const { return sparse_perplexity / dense_perplexity; }
  double effective_density() const { return dense_kv_bytes > 0 ? kv_bytes / dense_kv_bytes : 1.0; }
};

/// Scores every token of every window but its first (and but the prompt), dense and with `planner`,
/// side by side. Without a planner only the dense half runs.
Result<Evaluation> evaluate(backend::Device& device, const model::Weights& weights,
                            const Windows& windows, model::Planner* planner,
                            const EvaluateOptions& options);

}  // namespace polar::study
