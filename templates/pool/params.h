// Host/device arguments of pool. Knows no framework.
#pragma once

#include <cstdint>

namespace prism {

constexpr int kGranuleTokens = 32;  // summed in token order by one thread per 8 dims; a block is a few of them in order

// One of q and k: tokens first_token .. first_token + num_tokens - 1 of a sequence.
struct PoolTensor {
  void const* x;         // [batch, num_tokens, num_heads, head_dim], strides below in elements
  float* mean;           // [batch, num_heads, capacity, head_dim]
  float* energy;         // [batch, num_heads, capacity, 3]: sum of mean**2 over the high band, the low band, all dims
  float const* tail_in;  // null, or [batch, num_heads, granules, head_dim]: sums of the block that first_token continues
  float* tail_out;       // null, or where the sums of a last block that is not complete go
  int64_t stride_batch;
  int64_t stride_token;
  int64_t stride_head;
  int first_token;
  int num_tokens;
  int num_heads;
  int first_block;     // the block of first_token
  int num_blocks;      // that hold a token of x
  int capacity;        // blocks that mean and energy have room for
  int log2_granules;   // of the granules in a block: 1, 2 or 4
  bool heads_adjacent;  // a token's heads are nearer in memory than a head's tokens: neighbouring units take heads
};

struct PoolParams {
  PoolTensor tensors[2];  // q, k
  int num_q_ctas;         // of blockIdx.x; those after them take k
};

}  // namespace prism
