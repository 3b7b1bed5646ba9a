#include "text/decoder.h"

#include <algorithm>

#include "text/byte_level.h"
#include "text/utf8.h"

namespace polar::text {
namespace {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, done)) {
    out += text.substr(done, at - done);
    out += to;
    done = at + from.size();
  }
  out += text.substr(done);
  return out;
}

// Takes up to `limit` copies of `content` off the front; returns how many.
size_t strip_front(std::string_view& text, std::string_view content, size_t limit) {
  size_t count = 0;
  while (count < limit && !content.empty() && text.starts_with(content)) {
    text.remove_prefix(content.size());
    ++count;
  }
  return count;
}

size_t strip_back(std::string_view& text, std::string_view content, size_t limit) {
  size_t count = 0;
  while (count < limit && !content.empty() && text.ends_with(content)) {
    text.remove_suffix(content.size());
    ++count;
  }
  return count;
}

}  // namespace

int byte_of_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  const int high = hex_digit(piece[3]), low = hex_digit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string Decoder::bytes_of(std::string_view piece) const {
  std::string current(piece);
  for (const DecoderStep& step : steps) {
    if (std::holds_alternative<ByteLevelDecoder>(step)) {
      std::string bytes;
      append_bytes_of_piece(bytes, current);
      current = std::move(bytes);
    } else if (std::holds_alternative<ByteFallbackDecoder>(step)) {
      const int byte = byte_of_piece(current);
      if (byte >= 0) current.assign(1, static_cast<char>(byte));
    } else if (const auto* metaspace = std::get_if<MetaspaceDecoder>(&step)) {
      current = replace_all(current, metaspace->replacement, " ");
    } else if (const auto* replace = std::get_if<ReplaceDecoder>(&step)) {
      current = replace->replace.apply(current);
    }
  }
  return current;
}

DecoderStream::DecoderStream(const Decoder& decoder)
    : decoder_(&decoder), stages_(decoder.steps.size()), fused_from_(decoder.steps.size()) {
  for (size_t i = 0; i < decoder.steps.size(); ++i) {
    const DecoderStep& step = decoder.steps[i];
    if (std::holds_alternative<FuseDecoder>(step) ||
        std::holds_alternative<ByteLevelDecoder>(step)) {
      fused_from_ = i + 1;
      break;
    }
  }
}

std::string DecoderStream::push(std::string_view piece) {
  std::string out;
  feed(0, piece, out);
  return out;
}

std::string DecoderStream::finish() {
  std::string out;
  finish_from(0, out);
  std::fill(stages_.begin(), stages_.end(), Stage{});
  return out;
}

// A run of byte pieces has ended: it is text, or as many replacement characters as it has pieces.
void DecoderStream::end_byte_run(size_t step, std::string& out) {
  Stage& stage = stages_[step];
  if (stage.count == 0) return;
  const std::string held = std::move(stage.held);
  const size_t count = stage.count;
  stage.held.clear();
  stage.count = 0;
  if (is_valid_utf8(held)) {
    feed(step + 1, held, out);
  } else {
    for (size_t i = 0; i < count; ++i) feed(step + 1, "\xEF\xBF\xBD", out);
  }
}

void DecoderStream::strip(size_t step, const StripDecoder& strip, std::string_view piece,
                          std::string& out) {
  if (step < fused_from_) {  // every piece has ends of its own
    strip_front(piece, strip.content, strip.start);
    strip_back(piece, strip.content, strip.stop);
    feed(step + 1, piece, out);
    return;
  }
  Stage& stage = stages_[step];
  stage.held += piece;
  std::string_view text = stage.held;
  if (!stage.started) {
    stage.stripped += strip_front(text, strip.content, strip.start - stage.stripped);
    stage.started = !text.empty() || stage.stripped == strip.start;
  }
  const std::string kept(text);
  std::string_view settled = kept;  // the last `stop` copies may yet be the text's end
  strip_back(settled, strip.content, strip.stop);
  stage.held = kept.substr(settled.size());
  feed(step + 1, settled, out);
}

void DecoderStream::feed(size_t step, std::string_view piece, std::string& out) {
  if (step == decoder_->steps.size()) {
    out += piece;
    return;
  }
  const DecoderStep& kind = decoder_->steps[step];
  Stage& stage = stages_[step];
  if (std::holds_alternative<ByteLevelDecoder>(kind)) {
    append_bytes_of_piece(stage.held, piece);
    const size_t settled = settled_utf8_prefix(stage.held);
    const std::string text = to_valid_utf8(std::string_view(stage.held).substr(0, settled));
    stage.held.erase(0, settled);
    feed(step + 1, text, out);
  } else if (std::holds_alternative<ByteFallbackDecoder>(kind)) {
    const int byte = step < fused_from_ ? byte_of_piece(piece) : -1;
    if (byte >= 0) {
      stage.held.push_back(static_cast<char>(byte));
      ++stage.count;
    } else {
      end_byte_run(step, out);
      feed(step + 1, piece, out);
    }
  } else if (const auto* strip_step = std::get_if<StripDecoder>(&kind)) {
    strip(step, *strip_step, piece, out);
  } else if (const auto* metaspace = std::get_if<MetaspaceDecoder>(&kind)) {
    const bool first = stage.count == 0;
    if (step < fused_from_) ++stage.count;
    feed(step + 1,
         replace_all(piece, metaspace->replacement, first && metaspace->drop_first ? "" : " "),
         out);
  } else if (const auto* replace = std::get_if<ReplaceDecoder>(&kind)) {
    feed(step + 1, replace->replace.apply(piece), out);
  } else if (std::holds_alternative<JoinDecoder>(kind)) {
    if (stage.count++ > 0) feed(step + 1, " ", out);
    feed(step + 1, piece, out);
  } else {
    feed(step + 1, piece, out);
  }
}

void DecoderStream::finish_from(size_t step, std::string& out) {
  if (step == decoder_->steps.size()) return;
  Stage& stage = stages_[step];
  if (std::holds_alternative<ByteLevelDecoder>(decoder_->steps[step])) {
    feed(step + 1, to_valid_utf8(stage.held), out);
  } else if (std::holds_alternative<ByteFallbackDecoder>(decoder_->steps[step])) {
    end_byte_run(step, out);
  }  // what a strip holds is the text's end: it goes
  finish_from(step + 1, out);
}

}  // namespace polar::text
