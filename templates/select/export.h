// Host side of select: checks the tensors, fills SelectParams, launches. Owns the exported functions' meaning and errors.
#pragma once

#include "select/params.h"
#include "shared/ffi.h"

#include <algorithm>
#include <limits>

namespace prism {

constexpr int64_t kMaxSmemBytes = 227 * 1024;  // dynamic shared memory of one CTA, sm90
constexpr int64_t kScratchCtas = 264;          // CTAs that share `scratch`: two on each of an H200's 132 SMs

template <class Kernel>
int64_t scratch_clusters(int64_t tiles) {
  return std::min(tiles, kScratchCtas / Kernel::kCluster);
}

template <class Kernel>
int64_t num_tiles(int64_t batch, int64_t num_q_heads, int64_t num_q_blocks) {
  return batch * num_q_heads * Kernel::num_row_tiles(int(num_q_blocks));
}

inline void check_shape(TensorView const& t, char const* name, std::initializer_list<int64_t> shape) {
  int dim = 0;
  for (int64_t size : shape) check_size(t, name, dim++, size);
  check_contiguous(t, name);
}

inline void check_range(int64_t value, char const* name, int64_t low, int64_t high) {
  if (value < low || value > high) {
    TVM_FFI_THROW(ValueError) << name << " is " << value << ", expected " << low << " to " << high;
  }
}

template <class Config>
int64_t select_scratch_floats(int64_t batch, int64_t num_q_heads, int64_t num_q_blocks, int64_t num_k_blocks) {
  using Kernel = SelectKernel<Config>;
  constexpr int64_t kMax = std::numeric_limits<int>::max();
  check_range(batch, "batch", 0, kMax);
  check_range(num_q_heads, "num_q_heads", 0, kMax);
  check_range(num_q_blocks, "num_q_blocks", 0, kMax);
  check_range(num_k_blocks, "num_k_blocks", 0, kMaxTokens);
  if (!Kernel::in_scratch(int(num_k_blocks))) return 0;
  return scratch_clusters<Kernel>(num_tiles<Kernel>(batch, num_q_heads, num_q_blocks)) * Kernel::kCluster *
         Kernel::slice_floats(int(num_k_blocks));
}

// Block sizes and lengths, in tokens.
struct SelectLengths {
  int64_t block_size_q, block_size_k, seqlen_q, seqlen_k;

  int64_t num_q_blocks() const { return (seqlen_q + block_size_q - 1) / block_size_q; }
  int64_t num_k_blocks() const { return (seqlen_k + block_size_k - 1) / block_size_k; }

