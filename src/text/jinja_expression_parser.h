#pragma once
// The expressions of a template (jinja2/parser.py, parse_expression and below): recursive descent,
// one method a level of precedence. Private to src/text.

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_parser.h"

namespace polar::text::jinja {

inline constexpr int kMaxNesting = 400;  // of expressions and statements

class ExpressionParser {
 public:
  explicit ExpressionParser(std::string_view source) : tokens_(tokenize(source)) {}

 protected:
  // --- tokens
  const Token& now() const { return tokens_[at_]; }
  const Token& next() { return tokens_[now().kind == TokenKind::kEnd ? at_ : at_++]; }
  bool see(std::string_view text) const {
    return now().kind == TokenKind::kOperator && now().text == text;
  }
  bool see_name(std::string_view text) const {
    return now().kind == TokenKind::kName && now().text == text;
  }
  bool eat(std::string_view text) {
    if (!see(text)) return false;
    next();
    return true;
  }
  bool eat_name(std::string_view text) {
    if (!see_name(text)) return false;
    next();
    return true;
  }
  std::string shown() const {
    switch (now().kind) {
      case TokenKind::kEnd:
        return "the end of the template";
      case TokenKind::kBlockEnd:
        return "the end of the statement";
      case TokenKind::kExpressionEnd:
        return "the end of the expression";
      default:
        return "\"" + now().text.substr(0, 60) + "\"";
    }
  }
  [[noreturn]] void unexpected(const std::string& wanted) const {
    fail(shown() + " where " + wanted + " should be", now().line);
  }
  void expect(std::string_view text) {
    if (!eat(text)) unexpected("\"" + std::string(text) + "\"");
  }
  void expect_name(std::string_view text) {
    if (!eat_name(text)) unexpected("\"" + std::string(text) + "\"");
  }
  std::string expect_identifier() {
    if (now().kind != TokenKind::kName) unexpected("a name");
    return next().text;
  }
  void expect_block_end() {
    if (now().kind != TokenKind::kBlockEnd) unexpected("the end of the statement");
    next();
  }

  // Counts how deep the parser itself is.
  struct Nesting {
    explicit Nesting(ExpressionParser& parser) : parser(parser) {
      if (++parser.depth_ > kMaxNesting) {
        fail("nesting deeper than " + std::to_string(kMaxNesting), parser.now().line);
      }
    }
    ~Nesting() { --parser.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    ExpressionParser& parser;
  };

  // --- expressions
  ExpressionPtr make(Op op, std::vector<ExpressionPtr> children = {}, std::string name = "") const {
    auto node = std::make_unique<Expression>();
    node->op = op;
    node->line = now().line;
    node->name = std::move(name);
    node->children = std::move(children);
    measure(*node);
    return node;
  }

  void measure(Expression& node) const {
    const auto add = [&](const ExpressionPtr& child) {
      if (child) node.depth = std::max(node.depth, child->depth + 1);
    };
    for (const auto& child : node.children) add(child);
    for (const auto& child : node.arguments.positional) add(child);
    for (const auto& child : node.arguments.named) add(child.second);
    if (node.depth > kMaxNesting) {
      fail("an expression nested deeper than " + std::to_string(kMaxNesting), node.line);
    }
  }

  static std::vector<ExpressionPtr> pair(ExpressionPtr a, ExpressionPtr b) {
    std::vector<ExpressionPtr> both;
    both.push_back(std::move(a));
    both.push_back(std::move(b));
    return both;
  }
  static std::vector<ExpressionPtr> one(ExpressionPtr a) {
    std::vector<ExpressionPtr> single;
    single.push_back(std::move(a));
    return single;
  }
  ExpressionPtr constant(Value value) const {
    auto node = make(Op::kConstant);
    node->constant = std::move(value);
    return node;
  }

  ExpressionPtr expression(bool with_condition = true) {
    const Nesting nesting(*this);
    return with_condition ? condition() : disjunction();
  }

  ExpressionPtr condition() {
    auto node = disjunction();
    while (eat_name("if")) {
      auto test = disjunction();
      ExpressionPtr otherwise = eat_name("else") ? expression() : nullptr;
      auto children = pair(std::move(node), std::move(test));
      children.push_back(std::move(otherwise));
      node = make(Op::kCondition, std::move(children));
    }
    return node;
  }

  ExpressionPtr disjunction() {
    auto node = conjunction();
    while (eat_name("or")) node = make(Op::kOr, pair(std::move(node), conjunction()));
    return node;
  }

  ExpressionPtr conjunction() {
    auto node = negation();
    while (eat_name("and")) node = make(Op::kAnd, pair(std::move(node), negation()));
    return node;
  }

