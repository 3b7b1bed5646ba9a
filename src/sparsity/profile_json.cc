// The profile's file: JSON for people and scripts, checked key by key.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <sstream>
#include <utility>

#include "io/atomic_file.h"
#include "sparsity/profile.h"

namespace polar::sparsity {

using backend::ReadKind;
using backend::UnitBudget;
using nlohmann::ordered_json;

namespace {

/// Files say 1 where no point has summaries or least pages, which version 1 did not know.
constexpr int kVersion = 2;
constexpr int kMostLayers = 4096;
constexpr int kMostHeads = 4096;

/// Behind a kind that leaves pages out, whose summaries are seen.
constexpr std::string_view kWithSummaries = " + summaries";
constexpr std::string_view kLeast = " least ";
constexpr std::string_view kRouted = "routed, else ";

std::string budget_text(const UnitBudget& budget) {
  const bool routed = budget.kind == ReadKind::kRouted;
  const ReadKind kind = routed ? budget.fallback : budget.kind;
  std::string text(routed ? kRouted : "");
  text += kind_name(kind);
  if (kind == ReadKind::kPages) text += ":" + std::to_string(budget.pages_per_mille);
  if (budget.least > 0) text += std::string(kLeast) + std::to_string(budget.least);
  if (budget.summaries) text += kWithSummaries;
  return text;
}

ordered_json point_json(const OperatingPoint& point, int layers, int kv_heads) {
  ordered_json table = ordered_json::array();
  for (int layer = 0; layer < layers; ++layer) {
    ordered_json row = ordered_json::array();
    for (int unit = 0; unit < kv_heads; ++unit)
      row.push_back(budget_text(point.budgets[layer * kv_heads + unit]));
    table.push_back(std::move(row));
  }
  const Quality& quality = point.quality;
  ordered_json json = {{"name", point.name},
                       {"sink", point.limits.sink},
                       {"recent", point.limits.recent},
                       {"routed", point.limits.routed}};
  if (point.recall > 0) json["recall"] = point.recall;
  json["quality"] = {{"max_loss", quality.max_loss},
                     {"perplexity_ratio", quality.perplexity_ratio},
                     {"kl", quality.kl},
                     {"agreement", quality.agreement},
                     {"effective_density", quality.effective_density},
                     {"text", quality.text},
                     {"needles",
                      {{"count", quality.needles},
                       {"dense", quality.dense_needles},
                       {"sparse", quality.sparse_needles}}}};
  if (point.recall > 0) json["quality"]["neuron_share"] = quality.neuron_share;
  json["budget"] = std::move(table);
  return json;
}

/// Reads one file's values, remembering its name for the sentence that an error is.
class Reader {
 public:
  explicit Reader(std::string path) : path_(std::move(path)) {}

  Error wrong(const std::string& key, const std::string& found, const std::string& expected) const {
    return bad_input(path_, key, found, expected);
  }

  Result<int> whole(const ordered_json& object, const std::string& key, int least, int most) const {
    const auto value = object.find(key);
    const std::string range =
        "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
    if (value == object.end()) return wrong(key, "nothing", range);
    if (!value->is_number_integer()) return wrong(key, short_text(*value), range);
    const auto number = value->get<int64_t>();
    if (number < least || number > most) return wrong(key, short_text(*value), range);
    return static_cast<int>(number);
  }

  Result<std::string> text(const ordered_json& object, const std::string& key) const {
    const auto value = object.find(key);
    if (value == object.end() || !value->is_string()) {
      return wrong(key, value == object.end() ? "nothing" : short_text(*value), "a string");
    }
    return value->get<std::string>();
  }

  Result<double> number(const ordered_json& object, const std::string& key) const {
    const auto value = object.find(key);
    if (value == object.end() || !value->is_number() || !std::isfinite(value->get<double>())) {
      return wrong(key, value == object.end() ? "nothing" : short_text(*value), "a number");
    }
    return value->get<double>();
  }

  static std::string short_text(const ordered_json& value) {
    const std::string dump = value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
    return dump.size() > 60 ? dump.substr(0, 60) + "..." : dump;
  }

