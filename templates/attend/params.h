// What one attend launch needs, framework-free. Filled by attend.h, read by the kernel.
#pragma once

#include <cuda.h>

#include <cutlass/fast_math.h>

#include <cstdint>

namespace prism::attend {

// A strided [batch, seqlen, heads, head_dim] tensor, last dim contiguous. Strides in elements.
struct TensorArg {
  void* ptr;
  int64_t batch_stride, row_stride, head_stride;
};

struct Problem {
  TensorArg q, k, v, out;
  int batch, seqlen_q, seqlen_k, num_q_heads, num_kv_heads;
  int const* block_indices;  // [batch, num_lists, num_q_blocks, max_blocks], rising
  int const* block_counts;   // [batch, num_lists, num_q_blocks]
  int num_lists;             // of one batch and query block: one per q head, or one per KV head
  int num_q_blocks, max_blocks;
  float softmax_scale;
  float* lse;         // [batch, num_q_heads, seqlen_q] or nullptr
  int* tile_counter;  // zero before and after every launch
};

// The part of the problem that device code reads.
struct Params {
  CUtensorMap q, out;  // [batch, lists, seqlen_q, heads_per_list, head_dim]
  CUtensorMap k, v;    // [batch, num_kv_heads, seqlen_k, head_dim]
  TensorArg keys;      // K once more, for logits that are computed again when the copy engine's K is gone
  int const* block_indices;
  int const* block_counts;
  float* lse;
  int* tile_counter;
  float softmax_scale_log2;
  int seqlen_q, prefix;  // prefix = seqlen_k - seqlen_q
  int num_lists, num_q_blocks, max_blocks;
  int num_tiles, num_q_tiles, num_kv_slots;  // kv_slot = batch * num_kv_heads + kv_head
  int section_slots;                         // kv slots whose K and V fit in L2 together
  int sweep_tiles;                           // tiles that run at the same time
  bool sort_sweeps;                          // whether the tiles of a sweep are claimed longest list first
  cutlass::FastDivmod section_tiles_divmod;  // tiles of one full section
  cutlass::FastDivmod lists_divmod;          // lists of one kv head
  cutlass::FastDivmod kv_head_divmod;        // num_kv_heads
};

}  // namespace prism::attend
