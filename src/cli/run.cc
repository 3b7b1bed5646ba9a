// polar run: one answer to a prompt, or a conversation, as the tokens come.

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "cli/open_model.h"
#include "engine/text_stream.h"

namespace polar::cli {

namespace {

using nlohmann::ordered_json;

struct RunFlags {
  ModelFlags model;
  std::vector<std::string> prompt;
  std::string system;
  std::vector<std::string> stop;
  bool raw = false;
  bool quiet = false;
  int max_tokens = 512;
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int> top_k;
  std::optional<uint64_t> seed;
};

/// Set by Ctrl-C: the answer that is being written ends; outside an answer the program does.
volatile std::sig_atomic_t interrupted = 0;

void set_interrupt_handler() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = 1; };
  sigaction(SIGINT, &action, nullptr);  // without SA_RESTART: reading a line ends too
}

class Conversation {
 public:
  Conversation(const RunFlags& flags, const OpenModel& open)
      : flags_(flags), open_(open), chats_(open.model->chat.has_value() && !flags.raw) {
    reset();
  }

  bool chats() const { return chats_; }

  void reset() {
    messages_ = ordered_json::array();
    if (!flags_.system.empty())
      messages_.push_back({{"role", "system"}, {"content", flags_.system}});
  }

  /// Answers on stdout. An Error is about this prompt: the conversation stands as it did before.
  Status say(const std::string& text) {
    const size_t before = messages_.size();
    auto answer = try_say(text);
    if (!answer.ok()) {
      messages_.erase(messages_.begin() + static_cast<ptrdiff_t>(before), messages_.end());
      return answer.error();
    }
    if (chats_) messages_.push_back({{"role", "assistant"}, {"content", *answer}});
    return {};
  }

 private:
  Result<std::string> try_say(const std::string& text) {
    engine::GenerationRequest request;
    if (chats_) {
      messages_.push_back({{"role", "user"}, {"content", text}});
      POLAR_ASSIGN(const std::string prompt, open_.model->chat->render(messages_, {}));
      request.prompt = open_.model->tokenizer.encode(prompt, false);
    } else {
      request.prompt = open_.model->encode_prompt(text);
    }
    request.max_tokens = flags_.max_tokens;
    request.point = open_.point;
    request.sampling = sampling();
    const auto begin = std::chrono::steady_clock::now();
    POLAR_ASSIGN(const auto generation, open_.engine->submit(std::move(request)));
    return stream(*generation, begin);
  }

  engine::SamplingParams sampling() {
    engine::SamplingParams params = open_.model->defaults;
    params.temperature = flags_.temperature.value_or(params.temperature);
    params.top_k = flags_.top_k.value_or(params.top_k);
    params.top_p = flags_.top_p.value_or(params.top_p);
    params.min_p = flags_.min_p.value_or(params.min_p);
    params.repetition_penalty = flags_.repetition_penalty.value_or(params.repetition_penalty);
    params.seed = flags_.seed ? *flags_.seed + turns_++ : std::random_device()();
    return params;
  }

  std::string stream(engine::Generation& generation, std::chrono::steady_clock::time_point begin) {
    engine::TextStream text(open_.model->tokenizer, flags_.stop);
    std::string answer;
    const auto write = [&](const std::string& more) {
      answer += more;
      std::fwrite(more.data(), 1, more.size(), stdout);
      std::fflush(stdout);
    };
    double first_token = 0;
    engine::Usage usage;
    const auto seconds = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    interrupted = 0;
    while (const auto event = generation.next()) {
      const bool ended = event->finish == engine::FinishReason::kStop;
      if (!event->tokens.empty() && first_token == 0) first_token = seconds();
      for (size_t i = 0; i < event->tokens.size(); ++i) {
        // The token that ends a text is no part of it.
        if (!(ended && i + 1 == event->tokens.size())) write(text.push(event->tokens[i].token));
      }
      usage = event->usage;
      if (interrupted != 0 || text.stopped()) generation.cancel();
    }
    write(text.finish());
    std::fputc('\n', stdout);
    if (!flags_.quiet) report(usage, first_token, seconds());
    return answer;
  }

