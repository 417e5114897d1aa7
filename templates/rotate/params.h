// Host/device arguments of rotate. Knows no framework.
#pragma once

#include "pool/params.h"

#include <cstdint>

namespace prism {

// One of q and k before RoPE, where its rotated tokens go, and what pool makes of those.
struct RotateTensor {
  PoolTensor pool;
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
