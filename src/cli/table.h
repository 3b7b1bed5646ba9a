#pragma once
// Prints rows as a Markdown table, JSON lines in an array, or CSV: one way for all commands.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/command.h"

namespace polar::cli {

/// A table whose columns are the keys of its first row; every row is a flat JSON object with the
/// same keys in the same order.
using Rows = std::vector<nlohmann::ordered_json>;

/// The table as text, with a newline at the end. Numbers keep `digits` significant digits in
/// Markdown, all of them in JSON and CSV.
std::string print_rows(const Rows& rows, Format format, int digits = 4);

}  // namespace polar::cli
