// What one score launch needs, and the arithmetic of sub-blocks (method.md, The fine estimator). Knows no framework.
//
// A sub-row is a sub-block of a q head, a sub-column one of a KV head: their means are what the products are taken of.
#pragma once

#include <cuda.h>

#include <cute/config.hpp>

#include <cstdint>

namespace prism::score {

constexpr int kTileColumns = 128;  // sub-columns that are scored at a time; k's means lie in memory in tiles of so many
constexpr int kMostRowsPerPart = 16;  // sub-rows that one warp holds: a query block of more is scored in parts

// Sub-block sizes are powers of two.
struct Params {
  CUtensorMap q;  // [batch * num_q_heads, num_sub_rows, head_dim] fp16
  CUtensorMap k;  // [batch * num_kv_heads, num_tiles * kTileColumns, head_dim] fp16, columns in tile order
  uint16_t* sums;  // of exponentials (packed_sums.cuh), a region for each CTA
  float* mass;    // [batch * num_q_heads, num_parts, mass_stride]: what the sub-rows of a part make of each key block
  float softmax_scale_log2;
  int seqlen_q, prefix;        // tokens; query row r sees keys 0 .. r + prefix
  int log2_sub_q, log2_sub_k;  // tokens of a sub-block
  int num_sub_rows, num_k_tiles, num_parts, mass_stride;
  int group_size;        // q heads of a KV head
  int heads_per_tile;    // 1, 2 or 4: q heads of one group that a CTA takes side by side
  int num_head_tiles;    // batch * num_q_heads / heads_per_tile
  int num_row_tiles;     // along a head's sub-rows
  bool mean;             // the mean over a part's sub-rows instead of the maximum

  // Sub-columns that sub-row `row` sees: those whose first token its last row sees.
  CUTE_HOST_DEVICE int num_visible(int row) const {
    int const end = (row + 1) << log2_sub_q, last_row = (end < seqlen_q ? end : seqlen_q) - 1;
    return ((last_row + prefix) >> log2_sub_k) + 1;
  }
};

}  // namespace prism::score
