// The page's files, and what it asks the server for: status, profile, and traces of what was read.

#include <regex>

#include "serve/serve_fixture.h"
#include "serve/web.h"

namespace polar::serve {
namespace {

class PageTest : public ServeTest {
 protected:
  void SetUp() override {
    ServeTest::SetUp();
    engine_.reset();
    sparsity::Profile profile = sparsity::window_profile(2, 2, 1, 1, {});
    profile.points[1].budgets[0].kind = backend::ReadKind::kFull;
    profile.points[1].budgets[3].kind = backend::ReadKind::kNone;
    profile.points[1].quality = {0.01, 1.0075, 0.002, 0, 0.5, "a text"};
    profile.context_max = 512;
    model_->profile = profile;
    make_engine();
  }
  static ordered_json question(const std::string& point, int tokens) {
    ordered_json prompt = ordered_json::array();
    for (int i = 0; i < 100; ++i) prompt.push_back(i);
    return {{"prompt", prompt},
            {"max_tokens", tokens},
            {"ignore_eos", true},
            {"polar", {{"point", point}, {"trace", true}}}};
  }
};

TEST_F(PageTest, GivesItsFilesToAnybody) {
  ServiceOptions options;
  options.api_key = "secret";
  start(options, false);  // also while the model loads
  const Reply page = get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_NE(page.head.find("Content-Type: text/html"), std::string::npos);
  EXPECT_NE(page.head.find("Content-Security-Policy: default-src 'none'"), std::string::npos);
  EXPECT_EQ(page.head.find("unsafe"), std::string::npos);
  // Every file that the page names is there, and nothing is run or styled in line.
  size_t files = 0;
  for (const std::string attribute : {"src=\"", "href=\"/"}) {
    for (size_t at = 0; (at = page.body.find(attribute, at)) != std::string::npos; ++at) {
      const size_t begin = page.body.find('/', at), end = page.body.find('"', begin);
      const std::string path = page.body.substr(begin, end - begin);
      EXPECT_EQ(get(path).status, 200) << path;
      ++files;
    }
  }
  EXPECT_EQ(files, 3u);
  EXPECT_EQ(page.body.find("style="), std::string::npos);
  EXPECT_FALSE(std::regex_search(page.body, std::regex("\\son[a-z]+\\s*=")));
  EXPECT_NE(get("/app.js").head.find("Content-Type: text/javascript"), std::string::npos);
  EXPECT_EQ(get("/polar/status").status, 401);
  EXPECT_EQ(get("/polar/profile").status, 401);
  EXPECT_EQ(get("/index.html").status, 401);  // no file of this name: as anything unknown
  EXPECT_EQ(raw(text_of("POST", "/", "")).status, 401);
}

TEST_F(PageTest, SaysHowItStands) {
  start({}, false);
  EXPECT_EQ(get("/polar/status").json()["state"], "loading");
  EXPECT_FALSE(get("/polar/status").json().contains("pages"));
  EXPECT_EQ(get("/polar/profile").status, 503);
  make_ready();
  ordered_json ask = question("dense", 10);
  ASSERT_EQ(post("/v1/completions", ask).status, 200);
  const ordered_json status = get("/polar/status").json();
  EXPECT_EQ(status["state"], "ready");
  EXPECT_EQ(status["model"], "tiny");
  EXPECT_EQ(status["output_tokens"], 10);
  EXPECT_EQ(status["running"], 0);
  EXPECT_EQ(status["max_batch"], 8);
  EXPECT_GT(status["pages"], 0);
  EXPECT_EQ(status["pages_used"], 0);
  EXPECT_GT(status["kv_bytes_read"], 0.0);
  EXPECT_GT(status["seconds"], 0.0);
}

TEST_F(PageTest, SaysWhatTheProfilePromises) {
  start();
  const ordered_json profile = get("/polar/profile").json();
  EXPECT_EQ(profile["layers"], 2);
  EXPECT_EQ(profile["kv_heads"], 2);
  EXPECT_EQ(profile["context_max"], 512);
  ASSERT_EQ(profile["points"].size(), 2u);
  const ordered_json& point = profile["points"][1];
  EXPECT_EQ(point["name"], "window");
  EXPECT_EQ(point["budget"], ordered_json::parse(R"([["full","window"],["window","none"]])"));
  EXPECT_EQ(point["quality"]["perplexity_ratio"], 1.0075);
  EXPECT_TRUE(point["quality"]["agreement"].is_null());  // not measured
}

TEST_F(PageTest, TracesWhatEveryUnitRead) {
  start();
  const Reply reply = post("/v1/completions", question("window", 21));
  ASSERT_EQ(reply.status, 200) << reply.body;
  const ordered_json trace = reply.json()["choices"][0]["polar"]["trace"];
  int64_t dense = 0;
  for (int position = 100; position < 120; ++position) dense += position / 16 + 1;
  EXPECT_EQ(trace["rows"], 20);
  EXPECT_EQ(reply.json()["choices"][0]["polar"]["point"], "window");
  EXPECT_EQ(trace["pages_dense"], (ordered_json{dense, dense}));
  EXPECT_EQ(trace["pages_read"], (ordered_json{{dense, 60}, {60, 0}}));
  // The bytes are those of these pages.
  const ordered_json usage = reply.json()["usage"]["polar"];
  EXPECT_NEAR(usage["kv_density"].get<double>(),
              static_cast<double>(dense + 120) / static_cast<double>(4 * dense), 1e-9);
}

TEST_F(PageTest, StreamsTracesThatSumUpToTheWhole) {
  start();
  ordered_json ask = question("window", 21);
  const ordered_json whole = post("/v1/completions", ask).json()["choices"][0]["polar"]["trace"];
  ask["stream"] = true;
  int64_t rows = 0, first_unit = 0;
  for (const ordered_json& event : events(post("/v1/completions", ask).body)) {
    for (const auto& choice : event["choices"]) {
      const ordered_json& trace = choice["polar"]["trace"];
      rows += trace["rows"].get<int64_t>();
      if (trace["rows"] != 0) first_unit += trace["pages_read"][0][0].get<int64_t>();
    }
  }
  EXPECT_EQ(rows, whole["rows"]);
  EXPECT_EQ(first_unit, whole["pages_read"][0][0]);
}

TEST_F(PageTest, TracesOnlyWhenAsked) {
  start();
  ordered_json ask = question("window", 3);
  ask["polar"].erase("trace");
  EXPECT_FALSE(post("/v1/completions", ask).json()["choices"][0].contains("polar"));
  ask["polar"]["trace"] = "yes";
  const Reply reply = post("/v1/completions", ask);
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.json()["error"]["param"], "polar");
}

}  // namespace
}  // namespace polar::serve
