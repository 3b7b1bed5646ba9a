#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"
#include "sparsity/profile.h"

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

/// What is kept of a chosen point's measurement, and the way back.
nlohmann::ordered_json quality_json(const sparsity::Quality& quality);
void read_quality(const nlohmann::ordered_json& json, sparsity::Quality& quality);

/// Tell routers apart in keys, ", routers 123" and ", neurons 123": what old ones measured says
/// nothing of new ones.
std::string heads_hash(const sparsity::Routers& routers);
std::string neurons_hash(const sparsity::Routers& routers);

}  // namespace polar::study
