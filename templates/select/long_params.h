// Host/device arguments of the kernels for long rows, and how their scratch is laid out. Knows no framework.
#pragma once

#include "select/params.h"

namespace prism {

constexpr int kLongRows = 64;      // M of wgmma: query blocks of one q head that a warp group takes
constexpr int kLongColumns = 128;  // key blocks of a tile
constexpr int kTileWords = kLongColumns / 32;
constexpr int kMostLongCtas = 132;  // persistent: one on each SM of an H200

// Keys lie in memory as wgmma wants them in shared memory, so that a plain bulk copy brings them there; q rows are made so there
// (queries.cuh). A slab is 32 dims of a band: rows of 128 bytes, the high halves and then the low ones, their 16-byte pieces swizzled as
// CuTe's 128-byte swizzle has it.
constexpr int kSlabDims = 32;
constexpr int kSlabRowBytes = 128;
constexpr int kQuerySlabBytes = kLongRows * kSlabRowBytes;
constexpr int kKeySlabBytes = kLongColumns * kSlabRowBytes;

// What an SM of sm90 has. Shared memory: of which a CTA costs kCtaBytes more than it asks for.
constexpr int kSmRegisters = 65536;
constexpr int64_t kSmBytes = 228 * 1024, kCtaBytes = 1024;

// Of a CTA that writes lists, so that one finds room beside a CTA of the passes.
constexpr int kEmitThreads = 128, kEmitRegisters = 32;

constexpr uint32_t kMaskWarps = kBands * 4;  // that write the masks of an item, 64 rows of a q head: a warp group for each band
constexpr int kListEntries = 96;  // values of a row's bracket, with their columns

// Of a KV head's key means.
struct KeyFacts {
  float down;             // undoes their scaling
  float longest[kBands];  // the longest part of one in each band, as half_length has it (traits.cuh)
};

struct LongParams {
  SelectParams select;
  unsigned char* k_slabs;  // [batch * num_kv_heads][num_tiles][slabs of both bands]
  KeyFacts* k_facts;       // [batch * num_kv_heads]
  uint32_t* kept;          // [batch * num_q_heads][kBands][num_row_tiles * 64][num_tiles * 4]: bit masks
  uint32_t* masked;        // [batch * num_q_heads][num_row_tiles]: warps that have written their part of an item's masks
  uint2* lists;            // [CTAs][warp groups][64][kListEntries]
  uint32_t* claimed;       // works that CTAs have taken beyond their first
  int num_row_tiles, num_tiles;
  int key_slices;  // CTAs that prepare a KV head's keys
  int list_tiles;  // row tiles whose lists are written head by head

  CUTE_HOST_DEVICE uint32_t* masked_of(int q_row, int row_tile) const { return masked + int64_t(q_row) * num_row_tiles + row_tile; }
  CUTE_HOST_DEVICE uint32_t* kept_row(int q_row, int band, int q_block) const {
    int64_t const rows = int64_t(num_row_tiles) * kLongRows;
    return kept + ((int64_t(q_row) * kBands + band) * rows + q_block) * num_tiles * kTileWords;
  }
};

}  // namespace prism
