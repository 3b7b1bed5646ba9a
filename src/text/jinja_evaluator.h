#pragma once
// Runs a parsed template. Private to src/text.

#include <ctime>
#include <string>

#include "text/jinja_parser.h"

namespace polar::text::jinja {

/// The output of `body` with the variables of `context` (a dict). Throws Failure.
std::string evaluate(const Block& body, const Value& context, std::time_t now);

}  // namespace polar::text::jinja
