#include <fmt/format.h>
#include <unistd.h>

#include "cli/open_device.h"
#include "cli/policy_flags.h"
#include "cli/read_file.h"
#include "cli/table.h"
#include "engine/load_tokenizer.h"
#include "study/evaluate.h"

namespace polar::cli {

namespace {

struct EvalFlags {
  ModelFlags model;
  PolicyFlags policy;
  std::string text;
  int context = 1024;
  int windows = 0;
  int prompt = 0;
  int batch = 1;
  Format format = Format::kMarkdown;
};

nlohmann::ordered_json to_json(const study::Evaluation& result, bool sparse) {
  nlohmann::ordered_json json = {{"tokens", result.tokens},
                                 {"dense", {{"perplexity", result.dense_perplexity}}}};
  if (!sparse) return json;
  json["sparse"] = {{"perplexity", result.sparse_perplexity}};
  json["ratio"] = result.ratio();
  json["kl"] = result.kl;
  json["agreement"] = result.agreement;
  json["effective_density"] = result.effective_density();
  json["neuron_share"] = result.neuron_share;
  return json;
}

/// The same result on one flat row, for tables.
nlohmann::ordered_json to_row(const study::Evaluation& result, const Sparse& sparse) {
  nlohmann::ordered_json row = {{"policy", sparse.name},
                                {"tokens", result.tokens},
                                {"dense_perplexity", result.dense_perplexity}};
  if (sparse.planner == nullptr) return row;
  row["sparse_perplexity"] = result.sparse_perplexity;
  row["ratio"] = result.ratio();
  row["kl"] = result.kl;
  row["agreement"] = result.agreement;
  row["effective_density"] = result.effective_density();
  row["neuron_share"] = result.neuron_share;
  return row;
}

Result<int> eval(const EvalFlags& flags) {
  POLAR_ASSIGN(const study::Policy policy, read_policy(flags.policy));
  if (flags.prompt >= flags.context) {
    return bad_input("command line", "--prompt", std::to_string(flags.prompt),
                     "less than --context " + std::to_string(flags.context));
  }
  POLAR_ASSIGN(const std::string text, read_file(flags.text));
  POLAR_ASSIGN(const auto file, model::ModelFile::open(flags.model.model));
  if (flags.context > file.config().max_positions) {
    return bad_input(
        "command line", "--context", std::to_string(flags.context),
        fmt::format("at most {}, the model's longest context", file.config().max_positions));
  }
  POLAR_ASSIGN(const text::Tokenizer tokenizer, engine::load_tokenizer(file));
  const auto encode = [&](const std::string& document) { return tokenizer.encode(document, true); };
  POLAR_ASSIGN(const study::Windows windows,
               study::make_windows(flags.text, study::split_documents(text), encode, flags.context,
                                   flags.windows));
  POLAR_ASSIGN(auto device, open_device(flags.model));
  POLAR_ASSIGN(const model::Weights weights, model::load_weights(*device, file));
  POLAR_ASSIGN(const Sparse sparse,
               make_sparse(flags.model, policy, *device, file.config(), &file));
  study::EvaluateOptions options;
  options.prompt = flags.prompt;
  options.batch = flags.batch;
  options.kv_dtype = kv_dtype(flags.model, *device);
  if (isatty(STDERR_FILENO)) {
    options.progress = [](int done, int count) {
      fmt::print(stderr, "\rwindow {} of {}  ", done, count);
    };
  }
  POLAR_ASSIGN(const study::Evaluation result,
               study::evaluate(*device, weights, windows, sparse.planner.get(), options));
  if (options.progress) fmt::print(stderr, "\r\033[K");
  if (flags.format == Format::kJson) {
    fmt::print("{}\n", to_json(result, sparse.planner != nullptr).dump());
  } else {
    fmt::print("{}", print_rows({to_row(result, sparse)}, flags.format, 5));
  }
  return kOk;
}

}  // namespace

void add_eval(CLI::App& app, Run& run) {
  auto* command = app.add_subcommand(
      "eval", "Measure what a policy costs in quality: perplexity dense and sparse");
  auto flags = std::make_shared<EvalFlags>();
  add_model_flags(*command, flags->model);
  add_policy_flags(*command, flags->policy);
  command
      ->add_option("--text", flags->text,
                   "Documents, separated by lines that hold only the byte 0x1E")
      ->required();
  command->add_option("--context", flags->context, "Tokens per window")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  command->add_option("--windows", flags->windows, "The first N windows; 0: all")
      ->check(CLI::Range(0, 1 << 24));
  command
      ->add_option("--prompt", flags->prompt,
                   "Tokens of each window that are prefilled dense and not scored")
      ->check(CLI::Range(0, 1 << 24));
  command
      ->add_option("--batch", flags->batch,
                   "Windows that advance in lock-step: the rows that share a step's neurons")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  add_format_flag(*command, flags->format);
  command->callback([flags, &run] { run = [flags] { return eval(*flags); }; });
}

}  // namespace polar::cli
