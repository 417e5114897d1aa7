// The exported function: validates tensors, fills a Problem, launches. See templates/README.md for the contract. The arch's
// launch.h, included before, holds launch<Config>().
#pragma once

#include "attend/params.h"
#include "shared/ffi.h"

#include <limits>

namespace prism::attend {

inline TensorArg tensor_arg(TensorView const& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

// The kernel counts keys and tiles in int32.
inline void check_countable(int64_t seqlen_k, int64_t rows_of_lists, int64_t max_blocks) {
  constexpr int64_t kMaxTokens = 1 << 29;  // so that the sum of two positions fits
  constexpr int64_t kMaxRows = 1 << 26;    // query blocks of all lists, 16 tiles each at most
  if (seqlen_k > kMaxTokens) TVM_FFI_THROW(ValueError) << "k has " << seqlen_k << " tokens, expected at most " << kMaxTokens;
  if (rows_of_lists > kMaxRows) {
    TVM_FFI_THROW(ValueError) << "q has " << rows_of_lists << " query blocks in all lists, expected at most " << kMaxRows
                              << "; split the batch";
  }
  if (max_blocks > std::numeric_limits<int>::max()) {
    TVM_FFI_THROW(ValueError) << "block_indices.shape[3] is " << max_blocks << ", expected at most "
                              << std::numeric_limits<int>::max();
  }
}

template <class Config>
Problem make_problem(TensorView const& q, TensorView const& k, TensorView const& v, TensorView const& out,
                     Optional<TensorView> const& lse, TensorView const& block_indices, TensorView const& block_counts,
                     double softmax_scale, TensorView const& tile_counter) {
  using Element = typename Config::Element;
  DLDevice const device = q.device();
  check_tensor<Element>(q, "q", 4, device);
  check_tensor<Element>(k, "k", 4, device);
  check_tensor<Element>(v, "v", 4, device);
  check_tensor<Element>(out, "out", 4, device);
  check_tensor<int32_t>(block_indices, "block_indices", 4, device);
  check_tensor<int32_t>(block_counts, "block_counts", 3, device);
  check_tensor<int32_t>(tile_counter, "tile_counter", 1, device);
  int64_t const batch = q.size(0), seqlen_q = q.size(1), num_q_heads = q.size(2);
  int64_t const seqlen_k = k.size(1), num_kv_heads = k.size(2);
  if (batch < 1 || seqlen_q < 1 || num_q_heads < 1 || num_kv_heads < 1) {
    TVM_FFI_THROW(ValueError) << "q and k must not be empty";
  }
  if (seqlen_q > seqlen_k) {
    TVM_FFI_THROW(ValueError) << "seqlen_q (" << seqlen_q << ") is larger than seqlen_k (" << seqlen_k
                              << "): causal attention is bottom-right aligned";
  }
  if (num_q_heads % num_kv_heads != 0) {
    TVM_FFI_THROW(ValueError) << "num_q_heads (" << num_q_heads << ") is no multiple of num_kv_heads (" << num_kv_heads << ")";
  }
  if (!(softmax_scale > 0)) TVM_FFI_THROW(ValueError) << "softmax_scale must be positive, it is " << softmax_scale;
  int64_t const group_size = num_q_heads / num_kv_heads;
  if (Config::kHeadsPerList != 1 && Config::kHeadsPerList != group_size) {
    TVM_FFI_THROW(ValueError) << "num_q_heads (" << num_q_heads << ") / num_kv_heads (" << num_kv_heads << ") is " << group_size
                              << ", this kernel shares a list among groups of " << Config::kHeadsPerList;
  }
  int64_t const num_lists = num_q_heads / Config::kHeadsPerList;
  int64_t const num_q_blocks = (seqlen_q + Config::kBlockSizeQ - 1) / Config::kBlockSizeQ;
  check_countable(seqlen_k, batch * num_lists * num_q_blocks, block_indices.size(3));
  check_size(q, "q", 3, Config::kHeadDim);
  for (auto [t, name] : {std::pair{&k, "k"}, std::pair{&v, "v"}}) {
    check_size(*t, name, 0, batch);
    check_size(*t, name, 1, seqlen_k);
    check_size(*t, name, 2, num_kv_heads);
    check_size(*t, name, 3, Config::kHeadDim);
  }
  for (int d = 0; d < 4; ++d) check_size(out, "out", d, q.size(d));
  for (auto [t, name] : {std::pair{&block_indices, "block_indices"}, std::pair{&block_counts, "block_counts"}}) {
    check_size(*t, name, 0, batch);
    check_size(*t, name, 1, num_lists);
    check_size(*t, name, 2, num_q_blocks);
    check_contiguous(*t, name);
  }
  check_size(tile_counter, "tile_counter", 0, 1);
  for (auto [t, name] : {std::pair{&q, "q"}, std::pair{&k, "k"}, std::pair{&v, "v"}, std::pair{&out, "out"}}) check_strides(*t, name);
  if (lse.has_value()) {
    TensorView const& l = lse.value();
    check_tensor<float>(l, "lse", 3, device);
    check_size(l, "lse", 0, batch);
    check_size(l, "lse", 1, num_q_heads);
    check_size(l, "lse", 2, seqlen_q);
    check_contiguous(l, "lse");
  }
  Problem p{};
  p.q = tensor_arg(q);
  p.k = tensor_arg(k);
  p.v = tensor_arg(v);
  p.out = tensor_arg(out);
  p.batch = int(batch);
  p.seqlen_q = int(seqlen_q);
  p.seqlen_k = int(seqlen_k);
  p.num_q_heads = int(num_q_heads);
  p.num_kv_heads = int(num_kv_heads);
  p.block_indices = data<int>(block_indices);
  p.block_counts = data<int>(block_counts);
  p.num_lists = int(num_lists);
  p.num_q_blocks = int(num_q_blocks);
  p.max_blocks = int(block_indices.size(3));
  p.softmax_scale = float(softmax_scale);
  p.lse = data_or_null<float>(lse);
  p.tile_counter = data<int>(tile_counter);
  return p;
}

template <class Config>
void run(TensorView q, TensorView k, TensorView v, TensorView out, Optional<TensorView> lse, TensorView block_indices,
         TensorView block_counts, double softmax_scale, TensorView tile_counter) {
  Problem const p =
      make_problem<Config>(q, k, v, out, lse, block_indices, block_counts, softmax_scale, tile_counter);
  DLDevice const device = q.device();
  DeviceGuard const guard(device.device_id);
  check_cuda(launch<Config>(p, device.device_id, current_stream(device)), "attend launch");
}

}  // namespace prism::attend

#define PRISM_EXPORT_ATTEND(Config, kSpec) \
  PRISM_EXPORT_SPEC(kSpec)                 \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(attend, prism::attend::run<Config>)
