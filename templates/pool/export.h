// Host side of pool: fills PoolParams, launches. Owns the exported function's meaning.
#pragma once

#include "pool/arguments.h"

namespace prism {

template <class Config>
void pool_launch(TensorView q, TensorView k, TensorView q_mean, TensorView q_energy, TensorView k_mean,
                 TensorView k_energy, int64_t block_size_q, int64_t block_size_k, int64_t k_start,
                 Optional<TensorView> tail_in, Optional<TensorView> tail_out) {
  using Tile = typename PoolKernel<Config>::Tile;
  DLDevice const device = q.device();
  PoolParams params{};
  params.tensors[0] = pool_tensor<Config>({"q", q, q_mean, q_energy, block_size_q, 0, {}, {}}, device);
  params.tensors[1] = pool_tensor<Config>({"k", k, k_mean, k_energy, block_size_k, k_start, tail_in, tail_out}, device);
  check_size(k, "k", 0, q.size(0));
  params.num_q_ctas = Tile::num_ctas(params.tensors[0]);
  dim3 const grid(params.num_q_ctas + Tile::num_ctas(params.tensors[1]), int(q.size(0)));
  if (grid.x == 0 || grid.y == 0) return;
  DeviceGuard const guard(device.device_id);
  pool_kernel<Config><<<grid, Config::kThreads, 0, current_stream(device)>>>(params);
  check_cuda(cudaGetLastError(), "pool launch");
}

}  // namespace prism

#define PRISM_EXPORT_POOL(Config, kSpec) \
  PRISM_EXPORT_SPEC(kSpec)               \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(pool, prism::pool_launch<Config>)
