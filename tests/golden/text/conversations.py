"""Conversations that chat templates are rendered with."""

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Current weather in a city.",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "The city's name, e.g. \"Paris\""},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}, "required": ["city"]}}}
SEARCH = {"type": "function", "function": {
    "name": "search", "description": "Finds pages <b>&</b> more\nin two lines.",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}, "limit": {"type": "integer", "default": 10}}}}}


def call(name, arguments, number=0):
    return {"role": "assistant", "content": "", "tool_calls": [
        {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}]}


USER = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris."}
SYSTEM = {"role": "system", "content": "You are terse."}
CONVERSATIONS = {
    "one": {"messages": [USER]},
    "one_no_prompt": {"messages": [USER], "add_generation_prompt": False},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [USER, ANSWER, {"role": "user", "content": "And of Italy?"}, {"role": "assistant", "content": "Rome."},
                           {"role": "user", "content": "Thanks!"}]},
    "system_turns": {"messages": [SYSTEM, USER, ANSWER, {"role": "user", "content": "And of Spain?"}]},
    "answered": {"messages": [USER, ANSWER], "add_generation_prompt": False},
    "spaces": {"messages": [{"role": "system", "content": "  lead and trail \n\n"}, {"role": "user", "content": "\n  code:\n\tx = 1  \n"}]},
    "unicode": {"messages": [{"role": "user", "content": "Où est 東京? 👩‍👩‍👧 \u00a0 {{ not a tag }} {% nor this %} <b>&amp;</b> 'q' \"d\" \\n"}]},
    "tools": {"messages": [USER], "tools": [WEATHER, SEARCH]},
    "tools_system": {"messages": [SYSTEM, USER], "tools": [WEATHER]},
    "tool_call": {"messages": [
        {"role": "user", "content": "Weather in Paris?"}, call("get_weather", {"city": "Paris", "unit": "celsius", "days": 2, "exact": 1.5, "now": True, "x": None}),
        {"role": "tool", "name": "get_weather", "tool_call_id": "call00000", "content": "{\"temperature\": 21}"}], "tools": [WEATHER, SEARCH]},
    "tool_answered": {"messages": [
        SYSTEM, {"role": "user", "content": "Weather in Rome?"}, call("get_weather", {"city": "Rome"}),
        {"role": "tool", "name": "get_weather", "tool_call_id": "call00000", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."}, {"role": "user", "content": "And tomorrow?"}], "tools": [WEATHER]},
    "two_calls": {"messages": [
        {"role": "user", "content": "Compare."},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [
            {"id": "aaaaaaaaa", "type": "function", "function": {"name": "search", "arguments": {"q": "a \"b\" <c>"}}},
            {"id": "bbbbbbbbb", "type": "function", "function": {"name": "search", "arguments": {"q": "é", "limit": 3}}}]},
        {"role": "tool", "name": "search", "tool_call_id": "aaaaaaaaa", "content": "1"},
        {"role": "tool", "name": "search", "tool_call_id": "bbbbbbbbb", "content": "2"}], "tools": [SEARCH]},
    "thinking": {"messages": [
        USER, {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nParis."}, {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Certainly."}, {"role": "user", "content": "Really?"}]},
    "no_thinking": {"messages": [USER], "enable_thinking": False},
    "two_users": {"messages": [USER, USER]},
    "assistant_first": {"messages": [ANSWER, USER]},
    "unknown_role": {"messages": [{"role": "narrator", "content": "Once."}]},
    "documents": {"messages": [USER], "documents": [{"title": "A", "text": "alpha"}, {"title": "B", "text": "beta"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]}]},
    "date": {"messages": [SYSTEM, USER], "date_string": "01 Jan 2025", "tools_in_user_message": False, "tools": [WEATHER]},
    "empty": {"messages": []},
}


def context(conversation):
    """What apply_chat_template hands to the template, with Llama's names for the special tokens."""
    return {"tools": None, "documents": None, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "<unk>"} | conversation