  void check() const {
    check_range(block_size_q, "block_size_q", 1, kMaxTokens);
    check_range(block_size_k, "block_size_k", 1, kMaxTokens);
    check_range(seqlen_k, "seqlen_k", 1, kMaxTokens);
    check_range(seqlen_q, "seqlen_q", 1, seqlen_k);
  }
};

template <class Config>
void select_launch(TensorView q_mean, TensorView k_mean, TensorView q_energy, TensorView k_energy, TensorView thresholds,
                   int64_t block_size_q, int64_t block_size_k, int64_t seqlen_q, int64_t seqlen_k, int64_t force_sink,
                   int64_t force_recent, TensorView block_indices, TensorView block_counts, Optional<TensorView> probs,
                   Optional<TensorView> scratch) {
  using Kernel = SelectKernel<Config>;
  SelectLengths const lengths{block_size_q, block_size_k, seqlen_q, seqlen_k};
  lengths.check();
  check_range(force_sink, "force_sink", 0, 1);
  check_range(force_recent, "force_recent", 0, 1);
  DLDevice const device = q_mean.device();
  check_tensor<float>(q_mean, "q_mean", 4, device);
  check_tensor<float>(k_mean, "k_mean", 4, device);
  check_tensor<float>(q_energy, "q_energy", 4, device);
  check_tensor<float>(k_energy, "k_energy", 4, device);
  check_tensor<float>(thresholds, "thresholds", 2, device);
  check_tensor<int32_t>(block_indices, "block_indices", 4, device);
  check_tensor<int32_t>(block_counts, "block_counts", 3, device);

  int64_t const batch = q_mean.size(0), num_q_heads = q_mean.size(1), num_kv_heads = k_mean.size(1);
  int64_t const num_q_blocks = lengths.num_q_blocks(), num_k_blocks = lengths.num_k_blocks();
  if (num_q_heads < 1 || num_kv_heads < 1 || num_q_heads % num_kv_heads != 0) {
    TVM_FFI_THROW(ValueError) << "q_mean has " << num_q_heads << " heads and k_mean " << num_kv_heads
                              << ", expected a multiple of k_mean's";
  }
  check_shape(q_mean, "q_mean", {batch, num_q_heads, num_q_blocks, Config::kHeadDim});
  check_shape(k_mean, "k_mean", {batch, num_kv_heads, num_k_blocks, Config::kHeadDim});
  check_strides(q_mean, "q_mean");
  check_strides(k_mean, "k_mean");
  check_shape(q_energy, "q_energy", {batch, num_q_heads, num_q_blocks, 3});
  check_shape(k_energy, "k_energy", {batch, num_kv_heads, num_k_blocks, 3});
  check_shape(thresholds, "thresholds", {num_q_heads, 2});
  int64_t const max_blocks = block_indices.size(3);
  check_range(max_blocks, "block_indices.shape[3] (max_blocks)", num_k_blocks, std::numeric_limits<int>::max());
  check_shape(block_indices, "block_indices", {batch, num_q_heads, num_q_blocks, max_blocks});
  check_shape(block_counts, "block_counts", {batch, num_q_heads, num_q_blocks});
  if (probs.has_value()) {
    check_tensor<int32_t>(probs.value(), "probs", 5, device);
    check_shape(probs.value(), "probs", {batch, num_q_heads, 2, num_q_blocks, num_k_blocks});
  }

  bool const in_scratch = Kernel::in_scratch(int(num_k_blocks));
  if (Kernel::smem_bytes(int(num_k_blocks)) > kMaxSmemBytes) {
    TVM_FFI_THROW(ValueError) << "seqlen_k / block_size_k is " << num_k_blocks
                              << " blocks, more than this kernel's shared memory has bits for; use larger blocks";
  }
  constexpr int64_t kMaxOffset = std::numeric_limits<int>::max();  // a head's means are addressed in int32
  check_range(num_k_blocks * Config::kHeadDim, "num_k_blocks * head_dim", 1, kMaxOffset);
  check_range(num_q_blocks * Config::kHeadDim, "num_q_blocks * head_dim", 1, kMaxOffset);
  int64_t const tiles = num_tiles<Kernel>(batch, num_q_heads, num_q_blocks);
  check_range(tiles, "the number of row tiles (batch * heads * q blocks / tile_rows)", 0,
              std::numeric_limits<int>::max() / Kernel::kCluster);
  if (in_scratch) {
    int64_t const floats = select_scratch_floats<Config>(batch, num_q_heads, num_q_blocks, num_k_blocks);
    if (!scratch.has_value()) {
      TVM_FFI_THROW(ValueError) << "scratch is None, expected fp32 [" << floats << "] (scratch_floats says how many)";
    }
    check_tensor<float>(scratch.value(), "scratch", 1, device);
    check_range(scratch.value().size(0), "scratch.shape[0]", floats, std::numeric_limits<int64_t>::max());
    check_strides(scratch.value(), "scratch");
  }
  if (tiles == 0) return;

  SelectParams const params{
      data<float>(q_mean),          data<float>(k_mean),        data<float>(q_energy),
      data<float>(k_energy),        data<float>(thresholds),    data<int32_t>(block_indices),
      data<int32_t>(block_counts),  data_or_null<int32_t>(probs), in_scratch ? data_or_null<float>(scratch) : nullptr,
      int(batch),                   int(num_q_heads),           int(num_kv_heads),
      int(num_q_blocks),            int(num_k_blocks),          int(max_blocks),
      int(block_size_q),            int(block_size_k),          int(seqlen_q),
      int(seqlen_k - seqlen_q),     force_sink != 0,            force_recent != 0};
  int const smem_bytes = int(Kernel::smem_bytes(int(num_k_blocks)));
  auto const kernel = in_scratch ? select_kernel<Config, true> : select_kernel<Config, false>;
  DeviceGuard const guard(device.device_id);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes),
             "select shared memory size");
  int const clusters = int(in_scratch ? scratch_clusters<Kernel>(tiles) : tiles);
  kernel<<<clusters * Kernel::kCluster, Config::kThreads, smem_bytes, current_stream(device)>>>(params);
  check_cuda(cudaGetLastError(), "select launch");
}

}  // namespace prism

#define PRISM_EXPORT_SELECT(Config, kSpec)                               \
  PRISM_EXPORT_SPEC(kSpec)                                               \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(select, prism::select_launch<Config>)    \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(scratch_floats, prism::select_scratch_floats<Config>)
