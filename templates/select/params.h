// Host/device arguments of select, and the block grid's arithmetic (method.md, Shapes and names). Knows no framework.
#pragma once

#include <cute/config.hpp>

#include <cstdint>

namespace prism {

constexpr int kMaxTokens = 1 << 29;  // of a sequence or a block: sums of two stay inside int32

struct SelectParams {
  float const* q_mean;      // [batch, num_q_heads, num_q_blocks, head_dim]
  float const* k_mean;      // [batch, num_kv_heads, num_k_blocks, head_dim]
  float const* q_energy;    // [batch, num_q_heads, num_q_blocks, 3]: high band, low band, all dims
  float const* k_energy;    // [batch, num_kv_heads, num_k_blocks, 3]
  float const* thresholds;  // [num_q_heads, 2]: high, low
  int32_t* block_indices;   // [batch, num_q_heads, num_q_blocks, max_blocks]
  int32_t* block_counts;    // [batch, num_q_heads, num_q_blocks]
  int32_t* probs;           // null, or [batch, num_q_heads, 2, num_q_blocks, num_k_blocks]
  float* scratch;           // null, or one slice of a score tile per CTA
  int batch, num_q_heads, num_kv_heads;
  int num_q_blocks, num_k_blocks, max_blocks;
  int block_size_q, block_size_k;  // tokens
  int seqlen_q, prefix;            // tokens; query row r sees keys 0 .. r + prefix
  bool force_sink, force_recent;

  // Key blocks that the last valid row of a query block sees.
  CUTE_HOST_DEVICE int num_visible(int q_block) const {
    int const end = (q_block + 1) * block_size_q;
    int const last_row = (end < seqlen_q ? end : seqlen_q) - 1;
    return int(unsigned(last_row + prefix) / unsigned(block_size_k)) + 1;
  }

  // Key block that holds the causal boundary of a query block's first row.
  CUTE_HOST_DEVICE int first_diagonal(int q_block) const {
    return int(unsigned(q_block * block_size_q + prefix) / unsigned(block_size_k));
  }
};

}  // namespace prism
