// Host side of pool: checks the tensors, fills PoolParams, launches. Owns the exported function's meaning and errors.
#pragma once

#include "pool/params.h"
#include "shared/ffi.h"

#include <limits>
#include <string>

namespace prism {

// One of q and k as the caller names it. Block sizes and lengths in tokens; the tails only where a sequence goes on.
struct PoolArguments {
  char const* name;
  TensorView x, mean, energy;
  int64_t block_size, first_token;
  Optional<TensorView> tail_in, tail_out;

  std::string field(char const* suffix) const { return std::string(name) + suffix; }
};

inline int log2_granules(int64_t block_size, char const* name) {
  for (int log2 = 0; log2 < 3; ++log2) {
    if (block_size == kGranuleTokens << log2) return log2;
  }
  TVM_FFI_THROW(ValueError) << "block_size_" << name << " is " << block_size << " tokens, expected 32, 64 or 128";
  return 0;
}

// The sums of an incomplete block, or null. `needed` says when it must be there.
template <class Config>
float* tail_pointer(Optional<TensorView> const& tail, char const* name, bool needed, int64_t const (&shape)[4],
                    DLDevice device) {
  if (!tail.has_value()) {
    if (needed) TVM_FFI_THROW(ValueError) << name << " is None, expected the sums of the block that the chunk continues";
    return nullptr;
  }
  check_tensor<float>(tail.value(), name, 4, device);
  for (int d = 0; d < 4; ++d) check_size(tail.value(), name, d, shape[d]);
  check_contiguous(tail.value(), name);
  check_strides(tail.value(), name);
  return data<float>(tail.value());
}

template <class Config>
PoolTensor pool_tensor(PoolArguments const& a, DLDevice device) {
  TensorView const& x = a.x;
  check_tensor<typename Config::Element>(x, a.name, 4, device);
  check_strides(x, a.name);
  check_size(x, a.name, 3, Config::kHeadDim);
  int const log2 = log2_granules(a.block_size, a.name);
  int64_t const batch = x.size(0), num_tokens = x.size(1), num_heads = x.size(2);
  constexpr int64_t kMaxTokens = 1 << 30;  // sums of two and a block stay inside int32
  if (a.first_token < 0 || num_tokens > kMaxTokens || a.first_token > kMaxTokens) {
    TVM_FFI_THROW(ValueError) << a.name << " is " << num_tokens << " tokens from " << a.first_token
                              << ", expected 0 to 2^30 of each";
  }
  int64_t const first_block = a.first_token / a.block_size;
  int64_t const end_block = num_tokens ? (a.first_token + num_tokens - 1) / a.block_size + 1 : first_block;
  std::string const mean_name = a.field("_mean"), energy_name = a.field("_energy");
  check_tensor<float>(a.mean, mean_name.c_str(), 4, device);
  check_tensor<float>(a.energy, energy_name.c_str(), 4, device);
  int64_t const capacity = a.mean.size(2);
  if (capacity < end_block) {
    TVM_FFI_THROW(ValueError) << mean_name << ".shape[2] is " << capacity << " blocks, expected at least " << end_block;
  }
  int64_t const mean_shape[] = {batch, num_heads, capacity, Config::kHeadDim};
  int64_t const energy_shape[] = {batch, num_heads, capacity, 3};
  for (int d = 0; d < 4; ++d) {
    check_size(a.mean, mean_name.c_str(), d, mean_shape[d]);
    check_size(a.energy, energy_name.c_str(), d, energy_shape[d]);
  }
  check_contiguous(a.mean, mean_name.c_str());
  check_contiguous(a.energy, energy_name.c_str());
  int64_t const tail_shape[] = {batch, num_heads, int64_t(1) << log2, Config::kHeadDim};
  bool const goes_on = num_tokens && a.first_token % a.block_size;
  float const* tail_in = tail_pointer<Config>(a.tail_in, "tail_in", goes_on, tail_shape, device);
  float* tail_out = tail_pointer<Config>(a.tail_out, "tail_out", false, tail_shape, device);
  if (tail_in != nullptr && tail_in == tail_out) {  // one CTA writes what another may not have read yet
    TVM_FFI_THROW(ValueError) << "tail_out is tail_in, expected another tensor";
  }
  constexpr int64_t kMaxGridY = 65535;
  int64_t const num_blocks = end_block - first_block;
  if (batch > kMaxGridY || num_heads * num_blocks > kMaxTokens) {
    TVM_FFI_THROW(ValueError) << a.name << " has batch " << batch << " and " << num_heads << " heads x " << num_blocks
                              << " blocks, expected batch <= 65535 and heads x blocks <= 2^30; split the batch";
  }
  return PoolTensor{x.data_ptr(),     data<float>(a.mean), data<float>(a.energy), tail_in,          tail_out,
                    x.stride(0),      x.stride(1),         x.stride(2),           int(a.first_token), int(num_tokens),
                    int(num_heads),   int(first_block),    int(num_blocks),       int(capacity),    log2,
                    x.stride(2) < x.stride(1)};
}

template <class Config>
int num_ctas(PoolTensor const& t) {
  int const cta_outputs = PoolKernel<Config>::kUnits >> t.log2_granules;
  return (t.num_heads * t.num_blocks + cta_outputs - 1) / cta_outputs;
}

template <class Config>
void pool_launch(TensorView q, TensorView k, TensorView q_mean, TensorView q_energy, TensorView k_mean,
                 TensorView k_energy, int64_t block_size_q, int64_t block_size_k, int64_t k_start,
                 Optional<TensorView> tail_in, Optional<TensorView> tail_out) {
  DLDevice const device = q.device();
  PoolParams params{};
  params.tensors[0] = pool_tensor<Config>({"q", q, q_mean, q_energy, block_size_q, 0, {}, {}}, device);
  params.tensors[1] = pool_tensor<Config>({"k", k, k_mean, k_energy, block_size_k, k_start, tail_in, tail_out}, device);
  check_size(k, "k", 0, q.size(0));
  params.num_q_ctas = num_ctas<Config>(params.tensors[0]);
  dim3 const grid(params.num_q_ctas + num_ctas<Config>(params.tensors[1]), int(q.size(0)));
  if (grid.x == 0 || grid.y == 0) return;
  DeviceGuard const guard(device.device_id);
  pool_kernel<Config><<<grid, Config::kThreads, 0, current_stream(device)>>>(params);
  check_cuda(cudaGetLastError(), "pool launch");
}

}  // namespace prism

#define PRISM_EXPORT_POOL(Config, kSpec) \
  PRISM_EXPORT_SPEC(kSpec)               \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(pool, prism::pool_launch<Config>)
