// Tokenizer files that are wrong: each is refused with one sentence that names file and key, and
// none crashes, hangs or allocates absurdly. Also what long texts cost.

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

using Json = nlohmann::json;

const std::string kGolden = std::string(POLAR_GOLDEN_DIR) + "/text/";

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

std::string load(const std::string& style) {
  return read(kGolden + style + ".tokenizer.json");
}

// The complaint about `json`, or "" if there is none.
std::string complaint(const std::string& json) {
  const auto result = Tokenizer::from_json(json, "tokenizer.json");
  if (result.ok()) return "";
  EXPECT_EQ(result.error().message.find('\n'), std::string::npos);
  return result.error().message;
}

TEST(TokenizerErrors, NameFileKeyFoundAndExpected) {
  const Json good = Json::parse(load("llama3"));
  const struct {
    const char* pointer;
    const char* value;
    const char* message;
  } cases[] = {
      {"/model/type", R"("Unigram")",
       "tokenizer.json: model.type: found \"Unigram\", expected \"BPE\""},
      {"/model/vocab", "7", "model.vocab: found 7, expected an object"},
      {"/model/vocab/a", "-1", "model.vocab[\"a\"]: found -1, expected an integer from 0"},
      {"/model/vocab/a", "99999999999", "model.vocab[\"a\"]: found 99999999999"},
      {"/model/vocab/a", "18446744073709551615", "model.vocab[\"a\"]: found 18446744073709551615"},
      {"/model/vocab/a", "1.5", "model.vocab[\"a\"]: found 1.5"},
      {"/model/vocab/new", "0", "an id of its own"},
      {"/model/merges", "{}", "model.merges: found an object, expected a list"},
      {"/model/merges/0", R"("a b c")", "model.merges[0]: found \"a b c\""},
      {"/model/merges/0", R"(["zz", "a"])", "two tokens whose union is a token"},
      {"/model/merges/0", R"(["", "a"])", "two tokens whose union is a token"},
      {"/model/unk_token", R"("nope")", "model.unk_token: found \"nope\""},
      {"/model/continuing_subword_prefix", R"("##")", "model.continuing_subword_prefix"},
      {"/model/ignore_merges", "1", "model.ignore_merges: found 1, expected true or false"},
      {"/added_tokens/0/id", "3", "added_tokens[0].id: found 3"},
      {"/added_tokens/0/content", "null", "added_tokens[0].content: found nothing"},
      {"/pre_tokenizer/type", R"("UnicodeScripts")",
       "pre_tokenizer.type: found \"UnicodeScripts\""},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Regex": "("})",
       "pre_tokenizer.pretokenizers[0].pattern.Regex: found \"(\""},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Regex": "[a&&b]"})", "no && in a class"},
      {"/pre_tokenizer/pretokenizers/0/behavior", R"("Shredded")", "behavior: found \"Shredded\""},
      {"/normalizer", R"({"type": "Precompiled"})", "normalizer.type: found \"Precompiled\""},
      {"/decoder", R"({"type": "WordPiece"})", "decoder.type: found \"WordPiece\""},
      {"/post_processor/processors/1/single/0", R"({"SpecialToken": {"id": "?"}})",
       "special_tokens.?.ids: found nothing"},
      {"/post_processor/processors/1/single", "[]", "the text 0 times"},
      {"/post_processor/processors/1/special_tokens/<|begin_of_text|>/ids/0", "4000000",
       "token id 4000000"},
  };
  for (const auto& one : cases) {
    Json json = good;
    json[Json::json_pointer(one.pointer)] = Json::parse(one.value);
    const std::string message = complaint(json.dump());
    EXPECT_NE(message.find(one.message), std::string::npos) << one.pointer << ": " << message;
    EXPECT_TRUE(message.starts_with("tokenizer.json: ")) << message;
    EXPECT_NE(message.find(": found "), std::string::npos) << message;
    EXPECT_NE(message.find(", expected "), std::string::npos) << message;
  }
  const auto absent = Tokenizer::from_json_file("/nonexistent/tokenizer.json");
  ASSERT_FALSE(absent.ok());
  EXPECT_TRUE(absent.error().message.starts_with("/nonexistent/tokenizer.json: file: found"));
  EXPECT_FALSE(Tokenizer::from_json_file("/").ok());
}

TEST(TokenizerErrors, TruncatedFilesAreRefused) {
  const std::string whole = load("llama2");
  for (size_t size = 0; size + 2 < whole.size(); size += 487) {
    EXPECT_NE(complaint(whole.substr(0, size)), "") << size;
  }
}

TEST(TokenizerErrors, DeepNestingIsRefused) {
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += R"({"type":"Sequence","decoders":[)";
  EXPECT_NE(complaint(R"({"decoder":)" + deep), "");
  Json decoder = {{"type", "Fuse"}};
  for (int i = 0; i < 50; ++i) {
    decoder = {{"type", "Sequence"}, {"decoders", Json::array({std::move(decoder)})}};
  }
  Json json = Json::parse(load("llama2"));
  json["decoder"] = decoder;
  EXPECT_NE(complaint(json.dump()).find("nesting deeper than"), std::string::npos);
}

