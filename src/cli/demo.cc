// make demo: the same batch of long prompts answered densely and sparsely by one engine, and what
// that did to speed, bytes and quality.

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/open_device.h"
#include "cli/read_file.h"
#include "cli/table.h"
#include "engine/loaded_model.h"
#include "engine/text_stream.h"
#include "study/evaluate.h"
#include "study/policy.h"

namespace polar::cli {

namespace {

constexpr int kPrompts = 8;
constexpr const char* kQuestions[kPrompts] = {"Who is speaking in this passage, and to whom?",
                                              "Summarise this passage in two sentences.",
                                              "What does Alice want in this passage?",
                                              "Which animals appear in this passage?",
                                              "What is the strangest thing that happens here?",
                                              "Where does this passage take place?",
                                              "What would you ask Alice if you met her here?",
                                              "Write one sentence that continues this passage."};

struct DemoFlags {
  ModelFlags model;
  std::string text = "examples/alice.txt";
  int passage = 3000;
  int max_tokens = 96;
  int recent = 4;
  int eval_windows = 2;
};

/// What one round of all prompts did.
struct Round {
  std::vector<std::string> answers;
  double first_answer_seconds = 0;
  double decode_seconds = 0;
  int64_t decode_tokens = 0;
  double kv_bytes = 0, dense_kv_bytes = 0;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Prompts of about `passage` tokens each, from places all over the text.
Result<std::vector<std::vector<int32_t>>> make_prompts(const engine::LoadedModel& model,
                                                       const std::string& text, int passage) {
  const std::vector<int32_t> tokens = model.tokenizer.encode(text, false);
  if (static_cast<int>(tokens.size()) < 2 * passage) {
    return bad_input("demo", "--text", fmt::format("{} tokens", tokens.size()),
                     fmt::format("at least {}", 2 * passage));
  }
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < kPrompts; ++i) {
    const size_t begin = (tokens.size() - passage) * i / (kPrompts - 1);
    const std::string excerpt =
        model.tokenizer.decode(std::span(tokens).subspan(begin, passage), true);
    const std::string asked =
        fmt::format("Here is a passage from a book:\n\n{}\n\n{}", excerpt, kQuestions[i]);
    if (!model.chat) {
      prompts.push_back(model.encode_prompt(asked));
      continue;
    }
    POLAR_ASSIGN(
        const std::string chat,
        model.chat->render(nlohmann::ordered_json::array({{{"role", "user"}, {"content", asked}}}),
                           nullptr));
    prompts.push_back(model.tokenizer.encode(chat, false));
  }
  return prompts;
}

/// Submits all prompts at once; the first answer streams to the terminal, the others are counted.
Result<Round> answer(const engine::LoadedModel& model, engine::Engine& engine,
                     const std::vector<std::vector<int32_t>>& prompts, int point, int max_tokens) {
  std::vector<std::shared_ptr<engine::Generation>> generations;
  std::vector<engine::TextStream> streams;
  Round round;
  round.answers.resize(prompts.size());
  const double begin = now();
  for (const std::vector<int32_t>& prompt : prompts) {
    engine::GenerationRequest request;
    request.prompt = prompt;
    request.max_tokens = max_tokens;
    request.point = point;
    request.ignore_eos = true;  // equal work for both rounds
    POLAR_ASSIGN(auto generation, engine.submit(std::move(request)));
    generations.push_back(std::move(generation));
    streams.emplace_back(model.tokenizer, std::vector<std::string>());
  }
  std::vector<int> counts(prompts.size(), 0);
  size_t open = prompts.size();
  double all_started = 0;
  int64_t tokens_before = 0;
  const bool terminal = isatty(STDERR_FILENO);
  while (open > 0) {
    bool news = false;
    for (size_t i = 0; i < generations.size(); ++i) {
      auto event = generations[i]->poll();
      if (!event) continue;
      news = true;
      for (const engine::TokenInfo& token : event->tokens) {
        const std::string text = streams[i].push(token.token);
        round.answers[i] += text;
        ++counts[i];
        if (i == 0) fmt::print("{}", text);
      }
      if (i == 0) std::fflush(stdout);
      if (event->finish) {
        if (*event->finish == engine::FinishReason::kError) return Error{event->error};
        if (i == 0) {
          fmt::print("\n");
          round.first_answer_seconds = now() - begin;
        }
        round.answers[i] += streams[i].finish();
        round.kv_bytes += event->usage.kv_bytes_read;
        round.dense_kv_bytes += event->usage.kv_bytes_dense;
        --open;
      }
    }
    int64_t total = 0, started = 0;
    for (const int count : counts) {
      total += count;
      started += count > 0 ? 1 : 0;
    }
    if (all_started == 0 && started == static_cast<int64_t>(counts.size())) {
      all_started = now();
      tokens_before = total;
    }
    if (terminal && news && started < static_cast<int64_t>(counts.size())) {
      fmt::print(stderr, "\rreading the prompts: {} of {} ", started, counts.size());
    }
    if (!news) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    round.decode_tokens = total - tokens_before;
  }
  if (terminal) fmt::print(stderr, "\r\033[K");
  round.decode_seconds = now() - all_started;
  return round;
}

/// Perplexity of the text dense and with one point of the profile: the same forward pass that
/// answered the prompts.
Result<study::Evaluation> measure(const engine::LoadedModel& model,
                                  const sparsity::Profile& profile, int point,
                                  const std::string& text, const DemoFlags& flags) {
  POLAR_ASSIGN(auto planner, study::point_planner(*model.device, profile, point));
  const int context = std::min(4096, model.file->config().max_positions);
  const auto encode = [&](const std::string& document) {
    return model.tokenizer.encode(document, true);
  };
  POLAR_ASSIGN(const study::Windows windows,
               study::make_windows(flags.text, study::split_documents(text), encode, context,
                                   flags.eval_windows));
  study::EvaluateOptions options;
  options.prompt = context / 4;
  options.kv_dtype = kv_dtype(flags.model, *model.device);
  if (isatty(STDERR_FILENO)) {
    options.progress = [](int done, int count) {
      fmt::print(stderr, "\rmeasuring quality: {} of {} ", done, count);
    };
  }
  POLAR_ASSIGN(const study::Evaluation result,
               study::evaluate(*model.device, *model.weights, windows, planner.get(), options));
  if (options.progress) fmt::print(stderr, "\r\033[K");
  return result;
}

nlohmann::ordered_json row(const std::string& name, const Round& round, const Round& dense,
                           double ratio) {
  const double speed = static_cast<double>(round.decode_tokens) / round.decode_seconds;
  const double dense_speed = static_cast<double>(dense.decode_tokens) / dense.decode_seconds;
  const double steps = static_cast<double>(round.decode_tokens) / kPrompts;
  return {{"", name},
          {"tokens/s", fmt::format("{:.1f}", speed)},
          {"KV MB a step", fmt::format("{:.1f}", round.kv_bytes / steps / 1e6)},
          {"KV bytes", fmt::format("{:.0f} %", 100 * round.kv_bytes / round.dense_kv_bytes)},
          {"speed", fmt::format("{:.2f}x", speed / dense_speed)},
          {"perplexity", fmt::format("{:.3f}x", ratio)}};
}

Result<int> demo(const DemoFlags& flags) {
  POLAR_ASSIGN(const std::string text, read_file(flags.text));
  POLAR_ASSIGN(auto device, open_device(flags.model));
  POLAR_ASSIGN(auto model,
               engine::load_model(flags.model.model, flags.model.profile, std::move(device)));
  const model::ModelConfig& config = model->file->config();
  if (!model->profile) {
    model->profile = sparsity::window_profile(config.layers, config.kv_heads, 1, flags.recent, {});
  }
  POLAR_ASSIGN(const int point, model->point(flags.model.point));
  const std::string point_name = model->profile->points[point].name;
  const int passage = std::min(flags.passage, config.max_positions - flags.max_tokens - 160);
  POLAR_ASSIGN(const auto prompts, make_prompts(*model, text, passage));

  size_t longest = 0;
  for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
  engine::EngineOptions options;
  options.kv_dtype = kv_dtype(flags.model, *model->device);
  options.max_batch = kPrompts;
  options.max_length = static_cast<int>(longest) + flags.max_tokens;
  // Room for both rounds' pages, so that the second finds the first one's prompts.
  options.kv_bytes = static_cast<size_t>(kPrompts + 2) * options.max_length * 2 *
                     config.kv_width() * config.layers * (options.kv_dtype == DType::kF32 ? 4 : 2) *
                     2;
  fmt::print("{} on {}: {} prompts of {} tokens in one batch, {} tokens each\n\n", config.name,
             model->device->info().name, prompts.size(), longest, flags.max_tokens);
  Round dense, sparse;
  {
    POLAR_ASSIGN(auto engine, model->make_engine(options));
    fmt::print("dense, the first answer:\n");
    POLAR_ASSIGN(dense, answer(*model, *engine, prompts, 0, flags.max_tokens));
    fmt::print("\n{}, the first answer (its prompt comes from the prefix cache):\n", point_name);
    POLAR_ASSIGN(sparse, answer(*model, *engine, prompts, point, flags.max_tokens));
  }
  POLAR_ASSIGN(const study::Evaluation quality,
               measure(*model, *model->profile, point, text, flags));
  fmt::print("\n{}", print_rows({row("dense", dense, dense, 1.0),
                                 row(point_name, sparse, dense, quality.ratio())},
                                Format::kMarkdown));
  fmt::print(
      "\nperplexity: of {}, sparse over dense, {} tokens (effective KV density {:.0f} %; the text "
      "was not part of any "
      "calibration)\n",
      flags.text, quality.tokens, 100 * quality.effective_density());
  return kOk;
}

}  // namespace

void add_demo(CLI::App& app, Run& run) {
  auto* command =
      app.add_subcommand("demo", "Answer a batch of long prompts dense and sparse, and compare");
  auto flags = std::make_shared<DemoFlags>();
  add_model_flags(*command, flags->model);
  command->add_option("--text", flags->text, "The text that prompts are cut from")
      ->capture_default_str();
  command->add_option("--passage", flags->passage, "Tokens of text in each prompt")
      ->check(CLI::Range(64, 1 << 20))
      ->capture_default_str();
  command->add_option("--max-tokens", flags->max_tokens, "Tokens of each answer")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--recent", flags->recent,
                   "Without a profile: newest full pages that every head reads")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command->callback([flags, &run] { run = [flags] { return demo(*flags); }; });
}

}  // namespace polar::cli
