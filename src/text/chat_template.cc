#include "text/chat_template.h"

#include <nlohmann/json.hpp>

#include "text/jinja_budget.h"
#include "text/jinja_evaluator.h"
#include "text/jinja_parser.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

constexpr size_t kMaxSource = 4 << 20;  // bytes; published templates have up to 20 KB

// One line, whatever the template or a message put into it.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  return text.size() > 500 ? to_valid_utf8(text.substr(0, 500)) + "..." : text;
}

Error failed(const std::string& where, const jinja::Failure& failure, const char* expected) {
  return bad_input(where, "chat template line " + std::to_string(failure.line),
                   one_line(failure.message), expected);
}

}  // namespace

struct ChatTemplate::Parsed {
  std::string where;
  jinja::Block body;
};

Result<ChatTemplate> ChatTemplate::parse(std::string_view source, std::string where) {
  if (source.size() > kMaxSource) {
    return bad_input(where, "chat template", std::to_string(source.size()) + " bytes",
                     "at most 4 MiB");
  }
  auto parsed = std::make_shared<Parsed>();
  parsed->where = std::move(where);
  try {
    parsed->body = jinja::parse(to_valid_utf8(source));
  } catch (const jinja::Failure& failure) {
    return failed(parsed->where, failure, "a Jinja template");
  }
  ChatTemplate result;
  result.parsed_ = std::move(parsed);
  return result;
}

template <typename Json>
Result<std::string> ChatTemplate::render_any(const Json& context,
                                             std::optional<std::time_t> now) const {
  if (!context.is_object()) {
    return bad_input(parsed_->where, "chat template", "a context that is no object", "an object");
  }
  const jinja::Budget budget;
  try {
    return jinja::evaluate(parsed_->body, jinja::Value::from_json(context),
                           now.value_or(std::time(nullptr)));
  } catch (const jinja::Failure& failure) {
    return failed(
        parsed_->where, failure,
        failure.raised ? "messages that the template accepts" : "a template that renders");
  }
}

Result<std::string> ChatTemplate::render(const nlohmann::ordered_json& context,
                                         std::optional<std::time_t> now) const {
  return render_any(context, now);
}
Result<std::string> ChatTemplate::render(const nlohmann::json& context,
                                         std::optional<std::time_t> now) const {
  return render_any(context, now);
}

}  // namespace polar::text
