#include <unistd.h>

#include <charconv>
#include <cmath>

#include "cli/command.h"

namespace polar::cli {

void add_model_flags(CLI::App& command, ModelFlags& flags, bool model_required) {
  auto* model = command.add_option("MODEL", flags.model, "A Hugging Face folder or a GGUF file");
  if (model_required) model->required();
  command
      .add_option("--device", flags.device,
                  "Where to compute: cpu, cuda, or auto (cuda when there is one)")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command.add_option("--threads", flags.threads, "CPU threads; 0: one per core")
      ->check(CLI::Range(0, 1024));
  command
      .add_option("--kv-dtype", flags.kv_dtype,
                  "Type of the KV cache (default: f16 on the CPU, bf16 on the GPU)")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}));
  command.add_option("--kv-memory", flags.kv_memory, "Memory for the KV cache, e.g. 2GiB");
  command.add_option("--max-batch", flags.max_batch, "Most sequences decoded together")
      ->check(CLI::Range(1, 4096));
  command.add_option("--max-model-len", flags.max_model_len, "Longest prompt + output in tokens")
      ->check(CLI::Range(1, 1 << 24));
  command.add_option("--profile", flags.profile,
                     "Folder of a sparsity profile (polar calibrate writes them)");
  command.add_option("--point", flags.point, "Operating point of the profile, e.g. dense or 1%");
  command
      .add_option_function<std::string>(
          "--log-level", [](const std::string&) {}, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
}

Result<size_t> parse_bytes(const std::string& flag, const std::string& text) {
  static constexpr struct {
    const char* suffix;
    double factor;
  } kUnits[] = {{"", 1},
                {"B", 1},
                {"KiB", 1024.0},
                {"MiB", 1048576.0},
                {"GiB", 1073741824.0},
                {"kB", 1000},
                {"KB", 1000},
                {"MB", 1e6},
                {"GB", 1e9},
                {"K", 1024.0},
                {"M", 1048576.0},
                {"G", 1073741824.0}};
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (end != text.c_str() && std::isfinite(value) && value > 0) {
    for (const auto& unit : kUnits) {
      if (std::string(end) == unit.suffix && value * unit.factor < 1e15) {
        return static_cast<size_t>(value * unit.factor);
      }
    }
  }
  return bad_input("command line", flag, "'" + text + "'", "a size such as 2GiB or 512MiB");
}

Result<std::vector<int>> parse_list(const std::string& flag, const std::string& text, int least) {
  std::vector<int> values;
  const char* begin = text.data();
  const char* const end = begin + text.size();
  while (begin < end) {
    int value = 0;
    const auto [next, error] = std::from_chars(begin, end, value);
    if (error != std::errc() || value < least || (next != end && *next != ',')) break;
    values.push_back(value);
    begin = next == end ? end : next + 1;
    if (begin == end && next != end) break;  // a comma at the end
    if (begin == end) return values;
  }
  return bad_input("command line", flag, "'" + text + "'",
                   "whole numbers of at least " + std::to_string(least) + ", separated by commas");
}

void add_format_flag(CLI::App& command, Format& format) {
  format = isatty(STDOUT_FILENO) ? Format::kMarkdown : Format::kJson;
  command
      .add_option_function<std::string>(
          "--format",
          [&format](const std::string& name) {
            format = name == "json"  ? Format::kJson
                     : name == "csv" ? Format::kCsv
                                     : Format::kMarkdown;
          },
          "md, json or csv (default: md on a terminal, json elsewhere)")
      ->check(CLI::IsMember({"md", "json", "csv"}));
}

}  // namespace polar::cli
