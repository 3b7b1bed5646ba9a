// Chat templates against transformers and jinja2, frozen by tests/golden/text/make_chat.py.

#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

namespace polar::text {
namespace {

using Json = nlohmann::ordered_json;

const std::string kGolden = std::string(POLAR_GOLDEN_DIR) + "/text/";
constexpr std::time_t kNow = 1722211200;  // 2024-07-29 00:00 UTC

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

std::vector<Json> read_lines(const std::string& path) {
  std::vector<Json> rows;
  std::istringstream lines(read(path));
  for (std::string line; std::getline(lines, line);) rows.push_back(Json::parse(line));
  return rows;
}

Result<std::string> render(const std::string& source, const Json& context) {
  POLAR_ASSIGN(const ChatTemplate chat, ChatTemplate::parse(source, "model"));
  return chat.render(context, kNow);
}

class ChatTemplates : public testing::Test {
 protected:
  void SetUp() override {
    setenv("TZ", "UTC", 1);
    tzset();
  }
};

TEST_F(ChatTemplates, PublishedOnesEqualTransformers) {
  const Json contexts = Json::parse(read(kGolden + "chat_contexts.json"));
  std::map<std::string, int> compared, rendered;
  for (const Json& row : read_lines(kGolden + "chat_cases.jsonl")) {
    const std::string name = row[0], conversation = row[1];
    const auto result =
        render(read(kGolden + "templates/" + name + ".jinja"), contexts.at(conversation));
    SCOPED_TRACE(name + " with " + conversation);
    ASSERT_EQ(result.ok(), !row[2].is_null()) << (result.ok() ? "" : result.error().message);
    ++compared[name];
    if (!result.ok()) continue;
    EXPECT_EQ(*result, row[2].get<std::string>());
    ++rendered[name];
  }
  EXPECT_GE(compared.size(), 11u);
  for (const auto& [name, count] : compared) {
    EXPECT_GE(count, 20) << name;
    EXPECT_GE(rendered[name], 6) << name;  // some templates insist on tools
  }
}

TEST_F(ChatTemplates, RandomTemplatesEqualJinja2) {
  const Json context = Json::parse(read(kGolden + "expressions.context.json"));
  const std::vector<Json> rows = read_lines(kGolden + "expressions.jsonl");
  ASSERT_GE(rows.size(), 1000u);
  for (const Json& row : rows) {
    const auto result = render(row[0], context);
    ASSERT_EQ(result.ok(), !row[1].is_null())
        << row[0] << (result.ok() ? "" : "\n" + result.error().message);
    if (result.ok()) {
      EXPECT_EQ(*result, row[1].get<std::string>()) << row[0];
    }
  }
}

TEST_F(ChatTemplates, RefusalSaysWhatTheTemplateSaid) {
  const auto result = render("a\n{{ raise_exception('no\\nroles') }}", Json::object());
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().message,
            "model: chat template line 2: found no roles, expected messages that the template "
            "accepts");
}

TEST_F(ChatTemplates, WhatNeedsTooMuchIsAnError) {
  const char* const templates[] = {
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% set n = namespace(s='ab') %}{% for i in range(200) %}{% set n.s = n.s ~ n.s %}{% endfor "
      "%}",
      "{% set n = namespace(l=[1]) %}{% for i in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}",
      "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = [n.l] %}{% endfor %}",
      "{% set n = namespace(l=[]) %}{% for i in range(90) %}{% set n.l = [n.l, n.l] %}{% endfor %}"
      "{{ n.l }}",
      "{{ 'a' * 99999999999 }}",
      "{{ ('a' * 1000000).replace('', 'a' * 1000000) }}",
      "{{ ('a' * 100000)|center(9999999999) }}",
      "{{ '%999999999d' % 1 }}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ range(999999999) }}",
  };
  for (const char* source : templates) {
    const auto result = render(source, Json::object());
    EXPECT_FALSE(result.ok()) << source;
  }
}

TEST_F(ChatTemplates, MalformedOnesAreErrorsWithALine) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\n{% if x %}", "chat template line 2: found the end of the template"},
      {"{{ x", "chat template line 1: found a tag that does not end"},
      {"{% frob %}", "the unknown statement {% frob %}"},
      {"{{ 'a }}", "a string that does not end"},
      {"{# x", "a comment that does not end"},
      {"{{ x | nofilter }}", "the unknown filter \"nofilter\""},
      {"{{ nope.x }}", "the undefined \"nope\""},
      {"{{ [].append(1) }}", "the unsafe method append() of a list"},
      {"{% extends 'x' %}", "the unknown statement {% extends %}"},
      {"{% break %}", "{% break %} outside a loop"},
  };
  for (const auto& [source, expected] : cases) {
    const auto result = render(source, Json::object());
    ASSERT_FALSE(result.ok()) << source;
    EXPECT_NE(result.error().message.find(expected), std::string::npos) << result.error().message;
  }
  EXPECT_FALSE(render("{{ " + std::string(100000, '(') + "1", Json::object()).ok());
  std::string sum = "{{ 1";
  for (int i = 0; i < 100000; ++i) sum += "+1";
  EXPECT_FALSE(render(sum + " }}", Json::object()).ok());
}

TEST_F(ChatTemplates, DeepContextIsAnError) {
  Json deep = Json::array();
  for (int i = 0; i < 1000; ++i) deep = Json::array({deep});
  EXPECT_FALSE(render("{{ x }}", Json{{"x", deep}}).ok());
  EXPECT_FALSE(render("", Json::array()).ok());
}

}  // namespace
}  // namespace polar::text
