#include <fmt/format.h>
#include <unistd.h>

#include <map>

#include "cli/open_device.h"
#include "cli/policy_flags.h"
#include "cli/read_file.h"
#include "cli/table.h"
#include "engine/load_tokenizer.h"
#include "study/greedy.h"
#include "study/needle.h"

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
  int greedy = 0;
  bool needle = false;
  int needle_count = 40;
  std::string needle_lengths;
  Format format = Format::kMarkdown;
};

/// Everything that was measured.
struct Measured {
  study::Evaluation text;
  std::vector<study::NeedleAnswers> needles;
  study::GreedyResult greedy;  // no tokens: not measured
  bool sparse = false;
};

nlohmann::ordered_json retrieval_json(std::span<const study::NeedleAnswers> answers, bool sparse) {
  const study::NeedleResult sum = study::sum_up(answers);
  nlohmann::ordered_json json = {{"count", sum.count}, {"dense", sum.dense_correct}};
  if (sparse) json["sparse"] = sum.sparse_correct;
  json["dense_log_probability"] = sum.dense_log_probability;
  if (sparse) json["sparse_log_probability"] = sum.sparse_log_probability;
  return json;
}

/// The answers of each value of a key, in the keys' order.
template <typename Key>
nlohmann::ordered_json groups_json(const char* name,
                                   const std::vector<study::NeedleAnswers>& answers, bool sparse,
                                   const Key& key) {
  std::map<decltype(key(answers[0])), std::vector<study::NeedleAnswers>> groups;
  for (const study::NeedleAnswers& answer : answers) groups[key(answer)].push_back(answer);
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const auto& [value, members] : groups) {
    nlohmann::ordered_json json = {{name, value}};
    json.update(retrieval_json(members, sparse));
    list.push_back(std::move(json));
  }
  return list;
}

nlohmann::ordered_json needle_json(const std::vector<study::NeedleAnswers>& answers, bool sparse) {
  nlohmann::ordered_json json = retrieval_json(answers, sparse);
  // Depths are drawn from [0.1, 0.7): three groups, each named by its begin.
  json["by_depth"] = groups_json("depth", answers, sparse, [](const study::NeedleAnswers& a) {
    return a.depth < 0.3 ? 0.1 : a.depth < 0.5 ? 0.3 : 0.5;
  });
  json["by_length"] = groups_json("length", answers, sparse,
                                  [](const study::NeedleAnswers& a) { return a.length; });
  json["by_wording"] = groups_json("wording", answers, sparse, [](const study::NeedleAnswers& a) {
    return a.wording < study::kCalibrationWordings ? "calibrated" : "unseen";
  });
  return json;
}

nlohmann::ordered_json positions_json(const std::vector<study::PositionBucket>& buckets,
                                      bool sparse) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const study::PositionBucket& bucket : buckets) {
    nlohmann::ordered_json json = {{"begin", bucket.begin},
                                   {"end", bucket.end},
                                   {"tokens", bucket.tokens},
                                   {"dense", bucket.dense_perplexity}};
    if (sparse) {
      json["sparse"] = bucket.sparse_perplexity;
      json["ratio"] = bucket.sparse_perplexity / bucket.dense_perplexity;
      json["kl"] = bucket.kl;
      json["agreement"] = bucket.agreement;
    }
    list.push_back(std::move(json));
  }
  return list;
}

nlohmann::ordered_json to_json(const Measured& measured) {
  const study::Evaluation& result = measured.text;
  nlohmann::ordered_json json = {{"tokens", result.tokens},
                                 {"dense", {{"perplexity", result.dense_perplexity}}}};
  if (measured.sparse) {
    json["sparse"] = {{"perplexity", result.sparse_perplexity}};
    json["ratio"] = result.ratio();
    json["kl"] = result.kl;
    json["agreement"] = result.agreement;
    json["effective_density"] = result.effective_density();
    json["neuron_share"] = result.neuron_share;
  }
  json["positions"] = positions_json(result.positions, measured.sparse);
  if (measured.greedy.tokens > 0) {
    json["greedy"] = {{"tokens", measured.greedy.tokens},
                      {"divergence", measured.greedy.mean()},
                      {"never", measured.greedy.whole()},
                      {"windows", measured.greedy.same}};
  }
  if (!measured.needles.empty()) json["needle"] = needle_json(measured.needles, measured.sparse);
  return json;
}