  static void report(const engine::Usage& usage, double first_token, double seconds) {
    const double decode = seconds - first_token;
    const double rate =
        usage.completion_tokens > 1 && decode > 0 ? (usage.completion_tokens - 1) / decode : 0;
    std::string text = fmt::format("[{} + {} tokens, first after {:.2f} s, then {:.1f} tokens/s",
                                   usage.prompt_tokens, usage.completion_tokens, first_token, rate);
    if (usage.cached_tokens > 0) text += fmt::format(", {} from the cache", usage.cached_tokens);
    if (usage.kv_bytes_read < usage.kv_bytes_dense) {
      text += fmt::format(", {:.0f} % of the KV bytes",
                          100 * usage.kv_bytes_read / usage.kv_bytes_dense);
    }
    fmt::print(stderr, "{}]\n", text);
  }

  const RunFlags& flags_;
  const OpenModel& open_;
  bool chats_;
  ordered_json messages_;
  uint64_t turns_ = 0;
};

int converse(Conversation& conversation) {
  fmt::print(
      stderr, "{} /reset begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer.\n",
      conversation.chats() ? "A conversation with history." : "Every line is a prompt of its own.");
  for (std::string line;;) {
    fmt::print(stderr, "> ");
    if (!std::getline(std::cin, line)) break;
    if (line == "/exit" || line == "/quit") return kOk;
    if (line == "/reset") {
      conversation.reset();
    } else if (!line.empty()) {
      if (const Status said = conversation.say(line); !said.ok())
        fmt::print(stderr, "polar: {}\n", said.error().message);
    }
  }
  fmt::print(stderr, "\n");
  return kOk;
}

Result<int> run_model(const RunFlags& flags) {
  std::string prompt;
  for (const std::string& word : flags.prompt) prompt += (prompt.empty() ? "" : " ") + word;
  const bool interactive = flags.prompt.empty() && isatty(STDIN_FILENO);
  if (flags.prompt.empty() && !interactive)
    prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  POLAR_ASSIGN(const OpenModel open, open_model(flags.model, 1));
  set_interrupt_handler();
  Conversation conversation(flags, open);
  if (interactive) return converse(conversation);
  POLAR_RETURN_IF_ERROR(conversation.say(prompt));
  return interrupted != 0 ? kFailed : kOk;
}

}  // namespace

void add_run(CLI::App& app, Run& run) {
  auto* command =
      app.add_subcommand("run", "Answer one prompt, or hold a conversation when none is given");
  auto flags = std::make_shared<RunFlags>();
  add_model_flags(*command, flags->model);
  command->add_option("PROMPT", flags->prompt,
                      "What to answer; without it stdin, or a conversation on a terminal");
  command->add_option("--system", flags->system, "System message of the conversation");
  command->add_flag("--raw", flags->raw, "Go on with the text itself: no chat template");
  command->add_option("--max-tokens", flags->max_tokens, "Longest answer in tokens")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_option("--temperature", flags->temperature,
                      "0: the likeliest token (default: what the model's makers want)");
  command->add_option("--top-k", flags->top_k, "Sample among the k likeliest tokens; 0: all");
  command->add_option("--top-p", flags->top_p, "Sample among the likeliest that sum to p");
  command->add_option("--min-p", flags->min_p, "Leave out what is less likely than p x the best");
  command->add_option("--repetition-penalty", flags->repetition_penalty,
                      "Above 1: tokens that were there become less likely");
  command->add_option("--seed", flags->seed, "Same seed, same answer (default: another each time)");
  command->add_option("--stop", flags->stop, "A text that ends the answer; may be given again")
      ->allow_extra_args(false);
  command->add_flag("--quiet", flags->quiet, "No line on stderr about tokens and speed");
  command->callback([flags, &run] { run = [flags] { return run_model(*flags); }; });
}

}  // namespace polar::cli
