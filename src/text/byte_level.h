#pragma once
// GPT-2's spelling of bytes as printable characters (Radford et al. 2019, `bytes_to_unicode`):
// printable Latin-1 stands for itself, every other byte for the next character from U+0100 on.

#include <optional>
#include <string>
#include <string_view>

namespace polar::text {

/// Appends `bytes` to `out`, one character a byte.
void append_byte_level(std::string& out, std::string_view bytes);

/// The byte a character stands for.
std::optional<unsigned char> byte_of_character(char32_t value);

/// Appends the bytes that `piece` spells; if any of its characters stands for no byte, `piece`
/// itself.
void append_bytes_of_piece(std::string& out, std::string_view piece);

}  // namespace polar::text
