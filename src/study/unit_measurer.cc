#include "study/unit_measurer.h"

namespace polar::study {

using nlohmann::ordered_json;

Result<std::vector<double>> UnitMeasurer::left_out(const std::string& kind,
                                                   const std::vector<Passage>& passages,
                                                   const Policy& fallback) const {
  if (passages.empty()) return std::vector<double>();
  std::vector<double> sum(static_cast<size_t>(weights_.config.layers) * weights_.config.kv_heads,
                          0.0);
  for (size_t i = 0; i < passages.size(); ++i) {
    const std::string key = "importance " + kind + " " + std::to_string(i);
    std::vector<double> kl;
    if (const ordered_json* stored = state_.find(key)) {
      kl = stored->get<std::vector<double>>();
    } else {
      ImportanceOptions importance;
      importance.fallback = fallback;
      importance.kv_dtype = options_.kv_dtype;
      importance.progress = [&](int done, int units) {
        if (options_.progress) options_.progress("units left out, " + key, done, units);
      };
      POLAR_ASSIGN(kl, leave_one_out(device_, weights_, {&passages[i], 1}, importance));
      POLAR_RETURN_IF_ERROR(state_.put(key, kl));
    }
    for (size_t unit = 0; unit < sum.size(); ++unit)
      sum[unit] += kl[unit] / static_cast<double>(passages.size());
  }
  return sum;
}

Result<std::vector<std::vector<double>>> UnitMeasurer::errors_of(
    const std::string& key, const std::vector<Passage>& passages, const Deal& deal) const {
  if (const ordered_json* stored = state_.find(key))
    return stored->get<std::vector<std::vector<double>>>();
  OptionErrorOptions options{options_.kv_dtype, options_.page_score, {}};
  options.progress = [&](int done, int of) {
    if (options_.progress) options_.progress(key, done, of);
  };
  POLAR_ASSIGN(auto errors, option_errors(device_, weights_, passages, deal, options));
  POLAR_RETURN_IF_ERROR(state_.put(key, errors));
  return errors;
}

Status UnitMeasurer::add_losses(const std::string& kind, const std::vector<Passage>& passages,
                                Deal& deal) const {
  if (passages.empty()) return {};
  POLAR_ASSIGN(const std::vector<double> lost,
               left_out(kind + ", summaries", passages, dealt_fallback()));
  POLAR_ASSIGN(const auto errors, errors_of("units' options, " + kind, passages, deal));
  study::add_losses(deal, errors, lost);
  return {};
}

}  // namespace polar::study
