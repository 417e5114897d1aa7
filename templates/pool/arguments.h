// pool's tensors, checked and turned into PoolTensors. Owns the errors about them; rotate, which pools too, uses it.
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
};

inline int log2_granules(int64_t block_size, char const* name) {
  for (int log2 = 0; log2 < 3; ++log2) {
    if (block_size == kGranuleTokens << log2) return log2;
  }
  TVM_FFI_THROW(ValueError) << "block_size_" << name << " is " << block_size << " tokens, expected 32, 64 or 128";
  return 0;
}

// x in blocks: every field of PoolTensor but its outputs.
template <class Config>
PoolTensor token_blocks(TensorView const& x, char const* name, int64_t block_size, int64_t first_token,
                        DLDevice device) {
  check_tensor<typename Config::Element>(x, name, 4, device);
  check_strides(x, name);
  check_size(x, name, 3, Config::kHeadDim);
  int const log2 = log2_granules(block_size, name);
  int64_t const batch = x.size(0), num_tokens = x.size(1), num_heads = x.size(2);
  constexpr int64_t kMaxTokens = 1 << 30;  // sums of two and a block stay inside int32
  if (first_token < 0 || num_tokens > kMaxTokens || first_token > kMaxTokens - num_tokens) {
    TVM_FFI_THROW(ValueError) << name << " is " << num_tokens << " tokens from " << first_token
                              << ", expected both at least 0 and no token behind 2^30";
  }
  int64_t const first_block = first_token / block_size;
  int64_t const end_block = num_tokens ? (first_token + num_tokens - 1) / block_size + 1 : first_block;
  constexpr int64_t kMaxGridY = 65535;
  if (batch > kMaxGridY || num_heads * (end_block - first_block) > kMaxTokens) {
    TVM_FFI_THROW(ValueError) << name << " has batch " << batch << " and " << num_heads << " heads x "
                              << end_block - first_block
                              << " blocks, expected batch <= 65535 and heads x blocks <= 2^30; split the batch";
  }
  PoolTensor t{};
  t.x = x.data_ptr();
  t.stride_batch = x.stride(0);
  t.stride_token = x.stride(1);
  t.stride_head = x.stride(2);
  t.first_token = int(first_token);
  t.num_tokens = int(num_tokens);
  t.num_heads = int(num_heads);
  t.first_block = int(first_block);
  t.num_blocks = int(end_block - first_block);
  t.log2_granules = log2;
  t.heads_adjacent = x.stride(2) < x.stride(1);
  return t;
}

// The sums of an incomplete block, or null. needed: the chunk goes on with one.
inline float* tail_pointer(Optional<TensorView> const& tail, char const* name, bool needed,
                           int64_t const (&shape)[4], DLDevice device) {
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
  PoolTensor t = token_blocks<Config>(a.x, a.name, a.block_size, a.first_token, device);
  int64_t const batch = a.x.size(0), end_block = int64_t(t.first_block) + t.num_blocks;
  std::string const mean_name = std::string(a.name) + "_mean", energy_name = std::string(a.name) + "_energy";
  check_tensor<float>(a.mean, mean_name.c_str(), 4, device);
  check_tensor<float>(a.energy, energy_name.c_str(), 4, device);
  int64_t const capacity = a.mean.size(2);
  if (capacity < end_block || capacity > std::numeric_limits<int>::max()) {
    TVM_FFI_THROW(ValueError) << mean_name << ".shape[2] is " << capacity << " blocks, expected at least " << end_block;
  }
  int64_t const mean_shape[] = {batch, t.num_heads, capacity, Config::kHeadDim};
  int64_t const energy_shape[] = {batch, t.num_heads, capacity, 3};
  for (int d = 0; d < 4; ++d) {
    check_size(a.mean, mean_name.c_str(), d, mean_shape[d]);
    check_size(a.energy, energy_name.c_str(), d, energy_shape[d]);
  }
  check_contiguous(a.mean, mean_name.c_str());
  check_contiguous(a.energy, energy_name.c_str());
  int64_t const tail_shape[] = {batch, t.num_heads, int64_t(1) << t.log2_granules, Config::kHeadDim};
  bool const goes_on = t.num_tokens && a.first_token % a.block_size;
  t.mean = data<float>(a.mean);
  t.energy = data<float>(a.energy);
  t.capacity = int(capacity);
  t.tail_in = tail_pointer(a.tail_in, "tail_in", goes_on, tail_shape, device);
  t.tail_out = tail_pointer(a.tail_out, "tail_out", false, tail_shape, device);
  if (t.tail_in != nullptr && t.tail_in == t.tail_out) {  // one CTA writes what another may not have read yet
    TVM_FFI_THROW(ValueError) << "tail_out is tail_in, expected another tensor";
  }
  return t;
}

}  // namespace prism
