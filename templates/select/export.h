// Host side of select: checks the tensors, fills SelectParams, picks a shape, launches. Owns the exported functions' meaning and errors.
#pragma once

#include "select/launch.h"
#include "select/long.h"
#include "select/params.h"
#include "shared/ffi.h"
#include "shared/lists.h"

#include <algorithm>
#include <limits>

namespace prism {

constexpr int64_t kScratchCtas = 264;  // CTAs that share `scratch`: two on each of an H200's 132 SMs

// How rows of up to 32 * kWords_ key blocks are worked on.
template <int kWords_, int kTileRows_, int kThreads_, int kCluster_, int kCtasPerSm_, bool kPrepared_ = false>
struct SelectShape {
  static constexpr int kWords = kWords_;
  static constexpr int kTileRows = kTileRows_;    // rows per cluster
  static constexpr int kThreads = kThreads_;      // per CTA
  static constexpr int kCluster = kCluster_;      // CTAs
  static constexpr int kCtasPerSm = kCtasPerSm_;  // that registers must allow
  static constexpr bool kPrepared = kPrepared_;   // reads halves that prepare.cuh made
};

template <class... Shapes>
struct SelectShapes {};

template <class Bands, class Shape>
struct SelectConfig : Bands, Shape {};

// Blocks from one head of a KV tensor [batch, num_heads, num_blocks, width] to the next: more than num_blocks where it is the used part of
// a cache. Heads of the next batch entry follow.
inline int64_t head_capacity(TensorView const& t, char const* name) {
  int64_t const width = t.size(3), heads = t.size(1);
  bool const one = t.size(0) * heads == 1;
  int64_t const stride = one ? t.size(2) * width : heads > 1 ? t.stride(1) : t.stride(0);
  bool const rows = t.size(2) == 1 || t.stride(2) == width, even = t.size(0) == 1 || t.stride(0) == heads * stride;
  if (!rows || t.stride(3) != 1 || !even || stride % width != 0 || stride < t.size(2) * width) {
    TVM_FFI_THROW(ValueError) << name << " has strides " << t.stride(0) << ", " << t.stride(1) << ", " << t.stride(2) << ", " << t.stride(3)
                              << ", expected a contiguous tensor or the first blocks of one";
  }
  return stride / width;
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

// What select needs memory for.
struct ScratchSizes {
  int64_t batch, num_q_heads, num_kv_heads, num_lists, num_q_blocks, num_k_blocks;

  void check() const {
    constexpr int64_t kMax = std::numeric_limits<int>::max();
    check_range(batch, "batch", 0, kMax);
    check_range(num_q_heads, "num_q_heads", 0, kMax);
    check_range(num_kv_heads, "num_kv_heads", 0, kMax);
    check_range(num_q_blocks, "num_q_blocks", 0, kMax);
    check_range(num_k_blocks, "num_k_blocks", 0, kMaxTokens);
  }
};

// Of the shape that such rows take: the scores of every CTA's tile, or halves of all means.
template <class Bands, class ScratchShape>
int64_t shape_scratch_floats(SelectShapes<>, ScratchSizes const& sizes) {
  using Kernel = SelectKernel<SelectConfig<Bands, ScratchShape>, SelectMode::kGroup>;
  int64_t const most_tiles = sizes.batch * sizes.num_lists * sizes.num_q_blocks;  // where a list's heads leave room for one block in a tile
  return std::min(most_tiles, kScratchCtas) * Kernel::template tile_floats<true>(int(sizes.num_k_blocks));
}

template <class Bands, class ScratchShape, class Shape, class... Longer>
int64_t shape_scratch_floats(SelectShapes<Shape, Longer...>, ScratchSizes const& sizes) {
  using Kernel = SelectKernel<SelectConfig<Bands, Shape>, SelectMode::kGroup>;
  bool const has_rows = sizes.num_q_heads <= Kernel::kMaxHeads * sizes.num_lists;
  if (Kernel::in_scratch(int(sizes.num_k_blocks)) || !has_rows) {
    return shape_scratch_floats<Bands, ScratchShape>(SelectShapes<Longer...>{}, sizes);
  }
  if (!Shape::kPrepared) return 0;
  int64_t const kv_heads = sizes.batch * sizes.num_kv_heads, heads = sizes.batch * sizes.num_q_heads + kv_heads;
  int64_t const k_floats = kv_heads * KeyHalves<Bands::kHeadDim>::head_floats(int(sizes.num_k_blocks));
  return Kernel::query_floats(sizes.batch * sizes.num_q_heads, int(sizes.num_q_blocks)) + k_floats + heads * kComponents;
}

// The same whatever the rules.
template <class Bands, class PlainShapes, class Long, class HeadShapes, class GroupShapes, class ScratchShape, class GroupScratchShape>
int64_t select_scratch_floats(int64_t batch, int64_t num_q_heads, int64_t num_kv_heads, int64_t share_group, int64_t num_q_blocks,
                              int64_t num_k_blocks) {
  ScratchSizes const sizes{batch, num_q_heads, num_kv_heads, share_group != 0 ? num_kv_heads : num_q_heads, num_q_blocks, num_k_blocks};
  sizes.check();
  if (sizes.num_lists < sizes.num_q_heads) return shape_scratch_floats<Bands, GroupScratchShape>(GroupShapes{}, sizes);
  int64_t const any_rules = shape_scratch_floats<Bands, ScratchShape>(HeadShapes{}, sizes);
  if (!Long::serves(num_k_blocks)) return std::max(any_rules, shape_scratch_floats<Bands, ScratchShape>(PlainShapes{}, sizes));
  LongScratch<LongTraits<Bands>> const parts(batch, num_q_heads, num_kv_heads, num_q_blocks, num_k_blocks);
  return std::max(any_rules, parts.floats());
}

template <class Kernel, class Launched>
void select_start(Launched kernel, SelectParams p, dim3 grid, int64_t smem_bytes, DLDevice device) {
  if (smem_bytes > kMaxSmemBytes) {
    TVM_FFI_THROW(ValueError) << "seqlen_k / block_size_k is " << p.num_k_blocks
                              << " blocks, more than this kernel's shared memory has bits for; use larger blocks";
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  DeviceGuard const guard(device.device_id);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(smem_bytes)),
             "select shared memory size");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
             "select shared memory carve-out");
  if constexpr (Kernel::kPrepared) {
    check_range(int64_t(p.batch) * p.num_kv_heads, "batch * kv heads", 0, kMaxGrid);
    p.q_halves = p.scratch;
    p.k_halves = p.q_halves + Kernel::query_floats(int64_t(p.batch) * p.num_q_heads, p.num_q_blocks);
    p.q_totals = p.k_halves + int64_t(p.batch) * p.num_kv_heads * KeyHalves<Kernel::kHeadDim>::head_floats(p.num_k_blocks);
    p.k_totals = p.q_totals + int64_t(p.batch) * p.num_q_heads * kComponents;
    dim3 const prepare_grid(kPrepareSlices + p.num_q_heads / p.num_kv_heads + 1, p.batch * p.num_kv_heads);
    start_early(prepare_kernel<Kernel::kHeadDim>, p, prepare_grid, kPrepareThreads, 0, device);
  }
  start_early(kernel, p, grid, Kernel::kThreads, smem_bytes, device);
}

