#pragma once
// What Python's str does, on UTF-8: white space, slices by code point, case, repr. Private to
// src/text (chat templates).

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace polar::text {

/// str.isspace() of one character: White_Space and the separators U+001C to U+001F.
bool is_python_space(char32_t value);

std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);
/// str.strip(chars): without `chars`, white space.
std::string_view strip(std::string_view text, std::optional<std::string_view> chars, bool left,
                       bool right);

std::string to_upper(std::string_view text);
std::string to_title(std::string_view text);
std::string to_capitalized(std::string_view text);
std::string swap_case(std::string_view text);

/// The code points [begin, end) of a text in UTF-8.
std::string code_points(std::string_view text, size_t begin, size_t end);
/// One code point as UTF-8.
std::string code_points_of(char32_t value);
/// Where code point `index` begins, in bytes; the size if there are fewer.
size_t byte_offset(std::string_view text, size_t index);

/// repr(str).
std::string repr(std::string_view text);
/// repr(float): the shortest digits that read back as the same number.
std::string repr(double value);
/// json.dumps(str).
std::string json_string(std::string_view text, bool ensure_ascii);

/// str.split(): at white space, or at `separator`; at most `limit` cuts when it is not negative.
std::vector<std::string> split(std::string_view text, std::optional<std::string_view> separator,
                               int64_t limit, bool from_right);
std::vector<std::string> split_lines(std::string_view text, bool keep_ends);
/// str.replace(): an empty `from` matches around every character.
std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t limit);

/// str.isalpha() and its like: true if every character satisfies it and there is one.
bool all_alphabetic(std::string_view text);
bool all_alphanumeric(std::string_view text);
bool all_digits(std::string_view text);
bool all_spaces(std::string_view text);
bool is_upper(std::string_view text);
bool is_lower(std::string_view text);

}  // namespace polar::text
