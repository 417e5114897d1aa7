// Host/device arguments of subpool. Knows no framework.
#pragma once

#include <cstdint>

namespace prism::subpool {

// One of q and k: tokens first_token .. first_token + num_tokens - 1 of a sequence. Means are written of the sub-blocks that hold one
// of them; the first may go on with what came before.
struct Tensor {
  void const* x;  // [batch, num_tokens, num_heads, head_dim], strides below in elements
  void* means;    // [batch, num_heads, capacity, head_dim] fp16
  float const* tail_in;  // [batch, num_heads, head_dim]: sums of the first sub-block so far; read where first_token lies inside one
  float* tail_out;       // sums of the last sub-block, where it is not complete; may be null
  int64_t stride_batch, stride_token, stride_head;
  int first_token, num_tokens, num_heads;
  int first_sub, num_subs;
  int capacity;         // sub-blocks that means has room for
  int log2_sub;         // tokens of a sub-block: 4, 8 or 16
  bool heads_adjacent;  // a token's heads are nearer in memory than a head's tokens: neighbouring threads take heads
  bool in_tile_order;   // k: the order in which score's products want its sub-columns
};

struct Params {
  Tensor tensors[2];  // q, k
  int num_q_ctas;     // of blockIdx.x; those after them take k
};

}  // namespace prism::subpool
