#include "engine/generation_defaults.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

namespace polar::engine {

namespace {

using nlohmann::json;

Status read_number(const json& object, const std::string& where, const char* key, double low,
                   double high, float* value) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return {};
  if (!found->is_number() || !(found->get<double>() >= low && found->get<double>() <= high))
    return bad_input(where, key, found->dump().substr(0, 40),
                     "a number from " + json(low).dump() + " to " + json(high).dump());
  *value = found->get<float>();
  return {};
}

}  // namespace

Result<SamplingParams> parse_generation_config(const std::string& text, const std::string& where) {
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) return bad_input(where, "file", "something else", "a JSON object");
  SamplingParams params;
  const auto sample = object.find("do_sample");
  const bool says = sample != object.end() && sample->is_boolean();
  float temperature = says && sample->get<bool>() ? 1.0f : 0.0f, top_k = 0;
  POLAR_RETURN_IF_ERROR(read_number(object, where, "temperature", 0, 1e4, &temperature));
  POLAR_RETURN_IF_ERROR(read_number(object, where, "top_k", 0, 1 << 24, &top_k));
  POLAR_RETURN_IF_ERROR(read_number(object, where, "top_p", 1e-9, 1, &params.top_p));
  POLAR_RETURN_IF_ERROR(read_number(object, where, "min_p", 0, 1, &params.min_p));
  POLAR_RETURN_IF_ERROR(
      read_number(object, where, "repetition_penalty", 1e-3, 1e3, &params.repetition_penalty));
  params.temperature = says && !sample->get<bool>() ? 0.0f : temperature;
  params.top_k = static_cast<int>(top_k);
  return params;
}

Result<SamplingParams> generation_defaults(const model::ModelFile& file) {
  if (file.is_gguf()) return SamplingParams();
  const auto path = std::filesystem::path(file.path()) / "generation_config.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return SamplingParams();
  std::ifstream in(path, std::ios::binary);
  return parse_generation_config(std::string(std::istreambuf_iterator<char>(in), {}),
                                 path.string());
}

}  // namespace polar::engine
