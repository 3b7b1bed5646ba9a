#include "study/calibration_slices.h"

#include <algorithm>

namespace polar::study {

namespace {

constexpr int kScoredStride = 2;  // every second row says enough of a unit
constexpr int kWholeStride = 4;   // and of a whole window, every fourth

/// Tokens of a window in front of the rows that units are left out for: a window's last quarter is
/// where a unit that looks far has most to lose, and many windows are worth more than many rows.
int importance_prompt(const CalibrateOptions& options) {
  return std::max(options.prompt_tokens(), options.context - options.context / 4);
}

}  // namespace

Result<Slices> make_slices(const std::vector<std::string>& documents, const Encode& encode,
                           int leading, const CalibrateOptions& options) {
  const auto with_leading = [&](const std::string& document) { return encode(document, true); };
  const int wanted = options.importance_windows + options.held_out_windows;
  POLAR_ASSIGN(const Windows all,
               make_windows(options.text_name, documents, with_leading, options.context, 0));
  if (all.count < wanted) {
    return bad_input(
        options.text_name, "text",
        std::to_string(all.count) + " windows of " + std::to_string(options.context) + " tokens",
        "at least " + std::to_string(wanted));
  }
  Slices slices;
  slices.held_out.context = slices.part.context = slices.rest.context = options.context;
  const auto add = [](Windows& windows, std::span<const int32_t> tokens) {
    windows.tokens.insert(windows.tokens.end(), tokens.begin(), tokens.end());
    ++windows.count;
  };
  for (int i = 0; i < wanted; ++i) {
    const int window = static_cast<int>(static_cast<int64_t>(i) * all.count / wanted);
    const auto tokens = all.at(window);
    const bool importance =
        i * options.importance_windows / wanted != (i + 1) * options.importance_windows / wanted;
    if (importance) {
      if (slices.importance.size() % 2 == 0)
        slices.whole.push_back(make_passage(tokens, options.prompt_tokens(), kWholeStride));
      slices.importance.push_back(make_passage(tokens, importance_prompt(options), kScoredStride));
    } else {
      add(slices.held_out.count % kParts == 0 ? slices.part : slices.rest, tokens);
      add(slices.held_out, tokens);
    }
  }
  std::vector<int32_t> haystack;
  for (const int32_t token : all.tokens) {
    if (token != leading) haystack.push_back(token);
  }
  const auto needles = [&](int count, uint64_t seed) {
    return make_needles(options.text_name, haystack, encode, leading, options.context, count, 0,
                        kCalibrationWordings, seed);
  };
  const int ranking = options.needles / 3;
  POLAR_ASSIGN(slices.needles, needles(ranking, options.seed));
  POLAR_ASSIGN(slices.held_out_needles, needles(options.needles - ranking, options.seed + 1));
  return slices;
}

}  // namespace polar::study
