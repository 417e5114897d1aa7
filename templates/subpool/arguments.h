// subpool's tensors, checked and turned into Tensors. Owns the errors about them; rotate, which pools sub-blocks too, uses it.
#pragma once

#include "pool/arguments.h"
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

// One of q and k as the caller names it. tile: its means have room for a multiple of it.
struct Arguments {
  char const *name, *means_name;
  TensorView x, means;
  int64_t sub_block, first_token, tile;
  Optional<TensorView> tail_in, tail_out;
};

template <class Config>
Tensor sub_blocks(Arguments const& a, DLDevice device) {
  constexpr int64_t kMaxTokens = 1 << 29;  // sums of two stay inside int32
  TensorView const &x = a.x, &means = a.means;
  char const *const name = a.name, *const means_name = a.means_name;
  check_tensor<typename Config::Element>(x, name, 4, device);
  check_strides(x, name);
  check_size(x, name, 3, Config::kHeadDim);
  check_tensor<cutlass::half_t>(means, means_name, 4, device);
  check_contiguous(means, means_name);
  check_strides(means, means_name);
  int const log2 = log2_sub_block(a.sub_block, name);
  int64_t const batch = x.size(0), num_tokens = x.size(1), num_heads = x.size(2);
  if (a.first_token < 0 || num_tokens > kMaxTokens || a.first_token > kMaxTokens - num_tokens) {
    TVM_FFI_THROW(ValueError) << name << " is " << num_tokens << " tokens from " << a.first_token
                              << ", expected both at least 0 and no token behind 2^29";
  }
  int64_t const first_sub = a.first_token >> log2, capacity = means.size(2);
  int64_t const end_sub = num_tokens ? (a.first_token + num_tokens + a.sub_block - 1) >> log2 : first_sub;
  int64_t const needed = (end_sub + a.tile - 1) / a.tile * a.tile;
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
  t.first_token = int(a.first_token);
  t.num_tokens = int(num_tokens);
  t.num_heads = int(num_heads);
  t.first_sub = int(first_sub);
  t.num_subs = int(end_sub - first_sub);
  t.capacity = int(capacity);
  t.log2_sub = log2;
  t.heads_adjacent = x.stride(2) < x.stride(1);
  t.in_tile_order = a.tile > 1;
  int64_t const tail_shape[] = {batch, num_heads, 1, Config::kHeadDim};
  bool const goes_on = num_tokens && a.first_token % a.sub_block;
  t.tail_in = tail_pointer(a.tail_in, "tail_in", goes_on, tail_shape, device);
  t.tail_out = tail_pointer(a.tail_out, "tail_out", false, tail_shape, device);
  if (t.tail_in != nullptr && t.tail_in == t.tail_out) {  // one CTA writes what another may not have read yet
    TVM_FFI_THROW(ValueError) << "tail_out is tail_in, expected another tensor";
  }
  return t;
}

}  // namespace prism::subpool
