#include "study/calibration_slices.h"

namespace polar::study {

namespace {

constexpr int kScoredStride = 4;  // every fourth row says enough of a unit

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
  slices.held_out.context = options.context;
  for (int i = 0; i < wanted; ++i) {
    const int window = static_cast<int>(static_cast<int64_t>(i) * all.count / wanted);
    const auto tokens = all.at(window);
    const bool importance =
        i * options.importance_windows / wanted != (i + 1) * options.importance_windows / wanted;
    if (importance) {
      slices.importance.push_back(make_passage(tokens, options.prompt_tokens(), kScoredStride));
    } else {
      slices.held_out.tokens.insert(slices.held_out.tokens.end(), tokens.begin(), tokens.end());
      ++slices.held_out.count;
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
