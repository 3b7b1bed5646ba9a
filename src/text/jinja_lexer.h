#pragma once
// Tokens of a Jinja template, with white space already taken away where trim_blocks, lstrip_blocks
// and the signs in {%- -%} {%+ +%} say so (jinja2/lexer.py). Private to src/text.

#include <string>
#include <string_view>
#include <vector>

namespace polar::text::jinja {

/// Any failure while parsing or rendering. It never leaves src/text: ChatTemplate turns it into an
/// Error.
struct Failure {
  std::string message;
  int line = 0;         // 0: not known yet
  bool raised = false;  // by the template's own raise_exception
};

[[noreturn]] void fail(std::string message, int line = 0);

enum class TokenKind {
  kText,  // template data, to be printed as it is
  kExpressionBegin,
  kExpressionEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;  // of a string: without quotes, escapes resolved
  int line;          // from 1
};

/// Splits `source` (valid UTF-8). Throws Failure.
std::vector<Token> tokenize(std::string_view source);

}  // namespace polar::text::jinja
