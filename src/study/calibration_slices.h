#pragma once
// Which parts of a text a calibration looks at, and what for.

#include "study/calibrate.h"

namespace polar::study {

/// Assignments are compared on a part of the held-out windows, one in this many.
inline constexpr int kParts = 4;

/// Windows are dealt over the whole text, so that both kinds come from all over it.
struct Slices {
  std::vector<Passage> importance;  // units are left out on these, windows' last quarters
  std::vector<Passage> whole;       // every second of these windows, from the prompt on
  Windows held_out;
  Windows part, rest;  // of held_out: every kParts-th window, from the first on, and the others
  std::vector<Needle> needles;           // that rank the units
  std::vector<Needle> held_out_needles;  // that decide
};

/// Cuts a text into the windows and retrieval prompts that the options ask for; the same seed gives
/// the same. `leading`: the token in front of every document, or -1. Errors: too short a text.
Result<Slices> make_slices(const std::vector<std::string>& documents, const Encode& encode,
                           int leading, const CalibrateOptions& options);

}  // namespace polar::study
