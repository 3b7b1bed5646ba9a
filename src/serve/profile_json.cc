#include "serve/profile_json.h"

#include <nlohmann/json.hpp>

namespace polar::serve {

namespace {

using nlohmann::ordered_json;

/// What was not measured is null, never a number that looks measured.
ordered_json measured(double value) {
  return value > 0 ? ordered_json(value) : ordered_json();
}

ordered_json point_json(const sparsity::OperatingPoint& point, int layers, int kv_heads) {
  ordered_json table = ordered_json::array();
  for (int layer = 0; layer < layers; ++layer) {
    ordered_json row = ordered_json::array();
    for (int head = 0; head < kv_heads; ++head)
      row.push_back(
          sparsity::kind_name(point.budgets[static_cast<size_t>(layer) * kv_heads + head].kind));
    table.push_back(std::move(row));
  }
  const sparsity::Quality& quality = point.quality;
  const bool was_measured = quality.perplexity_ratio > 0;
  return {{"name", point.name},
          {"sink", point.limits.sink},
          {"recent", point.limits.recent},
          {"quality",
           {{"max_loss", measured(quality.max_loss)},
            {"perplexity_ratio", measured(quality.perplexity_ratio)},
            {"kl", measured(quality.kl)},
            {"agreement", measured(quality.agreement)},
            {"kv_density", was_measured ? ordered_json(quality.effective_density) : ordered_json()},
            {"text", quality.text}}},
          {"budget", std::move(table)}};
}

}  // namespace

std::string profile_json(const engine::LoadedModel& model, const model::ModelConfig& config) {
  const sparsity::Profile profile =
      model.profile ? *model.profile : sparsity::dense_profile(config.layers, config.kv_heads);
  ordered_json points = ordered_json::array();
  for (const auto& point : profile.points)
    points.push_back(point_json(point, profile.layers, profile.kv_heads));
  const ordered_json json = {{"layers", profile.layers},
                             {"kv_heads", profile.kv_heads},
                             {"page_tokens", backend::kPageTokens},
                             {"has_profile", model.profile.has_value()},
                             {"has_chat_template", model.chat.has_value()},
                             {"context_min", profile.context_min},
                             {"context_max", profile.context_max},
                             {"points", std::move(points)}};
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace polar::serve
