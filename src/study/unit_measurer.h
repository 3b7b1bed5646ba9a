#pragma once
// What calibration measures of single units, kept in its state as it comes.

#include <string>
#include <vector>

#include "study/calibrate.h"
#include "study/calibration_state.h"
#include "study/unit_options.h"

namespace polar::study {

class UnitMeasurer {
 public:
  /// All of these must outlive it.
  UnitMeasurer(backend::Device& device, const model::Weights& weights,
               const CalibrateOptions& options, CalibrationState& state)
      : device_(device), weights_(weights), options_(options), state_(state) {}

  /// What the model loses where each unit alone is left out, i.e. reads `fallback`, mean over the
  /// passages (leave_one_out). `kind` names it all.
  Result<std::vector<double>> left_out(const std::string& kind,
                                       const std::vector<Passage>& passages,
                                       const Policy& fallback) const;

  /// Adds to a deal's losses what these passages say of them.
  Status add_losses(const std::string& kind, const std::vector<Passage>& passages,
                    Deal& deal) const;

 private:
  Result<std::vector<std::vector<double>>> errors_of(const std::string& key,
                                                     const std::vector<Passage>& passages,
                                                     const Deal& deal) const;

  backend::Device& device_;
  const model::Weights& weights_;
  const CalibrateOptions& options_;
  CalibrationState& state_;
};

}  // namespace polar::study
