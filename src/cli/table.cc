#include "cli/table.h"

#include <fmt/format.h>

#include <algorithm>

namespace polar::cli {

namespace {

std::string cell(const nlohmann::ordered_json& value, int digits) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "-";
  if (!value.is_number_float() || digits == 0) return value.dump();
  const double number = value.get<double>();
  if (number == 0) return "0";
  const double magnitude = std::abs(number);
  if (magnitude >= 1e7) return fmt::format("{:.{}e}", number, digits - 1);
  if (magnitude >= 1000) return fmt::format("{:.0f}", number);
  return fmt::format("{:.{}g}", number, digits);
}

std::string markdown(const Rows& rows, int digits) {
  std::vector<std::vector<std::string>> cells(1);
  for (const auto& [key, value] : rows.front().items()) cells[0].push_back(key);
  for (const auto& row : rows) {
    cells.emplace_back();
    for (const auto& [key, value] : row.items()) cells.back().push_back(cell(value, digits));
  }
  std::vector<size_t> width(cells[0].size(), 3);
  for (const auto& row : cells) {
    for (size_t i = 0; i < row.size() && i < width.size(); ++i)
      width[i] = std::max(width[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < cells.size(); ++r) {
    for (size_t i = 0; i < width.size(); ++i) {
      text += fmt::format("| {:<{}} ", i < cells[r].size() ? cells[r][i] : "", width[i]);
    }
    text += "|\n";
    if (r > 0) continue;
    for (const size_t w : width) text += "|" + std::string(w + 2, '-');
    text += "|\n";
  }
  return text;
}

std::string csv(const Rows& rows) {
  std::string text;
  const auto line = [&](const std::vector<std::string>& cells) {
    for (size_t i = 0; i < cells.size(); ++i) {
      const bool quoted = cells[i].find(',') != std::string::npos;
      text += (i > 0 ? "," : "") + (quoted ? '"' + cells[i] + '"' : cells[i]);
    }
    text += "\n";
  };
  std::vector<std::string> cells;
  for (const auto& [key, value] : rows.front().items()) cells.push_back(key);
  line(cells);
  for (const auto& row : rows) {
    cells.clear();
    for (const auto& [key, value] : row.items()) cells.push_back(cell(value, 0));
    line(cells);
  }
  return text;
}

}  // namespace

std::string print_rows(const Rows& rows, Format format, int digits) {
  if (format == Format::kJson) return nlohmann::ordered_json(rows).dump(1) + "\n";
  if (rows.empty()) return "";
  return format == Format::kCsv ? csv(rows) : markdown(rows, digits);
}

}  // namespace polar::cli
