// polar generate: a file of prompts in, a file of answers out, in the same order.

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <mutex>
#include <nlohmann/json.hpp>

#include "cli/answer.h"
#include "cli/open_model.h"
#include "cli/read_file.h"

namespace polar::cli {

namespace {

using nlohmann::ordered_json;

struct GenerateFlags {
  ModelFlags model;
  std::string prompts;
  std::string out = "-";
};

struct InputLine {
  int64_t number;  // from 1
  std::string_view text;
};

/// The lines that hold anything.
std::vector<InputLine> split_lines(std::string_view text) {
  std::vector<InputLine> lines;
  int64_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) lines.push_back({number, line});
  }
  return lines;
}

/// Where answers go. A file that is there already is gone on with: its complete lines are kept, a
/// half-written last one is cut off.
class Output {
 public:
  static Result<std::unique_ptr<Output>> open(const std::string& path,
                                              const std::vector<InputLine>& inputs) {
    std::unique_ptr<Output> output(new Output);
    struct stat info {};
    const bool standard = path == "-";
    const bool resumes =
        !standard && stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
    if (resumes) POLAR_RETURN_IF_ERROR(output->resume(path, inputs));
    output->file_ = standard ? stdout : std::fopen(path.c_str(), "ab");
    if (output->file_ == nullptr)
      return bad_input(path, "file", "one that cannot be written", "a place for the answers");
    return output;
  }

  ~Output() {
    if (file_ != nullptr && file_ != stdout) std::fclose(file_);
  }

  size_t kept() const { return kept_; }
  bool kept_errors() const { return kept_errors_; }

  /// False when the line could not be written whole.
  bool write(const std::string& line) {
    return std::fwrite(line.data(), 1, line.size(), file_) == line.size() &&
           std::fputc('\n', file_) != EOF && std::fflush(file_) == 0;
  }

 private:
  Output() = default;

  Status resume(const std::string& path, const std::vector<InputLine>& inputs) {
    POLAR_ASSIGN(const std::string text, read_file(path));
    size_t begin = 0;
    for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const ordered_json line =
          ordered_json::parse(text.substr(begin, end - begin), nullptr, false);
      if (!line.is_object() || !line.contains("id")) break;
      const std::string where = fmt::format("{}: line {}", path, kept_ + 1);
      const std::string expected =
          kept_ < inputs.size() ? engine::prompt_line_id(inputs[kept_].text, inputs[kept_].number)
                                : "no more lines";
      if (line["id"] != expected || kept_ >= inputs.size()) {
        return bad_input(where, "id", line["id"].dump(), expected + " (of these prompts)");
      }
      kept_errors_ |= line.contains("error");
      ++kept_;
    }
    if (begin < text.size() && text.find('\n', begin) != std::string::npos) {
      return bad_input(fmt::format("{}: line {}", path, kept_ + 1), "line", "no answer",
                       "an answer of a run that is to be continued");
    }
    if (begin < text.size() && truncate(path.c_str(), static_cast<off_t>(begin)) != 0)
      return bad_input(path, "file", "one that cannot be written", "a place for the answers");
    return {};
  }

  std::FILE* file_ = nullptr;
  size_t kept_ = 0;
  bool kept_errors_ = false;
};

/// Which lines have news, told by the engine's thread.
class NewsQueue {
 public:
  void add(size_t line) {
    {
      const std::scoped_lock lock(mutex_);
      lines_.push_back(line);
    }
    ready_.notify_one();
  }
  std::vector<size_t> wait() {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, std::chrono::seconds(1), [&] { return !lines_.empty(); });
    return std::exchange(lines_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<size_t> lines_;
};

/// One line on stderr: rewritten in place on a terminal, now and then elsewhere.
class Progress {
 public:
  Progress(size_t done, size_t lines) : begin_done_(done), lines_(lines) {}

