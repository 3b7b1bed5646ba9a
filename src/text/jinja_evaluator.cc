#include "text/jinja_evaluator.h"

#include <algorithm>
#include <map>

#include "core/error.h"
#include "text/jinja_budget.h"
#include "text/jinja_library.h"

namespace polar::text::jinja {
namespace {

constexpr int kMaxDepth = 400;          // of evaluations inside each other, macros included
constexpr int64_t kMaxRange = 100'000;  // as in jinja2's sandbox

// Variables, innermost first. An `if` has no scope of its own; loops, macros and blocks have.
struct Scope {
  std::map<std::string, Value> variables;
  std::shared_ptr<Scope> parent;

  explicit Scope(std::shared_ptr<Scope> outer) : parent(std::move(outer)) {}

  const Value* find(const std::string& name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent.get()) {
      const auto at = scope->variables.find(name);
      if (at != scope->variables.end()) return &at->second;
    }
    return nullptr;
  }
};
using ScopePtr = std::shared_ptr<Scope>;

enum class Flow { kNormal, kBreak, kContinue };

class Evaluator {
 public:
  explicit Evaluator(std::time_t now) : now_(now) {}
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  // Macros hold scopes and scopes hold macros, a namespace may hold itself: cut all such rings.
  ~Evaluator() {
    for (const auto& scope : scopes_) scope->variables.clear();
    for (const auto& space : namespaces_) space->attributes.items.clear();
  }

  std::string run(const Block& body, const Value& context) {
    auto globals = std::make_shared<Scope>(nullptr);
    define_globals(*globals);
    scopes_.push_back(globals);
    auto root = std::make_shared<Scope>(globals);
    scopes_.push_back(root);
    for (const auto& [name, value] : context.dict()->items) {
      root->variables.insert_or_assign(name.as_text("a name"), value);
    }
    std::string out;
    execute(body, std::make_shared<Scope>(root), out);
    return out;
  }

 private:
  struct Depth {
    explicit Depth(Evaluator& evaluator) : evaluator(evaluator) {
      if (++evaluator.depth_ > kMaxDepth) {
        fail("recursion deeper than " + std::to_string(kMaxDepth));
      }
    }
    ~Depth() { --evaluator.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    Evaluator& evaluator;
  };

  // --- globals

  void define_globals(Scope& scope) {
    const auto define = [&](const char* name, std::function<Value(Arguments&)> call) {
      scope.variables.insert_or_assign(name, Value::function(name, std::move(call)));
    };
    define("raise_exception", [](Arguments& arguments) -> Value {
      ArgumentReader reader("raise_exception", arguments);
      throw Failure{reader.need(0, "message").str(), 0, true};
    });
    define("strftime_now", [this](Arguments& arguments) { return strftime_now(arguments); });
    define("namespace", [this](Arguments& arguments) { return make_namespace(arguments); });
    define("dict", [](Arguments& arguments) {
      Dict dict;
      fill(dict, arguments);
      return Value::dict(std::move(dict));
    });
    define("range", make_range);
  }

  Value strftime_now(Arguments& arguments) const {
    ArgumentReader reader("strftime_now", arguments);
    const std::string format = reader.need(0, "format").as_text("strftime_now");
    reader.finish();
    std::tm parts{};
    localtime_r(&now_, &parts);
    std::string text(256 + format.size() * 8, '\0');
    text.resize(std::strftime(text.data(), text.size(), format.c_str(), &parts));
    Budget::bytes(text.size());
    return Value::text(std::move(text));
  }

  static void fill(Dict& dict, const Arguments& arguments) {
    if (arguments.positional.size() > 1) fail("dict() with more than one positional argument");
    if (!arguments.positional.empty()) {
      const Dict* other = arguments.positional[0].dict();
      if (other == nullptr) fail("dict() of a " + arguments.positional[0].type_name());
      dict.items = other->items;
    }
    for (const auto& [name, value] : arguments.named) dict.set(Value::text(name), value);
  }

  Value make_namespace(Arguments& arguments) {
    auto space = std::make_shared<Namespace>();
    fill(space->attributes, arguments);
    namespaces_.push_back(space);
    Budget::bytes(sizeof(Namespace) + 32);
    return Value(Value::Storage(std::move(space)));
  }

