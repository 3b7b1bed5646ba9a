#include "text/jinja_parser.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

namespace polar::text::jinja {
namespace {

constexpr int kMaxDepth = 400;  // of nested expressions and statements

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Block run() {
    Block body = statements({});
    return body;
  }

 private:
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
    explicit Nesting(Parser& parser) : parser(parser) {
      if (++parser.depth_ > kMaxDepth) {
        fail("nesting deeper than " + std::to_string(kMaxDepth), parser.now().line);
      }
    }
    ~Nesting() { --parser.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    Parser& parser;
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
    if (node.depth > kMaxDepth) {
      fail("an expression nested deeper than " + std::to_string(kMaxDepth), node.line);
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

  // --- statements
  Block statements(const std::vector<std::string_view>& ends) {
    const Nesting nesting(*this);
    Block block;
    while (true) {
      const Token& token = next();
      if (token.kind == TokenKind::kEnd) {
        if (!ends.empty()) {
          fail("the end of the template where {% " + std::string(ends.back()) + " %} should be",
               token.line);
        }
        return block;
      }
      if (token.kind == TokenKind::kText) {
        block.push_back(statement(Kind::kText, token.line));
        block.back()->text = token.text;
      } else if (token.kind == TokenKind::kExpressionBegin) {
        block.push_back(statement(Kind::kPrint, token.line));
        block.back()->expression = tuple(true, false);
        if (now().kind != TokenKind::kExpressionEnd) unexpected("the end of the expression");
        next();
      } else {
        const bool known = now().kind == TokenKind::kName &&
                           std::find(ends.begin(), ends.end(), now().text) != ends.end();
        if (known) return block;
        block.push_back(tag());
      }
    }
  }

  static std::unique_ptr<Statement> statement(Kind kind, int line) {
    auto node = std::make_unique<Statement>();
    node->kind = kind;
    node->line = line;
    return node;
  }

  // The body up to {% end %}, whose tag is eaten.
  Block body_until(std::string_view end) {
    Block body = statements({end});
    next();
    expect_block_end();
    return body;
  }

  std::unique_ptr<Statement> tag() {
    const int line = now().line;
    const std::string name = expect_identifier();
    if (name == "if") return if_statement(line);
    if (name == "for") return for_statement(line);
    if (name == "set") return set_statement(line);
    if (name == "macro") return macro_statement(line);
    if (name == "call") return call_statement(line);
    if (name == "filter") return filter_statement(line);
    if (name == "with") return with_statement(line);
    if (name == "break" || name == "continue") {
      if (loops_ == 0) fail("{% " + name + " %} outside a loop", line);
      expect_block_end();
      return statement(name == "break" ? Kind::kBreak : Kind::kContinue, line);
    }
    if (name == "generation") {  // marks the assistant's tokens in training; prints its body
      auto node = statement(Kind::kScope, line);
      expect_block_end();
      node->body = body_until("endgeneration");
      return node;
    }
    fail("the unknown statement {% " + name.substr(0, 60) + " %}", line);
  }

  std::unique_ptr<Statement> if_statement(int line) {
    auto node = statement(Kind::kIf, line);
    while (true) {
      auto test = tuple(false, false);
      expect_block_end();
      node->branches.emplace_back(std::move(test), statements({"elif", "else", "endif"}));
      if (eat_name("elif")) continue;
      if (eat_name("else")) {
        expect_block_end();
        node->else_body = body_until("endif");
      } else {
        expect_name("endif");
        expect_block_end();
      }
      return node;
    }
  }

  ExpressionPtr target(bool with_namespace) {
    std::vector<ExpressionPtr> items;
    bool is_tuple = false;
    while (true) {
      if (!items.empty()) expect(",");
      if (see_name("in") || see("=") || tuple_ends()) break;
      items.push_back(one_target(with_namespace));
      if (!see(",")) break;
      is_tuple = true;
    }
    if (items.empty()) unexpected("a name to assign to");
    if (!is_tuple) return std::move(items.front());
    return make(Op::kTuple, std::move(items));
  }

  ExpressionPtr one_target(bool with_namespace) {
    const Nesting nesting(*this);
    if (eat("(")) {
      auto node = target(with_namespace);
      expect(")");
      return node;
    }
    const std::string name = expect_identifier();
    for (const char* constant : {"true", "True", "false", "False", "none", "None"}) {
      if (name == constant) fail("an assignment to " + name, now().line);
    }
    auto node = make(Op::kName, {}, name);
    if (with_namespace && eat(".")) {
      node = make(Op::kAttribute, one(std::move(node)), expect_identifier());
    }
    return node;
  }

  std::unique_ptr<Statement> for_statement(int line) {
    auto node = statement(Kind::kFor, line);
    node->target = target(false);
    expect_name("in");
    node->expression = tuple_without_condition();
    if (eat_name("if")) node->condition = expression();
    node->recursive = eat_name("recursive");
    if (node->recursive) fail("a recursive loop, which is not supported", line);
    expect_block_end();
    ++loops_;
    node->body = statements({"else", "endfor"});
    --loops_;
    if (eat_name("else")) {
      expect_block_end();
      node->else_body = body_until("endfor");
    } else {
      expect_name("endfor");
      expect_block_end();
    }
    return node;
  }

  // What a loop goes over ends at its own "if" and at "recursive".
  ExpressionPtr tuple_without_condition() {
    std::vector<ExpressionPtr> items;
    items.push_back(expression(false));
    bool is_tuple = false;
    while (eat(",")) {
      is_tuple = true;
      if (tuple_ends() || see_name("recursive") || see_name("if")) break;
      items.push_back(expression(false));
    }
    if (!is_tuple) return std::move(items.front());
    return make(Op::kTuple, std::move(items));
  }

  std::unique_ptr<Statement> set_statement(int line) {
    auto node = statement(Kind::kSet, line);
    node->target = target(true);
    if (eat("=")) {
      node->expression = tuple(true, false);
      expect_block_end();
      return node;
    }
    node->kind = Kind::kSetBlock;
    ExpressionPtr filter_chain;
    while (see("|")) filter_chain = filter(std::move(filter_chain));
    node->expression = std::move(filter_chain);
    expect_block_end();
    node->body = body_until("endset");
    return node;
  }

  void signature(Statement& node) {
    expect("(");
    while (!see(")")) {
      if (!node.parameters.empty()) expect(",");
      if (see(")")) break;
      Parameter parameter;
      parameter.name = expect_identifier();
      if (eat("=")) {
        parameter.fallback = expression();
      } else if (!node.parameters.empty() && node.parameters.back().fallback) {
        fail("a parameter without a default behind one that has one", now().line);
      }
      node.parameters.push_back(std::move(parameter));
    }
    expect(")");
  }

  // Loops around a macro are not loops of its body.
  Block separate_body(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    Block body = body_until(end);
    loops_ = loops;
    return body;
  }

  std::unique_ptr<Statement> macro_statement(int line) {
    auto node = statement(Kind::kMacro, line);
    node->text = expect_identifier();
    signature(*node);
    expect_block_end();
    node->body = separate_body("endmacro");
    return node;
  }

  std::unique_ptr<Statement> call_statement(int line) {
    auto node = statement(Kind::kCall, line);
    if (see("(")) signature(*node);
    node->expression = expression();
    if (node->expression->op != Op::kCall) fail("{% call %} without a call", line);
    expect_block_end();
    node->body = separate_body("endcall");
    return node;
  }

  std::unique_ptr<Statement> filter_statement(int line) {
    auto node = statement(Kind::kFilterBlock, line);
    node->expression = make(Op::kFilter, one(nullptr), dotted_name());
    if (see("(")) node->expression->arguments = arguments();
    measure(*node->expression);
    while (see("|")) node->expression = filter(std::move(node->expression));
    expect_block_end();
    node->body = body_until("endfilter");
    return node;
  }

  std::unique_ptr<Statement> with_statement(int line) {
    auto node = statement(Kind::kWith, line);
    while (now().kind != TokenKind::kBlockEnd) {
      if (!node->bindings.empty()) expect(",");
      auto name = target(false);
      expect("=");
      node->bindings.emplace_back(std::move(name), expression());
    }
    expect_block_end();
    node->body = body_until("endwith");
    return node;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

Block parse(std::string_view source) {
  return Parser(source).run();
}

}  // namespace polar::text::jinja