/// The same result on one flat row, for tables.
nlohmann::ordered_json to_row(const Measured& measured, const std::string& name) {
  const study::Evaluation& result = measured.text;
  nlohmann::ordered_json row = {
      {"policy", name}, {"tokens", result.tokens}, {"dense_perplexity", result.dense_perplexity}};
  if (measured.sparse) {
    row["sparse_perplexity"] = result.sparse_perplexity;
    row["ratio"] = result.ratio();
    row["kl"] = result.kl;
    row["agreement"] = result.agreement;
    row["effective_density"] = result.effective_density();
    row["neuron_share"] = result.neuron_share;
  }
  if (measured.greedy.tokens > 0) row["divergence"] = measured.greedy.mean();
  if (!measured.needles.empty()) {
    const nlohmann::ordered_json sums = retrieval_json(measured.needles, measured.sparse);
    for (const auto& [key, value] : sums.items()) row["needle_" + key] = value;
  }
  return row;
}

Status check_lengths(const EvalFlags& flags, int max_positions) {
  if (flags.prompt >= flags.context) {
    return bad_input("command line", "--prompt", std::to_string(flags.prompt),
                     "less than --context " + std::to_string(flags.context));
  }
  if (flags.context > max_positions) {
    return bad_input("command line", "--context", std::to_string(flags.context),
                     fmt::format("at most {}, the model's longest context", max_positions));
  }
  if (flags.greedy > 0 && flags.prompt == 0) {
    return bad_input("command line", "--greedy", std::to_string(flags.greedy) + " without a prompt",
                     "--prompt, the tokens that are continued");
  }
  if (flags.greedy > max_positions - flags.prompt) {
    return bad_input("command line", "--greedy", std::to_string(flags.greedy),
                     fmt::format("at most {}, the model's longest context less --prompt",
                                 max_positions - flags.prompt));
  }
  return {};
}

/// Retrieval prompts cut from the windows' own text, of every length in turn, half of them in
/// wordings that calibration never sees.
Result<std::vector<study::Needle>> eval_needles(const EvalFlags& flags,
                                                const study::Windows& windows,
                                                const text::Tokenizer& tokenizer,
                                                int max_positions) {
  const std::string chosen = flags.needle_lengths.empty()
                                 ? fmt::format("{},{}", flags.context / 2, flags.context)
                                 : flags.needle_lengths;
  POLAR_ASSIGN(const std::vector<int> lengths, parse_list("--needle-lengths", chosen, 1));
  const int leading = tokenizer.leading_token().value_or(-1);
  std::vector<int32_t> haystack;
  for (const int32_t token : windows.tokens) {
    if (token != leading) haystack.push_back(token);
  }
  const auto encode = [&](const std::string& text, bool special) {
    return tokenizer.encode(text, special);
  };
  const int kinds = 2 * static_cast<int>(lengths.size());
  std::vector<study::Needle> needles;
  for (int kind = 0; kind < kinds; ++kind) {
    const int length = lengths[kind / 2];
    if (length > max_positions) {
      return bad_input("command line", "--needle-lengths", std::to_string(length),
                       fmt::format("at most {}, the model's longest context", max_positions));
    }
    const int count = flags.needle_count * (kind + 1) / kinds - flags.needle_count * kind / kinds;
    const int middle = study::kCalibrationWordings;
    // Seeds that calibration does not use: it takes its own and the next.
    POLAR_ASSIGN(std::vector<study::Needle> some,
                 study::make_needles(flags.text, haystack, encode, leading, length, count,
                                     kind % 2 == 0 ? 0 : middle,
                                     kind % 2 == 0 ? middle : study::kNeedleWordings,
                                     flags.policy.values.seed + 1000 + kind));
    for (study::Needle& needle : some) needles.push_back(std::move(needle));
  }
  return needles;
}