  static Value make_range(Arguments& arguments) {
    ArgumentReader reader("range", arguments);
    int64_t start = 0, stop = reader.need(0, "start").as_integer("range");
    if (const Value* second = reader.find(1, "stop")) {
      start = stop;
      stop = second->as_integer("range");
    }
    const int64_t step = reader.integer(2, "step", 1);
    reader.finish();
    if (step == 0) fail("range() with step 0");
    std::vector<Value> items;
    for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
      if (static_cast<int64_t>(items.size()) >= kMaxRange) {
        fail("range() of more than " + std::to_string(kMaxRange) + " items");
      }
      items.push_back(Value::integer(i));
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    Budget::bytes(items.size() * sizeof(Value));
    std::string shown = "range(" + std::to_string(start) + ", " + std::to_string(stop);
    shown += step == 1 ? ")" : ", " + std::to_string(step) + ")";
    return Value::range(std::move(items), std::move(shown));
  }

  // --- statements

  Flow execute(const Block& body, const ScopePtr& scope, std::string& out) {
    for (const auto& statement : body) {
      const Flow flow = execute(*statement, scope, out);
      if (flow != Flow::kNormal) return flow;
    }
    return Flow::kNormal;
  }

  Flow execute(const Statement& node, const ScopePtr& scope, std::string& out) {
    Budget::steps(1);
    try {
      return execute_kind(node, scope, out);
    } catch (Failure& failure) {
      if (failure.line == 0) failure.line = node.line;
      throw;
    }
  }

  static void print(std::string& out, std::string_view text) {
    Budget::bytes(text.size());
    out += text;
  }

