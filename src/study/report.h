#pragma once
// The one-page report of a calibration: one HTML file that needs nothing else.

#include <nlohmann/json.hpp>
#include <string>

#include "study/calibrate.h"

namespace polar::study {

/// The curve, the search and the chosen points as one table: policy, setting, loss (perplexity
/// ratio - 1), effective_density, needles.
nlohmann::ordered_json curve_rows(const Calibration& calibration);

/// The best of each policy at the bytes of each chosen point: point, policy, setting, loss,
/// effective_density, needles, answer_loss.
nlohmann::ordered_json comparison_rows(const Calibration& calibration);

/// Curve of loss against KV bytes, retrieval against KV bytes, the chosen points, a map of units
/// for each, neurons by layer and batch size, and every number behind them. `model`: its name, for
/// the title.
std::string report_html(const Calibration& calibration, const std::string& model);

}  // namespace polar::study