std::function<void(int, int)> progress_of(const char* what) {
  if (!isatty(STDERR_FILENO)) return {};
  return [what](int done, int count) {
    fmt::print(stderr, "\r\033[K{} {} of {}{}", what, done, count, done == count ? "\r\033[K" : "");
  };
}

Result<Measured> measure(const EvalFlags& flags, backend::Device& device,
                         const model::Weights& weights, const study::Windows& windows,
                         std::span<const study::Needle> needles, model::Planner* planner) {
  study::EvaluateOptions options;
  options.prompt = flags.prompt;
  options.batch = flags.batch;
  options.kv_dtype = kv_dtype(flags.model, device);
  options.progress = progress_of("window");
  Measured measured;
  measured.sparse = planner != nullptr;
  POLAR_ASSIGN(measured.text, study::evaluate(device, weights, windows, planner, options));
  if (flags.greedy > 0 && planner != nullptr) {
    options.progress = progress_of("continuation");
    POLAR_ASSIGN(measured.greedy, study::continue_greedily(device, weights, windows, *planner,
                                                           flags.greedy, options));
  }
  POLAR_ASSIGN(measured.needles, study::ask_once(device, weights, needles, planner,
                                                 options.kv_dtype, progress_of("needle")));
  return measured;
}

Result<int> eval(const EvalFlags& flags) {
  POLAR_ASSIGN(const study::Policy policy, read_policy(flags.policy));
  POLAR_ASSIGN(const std::string text, read_file(flags.text));
  POLAR_ASSIGN(const auto file, model::ModelFile::open(flags.model.model));
  const int max_positions = file.config().max_positions;
  POLAR_RETURN_IF_ERROR(check_lengths(flags, max_positions));
  POLAR_ASSIGN(const text::Tokenizer tokenizer, engine::load_tokenizer(file));
  const auto encode = [&](const std::string& document) { return tokenizer.encode(document, true); };
  POLAR_ASSIGN(const study::Windows windows,
               study::make_windows(flags.text, study::split_documents(text), encode, flags.context,
                                   flags.windows));
  std::vector<study::Needle> needles;
  if (flags.needle) {
    POLAR_ASSIGN(needles, eval_needles(flags, windows, tokenizer, max_positions));
  }
  POLAR_ASSIGN(auto device, open_device(flags.model));
  POLAR_ASSIGN(const model::Weights weights, model::load_weights(*device, file));
  POLAR_ASSIGN(const Sparse sparse,
               make_sparse(flags.model, policy, *device, file.config(), &file));
  POLAR_ASSIGN(const Measured measured,
               measure(flags, *device, weights, windows, needles, sparse.planner.get()));
  if (flags.format == Format::kJson) {
    fmt::print("{}\n", to_json(measured).dump());
  } else {
    fmt::print("{}", print_rows({to_row(measured, sparse.name)}, flags.format, 5));
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
  command
      ->add_option(
          "--greedy", flags->greedy,
          "Continue each window's prompt by N tokens, dense and sparse: where do they part?")
      ->check(CLI::Range(0, 1 << 20));
  command->add_flag(
      "--needle", flags->needle,
      "Ask retrieval prompts cut from the text too: a fact hidden, asked for at the end");
  command->add_option("--needle-count", flags->needle_count, "Retrieval prompts")
      ->check(CLI::Range(4, 1 << 16))
      ->capture_default_str();
  command->add_option("--needle-lengths", flags->needle_lengths,
                      "Their lengths in tokens (default: half of --context, and --context)");
  add_format_flag(*command, flags->format);
  command->callback([flags, &run] { run = [flags] { return eval(*flags); }; });
}

}  // namespace polar::cli
