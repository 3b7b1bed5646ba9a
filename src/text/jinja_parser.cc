#include "text/jinja_parser.h"

#include <algorithm>
#include <utility>

#include "text/jinja_expression_parser.h"

namespace polar::text::jinja {
namespace {

class Parser : private ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Block run() { return statements({}); }

 private:
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

  int loops_ = 0;
};

}  // namespace

Block parse(std::string_view source) {
  return Parser(source).run();
}

}  // namespace polar::text::jinja
