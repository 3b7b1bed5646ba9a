#include "text/byte_level.h"

#include <array>

#include "text/utf8.h"

namespace polar::text {
namespace {

struct Tables {
  std::array<std::string, 256> characters;
  std::array<int, 0x144> bytes;

  Tables() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                             (byte >= 0xAE && byte <= 0xFF);
      const char32_t value = printable ? static_cast<char32_t>(byte) : next++;
      append_utf8(characters[static_cast<size_t>(byte)], value);
      bytes[value] = byte;
    }
  }
};

const Tables& tables() {
  static const Tables instance;
  return instance;
}

}  // namespace

void append_byte_level(std::string& out, std::string_view bytes) {
  const auto& characters = tables().characters;
  for (char c : bytes) out += characters[static_cast<unsigned char>(c)];
}

std::optional<unsigned char> byte_of_character(char32_t value) {
  const auto& bytes = tables().bytes;
  if (value >= bytes.size() || bytes[value] < 0) return std::nullopt;
  return static_cast<unsigned char>(bytes[value]);
}

void append_bytes_of_piece(std::string& out, std::string_view piece) {
  const size_t start = out.size();
  for (size_t at = 0; at < piece.size();) {
    const CodePoint point = decode_utf8(piece, at);
    const auto byte = point.valid ? byte_of_character(point.value) : std::nullopt;
    if (!byte) {
      out.resize(start);
      out += piece;
      return;
    }
    out.push_back(static_cast<char>(*byte));
    at += point.length;
  }
}

}  // namespace polar::text