  /// `summary`: what the last line says beside.
  void show(size_t done, int64_t tokens, bool last = false, const std::string& summary = "") {
    const auto now = Clock::now();
    const bool terminal = isatty(STDERR_FILENO);
    if (!last &&
        now - shown_ < (terminal ? std::chrono::milliseconds(200) : std::chrono::seconds(10)))
      return;
    shown_ = now;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const double per_line =
        done > begin_done_ ? seconds / static_cast<double>(done - begin_done_) : 0;
    const int64_t left = std::llround(per_line * static_cast<double>(lines_ - done));
    std::string text = fmt::format("{} of {} prompts, {} tokens, {:.1f} tokens/s", done, lines_,
                                   tokens, static_cast<double>(tokens) / std::max(seconds, 1e-9));
    if (!last && per_line > 0) text += fmt::format(", {}:{:02} left", left / 60, left % 60);
    text += summary;
    fmt::print(stderr, "{}{}{}", terminal ? "\r\033[K" : "", text, terminal && !last ? "" : "\n");
    std::fflush(stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;
  size_t begin_done_, lines_;
  Clock::time_point begin_ = Clock::now(), shown_ = begin_;
};

/// What decode steps did not read or compute, for the last line.
std::string saved(const engine::EngineStats& stats) {
  std::string text;
  if (stats.kv_bytes_read < stats.kv_bytes_dense) {
    text +=
        fmt::format(", {:.1f} % of the KV bytes", 100 * stats.kv_bytes_read / stats.kv_bytes_dense);
  }
  if (stats.neuron_density < 1)
    text += fmt::format(", {:.1f} % of the neurons", 100 * stats.neuron_density);
  return text;
}

class Generate {
 public:
  Generate(const OpenModel& open, std::vector<InputLine> inputs, Output& output)
      : open_(open), inputs_(std::move(inputs)), output_(output) {}

  Result<int> run() {
    size_t next = output_.kept();
    first_ = next;
    bool failed = output_.kept_errors();
    Progress progress(next, inputs_.size());
    // Enough lines in flight that the batch stays full while the oldest is still being answered.
    const size_t most = static_cast<size_t>(open_.engine->max_batch()) * 8 + 64;
    while (first_ < inputs_.size()) {
      for (; next < inputs_.size() && answers_.size() < most; ++next)
        answers_.push_back(start(inputs_[next], next));
      while (!answers_.empty() && answers_.front().done()) {
        failed |= answers_.front().failed();
        if (!output_.write(answers_.front().to_json())) {
          return bad_input("output", "file", "no room or a closed pipe", "a place for the answers");
        }
        answers_.pop_front();
        ++first_;
      }
      progress.show(first_, tokens_);
      if (!answers_.empty()) take_news();
    }
    progress.show(first_, tokens_, true, saved(open_.engine->stats()));
    return failed ? kFailed : kOk;
  }

 private:
  /// Sends a line to the engine; a line that cannot be answered is an answer too.
  Answer start(const InputLine& input, size_t index) {
    auto line = engine::parse_prompt_line(input.text, input.number, open_.model->defaults);
    if (!line.ok())
      return Answer(engine::prompt_line_id(input.text, input.number), line.error().message);
    const auto failed = [&](const Error& error) {
      return Answer(line->id, fmt::format("line {}: {}", input.number, error.message));
    };
    auto prompt = prompt_of(*line);
    if (!prompt.ok()) return failed(prompt.error());
    std::vector<std::shared_ptr<engine::Generation>> generations;
    for (int i = 0; i < line->n; ++i) {
      engine::GenerationRequest request = line->request;
      request.prompt = *prompt;
      request.sampling.seed += static_cast<uint64_t>(i);
      request.on_news = [this, index] { news_.add(index); };
      request.point = open_.point;
      if (!line->point.empty()) {
        auto point = open_.model->point(line->point);
        if (!point.ok()) return failed(point.error());
        request.point = *point;
      }
      auto generation = open_.engine->submit(std::move(request));
      if (!generation.ok()) return failed(generation.error());
      generations.push_back(std::move(generation).value());
    }
    return Answer(std::move(*line), std::move(*prompt), std::move(generations),
                  open_.model->tokenizer);
  }

  Result<std::vector<int32_t>> prompt_of(const engine::PromptLine& line) const {
    if (line.tokens) return *line.tokens;
    if (line.prompt) return open_.model->encode_prompt(*line.prompt);
    if (!open_.model->chat) {
      return bad_input("messages", "chat template", "none in this model",
                       "a prompt, or a model with a chat template");
    }
    const ordered_json tools =
        line.tools.empty() ? ordered_json() : ordered_json::parse(line.tools);
    POLAR_ASSIGN(const std::string text,
                 open_.model->chat->render(ordered_json::parse(*line.messages), tools));
    return open_.model->tokenizer.encode(text, false);
  }

  void take_news() {
    for (const size_t index : news_.wait()) {
      if (index >= first_) tokens_ += answers_[index - first_].update();
    }
  }

  const OpenModel& open_;
  std::vector<InputLine> inputs_;
  Output& output_;
  NewsQueue news_;
  std::deque<Answer> answers_;  // of the lines from `first_` on
  size_t first_ = 0;
  int64_t tokens_ = 0;
};

Result<int> generate(const GenerateFlags& flags) {
  std::string text;
  if (flags.prompts == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else {
    POLAR_ASSIGN(text, read_file(flags.prompts));
  }
  std::vector<InputLine> inputs = split_lines(text);
  POLAR_ASSIGN(const auto output, Output::open(flags.out, inputs));
  POLAR_ASSIGN(OpenModel open, open_model(flags.model));
  Generate run(open, std::move(inputs), *output);
  Result<int> code = run.run();
  open.engine.reset();  // before what its streams tell of news
  return code;
}

}  // namespace

void add_generate(CLI::App& app, Run& run) {
  auto* command = app.add_subcommand(
      "generate", "Answer a file of prompts, many at once; run it again to go on where it stopped");
  auto flags = std::make_shared<GenerateFlags>();
  add_model_flags(*command, flags->model);
  command
      ->add_option("--prompts", flags->prompts,
                   "JSON lines with prompt, messages or tokens, and how to answer; - for stdin")
      ->required();
  command->add_option("--out", flags->out, "Where the answers go, one JSON line each; - for stdout")
      ->capture_default_str();
  command->callback([flags, &run] { run = [flags] { return generate(*flags); }; });
}

}  // namespace polar::cli
