#include <fmt/format.h>

#include "cli/open_device.h"
#include "cli/table.h"
#include "engine/load_tokenizer.h"
#include "model/weights.h"

namespace polar::cli {

namespace {

struct InspectFlags {
  ModelFlags model;
  Format format = Format::kMarkdown;
};

std::string rope_text(const model::RopeConfig& rope) {
  if (rope.dim == 0) return "learned";
  static constexpr const char* kScaling[] = {"", ", linear scaling", ", llama3 scaling",
                                             ", yarn scaling"};
  return fmt::format("rope {:g} over {} dimensions{}", rope.theta, rope.dim,
                     kScaling[static_cast<int>(rope.scaling)]);
}

nlohmann::ordered_json describe(const model::ModelFile& file, const text::Tokenizer& tokenizer,
                                DType kv) {
  const model::ModelConfig& config = file.config();
  const double token_bytes = 2.0 * config.layers * config.kv_width() * (kv == DType::kF32 ? 4 : 2);
  return {{"model", file.path()},
          {"format", file.is_gguf() ? "GGUF" : "Hugging Face folder"},
          {"architecture", config.architecture},
          {"layers", config.layers},
          {"hidden", config.hidden},
          {"heads", config.heads},
          {"kv_heads", config.kv_heads},
          {"head_dim", config.head_dim},
          {"ffn", config.ffn},
          {"vocabulary", config.vocabulary},
          {"tokenizer", fmt::format("{} tokens", tokenizer.vocab_size())},
          {"positions", rope_text(config.rope)},
          {"longest_context", config.max_positions},
          {"tensors", file.tensor_summary()},
          {"weight_bytes", file.weight_bytes()},
          {"kv_bytes_per_token", token_bytes},
          {"kv_bytes_longest_context", token_bytes * config.max_positions},
          {"fingerprint", file.fingerprint()}};
}

Result<int> inspect(const InspectFlags& flags) {
  POLAR_ASSIGN(const auto file, model::ModelFile::open(flags.model.model));
  POLAR_ASSIGN(const text::Tokenizer tokenizer, engine::load_tokenizer(file));
  const DType kv = flags.model.kv_dtype == "f32" ? DType::kF32 : DType::kF16;
  const nlohmann::ordered_json facts = describe(file, tokenizer, kv);
  if (flags.format == Format::kJson) {
    fmt::print("{}\n", facts.dump(1));
    return kOk;
  }
  Rows rows;
  for (const auto& [key, value] : facts.items()) {
    std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (key.find("bytes") != std::string::npos) {
      text =
          fmt::format("{:.0f} ({:.1f} MiB)", value.get<double>(), value.get<double>() / 1048576.0);
    }
    rows.push_back({{"what", key}, {"value", text}});
  }
  fmt::print("{}", print_rows(rows, flags.format));
  return kOk;
}

}  // namespace

void add_inspect(CLI::App& app, Run& run) {
  auto* command = app.add_subcommand(
      "inspect", "Check all that a load would check and say what a model holds and needs");
  auto flags = std::make_shared<InspectFlags>();
  add_model_flags(*command, flags->model);
  add_format_flag(*command, flags->format);
  command->callback([flags, &run] { run = [flags] { return inspect(*flags); }; });
}

}  // namespace polar::cli
