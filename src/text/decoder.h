#pragma once
// From token pieces back to text: the "decoder" of a tokenizer.json, as a chain of stages that
// works on a stream of pieces. Whole sequences and incremental output go through the same code.

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/normalizer.h"

namespace polar::text {

/// Characters that spell bytes (GPT-2); the bytes of all pieces together are one UTF-8 text.
struct ByteLevelDecoder {};
/// A run of <0x..> pieces is one UTF-8 text; if it is none, each piece becomes U+FFFD.
struct ByteFallbackDecoder {};
/// All pieces become one.
struct FuseDecoder {};
/// Takes up to `start` / `stop` characters `content` off the ends of every piece.
struct StripDecoder {
  std::string content;
  size_t start, stop;
};
/// SentencePiece's: `replacement` becomes a space, and nothing in the first piece if `drop_first`.
struct MetaspaceDecoder {
  std::string replacement;
  bool drop_first;
};
struct ReplaceDecoder {
  ReplaceText replace;
};
/// No decoder at all: pieces are joined by spaces.
struct JoinDecoder {};

using DecoderStep = std::variant<ByteLevelDecoder, ByteFallbackDecoder, FuseDecoder, StripDecoder,
                                 MetaspaceDecoder, ReplaceDecoder, JoinDecoder>;

/// Steps in order; a Sequence in the file is flattened.
struct Decoder {
  std::vector<DecoderStep> steps;

  /// The bytes that one piece stands for by itself, without what depends on its neighbours or on
  /// being first.
  std::string bytes_of(std::string_view piece) const;
};

/// The value of a piece like "<0x0A>", or -1.
int byte_of_piece(std::string_view piece);

/// One pass of pieces through a decoder. What a stage cannot decide yet it keeps, so each push
/// returns only text that no later piece can change, in whole characters.
class DecoderStream {
 public:
  explicit DecoderStream(const Decoder& decoder);

  /// Text that is settled after `piece`.
  std::string push(std::string_view piece);
  /// The rest. The stream is as new afterwards.
  std::string finish();

 private:
  struct Stage {
    std::string held;      // bytes or text that wait for the next piece
    size_t count = 0;      // pieces seen (by Metaspace, Join), or held (by ByteFallback)
    size_t stripped = 0;   // characters taken off the start of a fused text
    bool started = false;  // a fused text has begun: nothing more comes off its start
  };

  void feed(size_t step, std::string_view piece, std::string& out);
  void finish_from(size_t step, std::string& out);
  void strip(size_t step, const StripDecoder& strip, std::string_view piece, std::string& out);
  void end_byte_run(size_t step, std::string& out);

  const Decoder* decoder_;
  std::vector<Stage> stages_;
  size_t fused_from_;  // steps from here on see one piece in parts
};

}  // namespace polar::text