  Flow execute_kind(const Statement& node, const ScopePtr& scope, std::string& out) {
    const Depth depth(*this);
    switch (node.kind) {
      case Kind::kText:
        print(out, node.text);
        return Flow::kNormal;
      case Kind::kPrint:
        print(out, value_of(*node.expression, scope).str());
        return Flow::kNormal;
      case Kind::kIf:
        for (const auto& [test, body] : node.branches) {
          if (value_of(*test, scope).truthy()) return execute(body, scope, out);
        }
        return execute(node.else_body, scope, out);
      case Kind::kFor:
        return loop(node, scope, out);
      case Kind::kSet:
        assign(*node.target, value_of(*node.expression, scope), scope);
        return Flow::kNormal;
      case Kind::kSetBlock:
      case Kind::kFilterBlock:
        return captured(node, scope, out);
      case Kind::kMacro:
        scope->variables.insert_or_assign(node.text, macro(node, node.text, scope));
        return Flow::kNormal;
      case Kind::kCall:
        return call_block(node, scope, out);
      case Kind::kWith: {
        auto inner = std::make_shared<Scope>(scope);
        for (const auto& [name, value] : node.bindings) {
          assign(*name, value_of(*value, scope), inner);
        }
        return execute(node.body, inner, out);
      }
      case Kind::kScope:
        return execute(node.body, std::make_shared<Scope>(scope), out);
      case Kind::kBreak:
        return Flow::kBreak;
      case Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNormal;
  }

  Flow captured(const Statement& node, const ScopePtr& scope, std::string& out) {
    std::string text;
    const Flow flow = execute(node.body, std::make_shared<Scope>(scope), text);
    if (flow != Flow::kNormal) return flow;
    Value value = Value::text(std::move(text));
    if (node.expression) value = filtered(*node.expression, scope, &value);
    if (node.kind == Kind::kFilterBlock) {
      print(out, value.str());
    } else {
      assign(*node.target, value, scope);
    }
    return Flow::kNormal;
  }

  Flow loop(const Statement& node, const ScopePtr& scope, std::string& out) {
    std::vector<Value> items = value_of(*node.expression, scope).iterate();
    Budget::bytes(items.size() * sizeof(Value));
    if (node.condition) {
      std::vector<Value> kept;
      for (Value& item : items) {
        auto inner = std::make_shared<Scope>(scope);
        assign(*node.target, item, inner);
        if (value_of(*node.condition, inner).truthy()) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    if (items.empty()) return execute(node.else_body, std::make_shared<Scope>(scope), out);
    auto state = std::make_shared<Loop>();
    state->nesting = loops_;
    for (const Value& item : items) state->depth = std::max(state->depth, item.depth() + 1);
    state->items = std::move(items);
    const Value variable{Value::Storage(state)};
    ++loops_;
    const size_t count = state->items.size();
    for (size_t i = 0; i < count; ++i) {
      Budget::steps(1);
      state->index = i;
      auto inner = std::make_shared<Scope>(scope);
      inner->variables.insert_or_assign("loop", variable);
      assign(*node.target, state->items[i], inner);
      if (execute(node.body, inner, out) == Flow::kBreak) break;
    }
    --loops_;
    return Flow::kNormal;
  }

  void assign(const Expression& target, const Value& value, const ScopePtr& scope) {
    if (target.op == Op::kName) {
      scope->variables.insert_or_assign(target.name, value);
      return;
    }
    if (target.op == Op::kAttribute) {
      const Value object = value_of(*target.children[0], scope);
      const auto* space = object.get<std::shared_ptr<Namespace>>();
      if (space == nullptr) fail("an assignment to an attribute of a " + object.type_name());
      Budget::steps((*space)->attributes.items.size());
      (*space)->attributes.set(Value::text(target.name), value);
      return;
    }
    if (value.is_undefined()) fail_undefined(value);
    const std::vector<Value> items = value.iterate();
    if (items.size() != target.children.size()) {
      fail("an assignment of " + std::to_string(items.size()) + " values to " +
           std::to_string(target.children.size()) + " names");
    }
    for (size_t i = 0; i < items.size(); ++i) assign(*target.children[i], items[i], scope);
  }

  // A macro is called with what surrounds its definition, not its call.
  Value macro(const Statement& node, const std::string& name, const ScopePtr& scope) {
    scopes_.push_back(scope);
    Budget::bytes(sizeof(Scope) + 128);
    return Value::function("Macro '" + name + "'",
                           [this, &node, name, scope](Arguments& arguments) {
                             return call_macro(node, name, scope, arguments);
                           });
  }

  Value call_macro(const Statement& node, const std::string& name, const ScopePtr& scope,
                   Arguments& arguments) {
    const Depth depth(*this);
    auto inner = std::make_shared<Scope>(scope);
    ArgumentReader reader(name, arguments);
    const int loops = std::exchange(loops_, 0);
    for (size_t i = 0; i < node.parameters.size(); ++i) {
      const Parameter& parameter = node.parameters[i];
      const Value* given = reader.find(i, parameter.name);
      Value value = Value::undefined("the parameter \"" + parameter.name + "\", not given");
      if (given != nullptr) {
        value = *given;
      } else if (parameter.fallback) {
        value = value_of(*parameter.fallback, inner);
      }
      inner->variables.insert_or_assign(parameter.name, std::move(value));
    }
    if (const Value* caller = reader.find(arguments.positional.size(), "caller")) {
      inner->variables.insert_or_assign("caller", *caller);
    }
    if (arguments.positional.size() > node.parameters.size()) {
      fail(name + "() with " + std::to_string(arguments.positional.size()) + " arguments");
    }
    reader.finish();
    std::string text;
    execute(node.body, inner, text);
    loops_ = loops;
    return Value::text(std::move(text));
  }

  Flow call_block(const Statement& node, const ScopePtr& scope, std::string& out) {
    Arguments arguments = arguments_of(node.expression->arguments, scope);
    arguments.named.emplace_back("caller", macro(node, "caller", scope));
    print(out, call(value_of(*node.expression->children[0], scope), arguments).str());
    return Flow::kNormal;
  }

  // --- expressions

  Arguments arguments_of(const CallArguments& source, const ScopePtr& scope) {
    Arguments arguments;
    for (const auto& one : source.positional) arguments.positional.push_back(value_of(*one, scope));
    for (const auto& [name, one] : source.named) {
      arguments.named.emplace_back(name, value_of(*one, scope));
    }
    return arguments;
  }

  // `text` is what a filter block's chain begins with, where its child is null.
  Value filtered(const Expression& node, const ScopePtr& scope, const Value* text) {
    const Depth depth(*this);
    Value value;
    if (!node.children[0]) {
      POLAR_CHECK(text != nullptr);
      value = *text;
    } else if (node.children[0]->op == Op::kFilter && text != nullptr) {
      value = filtered(*node.children[0], scope, text);
    } else {
      value = value_of(*node.children[0], scope);
    }
    Arguments arguments = arguments_of(node.arguments, scope);
    return apply_filter(node.name, value, arguments);
  }

  Value value_of(const Expression& node, const ScopePtr& scope) {
    Budget::steps(1);
    const Depth depth(*this);
    const auto child = [&](size_t i) { return value_of(*node.children[i], scope); };
    switch (node.op) {
      case Op::kConstant:
        return node.constant;
      case Op::kName: {
        const Value* found = scope->find(node.name);
        return found != nullptr ? *found : Value::undefined("the undefined \"" + node.name + "\"");
      }
      case Op::kList:
      case Op::kTuple:
      case Op::kDict:
        return container(node, scope);
      case Op::kAttribute:
        return get_attribute(child(0), node.name);
      case Op::kItem:
        return get_item(child(0), child(1));
      case Op::kSlice: {
        const auto bound = [&](size_t i) { return node.children[i] ? child(i) : Value::none(); };
        return get_slice(child(0), bound(1), bound(2), bound(3));
      }
      case Op::kCall: {
        const Value function = child(0);
        Arguments arguments = arguments_of(node.arguments, scope);
        return call(function, arguments);
      }
      case Op::kFilter:
        return filtered(node, scope, nullptr);
      case Op::kTest: {
        const Value value = child(0);
        Arguments arguments = arguments_of(node.arguments, scope);
        return Value::boolean(apply_test(node.name, value, arguments));
      }
      case Op::kNot:
        return Value::boolean(!child(0).truthy());
      case Op::kNegative:
        return negative(child(0));
      case Op::kPositive:
        return arithmetic("+", Value::integer(0), child(0));
      case Op::kAnd: {
        Value left = child(0);
        return left.truthy() ? child(1) : left;
      }
      case Op::kOr: {
        Value left = child(0);
        return left.truthy() ? left : child(1);
      }
      case Op::kBinary:
        return arithmetic(node.name, child(0), child(1));
      case Op::kConcat:
        return concatenation(node, scope);
      case Op::kCompare:
        return comparison(node, scope);
      case Op::kCondition:
        if (child(1).truthy()) return child(0);
        return node.children[2] ? child(2) : Value::undefined("an \"if\" without \"else\"");
    }
    return Value();
  }

  static Value negative(const Value& value) {
    if (const auto* number = value.get<double>()) return Value::number(-*number);
    return arithmetic("-", Value::integer(0), value);
  }

  Value container(const Expression& node, const ScopePtr& scope) {
    Budget::bytes(node.children.size() * sizeof(Value) + 64);
    if (node.op == Op::kDict) {
      Dict dict;
      for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
        Budget::steps(i);
        Value key = value_of(*node.children[i], scope);
        require_hashable(key);
        dict.set(std::move(key), value_of(*node.children[i + 1], scope));
      }
      return Value::dict(std::move(dict));
    }
    std::vector<Value> items;
    for (const auto& one : node.children) items.push_back(value_of(*one, scope));
    return Value::list(std::move(items),
                       node.op == Op::kList ? SequenceKind::kList : SequenceKind::kTuple);
  }

  Value concatenation(const Expression& node, const ScopePtr& scope) {
    std::string out;
    for (const auto& one : node.children) print(out, value_of(*one, scope).str());
    return Value::text(std::move(out));
  }

  Value comparison(const Expression& node, const ScopePtr& scope) {
    Value left = value_of(*node.children[0], scope);
    for (size_t i = 0; i < node.names.size(); ++i) {
      Value right = value_of(*node.children[i + 1], scope);
      if (!holds(node.names[i], left, right)) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  static bool holds(const std::string& op, const Value& left, const Value& right) {
    if (op == "==") return left.equals(right);
    if (op == "!=") return !left.equals(right);
    if (op == "in") return right.contains(left);
    if (op == "not in") return !right.contains(left);
    const int order = left.compare(right);
    if (op == "<") return order < 0;
    if (op == "<=") return order <= 0;
    if (op == ">") return order > 0;
    return order >= 0;
  }

  std::time_t now_;
  int depth_ = 0;
  int loops_ = 0;
  std::vector<ScopePtr> scopes_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
};

}  // namespace

std::string evaluate(const Block& body, const Value& context, std::time_t now) {
  return Evaluator(now).run(body, context);
}

}  // namespace polar::text::jinja