 private:
  std::string path_;
};

/// A whole number up to `most`, of digits alone; -1: it is none.
int number_in(std::string_view digits, int most) {
  int number = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  const bool whole = error == std::errc() && end == digits.data() + digits.size();
  return whole && number >= 0 && number <= most ? number : -1;
}

/// A budget that no router decides, or nothing.
std::optional<UnitBudget> fixed_budget(std::string text) {
  UnitBudget budget;
  if (text.ends_with(kWithSummaries)) {
    text.resize(text.size() - kWithSummaries.size());
    auto without = fixed_budget(text);
    if (!without || without->summaries) return std::nullopt;
    if (without->kind != ReadKind::kWindow && without->kind != ReadKind::kPages)
      return std::nullopt;
    without->summaries = true;
    return without;
  }
  for (const ReadKind kind : {ReadKind::kNone, ReadKind::kWindow, ReadKind::kFull}) {
    budget.kind = kind;
    if (text == kind_name(kind)) return budget;
  }
  if (!text.starts_with("pages:")) return std::nullopt;
  const size_t least = text.find(kLeast);
  const int per_mille = number_in(std::string_view(text).substr(0, least).substr(6), 1000);
  if (per_mille < 1) return std::nullopt;
  budget = {ReadKind::kPages, ReadKind::kWindow, static_cast<uint16_t>(per_mille)};
  if (least == std::string::npos) return budget;
  const int pages = number_in(std::string_view(text).substr(least + kLeast.size()), 0xffff);
  if (pages < 1) return std::nullopt;
  budget.least = static_cast<uint16_t>(pages);
  return budget;
}

Result<UnitBudget> read_budget(const Reader& reader, const std::string& key,
                               const ordered_json& value) {
  const char* const expected =
      "none, window, pages:N (N per mille, 1 to 1000), full, or routed, else none, window or "
      "pages:N; behind pages:N may stand least M (pages, 1 to 65535), behind that or window + "
      "summaries";
  if (!value.is_string()) return reader.wrong(key, Reader::short_text(value), expected);
  const auto text = value.get<std::string>();
  const bool is_routed = text.starts_with(kRouted);
  std::optional<UnitBudget> budget = fixed_budget(is_routed ? text.substr(kRouted.size()) : text);
  // A routed unit is full where it is chosen; to be full elsewhere too is no choice.
  if (budget && is_routed && budget->kind == ReadKind::kFull) budget.reset();
  if (!budget) return reader.wrong(key, Reader::short_text(value), expected);
  if (is_routed) budget->fallback = std::exchange(budget->kind, ReadKind::kRouted);
  return *budget;
}

/// Routed units chosen per row and layer: at least one where units are routed, no more than a layer
/// has; elsewhere the key may be missing.
Result<int> read_routed(const Reader& reader, const std::string& key, const ordered_json& json,
                        const OperatingPoint& point, int kv_heads) {
  const bool routes = std::any_of(point.budgets.begin(), point.budgets.end(),
                                  [](const auto& unit) { return unit.kind == ReadKind::kRouted; });
  if (!routes && !json.contains("routed")) return 0;
  auto routed = reader.whole(json, "routed", routes ? 1 : 0, kv_heads);
  if (!routed.ok() && !json.contains("routed")) {
    return reader.wrong(key + ".routed", "nothing, though units are routed",
                        "a whole number from 1 to " + std::to_string(kv_heads));
  }
  return routed;
}

/// How pages are scored; a profile that does not say so was made with mean keys.
Result<backend::PageScore> read_page_score(const Reader& reader, const ordered_json& json) {
  if (!json.contains("page_score")) return backend::PageScore::kMean;
  POLAR_ASSIGN(const std::string name, reader.text(json, "page_score"));
  for (const auto score : {backend::PageScore::kMean, backend::PageScore::kCodes}) {
    if (name == backend::page_score_name(score)) return score;
  }
  return reader.wrong("page_score", "'" + name + "'", "mean or codes");
}

Result<OperatingPoint> read_point(const Reader& reader, const ordered_json& json,
                                  const Profile& profile, size_t index) {
  const std::string key = "points[" + std::to_string(index) + "]";
  if (!json.is_object()) return reader.wrong(key, Reader::short_text(json), "an object");
  OperatingPoint point;
  POLAR_ASSIGN(point.name, reader.text(json, "name"));
  POLAR_ASSIGN(point.limits.sink, reader.whole(json, "sink", 0, 1 << 20));
  POLAR_ASSIGN(point.limits.recent, reader.whole(json, "recent", 0, 1 << 20));
  if (json.contains("recall")) {
    POLAR_ASSIGN(point.recall, reader.number(json, "recall"));
    if (!(point.recall > 0 && point.recall <= 1))
      return reader.wrong(key + ".recall", std::to_string(point.recall), "a share in (0, 1]");
  }
  if (const auto quality = json.find("quality"); quality != json.end() && quality->is_object()) {
    POLAR_ASSIGN(point.quality.max_loss, reader.number(*quality, "max_loss"));
    POLAR_ASSIGN(point.quality.perplexity_ratio, reader.number(*quality, "perplexity_ratio"));
    POLAR_ASSIGN(point.quality.kl, reader.number(*quality, "kl"));
    POLAR_ASSIGN(point.quality.agreement, reader.number(*quality, "agreement"));
    POLAR_ASSIGN(point.quality.effective_density, reader.number(*quality, "effective_density"));
    if (!(point.quality.effective_density > 0 && point.quality.effective_density <= 1)) {
      return reader.wrong(key + ".quality.effective_density",
                          std::to_string(point.quality.effective_density), "a share in (0, 1]");
    }
    if (quality->contains("neuron_share")) {
      POLAR_ASSIGN(point.quality.neuron_share, reader.number(*quality, "neuron_share"));
    }
    POLAR_ASSIGN(point.quality.text, reader.text(*quality, "text"));
    if (const auto needles = quality->find("needles");
        needles != quality->end() && needles->is_object()) {
      POLAR_ASSIGN(point.quality.needles, reader.whole(*needles, "count", 0, 1 << 20));
      POLAR_ASSIGN(point.quality.dense_needles, reader.whole(*needles, "dense", 0, 1 << 20));
      POLAR_ASSIGN(point.quality.sparse_needles, reader.whole(*needles, "sparse", 0, 1 << 20));
    }
  }
  const auto table = json.find("budget");
  const size_t layers = static_cast<size_t>(profile.layers);
  const size_t heads = static_cast<size_t>(profile.kv_heads);
  if (table == json.end() || !table->is_array() || table->size() != layers) {
    return reader.wrong(key + ".budget",
                        table == json.end() ? "nothing" : Reader::short_text(*table),
                        std::to_string(layers) + " layers");
  }
  for (size_t layer = 0; layer < layers; ++layer) {
    const std::string row_key = key + ".budget[" + std::to_string(layer) + "]";
    const ordered_json& row = (*table)[layer];
    if (!row.is_array() || row.size() != heads) {
      return reader.wrong(row_key, Reader::short_text(row), std::to_string(heads) + " KV heads");
    }
    for (const ordered_json& value : row) {
      POLAR_ASSIGN(const UnitBudget budget, read_budget(reader, row_key, value));
      point.budgets.push_back(budget);
    }
  }
  POLAR_ASSIGN(point.limits.routed, read_routed(reader, key, json, point, profile.kv_heads));
  return point;
}

/// [layers][kv_heads] numbers as one list, or nothing where the key is missing.
Result<std::vector<double>> read_table(const Reader& reader, const ordered_json& object,
                                       const std::string& key, const Profile& profile) {
  std::vector<double> values;
  const auto table = object.find(key);
  if (table == object.end()) return values;
  const std::string expected =
      std::to_string(profile.layers) + " lists of " + std::to_string(profile.kv_heads) + " numbers";
  if (!table->is_array() || static_cast<int>(table->size()) != profile.layers)
    return reader.wrong("importance." + key, Reader::short_text(*table), expected);
  for (const ordered_json& row : *table) {
    if (!row.is_array() || static_cast<int>(row.size()) != profile.kv_heads)
      return reader.wrong("importance." + key, Reader::short_text(row), expected);
    for (const ordered_json& value : row) {
      if (!value.is_number() || !std::isfinite(value.get<double>()))
        return reader.wrong("importance." + key, Reader::short_text(value), expected);
      values.push_back(value.get<double>());
    }
  }
  return values;
}

int version_of(const Profile& profile) {
  const auto is_new = [](const UnitBudget& budget) { return budget.summaries || budget.least > 0; };
  const bool any = std::any_of(profile.points.begin(), profile.points.end(), [&](const auto& p) {
    return std::any_of(p.budgets.begin(), p.budgets.end(), is_new);
  });
  return any ? kVersion : 1;
}

ordered_json table_json(const std::vector<double>& values, int kv_heads) {
  ordered_json table = ordered_json::array();
  for (size_t begin = 0; begin < values.size(); begin += kv_heads)
    table.push_back(std::vector<double>(values.begin() + begin, values.begin() + begin + kv_heads));
  return table;
}

}  // namespace

Result<Profile> read_profile(const std::string& directory) {
  const std::string path = (std::filesystem::path(directory) / "profile.json").string();
  const Reader reader(path);
  std::ifstream in(path, std::ios::binary);
  if (!in)
    return reader.wrong("file", "nothing that can be read", "a profile that polar calibrate wrote");
  std::ostringstream bytes;
  bytes << in.rdbuf();
  const ordered_json json = ordered_json::parse(bytes.str(), nullptr, false);
  if (!json.is_object()) return reader.wrong("file", "no JSON object", "a profile");
  POLAR_ASSIGN(const int version, reader.whole(json, "version", 0, 1 << 30));
  if (version < 1 || version > kVersion)
    return reader.wrong("version", std::to_string(version), "1 or " + std::to_string(kVersion));
  Profile profile;
  POLAR_ASSIGN(profile.layers, reader.whole(json, "layers", 1, kMostLayers));
  POLAR_ASSIGN(profile.kv_heads, reader.whole(json, "kv_heads", 1, kMostHeads));
  POLAR_ASSIGN(profile.fingerprint, reader.text(json, "model"));
  POLAR_ASSIGN(profile.context_min, reader.whole(json, "context_min", 0, 1 << 30));
  POLAR_ASSIGN(profile.context_max, reader.whole(json, "context_max", 0, 1 << 30));
  POLAR_ASSIGN(profile.page_score, read_page_score(reader, json));
  if (const auto importance = json.find("importance"); importance != json.end()) {
    if (!importance->is_object())
      return reader.wrong("importance", Reader::short_text(*importance), "an object");
    POLAR_ASSIGN(profile.text_importance, read_table(reader, *importance, "text", profile));
    POLAR_ASSIGN(profile.retrieval_importance,
                 read_table(reader, *importance, "retrieval", profile));
  }
  const auto points = json.find("points");
  if (points == json.end() || !points->is_array() || points->empty()) {
    return reader.wrong("points", points == json.end() ? "nothing" : Reader::short_text(*points),
                        "a list of points");
  }
  for (size_t i = 0; i < points->size(); ++i) {
    POLAR_ASSIGN(OperatingPoint point, read_point(reader, (*points)[i], profile, i));
    if (profile.find(point.name) >= 0)
      return reader.wrong("points", "'" + point.name + "' twice", "different names");
    profile.points.push_back(std::move(point));
  }
  for (const UnitBudget& budget : profile.points[0].budgets) {
    if (budget.kind != ReadKind::kFull)
      return reader.wrong("points[0]", "a point that skips", "dense");
  }
  if (profile.points[0].recall > 0)
    return reader.wrong("points[0].recall", "a point that skips neurons", "dense");
  return profile;
}

Status write_profile(const std::string& directory, const Profile& profile) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  const std::string path = (std::filesystem::path(directory) / "profile.json").string();
  ordered_json json = {{"version", version_of(profile)},
                       {"model", profile.fingerprint},
                       {"layers", profile.layers},
                       {"kv_heads", profile.kv_heads},
                       {"context_min", profile.context_min},
                       {"context_max", profile.context_max},
                       {"page_score", backend::page_score_name(profile.page_score)},
                       {"points", ordered_json::array()}};
  for (const OperatingPoint& point : profile.points) {
    json["points"].push_back(point_json(point, profile.layers, profile.kv_heads));
  }
  if (!profile.text_importance.empty()) {
    json["importance"]["text"] = table_json(profile.text_importance, profile.kv_heads);
    if (!profile.retrieval_importance.empty())
      json["importance"]["retrieval"] = table_json(profile.retrieval_importance, profile.kv_heads);
  }
  const std::string text = json.dump(1) + "\n";
  const auto bytes = std::as_bytes(std::span(text));
  if (!io::write_file_atomically(path, {&bytes, 1}).ok())
    return bad_input(path, "file", "a folder that cannot be written", "a writable folder");
  return {};
}

Status check_profile(const Profile& profile, const std::string& directory, int layers, int kv_heads,
                     const std::string& fingerprint) {
  const auto shape = [](int l, int h) {
    return std::to_string(l) + " layers of " + std::to_string(h) + " KV heads";
  };
  if (profile.layers != layers || profile.kv_heads != kv_heads) {
    return bad_input(directory, "layers", shape(profile.layers, profile.kv_heads),
                     shape(layers, kv_heads) + ", the model's");
  }
  if (!profile.fingerprint.empty() && profile.fingerprint != fingerprint) {
    return bad_input(directory, "model", profile.fingerprint,
                     fingerprint + ", the model's fingerprint");
  }
  return {};
}

}  // namespace polar::sparsity
