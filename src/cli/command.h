#pragma once
// One file per command. A command adds itself to the app and hands over what to run; main.cc runs
// it.

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "core/error.h"

namespace polar::cli {

/// Exit codes (CONTRACT.md): 0, 1 (failed on the way), 2 (bad input, exactly one line on stderr).
enum ExitCode : int { kOk = 0, kFailed = 1, kBadInput = 2 };

/// What a command does once its flags are read: an exit code, or an Error that main prints as bad
/// input.
using Run = std::function<Result<int>()>;

/// Flags that every command which runs a model understands.
struct ModelFlags {
  std::string model;
  std::string device = "auto";
  int threads = 0;
  std::string kv_dtype;   // empty: the device's default
  std::string kv_memory;  // "2GiB"; empty: chosen from what is free
  int max_batch = 0;      // 0: the command's default
  int max_model_len = 0;  // 0: what the model was made for
  std::string profile;
  std::string point;
};
void add_model_flags(CLI::App& command, ModelFlags& flags, bool model_required = true);

/// Bytes of "2GiB", "512MiB", "1.5GB" or a plain number.
Result<size_t> parse_bytes(const std::string& flag, const std::string& text);

/// Values of a comma-separated list of whole numbers of at least `least`.
Result<std::vector<int>> parse_list(const std::string& flag, const std::string& text, int least);

enum class Format { kMarkdown, kJson, kCsv };
/// --format; without it a terminal gets Markdown, and a pipe or file JSON.
void add_format_flag(CLI::App& command, Format& format);

void add_serve(CLI::App& app, Run& run);
void add_version(CLI::App& app, Run& run);
void add_inspect(CLI::App& app, Run& run);
void add_generate(CLI::App& app, Run& run);
void add_run(CLI::App& app, Run& run);
void add_tokenize(CLI::App& app, Run& run);
void add_eval(CLI::App& app, Run& run);
void add_bench(CLI::App& app, Run& run);
void add_demo(CLI::App& app, Run& run);
void add_calibrate(CLI::App& app, Run& run);

}  // namespace polar::cli
