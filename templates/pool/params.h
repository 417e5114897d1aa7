// Host/device arguments of pool. Knows no framework.
#pragma once

#include <cstdint>

namespace prism {

struct PoolParams {
  void const* x;  // [batch, seqlen, num_heads, head_dim], strides below in elements
  float* mean;    // [batch, num_heads, num_blocks, head_dim]
  float* energy;  // [batch, num_heads, num_blocks, 3]: sum of mean**2 over the high band, the low band, all dims
  int64_t stride_batch;
  int64_t stride_token;
  int64_t stride_head;
  int seqlen;  // tokens
  int num_heads;
  int num_blocks;
  bool heads_adjacent;  // a token's heads are nearer in memory than a head's tokens: neighbouring CTAs take heads
};

}  // namespace prism