template <class Kernel>
void check_heads(SelectParams const& p) {
  if (p.heads_per_list > Kernel::kMaxHeads) {  // of a group; no shape is left that takes more
    TVM_FFI_THROW(ValueError) << "num_q_heads / num_kv_heads is " << p.heads_per_list << ", a list of this kernel serves at most "
                              << Kernel::kMaxHeads << " q heads; use one list per q head";
  }
}

// The first shape whose rows are long enough, and whose CTAs have rows for all heads of a list; or the scratch's. ScratchShape: void
// where the shapes are enough.
template <class Bands, SelectMode kMode, class ScratchShape>
void select_dispatch(SelectShapes<>, SelectParams const& p, DLDevice device) {
  if constexpr (std::is_void_v<ScratchShape>) {
    TVM_FFI_THROW(InternalError) << "no kernel takes rows of " << p.num_k_blocks << " blocks";
  } else {
    using Config = SelectConfig<Bands, ScratchShape>;
    using Kernel = SelectKernel<Config, kMode>;
    check_heads<Kernel>(p);
    int64_t const ctas = std::min(Kernel::num_tiles(p), kScratchCtas);
    select_start<Kernel>(select_kernel<Config, kMode, true>, p, dim3(unsigned(ctas)), Kernel::template smem_bytes<true>(p), device);
  }
}

template <class Bands, SelectMode kMode, class ScratchShape, class Shape, class... Longer>
void select_dispatch(SelectShapes<Shape, Longer...>, SelectParams const& p, DLDevice device) {
  using Config = SelectConfig<Bands, Shape>;
  using Kernel = SelectKernel<Config, kMode>;
  if (Kernel::in_scratch(p.num_k_blocks) || p.heads_per_list > Kernel::kMaxHeads) {
    select_dispatch<Bands, kMode, ScratchShape>(SelectShapes<Longer...>{}, p, device);
    return;
  }
  dim3 const grid(p.num_lists() * Kernel::kCluster, Kernel::num_row_tiles(p), p.batch);
  check_range(grid.y, "q blocks / rows of a tile", 0, kMaxGrid);
  check_range(grid.z, "batch", 0, kMaxGrid);
  select_start<Kernel>(select_kernel<Config, kMode, false>, p, grid, Kernel::template smem_bytes<false>(p), device);
}

// The fewest blocks that a list must hold: the forced ones of any row.
inline int64_t least_capacity(SelectParams const& p) {
  if (!p.may_overflow()) return p.num_k_blocks;
  int least = 1;
  for (int q_block = 0; q_block < p.num_q_blocks; ++q_block) least = std::max(least, p.num_forced(q_block));
  return least;
}

