// Host side of pool: checks the tensors, fills PoolParams, launches. Owns the exported function's meaning and errors.
#pragma once

#include "pool/params.h"
#include "shared/ffi.h"

#include <limits>

namespace prism {

template <class Config>
PoolParams pool_params(TensorView const& x, TensorView const& mean, TensorView const& energy) {
  DLDevice const device = x.device();
  check_tensor<typename Config::Element>(x, "x", 4, device);
  check_strides(x, "x");
  check_size(x, "x", 3, Config::kHeadDim);
  int64_t const batch = x.size(0), seqlen = x.size(1), num_heads = x.size(2);
  if (seqlen < 1 || seqlen > std::numeric_limits<int>::max() - Config::kBlockSize) {
    TVM_FFI_THROW(ValueError) << "x.shape[1] is " << seqlen << " tokens, expected 1 to 2^31 - 1 - block_size";
  }
  int64_t const num_blocks = (seqlen + Config::kBlockSize - 1) / Config::kBlockSize;
  check_tensor<float>(mean, "mean", 4, device);
  check_tensor<float>(energy, "energy", 4, device);
  int64_t const mean_shape[] = {batch, num_heads, num_blocks, Config::kHeadDim};
  int64_t const energy_shape[] = {batch, num_heads, num_blocks, 3};
  for (int d = 0; d < 4; ++d) {
    check_size(mean, "mean", d, mean_shape[d]);
    check_size(energy, "energy", d, energy_shape[d]);
  }
  check_contiguous(mean, "mean");
  check_contiguous(energy, "energy");
  constexpr int64_t kMaxGridY = 65535;
  if (batch > kMaxGridY || num_heads * num_blocks > std::numeric_limits<int>::max()) {
    TVM_FFI_THROW(ValueError) << "x has batch " << batch << " and " << num_heads << " heads x " << num_blocks
                              << " blocks, expected batch <= 65535 and heads x blocks < 2^31; split the batch";
  }
  return PoolParams{x.data_ptr(),    data<float>(mean), data<float>(energy), x.stride(0),     x.stride(1),
                    x.stride(2),     int(seqlen),       int(num_heads),      int(num_blocks), x.stride(2) < x.stride(1)};
}

template <class Config>
void pool_launch(TensorView x, TensorView mean, TensorView energy) {
  PoolParams const params = pool_params<Config>(x, mean, energy);
  if (x.size(0) == 0 || params.num_heads == 0) return;
  DeviceGuard const guard(x.device().device_id);
  dim3 const grid(params.num_heads * params.num_blocks, int(x.size(0)));
  pool_kernel<Config><<<grid, Config::kThreads, 0, current_stream(x.device())>>>(params);
  check_cuda(cudaGetLastError(), "pool launch");
}

}  // namespace prism

#define PRISM_EXPORT_POOL(Config, kSpec) \
  PRISM_EXPORT_SPEC(kSpec)               \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(pool, prism::pool_launch<Config>)
