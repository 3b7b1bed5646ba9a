#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>

#include "engine/text_stream.h"

namespace polar::engine {
namespace {

text::Tokenizer load(const char* name) {
  auto tokenizer = text::Tokenizer::from_json_file(std::string(POLAR_GOLDEN_DIR "/text/") + name);
  POLAR_CHECK(tokenizer.ok());
  return std::move(tokenizer).value();
}

/// Random text over few letters, some of several bytes, so that stop strings and their begins come
/// often.
rc::Gen<std::string> few_letters() {
  return rc::gen::map(rc::gen::container<std::vector<std::string>>(rc::gen::element<std::string>(
                          "a", "b", "ab", " ", "\n", "é", "日本", "🙂", ".")),
                      [](const std::vector<std::string>& parts) {
                        std::string text;
                        for (const std::string& part : parts) text += part;
                        return text;
                      });
}

void gives_the_text_before_the_first_stop(const text::Tokenizer& tokenizer) {
  const auto tokens = tokenizer.encode(*few_letters(), false);
  std::vector<std::string> stops;
  for (const std::string& stop : *rc::gen::container<std::vector<std::string>>(few_letters())) {
    // Of two stops of which one holds the other, which comes first depends on the tokens.
    const bool related = std::any_of(stops.begin(), stops.end(), [&](const std::string& other) {
      return other.find(stop) != std::string::npos || stop.find(other) != std::string::npos;
    });
    if (!stop.empty() && stop.size() < 9 && !related) stops.push_back(stop);
  }
  const std::string whole = tokenizer.decode(tokens, true);
  size_t cut = std::string::npos;
  for (const std::string& stop : stops) cut = std::min(cut, whole.find(stop));
  const std::string expected = whole.substr(0, cut);

  TextStream stream(tokenizer, stops);
  std::string text;
  for (const int32_t token : tokens) {
    text += stream.push(token);
    RC_ASSERT(expected.compare(0, text.size(), text) == 0);  // nothing is ever taken back
  }
  text += stream.finish();
  RC_ASSERT(text == expected);
  RC_ASSERT(stream.stopped() == (cut != std::string::npos));
  RC_CLASSIFY(cut != std::string::npos, "stopped");
}

TEST(TextStream, GivesTheTextBeforeTheFirstStopString) {
  const text::Tokenizer tokenizer = load("smollm.tokenizer.json");
  EXPECT_TRUE(rc::check([&] { gives_the_text_before_the_first_stop(tokenizer); }));
}

TEST(TextStream, HoldsBackOnlyWhatMayStillStop) {
  const text::Tokenizer tokenizer = load("smollm.tokenizer.json");
  TextStream stream(tokenizer, {"zq!"});
  std::string text;
  for (const int32_t token : tokenizer.encode("one zq two z", false)) text += stream.push(token);
  EXPECT_EQ(text, "one zq two ");
  EXPECT_EQ(stream.finish(), "z");
  EXPECT_FALSE(stream.stopped());
}

TEST(TextStream, IgnoresEmptyStopStringsAndWhatComesBehindAStop) {
  const text::Tokenizer tokenizer = load("smollm.tokenizer.json");
  TextStream stream(tokenizer, {"", "stop"});
  std::string text;
  for (const int32_t token : tokenizer.encode("go on stop here", false)) text += stream.push(token);
  EXPECT_EQ(text + stream.finish(), "go on ");
  EXPECT_TRUE(stream.stopped());
}

}  // namespace
}  // namespace polar::engine