// share_group, prefix_calibration, force_*: 0 or 1. cut_kind: a CutKind.
template <class Bands, class PlainShapes, class Long, class HeadShapes, class GroupShapes, class ScratchShape, class GroupScratchShape>
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

  int64_t const batch = q_mean.size(0), num_q_heads = q_mean.size(1), num_kv_heads = k_mean.size(1);
  int64_t const num_q_blocks = lengths.num_q_blocks(), num_k_blocks = lengths.num_k_blocks();
  if (num_q_heads < 1 || num_kv_heads < 1 || num_q_heads % num_kv_heads != 0) {
    TVM_FFI_THROW(ValueError) << "q_mean has " << num_q_heads << " heads and k_mean " << num_kv_heads
                              << ", expected a multiple of k_mean's";
  }
  check_range(num_q_heads, "q heads", 1, kMaxGrid);  // and so a product of two numbers of heads fits uint32
  int64_t const heads_per_list = share_group != 0 ? num_q_heads / num_kv_heads : 1, num_lists = num_q_heads / heads_per_list;
  check_shape(q_mean, "q_mean", {batch, num_q_heads, num_q_blocks, Bands::kHeadDim});
  check_sizes(k_mean, "k_mean", {batch, num_kv_heads, num_k_blocks, Bands::kHeadDim});
  check_strides(q_mean, "q_mean");
  check_strides(k_mean, "k_mean");
  check_shape(q_energy, "q_energy", {batch, num_q_heads, num_q_blocks, kComponents});
  check_sizes(k_energy, "k_energy", {batch, num_kv_heads, num_k_blocks, kComponents});
  int64_t const k_capacity = head_capacity(k_mean, "k_mean"), energy_capacity = head_capacity(k_energy, "k_energy");
  if (energy_capacity != k_capacity) {
    TVM_FFI_THROW(ValueError) << "k_energy has room for " << energy_capacity << " blocks a head, k_mean for " << k_capacity
                              << ", expected one cache";
  }
  check_lists({thresholds, block_indices, block_counts, wanted_counts, probs, 2}, batch, num_lists, num_q_blocks, num_k_blocks, device);
  int64_t const max_blocks = block_indices.size(3);
  constexpr int64_t kMaxOffset = std::numeric_limits<int>::max();  // a head's means are addressed in int32
  check_range(num_k_blocks * Bands::kHeadDim, "num_k_blocks * head_dim", 1, kMaxOffset);
  check_range(num_q_blocks * Bands::kHeadDim, "num_q_blocks * head_dim", 1, kMaxOffset);
  if (int64_t const floats = select_scratch_floats<Bands, PlainShapes, Long, HeadShapes, GroupShapes, ScratchShape, GroupScratchShape>(
          batch, num_q_heads, num_kv_heads, share_group, num_q_blocks, num_k_blocks)) {
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
      data_or_null<int32_t>(probs), data_or_null<float>(scratch), nullptr, nullptr, nullptr, nullptr,
      int(batch),                   int(num_q_heads),           int(num_kv_heads),
      int(heads_per_list),          int(num_q_blocks),          int(num_k_blocks),
      int(k_capacity),              int(max_blocks),            int(block_size_q),          int(block_size_k),
      int(seqlen_q),                int(seqlen_k - seqlen_q),   CutKind(cut_kind),
      prefix_calibration != 0,      force_sink != 0,            force_recent != 0};
  if (params.may_overflow()) {
    check_range(max_blocks, "block_indices.shape[3] (max_blocks)", least_capacity(params), std::numeric_limits<int>::max());
  }
  bool const paper_rules = params.paper_rules(), with_probs = params.probs != nullptr;
  if (heads_per_list > 1) {
    select_dispatch<Bands, SelectMode::kGroup, GroupScratchShape>(GroupShapes{}, params, device);
  } else if (paper_rules && Long::serves(num_k_blocks)) {
    (with_probs ? long_launch<LongTraits<Bands>, true> : long_launch<LongTraits<Bands>, false>)(params, device);
  } else if (paper_rules && !with_probs && num_k_blocks <= Long::kLeastWords * 32) {
    select_dispatch<Bands, SelectMode::kPlain, void>(PlainShapes{}, params, device);
  } else {
    select_dispatch<Bands, SelectMode::kHead, ScratchShape>(HeadShapes{}, params, device);
  }
}

}  // namespace prism

#define PRISM_EXPORT_SELECT(Bands, PlainShapes, Long, HeadShapes, GroupShapes, ScratchShape, GroupScratchShape, kSpec)         \
  PRISM_EXPORT_SPEC(kSpec)                                                                                                     \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(                                                                                               \
      select, (prism::select_launch<Bands, PlainShapes, Long, HeadShapes, GroupShapes, ScratchShape, GroupScratchShape>))      \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(scratch_floats,                                                                                \
                                (prism::select_scratch_floats<Bands, PlainShapes, Long, HeadShapes, GroupShapes, ScratchShape, \
                                                              GroupScratchShape>))
