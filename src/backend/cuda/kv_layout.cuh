#pragma once
// Where an element of a KV block stands. A block holds one KV head's K half, then its V half, of
// kPageTokens tokens each. Where head_dim is a multiple of 64 a half is made of atoms of 8 tokens
// by 64 dims, [token / 8][dim / 64][8 tokens][64 dims], rows of 128 bytes: what WGMMA reads, also
// over several pages that were copied verbatim one behind the other. Other halves are
// [token][head_dim]. The 16-byte units of a row are permuted by the token, so that ldmatrix (8
// tokens, one unit each) meets no bank conflicts. The store kernel writes through the same
// functions.

#include <cstddef>
#include <cstdint>

#include "backend/step.h"

namespace polar::backend::cuda {

inline constexpr int kUnitElements = 8;  // elements of two bytes in a 16-byte unit

inline constexpr int kAtomBytes = 1024;

/// Byte offset of a 16-byte unit inside a half; unit = dim / kUnitElements. Rows of 128 bytes start
/// at bank 0, so the lower three bits of the token spread 8 rows over all banks; rows of 192 and
/// 160 bytes are offset by 4 and 2 units from one another already.
__host__ __device__ constexpr int kv_unit_offset(int head_dim, int token, int unit) {
  if (head_dim % 64 == 0) {
    return (token / 8 * (head_dim / 64) + unit / 8) * kAtomBytes + token % 8 * 128 +
           (unit % 8 ^ token % 8) * 16;
  }
  const int swizzle = head_dim % 32 == 0   ? (token >> 1) & 3
                      : head_dim % 16 == 0 ? (token >> 2) & 1
                                           : 0;
  return token * head_dim * 2 + (unit ^ swizzle) * 16;
}

/// Byte offset of one element inside a half.
__host__ __device__ constexpr int kv_element_offset(int head_dim, int token, int dim) {
  return kv_unit_offset(head_dim, token, dim / kUnitElements) + dim % kUnitElements * 2;
}

/// A summary is a key and a value as a block's rows are, those of token `page` % kPageTokens of the
/// page's logical index: so that 16 neighbouring pages' summaries, copied row by row, make a block.
/// A row consists of pieces that are contiguous in the block, one for each atom: their number,
/// bytes, and where one stands inside a half.
__host__ __device__ constexpr int kv_row_pieces(int head_dim) {
  return head_dim % 64 == 0 ? head_dim / 64 : 1;
}
__host__ __device__ constexpr int kv_piece_bytes(int head_dim) {
  return head_dim * 2 / kv_row_pieces(head_dim);
}
__host__ __device__ constexpr int kv_piece_offset(int head_dim, int token, int piece) {
  if (head_dim % 64 == 0)
    return (token / 8 * (head_dim / 64) + piece) * kAtomBytes + token % 8 * 128;
  return token * head_dim * 2;
}

/// Byte offset of one element inside a row that is stored by itself.
__host__ __device__ constexpr int kv_row_offset(int head_dim, int token, int dim) {
  const int piece = head_dim % 64 == 0 ? dim / 64 : 0;
  return kv_element_offset(head_dim, token, dim) - kv_piece_offset(head_dim, token, piece) +
         piece * kv_piece_bytes(head_dim);
}

/// Bytes of a half and of a block, for 16-bit types.
__host__ __device__ constexpr int kv_half_bytes(int head_dim) {
  return kPageTokens * head_dim * 2;
}
__host__ __device__ constexpr int kv_block_bytes(int head_dim) {
  return 2 * kv_half_bytes(head_dim);
}

}  // namespace polar::backend::cuda
