#pragma once
// The syntax tree of a template (jinja2/parser.py). Private to src/text.

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace polar::text::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

enum class Op {
  kConstant,   // constant
  kName,       // name
  kList,       // children
  kTuple,      // children
  kDict,       // children: key, value, key, value, ...
  kAttribute,  // children[0].name
  kItem,       // children[0][children[1]]
  kSlice,      // children[0][children[1] : children[2] : children[3]], null where left out
  kCall,       // children[0](arguments)
  kFilter,     // children[0] | name(arguments); children[0] is null in a filter block
  kTest,       // children[0] is name(arguments)
  kNot,
  kNegative,
  kPositive,
  kAnd,
  kOr,
  kBinary,     // children[0] name children[1], name one of + - * / // % **
  kConcat,     // children joined by ~
  kCompare,    // children[0] names[0] children[1] names[1] children[2] ...
  kCondition,  // children[0] if children[1] else children[2] (may be null)
};

struct Expression {
  Op op;
  int line;
  std::string name;
  std::vector<std::string> names;
  Value constant;
  std::vector<ExpressionPtr> children;
  CallArguments arguments;
  int depth = 1;
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

enum class Kind {
  kText,         // text
  kPrint,        // expression
  kIf,           // branches: expression and body; else_body
  kFor,          // target in expression if condition (recursive): body, else_body
  kSet,          // target = expression
  kSetBlock,     // target = body | filter
  kMacro,        // text is the name; parameters; body
  kCall,         // call(parameters) expression: body
  kFilterBlock,  // filter: body
  kWith,         // targets and values in branches; body
  kScope,        // body in a scope of its own (generation)
  kBreak,
  kContinue,
};

/// A macro's parameter; `fallback` is null when there is none.
struct Parameter {
  std::string name;
  ExpressionPtr fallback;
};

struct Statement {
  Kind kind;
  int line;
  std::string text;
  ExpressionPtr expression;
  ExpressionPtr target;  // kName, kTuple of targets, or kAttribute of a name (namespace)
  ExpressionPtr condition;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> bindings;
  std::vector<Parameter> parameters;
  bool recursive = false;
  Block body, else_body;
};

/// Parses `source` (valid UTF-8). Throws Failure: with a line, and never for lack of stack.
Block parse(std::string_view source);

}  // namespace polar::text::jinja
