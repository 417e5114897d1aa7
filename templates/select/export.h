// Host side of select: checks the tensors, fills SelectParams, picks a shape, launches. Owns the exported functions' meaning and errors.
#pragma once

#include "select/params.h"
#include "shared/ffi.h"

#include <algorithm>
#include <limits>

namespace prism {

constexpr int64_t kMaxSmemBytes = 227 * 1024;  // dynamic shared memory of one CTA, sm90
constexpr int64_t kScratchCtas = 264;          // CTAs that share `scratch`: two on each of an H200's 132 SMs

// How rows of up to 32 * kWords_ key blocks are worked on.
template <int kWords_, int kTileRows_, int kThreads_, int kCluster_, int kCtasPerSm_>
struct SelectShape {
  static constexpr int kWords = kWords_;
  static constexpr int kTileRows = kTileRows_;    // rows per cluster
  static constexpr int kThreads = kThreads_;      // per CTA
  static constexpr int kCluster = kCluster_;      // CTAs
  static constexpr int kCtasPerSm = kCtasPerSm_;  // that registers must allow
};

template <class... Shapes>
struct SelectShapes {};

template <class Bands, class Shape>
struct SelectConfig : Bands, Shape {};

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

template <class Bands, class ScratchShape>
int64_t select_scratch_floats(int64_t batch, int64_t num_lists, int64_t num_q_blocks, int64_t num_k_blocks) {
  using Kernel = SelectKernel<SelectConfig<Bands, ScratchShape>, SelectMode::kGroup>;
  constexpr int64_t kMax = std::numeric_limits<int>::max();
  check_range(batch, "batch", 0, kMax);
  check_range(num_lists, "num_lists", 0, kMax);
  check_range(num_q_blocks, "num_q_blocks", 0, kMax);
  check_range(num_k_blocks, "num_k_blocks", 0, kMaxTokens);
  if (!Kernel::in_scratch(int(num_k_blocks))) return 0;
  int64_t const most_tiles = batch * num_lists * num_q_blocks;  // where a list's heads leave room for one block in a tile
  return std::min(most_tiles, kScratchCtas) * Kernel::template tile_floats<true>(int(num_k_blocks));
}

template <class Kernel, class Launched>
void select_start(Launched kernel, SelectParams const& p, int64_t ctas, int64_t smem_bytes, DLDevice device) {
  if (smem_bytes > kMaxSmemBytes) {
    TVM_FFI_THROW(ValueError) << "seqlen_k / block_size_k is " << p.num_k_blocks
                              << " blocks, more than this kernel's shared memory has bits for; use larger blocks";
  }
  check_range(ctas, "the number of CTAs (batch * lists * q blocks / rows of a tile)", 0, std::numeric_limits<int>::max());
  if (ctas == 0) return;
  DeviceGuard const guard(device.device_id);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(smem_bytes)),
             "select shared memory size");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
             "select shared memory carve-out");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(ctas));
  config.blockDim = dim3(Kernel::kThreads);
  config.dynamicSmemBytes = size_t(smem_bytes);
  config.stream = current_stream(device);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, p), "select launch");
}

template <class Kernel>
void check_heads(SelectParams const& p) {
  if (p.heads_per_list > Kernel::kMaxHeads) {
    TVM_FFI_THROW(ValueError) << "num_q_heads / num_kv_heads is " << p.heads_per_list << ", a list of this kernel serves at most "
                              << Kernel::kMaxHeads << " q heads; use one list per q head";
  }
}

// The first shape whose rows are long enough, or the scratch's.
template <class Bands, SelectMode kMode, class ScratchShape>
void select_dispatch(SelectShapes<>, SelectParams const& p, DLDevice device) {
  using Config = SelectConfig<Bands, ScratchShape>;
  using Kernel = SelectKernel<Config, kMode>;
  check_heads<Kernel>(p);
  int64_t const ctas = std::min(Kernel::num_tiles(p), kScratchCtas);
  select_start<Kernel>(select_kernel<Config, kMode, true>, p, ctas, Kernel::template smem_bytes<true>(p), device);
}

template <class Bands, SelectMode kMode, class ScratchShape, class Shape, class... Longer>
void select_dispatch(SelectShapes<Shape, Longer...>, SelectParams const& p, DLDevice device) {
  using Config = SelectConfig<Bands, Shape>;
  using Kernel = SelectKernel<Config, kMode>;
  if (Kernel::in_scratch(p.num_k_blocks)) {
    select_dispatch<Bands, kMode, ScratchShape>(SelectShapes<Longer...>{}, p, device);
    return;
  }
  check_heads<Kernel>(p);
  int64_t const ctas = Kernel::num_tiles(p) * Kernel::kCluster;
  select_start<Kernel>(select_kernel<Config, kMode, false>, p, ctas, Kernel::template smem_bytes<false>(p), device);
}

// The fewest blocks that a list must hold: the forced ones of any row.
inline int64_t least_capacity(SelectParams const& p) {
  if (!p.may_overflow()) return p.num_k_blocks;
  int least = 1;
  for (int q_block = 0; q_block < p.num_q_blocks; ++q_block) least = std::max(least, p.num_forced(q_block));
  return least;
}