  ExpressionPtr negation() {
    if (!see_name("not")) return comparison();
    const Nesting nesting(*this);
    next();
    return make(Op::kNot, one(negation()));
  }

  ExpressionPtr comparison() {
    auto node = sum();
    std::vector<ExpressionPtr> operands;
    std::vector<std::string> names;
    while (true) {
      static const std::string_view kOperators[] = {"==", "!=", "<", "<=", ">", ">="};
      const bool symbol = now().kind == TokenKind::kOperator &&
                          std::find(std::begin(kOperators), std::end(kOperators), now().text) !=
                              std::end(kOperators);
      if (symbol) {
        names.push_back(next().text);
      } else if (eat_name("in")) {
        names.push_back("in");
      } else if (see_name("not") && tokens_[at_ + 1].kind == TokenKind::kName &&
                 tokens_[at_ + 1].text == "in") {
        at_ += 2;
        names.push_back("not in");
      } else {
        break;
      }
      operands.push_back(sum());
    }
    if (names.empty()) return node;
    operands.insert(operands.begin(), std::move(node));
    auto result = make(Op::kCompare, std::move(operands));
    result->names = std::move(names);
    return result;
  }

  ExpressionPtr sum() {
    auto node = concatenation();
    while (see("+") || see("-")) {
      const std::string name = next().text;
      node = make(Op::kBinary, pair(std::move(node), concatenation()), name);
    }
    return node;
  }

  ExpressionPtr concatenation() {
    auto node = product();
    if (!see("~")) return node;
    auto parts = one(std::move(node));
    while (eat("~")) parts.push_back(product());
    return make(Op::kConcat, std::move(parts));
  }

  ExpressionPtr product() {
    auto node = power();
    while (see("*") || see("/") || see("//") || see("%")) {
      const std::string name = next().text;
      node = make(Op::kBinary, pair(std::move(node), power()), name);
    }
    return node;
  }

  ExpressionPtr power() {
    auto node = unary(true);
    while (eat("**")) node = make(Op::kBinary, pair(std::move(node), unary(true)), "**");
    return node;
  }

  ExpressionPtr unary(bool with_filter) {
    const Nesting nesting(*this);
    ExpressionPtr node;
    if (eat("-")) {
      node = make(Op::kNegative, one(unary(false)));
    } else if (eat("+")) {
      node = make(Op::kPositive, one(unary(false)));
    } else {
      node = primary();
    }
    node = postfix(std::move(node));
    return with_filter ? filters(std::move(node)) : std::move(node);
  }

  ExpressionPtr primary() {
    const Nesting nesting(*this);
    const Token& token = now();
    switch (token.kind) {
      case TokenKind::kName: {
        next();
        const std::string& name = token.text;
        if (name == "true" || name == "True") return constant(Value::boolean(true));
        if (name == "false" || name == "False") return constant(Value::boolean(false));
        if (name == "none" || name == "None") return constant(Value::none());
        return make(Op::kName, {}, name);
      }
      case TokenKind::kString: {
        std::string text;
        while (now().kind == TokenKind::kString) text += next().text;
        return constant(Value::text(std::move(text)));
      }
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        return number();
      case TokenKind::kOperator:
        break;
      default:
        unexpected("an expression");
    }
    if (eat("(")) {
      auto node = tuple(true, true);
      expect(")");
      return node;
    }
    if (eat("[")) return list();
    if (eat("{")) return dict();
    unexpected("an expression");
  }

  ExpressionPtr number() {
    const Token& token = next();
    if (token.kind == TokenKind::kFloat) {
      return constant(Value::number(std::strtod(token.text.c_str(), nullptr)));
    }
    std::string_view digits = token.text;
    int base = 10;
    if (digits.size() > 1 && digits[0] == '0' && !(digits[1] >= '0' && digits[1] <= '9')) {
      const char mark = digits[1];
      base = mark == 'x' || mark == 'X' ? 16 : mark == 'o' || mark == 'O' ? 8 : 2;
      digits.remove_prefix(2);
    }
    int64_t value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (result.ec != std::errc() || result.ptr != digits.data() + digits.size()) {
      fail("the number " + token.text.substr(0, 60), token.line);
    }
    return constant(Value::integer(value));
  }

  bool tuple_ends() const {
    return now().kind == TokenKind::kBlockEnd || now().kind == TokenKind::kExpressionEnd ||
           now().kind == TokenKind::kEnd || see(")") || see("]") || see("}");
  }

