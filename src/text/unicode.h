#pragma once
// Unicode properties and normal forms as the `tokenizers` package sees them, over utf8proc's
// tables.

#include <string>
#include <string_view>

namespace polar::text {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

/// `text` (valid UTF-8) in a normal form (Unicode Annex 15).
std::string normalize(std::string_view text, NormalForm form);

/// Full lower-case mapping of every character (without the context of a final sigma), as Rust's
/// char::to_lowercase.
std::string lowercase(std::string_view text);

/// White_Space of the Unicode character database.
bool is_whitespace(char32_t c);

/// Rust's char::is_numeric: categories Nd, Nl and No.
bool is_numeric(char32_t value);

/// What `\w` means to an added token with single_word: Alphabetic, marks, decimal numbers,
/// connectors, joiners.
bool is_word(char32_t value);

/// Any category of punctuation (P*), or an ASCII symbol.
bool is_punctuation(char32_t value);

/// What StripAccents takes away: marks.
bool is_accent(char32_t value);

/// For regular expressions: the characters of general category `property` ("L", "Nd", also "Han")
/// that the package knows and Unicode 14 did not, as ranges for a character class.
std::string newer_characters(std::string_view property);

/// The same for `\w`: what it holds beyond L, M, Nd and Pc of Unicode 14.
std::string other_word_characters();

}  // namespace polar::text
