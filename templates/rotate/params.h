// Host/device arguments of rotate. Knows no framework.
#pragma once

#include "pool/params.h"
#include "subpool/params.h"

#include <cstdint>

namespace prism {

// What is made of rotated tokens: nothing, what pool makes of their blocks, or what subpool makes of their sub-blocks.
enum class Pooling { kNone, kBlocks, kSubBlocks };

// One of q and k before RoPE, where its rotated tokens go, and what is made of those.
struct RotateTensor {
  PoolTensor pool;      // its outputs are used by kBlocks only
  subpool::Tensor sub;  // by kSubBlocks only
  void* out;  // [batch, num_tokens, num_heads, head_dim], strides below in elements
  int64_t out_stride_batch;
  int64_t out_stride_token;
  int64_t out_stride_head;
};

struct RotateParams {
  RotateTensor tensors[2];  // q, k: the same tokens
  void const* cos;          // [batch or 1, num_tokens, rotary_dim / 2], strides below in elements; sin likewise
  void const* sin;
  int64_t table_stride_batch;  // 0 where the batch shares a table
  int64_t table_stride_token;
  int num_q_ctas;  // of blockIdx.x; those after them take k
};

}  // namespace prism