// share_group, prefix_calibration, force_*: 0 or 1. cut_kind: a CutKind.
template <class Bands, class PlainShapes, class HeadShapes, class GroupShapes, class ScratchShape>
void select_launch(TensorView q_mean, TensorView k_mean, TensorView q_energy, TensorView k_energy, TensorView thresholds,
                   int64_t block_size_q, int64_t block_size_k, int64_t seqlen_q, int64_t seqlen_k, int64_t force_sink,
                   int64_t force_recent, int64_t share_group, int64_t prefix_calibration, int64_t cut_kind,
                   TensorView block_indices, TensorView block_counts, Optional<TensorView> wanted_counts,
                   Optional<TensorView> probs, Optional<TensorView> scratch) {
  SelectLengths const lengths{block_size_q, block_size_k, seqlen_q, seqlen_k};
  lengths.check();
  check_range(force_sink, "force_sink", 0, 1);
  check_range(force_recent, "force_recent", 0, 1);
  check_range(share_group, "share_group", 0, 1);
  check_range(prefix_calibration, "prefix_calibration", 0, 1);
  check_range(cut_kind, "cut_kind", int64_t(CutKind::kTopP), int64_t(CutKind::kDensity));
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
  int64_t const heads_per_list = share_group != 0 ? num_q_heads / num_kv_heads : 1, num_lists = num_q_heads / heads_per_list;
  check_shape(q_mean, "q_mean", {batch, num_q_heads, num_q_blocks, Bands::kHeadDim});
  check_shape(k_mean, "k_mean", {batch, num_kv_heads, num_k_blocks, Bands::kHeadDim});
  check_strides(q_mean, "q_mean");
  check_strides(k_mean, "k_mean");
  check_shape(q_energy, "q_energy", {batch, num_q_heads, num_q_blocks, 3});
  check_shape(k_energy, "k_energy", {batch, num_kv_heads, num_k_blocks, 3});
  check_shape(thresholds, "thresholds", {num_lists, 2});
  int64_t const max_blocks = block_indices.size(3);
  check_range(max_blocks, "block_indices.shape[3] (max_blocks)", 1, std::numeric_limits<int>::max());
  check_shape(block_indices, "block_indices", {batch, num_lists, num_q_blocks, max_blocks});
  check_shape(block_counts, "block_counts", {batch, num_lists, num_q_blocks});
  if (wanted_counts.has_value()) {
    check_tensor<int32_t>(wanted_counts.value(), "wanted_counts", 3, device);
    check_shape(wanted_counts.value(), "wanted_counts", {batch, num_lists, num_q_blocks});
  }
  if (probs.has_value()) {
    check_tensor<int32_t>(probs.value(), "probs", 5, device);
    check_shape(probs.value(), "probs", {batch, num_lists, 2, num_q_blocks, num_k_blocks});
  }
  constexpr int64_t kMaxOffset = std::numeric_limits<int>::max();  // a head's means are addressed in int32
  check_range(num_k_blocks * Bands::kHeadDim, "num_k_blocks * head_dim", 1, kMaxOffset);
  check_range(num_q_blocks * Bands::kHeadDim, "num_q_blocks * head_dim", 1, kMaxOffset);
  if (int64_t const floats = select_scratch_floats<Bands, ScratchShape>(batch, num_lists, num_q_blocks, num_k_blocks)) {
    if (!scratch.has_value()) {
      TVM_FFI_THROW(ValueError) << "scratch is None, expected fp32 [" << floats << "] (scratch_floats says how many)";
    }
    check_tensor<float>(scratch.value(), "scratch", 1, device);
    check_range(scratch.value().size(0), "scratch.shape[0]", floats, std::numeric_limits<int64_t>::max());
    check_strides(scratch.value(), "scratch");
  }

  SelectParams const params{
      data<float>(q_mean),          data<float>(k_mean),        data<float>(q_energy),
      data<float>(k_energy),        data<float>(thresholds),    data<int32_t>(block_indices),
      data<int32_t>(block_counts),  data_or_null<int32_t>(wanted_counts),
      data_or_null<int32_t>(probs), data_or_null<float>(scratch),
      int(batch),                   int(num_q_heads),           int(num_kv_heads),
      int(heads_per_list),          int(num_q_blocks),          int(num_k_blocks),
      int(max_blocks),              int(block_size_q),          int(block_size_k),
      int(seqlen_q),                int(seqlen_k - seqlen_q),   CutKind(cut_kind),
      prefix_calibration != 0,      force_sink != 0,            force_recent != 0};
  if (params.may_overflow()) {
    check_range(max_blocks, "block_indices.shape[3] (max_blocks)", least_capacity(params), std::numeric_limits<int>::max());
  }
  if (heads_per_list > 1) select_dispatch<Bands, SelectMode::kGroup, ScratchShape>(GroupShapes{}, params, device);
  else if (params.plain()) select_dispatch<Bands, SelectMode::kPlain, ScratchShape>(PlainShapes{}, params, device);
  else select_dispatch<Bands, SelectMode::kHead, ScratchShape>(HeadShapes{}, params, device);
}

}  // namespace prism

#define PRISM_EXPORT_SELECT(Bands, PlainShapes, HeadShapes, GroupShapes, ScratchShape, kSpec)                             \
  PRISM_EXPORT_SPEC(kSpec)                                                                                                \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(select,                                                                                   \
                                (prism::select_launch<Bands, PlainShapes, HeadShapes, GroupShapes, ScratchShape>))        \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(scratch_floats, (prism::select_scratch_floats<Bands, ScratchShape>))