  // One expression, or several with commas between them. `explicit_parentheses` allows none at all.
  ExpressionPtr tuple(bool with_condition, bool explicit_parentheses) {
    std::vector<ExpressionPtr> items;
    bool is_tuple = false;
    while (true) {
      if (!items.empty()) expect(",");
      if (tuple_ends() || (!with_condition && see_name("in"))) break;
      items.push_back(expression(with_condition));
      if (!see(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !items.empty()) return std::move(items.front());
    if (!is_tuple && !explicit_parentheses) unexpected("an expression");
    return make(Op::kTuple, std::move(items));
  }

  ExpressionPtr list() {
    std::vector<ExpressionPtr> items;
    while (!see("]")) {
      if (!items.empty()) expect(",");
      if (see("]")) break;
      items.push_back(expression());
    }
    expect("]");
    return make(Op::kList, std::move(items));
  }

  ExpressionPtr dict() {
    std::vector<ExpressionPtr> items;
    while (!see("}")) {
      if (!items.empty()) expect(",");
      if (see("}")) break;
      items.push_back(expression());
      expect(":");
      items.push_back(expression());
    }
    expect("}");
    return make(Op::kDict, std::move(items));
  }

  ExpressionPtr postfix(ExpressionPtr node) {
    while (true) {
      if (eat(".")) {
        if (now().kind == TokenKind::kInteger) {
          node = make(Op::kItem, pair(std::move(node), number()));
        } else {
          node = make(Op::kAttribute, one(std::move(node)), expect_identifier());
        }
      } else if (eat("[")) {
        node = subscript(std::move(node));
      } else if (see("(")) {
        node = call(std::move(node));
      } else {
        return node;
      }
    }
  }

  ExpressionPtr subscript(ExpressionPtr node) {
    std::vector<ExpressionPtr> parts;
    bool is_slice = false;
    parts.push_back(see(":") ? nullptr : expression());
    while (eat(":") && parts.size() < 3) {
      is_slice = true;
      parts.push_back(see(":") || see("]") ? nullptr : expression());
    }
    expect("]");
    if (!is_slice) return make(Op::kItem, pair(std::move(node), std::move(parts[0])));
    parts.resize(3);
    parts.insert(parts.begin(), std::move(node));
    return make(Op::kSlice, std::move(parts));
  }

  CallArguments arguments() {
    CallArguments arguments;
    expect("(");
    bool first = true;
    while (!see(")")) {
      if (!first) expect(",");
      if (see(")")) break;
      first = false;
      if (see("*") || see("**")) fail("* and ** in a call, which are not supported", now().line);
      if (now().kind == TokenKind::kName && tokens_[at_ + 1].kind == TokenKind::kOperator &&
          tokens_[at_ + 1].text == "=") {
        std::string name = next().text;
        next();
        arguments.named.emplace_back(std::move(name), expression());
      } else {
        if (!arguments.named.empty()) unexpected("a named argument");
        arguments.positional.push_back(expression());
      }
    }
    expect(")");
    return arguments;
  }

  ExpressionPtr call(ExpressionPtr node) {
    auto result = make(Op::kCall, one(std::move(node)));
    result->arguments = arguments();
    measure(*result);
    return result;
  }

  ExpressionPtr filters(ExpressionPtr node) {
    while (true) {
      if (see("|")) {
        node = filter(std::move(node));
      } else if (see_name("is")) {
        node = test(std::move(node));
      } else if (see("(")) {
        node = call(std::move(node));
      } else {
        return node;
      }
    }
  }

  std::string dotted_name() {
    std::string name = expect_identifier();
    while (eat(".")) name += "." + expect_identifier();
    return name;
  }

  ExpressionPtr filter(ExpressionPtr node) {
    next();
    auto result = make(Op::kFilter, one(std::move(node)), dotted_name());
    if (see("(")) result->arguments = arguments();
    measure(*result);
    return result;
  }

  ExpressionPtr test(ExpressionPtr node) {
    next();
    const bool negated = eat_name("not");
    auto result = make(Op::kTest, one(std::move(node)), dotted_name());
    if (see("(")) {
      result->arguments = arguments();
    } else if (begins_argument()) {
      if (see_name("is")) fail("a chain of tests with \"is\"", now().line);
      result->arguments.positional.push_back(postfix(primary()));
    }
    measure(*result);
    if (negated) return make(Op::kNot, one(std::move(result)));
    return result;
  }

  bool begins_argument() const {
    switch (now().kind) {
      case TokenKind::kName:
        return !see_name("else") && !see_name("or") && !see_name("and");
      case TokenKind::kString:
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        return true;
      default:
        return see("[") || see("{");
    }
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace polar::text::jinja
