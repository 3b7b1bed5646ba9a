#pragma once
// What happens to a text before it is cut: the "normalizer" of a tokenizer.json.

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/regex.h"
#include "text/unicode.h"

namespace polar::text {

struct NormalForms {
  NormalForm form;
};
struct Lowercase {};
struct StripAccents {};
struct ByteLevelCharacters {};
struct StripSpaces {
  bool left, right;
};
struct Prepend {
  std::string text;
};
/// Every match of `pattern` becomes `content`.
struct ReplaceText {
  std::string literal;       // when not empty: what is replaced
  std::vector<Regex> regex;  // otherwise: one expression
  std::string content;

  std::string apply(std::string_view text) const;
};

using NormalizerStep = std::variant<NormalForms, Lowercase, StripAccents, ByteLevelCharacters,
                                    StripSpaces, Prepend, ReplaceText>;

/// Steps in order; a Sequence in the file is flattened.
struct Normalizer {
  std::vector<NormalizerStep> steps;

  /// `text` (valid UTF-8) normalised.
  std::string apply(std::string_view text) const;
};

}  // namespace polar::text
