#include "study/calibration_state.h"

#include <bit>
#include <filesystem>
#include <fstream>
#include <span>
#include <sstream>

#include "io/atomic_file.h"

namespace polar::study {

using nlohmann::ordered_json;

namespace {

/// FNV-1a over words of 32 bits.
class Hash {
 public:
  template <typename T>
  void add(T word) {
    value_ = (value_ ^ std::bit_cast<uint32_t>(word)) * 0x100000001b3ull;
  }
  std::string text() const { return std::to_string(value_); }

 private:
  uint64_t value_ = 0xcbf29ce484222325ull;
};

}  // namespace

Result<CalibrationState> CalibrationState::open(const std::string& directory,
                                                const ordered_json& identity) {
  CalibrationState state;
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  state.path_ = (std::filesystem::path(directory) / "calibration.json").string();
  if (error) return bad_input(directory, "--out", error.message(), "a folder that can be written");
  state.json_ = {{"run", identity}, {"measured", ordered_json::object()}};
  if (std::ifstream in(state.path_, std::ios::binary); in) {
    std::ostringstream bytes;
    bytes << in.rdbuf();
    ordered_json stored = ordered_json::parse(bytes.str(), nullptr, false);
    if (!stored.is_object() || !stored.contains("run") || !stored.contains("measured") ||
        !stored["measured"].is_object()) {
      return bad_input(state.path_, "file", "something else",
                       "the state of a calibration (delete it to begin anew)");
    }
    if (stored["run"] != identity) {
      return bad_input(state.path_, "run", "a calibration of another model, text or options",
                       "one of this (choose another --out, or delete it)");
    }
    state.json_ = std::move(stored);
  }
  return state;
}

const ordered_json* CalibrationState::find(const std::string& key) const {
  const auto found = json_["measured"].find(key);
  return found == json_["measured"].end() ? nullptr : &*found;
}

Status CalibrationState::put(const std::string& key, ordered_json value) {
  json_["measured"][key] = std::move(value);
  const std::string text = json_.dump() + "\n";
  const auto bytes = std::as_bytes(std::span(text));
  if (!io::write_file_atomically(path_, {&bytes, 1}).ok())
    return bad_input(path_, "file", "a disk that takes no more", "a writable folder");
  return {};
}

ordered_json quality_json(const sparsity::Quality& quality) {
  return {{"ratio", quality.perplexity_ratio},
          {"kl", quality.kl},
          {"agreement", quality.agreement},
          {"density", quality.effective_density},
          {"neurons", quality.neuron_share},
          {"needles", {quality.needles, quality.dense_needles, quality.sparse_needles}}};
}

void read_quality(const ordered_json& json, sparsity::Quality& quality) {
  quality.perplexity_ratio = json["ratio"];
  quality.kl = json["kl"];
  quality.agreement = json["agreement"];
  quality.effective_density = json["density"];
  quality.neuron_share = json.value("neurons", 1.0);
  quality.needles = json["needles"][0];
  quality.dense_needles = json["needles"][1];
  quality.sparse_needles = json["needles"][2];
}

std::string heads_hash(const sparsity::Routers& routers) {
  Hash hash;
  for (const sparsity::HeadRouter& head : routers.heads)
    for (const float value : head.weight) hash.add(value);
  return ", routers " + hash.text();
}

std::string neurons_hash(const sparsity::Routers& routers) {
  Hash hash;
  for (const sparsity::MlpRouter& mlp : routers.mlps) {
    hash.add(mlp.unit);
    for (const int32_t count : mlp.neurons) hash.add(count);
  }
  return ", neurons " + hash.text();
}

}  // namespace polar::study
