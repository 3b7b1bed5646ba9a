#pragma once
// The two tables of filters. Private to src/text: others go through jinja_library.h.

#include <map>
#include <string_view>

#include "text/jinja_library.h"

namespace polar::text::jinja {

using Filter = Value (*)(const Value&, Arguments&);

/// Those that make texts and numbers, by name; jinja_filters.cc holds the others.
const std::map<std::string_view, Filter>& text_filters();

}  // namespace polar::text::jinja