// What survives a random change of bytes must still work on any text.
TEST(TokenizerErrors, MutatedFilesAreRefusedOrWork) {
  std::mt19937 random(7);
  int refused = 0, used = 0;
  for (const char* style : {"gpt2", "llama2", "odd"}) {
    const std::string whole = load(style);
    for (int i = 0; i < 60; ++i) {
      std::string changed = whole;
      const size_t at = random() % (i % 2 == 0 ? 2500 : changed.size());
      changed[at] =
          static_cast<char>(random() % 3 == 0 ? random() % 256 : "0123{}[]\",:atn"[random() % 14]);
      const auto tokenizer = Tokenizer::from_json(changed, "tokenizer.json");
      if (!tokenizer.ok()) {
        ++refused;
        continue;
      }
      ++used;
      const auto ids = tokenizer->encode("Hello <s> w\xC3\xB6rld\xFF 12 \xE6\x9D\xB1", true);
      EXPECT_TRUE(is_valid_utf8(tokenizer->decode(ids, false)));
    }
  }
  EXPECT_GT(refused, 20);
  EXPECT_GT(used, 5);
}

TEST(TokenizerErrors, GgufVocabulariesThatLie) {
  const std::vector<std::string_view> tokens = {"<s>", "a", "b", "ab"};
  GgufVocab good;
  good.model = "gpt2";
  good.pre = "gpt-2";
  good.tokens = tokens;
  good.types = {3, 1, 1, 1};
  good.merges = {"a b"};
  ASSERT_TRUE(Tokenizer::from_gguf(good, "m.gguf").ok());
  const auto says = [](const GgufVocab& vocab, const std::string& text) {
    const auto result = Tokenizer::from_gguf(vocab, "m.gguf");
    ASSERT_FALSE(result.ok()) << text;
    EXPECT_TRUE(result.error().message.starts_with("m.gguf: tokenizer.ggml.")) << text;
    EXPECT_NE(result.error().message.find(text), std::string::npos) << result.error().message;
  };
  GgufVocab bad = good;
  bad.model = "t5";
  says(bad, "model: found \"t5\"");
  bad = good;
  bad.pre = "martian";
  says(bad, "pre: found \"martian\"");
  bad = good;
  bad.tokens.clear();
  says(bad, "tokens: found 0 tokens");
  bad = good;
  bad.types.pop_back();
  says(bad, "token_type: found 3");
  bad = good;
  bad.merges = {"a c"};
  says(bad, "merges[0]: found \"a c\"");
  bad.merges = {"ab"};
  says(bad, "merges[0]: found \"ab\"");
  bad.merges.clear();
  says(bad, "merges: found nothing");
  bad = good;
  bad.tokens[1] = "\xFF";
  says(bad, "tokens[1]: found bytes that are not UTF-8");
  bad = good;
  bad.bos = 4;
  says(bad, "bos_token_id: found 4");
  bad = good;
  bad.model = "llama";
  says(bad, "scores: found nothing");
  bad.scores = {0, 1, 2, std::nanf("")};
  says(bad, "scores: found a score that is not a number");
}

TEST(Tokenizer, InvalidUtf8ReadsAsReplacementCharacters) {
  const auto tokenizer = Tokenizer::from_json(load("gpt2"), "tokenizer.json");
  ASSERT_TRUE(tokenizer.ok());
  // One for each maximal piece that no character begins with.
  const auto ids = tokenizer->encode(
      "a\xFF\xE6\x9D"
      "b\xF0\x9F\x98",
      false);
  EXPECT_EQ(ids, tokenizer->encode("a\uFFFD\uFFFDb\uFFFD", false));
}

TEST(Detokenizer, HoldsBackHalfACharacter) {
  const auto tokenizer = Tokenizer::from_json(load("gpt2"), "tokenizer.json");
  ASSERT_TRUE(tokenizer.ok());
  const Tokenizer& gpt2 = *tokenizer;
  Detokenizer detokenizer(gpt2, false);
  std::string streamed;
  size_t empty = 0;
  const auto ids = gpt2.encode("x\U0001F9D1\U0001F3FF", false);
  for (TokenId id : ids) {
    const std::string part = detokenizer.push(id);
    EXPECT_TRUE(is_valid_utf8(part));
    empty += part.empty();
    streamed += part;
  }
  EXPECT_GT(empty, 2u);
  EXPECT_EQ(streamed, "x\U0001F9D1\U0001F3FF");
  EXPECT_EQ(detokenizer.flush(), "");
  detokenizer.push(*gpt2.find("\u00F0"));  // the byte F0 alone
  EXPECT_EQ(detokenizer.flush(), "\uFFFD");
}

// A word of n characters costs n log n: four times the length may cost ten times at the very most,
// where the square would cost sixteen.
TEST(Tokenizer, LongRunsCostLittleMore) {
  for (const char* style : {"gpt2", "llama2", "mistral"}) {
    const auto loaded = Tokenizer::from_json(load(style), "tokenizer.json");
    ASSERT_TRUE(loaded.ok());
    const Tokenizer& tokenizer = *loaded;
    for (const std::string part : {"a", "ab", "the", " "}) {
      const auto seconds = [&](size_t bytes) {
        std::string text;
        while (text.size() < bytes) text += part;
        double best = 1e9;
        for (int i = 0; i < 3; ++i) {
          const auto start = std::chrono::steady_clock::now();
          EXPECT_FALSE(tokenizer.encode(text, false).empty());
          best = std::min(
              best,
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        }
        return best;
      };
      const double small = seconds(100'000), large = seconds(400'000);
      EXPECT_LT(large, 10 * small + 0.05) << style << " " << part;
    }
  }
}

}  // namespace
}  // namespace polar::text
