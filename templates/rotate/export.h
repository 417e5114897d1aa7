// Host side of rotate: checks the tensors, fills RotateParams, launches. Owns the exported functions' meaning and errors.
#pragma once

#include "pool/arguments.h"
#include "rotate/params.h"
#include "score/params.h"
#include "subpool/arguments.h"

namespace prism {

// What is made of the rotated tokens of one of q and k, and the granules in which they are shared out.
struct RotatePools {
  PoolTensor pool;
  subpool::Tensor sub;
};

template <class Config>
RotateTensor rotate_tensor(RotatePools const& pools, TensorView const& x, TensorView const& out, char const* name) {
  check_tensor<typename Config::Element>(out, name, 4, x.device());
  check_strides(out, name);
  for (int d = 0; d < 4; ++d) check_size(out, name, d, x.size(d));
  return RotateTensor{pools.pool, pools.sub, out.data_ptr(), out.stride(0), out.stride(1), out.stride(2)};
}

// Fills what the exports share: out, tables and the grid of CTAs.
template <class Config, Pooling kPooling>
void rotate_launch(RotatePools const& q_pools, RotatePools const& k_pools, TensorView q, TensorView k, TensorView cos,
                   TensorView sin, TensorView q_out, TensorView k_out) {
  using Tile = typename RotateKernel<Config>::Tile;
  DLDevice const device = q.device();
  RotateParams params{};
  check_size(k, "k", 0, q.size(0));
  check_size(k, "k", 1, q.size(1));
  params.tensors[0] = rotate_tensor<Config>(q_pools, q, q_out, "q_out");
  params.tensors[1] = rotate_tensor<Config>(k_pools, k, k_out, "k_out");
  for (auto const& [table, name] : {std::pair{&cos, "cos"}, std::pair{&sin, "sin"}}) {
    check_tensor<typename Config::Element>(*table, name, 3, device);
    check_strides(*table, name);
    if (table->size(0) != 1) check_size(*table, name, 0, q.size(0));
    check_size(*table, name, 1, q.size(1));
    check_size(*table, name, 2, Config::kRotaryDim / 2);
    for (int d = 0; d < 2; ++d) {
      if (table->size(d) != cos.size(d) || table->stride(d) != cos.stride(d)) {
        TVM_FFI_THROW(ValueError) << name << ".stride(" << d << ") is " << table->stride(d) << " and cos's "
                                  << cos.stride(d) << ", expected one shape and layout for both";
      }
    }
  }
  params.cos = cos.data_ptr();
  params.sin = sin.data_ptr();
  params.table_stride_batch = cos.size(0) == 1 ? 0 : cos.stride(0);
  params.table_stride_token = cos.stride(1);
  params.num_q_ctas = Tile::num_ctas(q_pools.pool);
  dim3 const grid(params.num_q_ctas + Tile::num_ctas(k_pools.pool), int(q.size(0)));
  if (grid.x == 0 || grid.y == 0) return;
  DeviceGuard const guard(device.device_id);
  rotate_kernel<Config, kPooling><<<grid, Config::kThreads, 0, current_stream(device)>>>(params);
  check_cuda(cudaGetLastError(), "rotate launch");
}

template <class Config>
void rotate_and_pool_launch(TensorView q, TensorView k, TensorView cos, TensorView sin, TensorView q_out, TensorView k_out,
                     TensorView q_mean, TensorView q_energy, TensorView k_mean, TensorView k_energy,
                     int64_t block_size_q, int64_t block_size_k, int64_t k_start, Optional<TensorView> tail_in,
                     Optional<TensorView> tail_out) {
  DLDevice const device = q.device();
  PoolTensor const q_pool = pool_tensor<Config>({"q", q, q_mean, q_energy, block_size_q, 0, {}, {}}, device);
  PoolTensor const k_pool =
      pool_tensor<Config>({"k", k, k_mean, k_energy, block_size_k, k_start, tail_in, tail_out}, device);
  rotate_launch<Config, Pooling::kBlocks>({q_pool, {}}, {k_pool, {}}, q, k, cos, sin, q_out, k_out);
}

constexpr int64_t kSharedOutTokens = 128;  // of a block, where blocks only share out the work

template <class Config>
void rotate_sub_blocks_launch(TensorView q, TensorView k, TensorView cos, TensorView sin, TensorView q_out, TensorView k_out,
                              TensorView q_sub, TensorView k_sub, int64_t sub_block_q, int64_t sub_block_k, int64_t k_start,
                              Optional<TensorView> tail_in, Optional<TensorView> tail_out) {
  DLDevice const device = q.device();
  RotatePools const q_pools{token_blocks<Config>(q, "q", kSharedOutTokens, 0, device),
                            subpool::sub_blocks<Config>({"q", "q_sub", q, q_sub, sub_block_q, 0, 1, {}, {}}, device)};
  RotatePools const k_pools{
      token_blocks<Config>(k, "k", kSharedOutTokens, k_start, device),
      subpool::sub_blocks<Config>({"k", "k_sub", k, k_sub, sub_block_k, k_start, score::kTileColumns, tail_in, tail_out}, device)};
  rotate_launch<Config, Pooling::kSubBlocks>(q_pools, k_pools, q, k, cos, sin, q_out, k_out);
}

// The rotation alone: what rotate is measured against.
template <class Config>
void rotate_only_launch(TensorView q, TensorView k, TensorView cos, TensorView sin, TensorView q_out, TensorView k_out) {
  DLDevice const device = q.device();
  rotate_launch<Config, Pooling::kNone>({token_blocks<Config>(q, "q", kSharedOutTokens, 0, device), {}},
                                        {token_blocks<Config>(k, "k", kSharedOutTokens, 0, device), {}}, q, k, cos, sin, q_out,
                                        k_out);
}

}  // namespace prism

#define PRISM_EXPORT_ROTATE(Config, kSpec)                                       \
  PRISM_EXPORT_SPEC(kSpec)                                                       \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(rotate, prism::rotate_and_pool_launch<Config>) \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(rotate_sub_blocks, prism::rotate_sub_blocks_launch<Config>) \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(rotate_only, prism::rotate_only_launch<Config>)
