// Host side of subpool: checks the tensors, launches. Owns the exported function's meaning and errors.
#pragma once

#include "shared/ffi.h"
#include "subpool/params.h"

#include <limits>

namespace prism::subpool {

inline int log2_sub_block(int64_t size, char const* name) {
  for (int log2 = 2; log2 <= 4; ++log2) {
    if (size == 1 << log2) return log2;
  }
  TVM_FFI_THROW(ValueError) << "sub_block_" << name << " is " << size << " tokens, expected 4, 8 or 16";
  return 0;
}

// x in sub-blocks from the one that holds token `start`, which goes on with what came before it. tile: means' room is a multiple of it.
template <class Config>
Tensor sub_blocks(TensorView const& x, char const* name, TensorView const& means, char const* means_name, int64_t sub_block,
                  int64_t start, int64_t tile, DLDevice device) {
  constexpr int64_t kMaxTokens = 1 << 29;  // sums of two stay inside int32
  check_tensor<typename Config::Element>(x, name, 4, device);
  check_strides(x, name);
  check_size(x, name, 3, Config::kHeadDim);
  check_tensor<cutlass::half_t>(means, means_name, 4, device);
  check_contiguous(means, means_name);
  check_strides(means, means_name);
  int const log2 = log2_sub_block(sub_block, name);
  int64_t const batch = x.size(0), num_tokens = x.size(1), num_heads = x.size(2);
  if (num_tokens > kMaxTokens || start < 0 || start > num_tokens) {
    TVM_FFI_THROW(ValueError) << name << " has " << num_tokens << " tokens, those from " << start
                              << " on are wanted; expected at most 2^29, and the first wanted among them";
  }
  int64_t const first_sub = start >> log2, end_sub = (num_tokens + sub_block - 1) >> log2, capacity = means.size(2);
  int64_t const needed = (end_sub + tile - 1) / tile * tile;
  constexpr int64_t kMaxGridY = 65535;
  if (batch > kMaxGridY || num_heads * (end_sub - first_sub) > std::numeric_limits<int>::max() / 2) {
    TVM_FFI_THROW(ValueError) << name << " has batch " << batch << " and " << num_heads << " heads x " << end_sub - first_sub
                              << " sub-blocks, expected batch <= 65535 and heads x sub-blocks < 2^30; split the batch";
  }
  if (capacity < needed || capacity > std::numeric_limits<int>::max()) {
    TVM_FFI_THROW(ValueError) << means_name << ".shape[2] is " << capacity << ", expected at least " << needed;
  }
  check_size(means, means_name, 0, batch);
  check_size(means, means_name, 1, num_heads);
  check_size(means, means_name, 3, Config::kHeadDim);
  Tensor t{};
  t.x = x.data_ptr();
  t.means = means.data_ptr();
  t.stride_batch = x.stride(0);
  t.stride_token = x.stride(1);
  t.stride_head = x.stride(2);
  t.num_tokens = int(num_tokens);
  t.num_heads = int(num_heads);
  t.first_sub = int(first_sub);
  t.num_subs = int(end_sub - first_sub);
  t.capacity = int(capacity);
  t.log2_sub = log2;
  t.heads_adjacent = x.stride(2) < x.stride(1);
  t.in_tile_order = tile > 1;
  return t;
}

template <class Config>
void run(TensorView q, TensorView k, TensorView q_sub, TensorView k_sub, int64_t sub_block_q, int64_t sub_block_k, int64_t k_start) {
  using Kernel = subpool::Kernel<Config>;
  DLDevice const device = q.device();
  Params params{};
  params.tensors[0] = sub_blocks<Config>(q, "q", q_sub, "q_sub", sub_block_q, 0, 1, device);
  params.tensors[1] = sub_blocks<Config>(k, "k", k_sub, "k_sub", sub_block_k, k_start, score::kTileColumns, device);
  check_size(k, "k", 0, q.size(0));
  params.num_q_ctas = Kernel::num_ctas(params.tensors[0]);
  dim3 const grid(params.num_q_ctas + Kernel::num_ctas(params.tensors[1]), int(q.size(0)));
  if (grid.x == 0 || grid.y == 0) return;
  DeviceGuard const guard(device.device_id);
  subpool_kernel<Config><<<grid, Config::kThreads, 0, current_stream(device)>>>(params);
  check_cuda(cudaGetLastError(), "subpool launch");
}

}  // namespace prism::subpool

#define PRISM_EXPORT_SUBPOOL(Config, kSpec) \
  PRISM_EXPORT_SPEC(kSpec)                  \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(subpool, prism::subpool::run<Config>)
