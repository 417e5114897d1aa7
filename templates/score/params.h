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
constexpr int kMassColumns = 128;     // a row of masses is a multiple of so many key blocks

// Where the masses of key blocks lie between score and choose: of each q head and query block a row for each part of its sub-rows, as
// long as the block sees keys. Block sizes are powers of two, and kMassColumns key blocks no fewer tokens than a query block.
struct MassLayout {
  float* mass;
  int parts_per_block;
  int first_block;       // query blocks' worth of tokens that block 0 sees before its last one
  int log2_step_blocks;  // log2 of the query blocks that see as many kMassColumns
  int64_t head_floats;   // of a q head

  CUTE_HOST_DEVICE MassLayout() = default;
  CUTE_HOST_DEVICE MassLayout(float* memory, int parts, int log2_block_q, int log2_block_k, int prefix, int num_q_blocks)
      : mass(memory), parts_per_block(parts), first_block(((1 << log2_block_q) - 1 + prefix) >> log2_block_q),
        log2_step_blocks(log2_block_k - log2_block_q) {
    for (int columns = kMassColumns; columns > 1; columns /= 2) ++log2_step_blocks;
    head_floats = before(num_q_blocks);
  }

  // Columns of the rows of a query block.
  CUTE_HOST_DEVICE int columns(int q_block) const { return (((q_block + first_block) >> log2_step_blocks) + 1) * kMassColumns; }
  CUTE_HOST_DEVICE int64_t row(int64_t head, int q_block, int part) const {
    return head * head_floats + before(q_block) + int64_t(part) * columns(q_block);
  }

 private:
  // Floats of a head's query blocks before this one.
  CUTE_HOST_DEVICE int64_t before(int q_block) const {
    return (q_block + steps_before(first_block + q_block) - steps_before(first_block)) * parts_per_block * kMassColumns;
  }
  // The sum of i >> log2_step_blocks over i = 0 .. end - 1.
  CUTE_HOST_DEVICE int64_t steps_before(int64_t end) const {
    int64_t const whole = end >> log2_step_blocks, rest = end - (whole << log2_step_blocks);
    return (whole * (whole - 1) / 2 << log2_step_blocks) + whole * rest;
  }
};

// Sub-block sizes are powers of two.
struct Params {
  CUtensorMap q;  // [batch * num_q_heads, num_sub_rows, head_dim] fp16
  CUtensorMap k;  // [batch * num_kv_heads, num_tiles * kTileColumns, head_dim] fp16, columns in tile order
  uint16_t* sums;  // of exponentials (packed_sums.cuh), a region for each CTA
  MassLayout masses;  // what the sub-rows of a part make of each key block
  float softmax_scale_log2;
  int seqlen_q, prefix;        // tokens; query row r sees keys 0 .. r + prefix
  int log2_sub_q, log2_sub_k;  // tokens of a sub-block
  int num_sub_rows, num_k_tiles;
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
