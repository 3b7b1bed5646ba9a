#include "text/normalizer.h"

#include "text/byte_level.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

std::string strip_accents(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_utf8(text, at);
    if (!is_accent(point.value)) out += text.substr(at, point.length);
    at += point.length;
  }
  return out;
}

std::string strip_spaces(std::string_view text, const StripSpaces& step) {
  size_t begin = 0, end = 0;
  bool seen = false;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_utf8(text, at);
    if (!is_whitespace(point.value)) {
      if (!seen) begin = at;
      seen = true;
      end = at + point.length;
    }
    at += point.length;
  }
  if (!seen) return step.left || step.right ? std::string() : std::string(text);
  if (!step.left) begin = 0;
  if (!step.right) end = text.size();
  return std::string(text.substr(begin, end - begin));
}

struct Apply {
  std::string_view text;

  std::string operator()(const NormalForms& step) const { return normalize(text, step.form); }
  std::string operator()(const Lowercase&) const { return lowercase(text); }
  std::string operator()(const StripAccents&) const { return strip_accents(text); }
  std::string operator()(const ByteLevelCharacters&) const {
    std::string out;
    append_byte_level(out, text);
    return out;
  }
  std::string operator()(const StripSpaces& step) const { return strip_spaces(text, step); }
  std::string operator()(const Prepend& step) const {
    return text.empty() ? std::string() : step.text + std::string(text);
  }
  std::string operator()(const ReplaceText& step) const { return step.apply(text); }
};

}  // namespace

std::string ReplaceText::apply(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  size_t done = 0;
  if (!regex.empty()) {
    std::vector<Span> matches;
    regex.front().find_all(text, matches);
    for (const Span& match : matches) {
      out += text.substr(done, match.begin - done);
      out += content;
      done = match.end;
    }
  } else if (!literal.empty()) {
    for (size_t at = text.find(literal); at != std::string_view::npos;
         at = text.find(literal, done)) {
      out += text.substr(done, at - done);
      out += content;
      done = at + literal.size();
    }
  }
  out += text.substr(done);
  return out;
}

std::string Normalizer::apply(std::string_view text) const {
  std::string current(text);
  for (const NormalizerStep& step : steps) current = std::visit(Apply{current}, step);
  return current;
}

}  // namespace polar::text
