// Tokenizers against the `tokenizers` package, frozen by tests/golden/text/make_tokenizers.py.

#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "text/detokenizer.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

const std::string kGolden = std::string(POLAR_GOLDEN_DIR) + "/text/";

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

struct Case {
  std::string text;
  std::vector<TokenId> ids;  // with special tokens
  std::string decoded;       // of the ids without special tokens
  std::string skipped;       // of `ids`, special tokens left out
};

std::vector<Case> read_cases(const std::string& style) {
  std::vector<Case> cases;
  std::istringstream lines(read(kGolden + style + ".cases.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto json = nlohmann::json::parse(line);
    Case one{json[0], json[1], "", ""};
    one.decoded = json[2].is_null() ? one.text : json[2].get<std::string>();
    one.skipped = json.size() > 3 ? json[3].get<std::string>() : one.decoded;
    cases.push_back(std::move(one));
  }
  return cases;
}

std::string stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool skip) {
  Detokenizer detokenizer(tokenizer, skip);
  std::string text;
  for (TokenId id : ids) {
    const std::string part = detokenizer.push(id);
    EXPECT_TRUE(is_valid_utf8(part));
    text += part;
  }
  return text + detokenizer.flush();
}

void expect_equal(const Tokenizer& tokenizer, const std::string& style) {
  const std::vector<Case> cases = read_cases(style);
  ASSERT_GE(cases.size(), 2000u);
  int wrong = 0;
  for (const Case& one : cases) {
    const auto shown = nlohmann::json(one.text).dump();
    const auto ids = tokenizer.encode(one.text, true);
    const auto plain = tokenizer.encode(one.text, false);
    EXPECT_EQ(ids, one.ids) << shown;
    EXPECT_EQ(tokenizer.decode(plain, false), one.decoded) << shown;
    EXPECT_EQ(tokenizer.decode(one.ids, true), one.skipped) << shown;
    EXPECT_EQ(stream(tokenizer, plain, false), one.decoded) << shown;
    EXPECT_EQ(stream(tokenizer, one.ids, true), one.skipped) << shown;
    if (testing::Test::HasFailure() && ++wrong > 10) return;
  }
}

class Style : public testing::TestWithParam<const char*> {};

TEST_P(Style, EqualsThePackage) {
  auto tokenizer = Tokenizer::from_json_file(kGolden + std::string(GetParam()) + ".tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  expect_equal(*tokenizer, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Golden, Style,
                         testing::Values("gpt2", "opt", "llama3", "qwen2", "smollm", "tekken",
                                         "llama2", "mistral", "odd"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Tokenizer, OptDocsEqualsThePackage) {
  const char* shared = std::getenv("POLAR_SHARED");
  if (shared == nullptr) GTEST_SKIP() << "POLAR_SHARED does not name the folder with opt-42m-docs";
  auto tokenizer =
      Tokenizer::from_json_file(std::string(shared) + "/models/opt-42m-docs/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->vocab_size(), 8192);
  EXPECT_EQ(tokenizer->leading_token(), 2);
  expect_equal(*tokenizer, "opt-42m-docs");
}

// A GGUF vocabulary as the reader in src/io would hand it over.
struct OwnedVocab {
  nlohmann::json json;
  GgufVocab view;

  explicit OwnedVocab(const std::string& path) : json(nlohmann::json::parse(read(path))) {
    view.model = json.at("model").get_ref<const std::string&>();
    if (json.contains("pre")) view.pre = json.at("pre").get_ref<const std::string&>();
    for (const auto& token : json.at("tokens")) {
      view.tokens.push_back(token.get_ref<const std::string&>());
    }
    view.types = json.at("token_type").get<std::vector<int32_t>>();
    if (json.contains("scores")) view.scores = json.at("scores").get<std::vector<float>>();
    if (json.contains("merges")) {
      for (const auto& merge : json.at("merges")) {
        view.merges.push_back(merge.get_ref<const std::string&>());
      }
    }
    const auto integer = [&](const char* key) -> std::optional<int64_t> {
      if (!json.contains(key)) return std::nullopt;
      return json.at(key).get<int64_t>();
    };
    const auto boolean = [&](const char* key) -> std::optional<bool> {
      if (!json.contains(key)) return std::nullopt;
      return json.at(key).get<bool>();
    };
    view.bos = integer("bos_token_id");
    view.eos = integer("eos_token_id");
    view.unknown = integer("unknown_token_id");
    view.add_bos = boolean("add_bos_token");
    view.add_eos = boolean("add_eos_token");
    view.add_space_prefix = boolean("add_space_prefix");
  }
};

TEST(Tokenizer, GgufByteLevelEqualsThePackage) {
  const OwnedVocab vocab(kGolden + "gguf_gpt2.vocab.json");
  auto tokenizer = Tokenizer::from_gguf(vocab.view, "model.gguf");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->leading_token(), std::nullopt);
  expect_equal(*tokenizer, "gguf_gpt2");
}

TEST(Tokenizer, GgufSentencePieceEqualsSentencePiece) {
  const OwnedVocab vocab(kGolden + "gguf_llama.vocab.json");
  auto tokenizer = Tokenizer::from_gguf(vocab.view, "model.gguf");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->leading_token(), 1);
  expect_equal(*tokenizer, "gguf_llama");
}

}  // namespace
}  // namespace polar::text
