#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"

namespace polar::study {

/// What a calibration has measured so far, in a JSON file that is replaced whole after each
/// measurement.
class CalibrationState {
 public:
  /// Opens DIR/calibration.json, or begins it (making DIR). `identity` describes the run: a file of
  /// another run is an error.
  static Result<CalibrationState> open(const std::string& directory,
                                       const nlohmann::ordered_json& identity);

  /// A stored measurement, or null.
  const nlohmann::ordered_json* find(const std::string& key) const;
  /// Stores and saves.
  Status put(const std::string& key, nlohmann::ordered_json value);

 private:
  std::string path_;
  nlohmann::ordered_json json_;
};

}  // namespace polar::study
