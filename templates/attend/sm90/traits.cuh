// Shapes, shared-memory layouts and matrix instructions of one attend kernel, derived from its Config.
#pragma once

#include <cute/tensor.hpp>

#include <cute/atom/copy_traits_sm90_tma.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cutlass/arch/barrier.h>

namespace prism::attend {

using namespace cute;

template <class Config_>
struct Traits {
  using Config = Config_;
  using Element = typename Config::Element;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kBlockQ = Config::kBlockSizeQ;
  static constexpr int kTileM = Config::kTileM;  // query rows of one CTA
  static constexpr int kTileN = Config::kBlockSizeK;
  static constexpr int kRowsPerWarpGroup = 64;  // M of wgmma
  static constexpr int kWarpGroups = kTileM / kRowsPerWarpGroup;
  static constexpr int kLists = kTileM / kBlockQ;  // block lists a CTA walks together
  static constexpr int kQStages = 2;               // the next tile's Q loads while this tile computes; O leaves through its Q slot
  static constexpr int kKvStages = Config::kKvStages;  // slots of one K or V tile each
  static_assert(kTileM % kRowsPerWarpGroup == 0 && kTileM % kBlockQ == 0);
  static_assert(kLists == 1 || kLists == kWarpGroups, "a warp group walks one list");

  static constexpr int kThreads = 128 * (1 + kWarpGroups);
  // setmaxnreg moves registers inside what the CTA got at launch: 65536 / 384 threads, rounded down to a multiple of 8. Asking
  // for one more than that pool holds never returns.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  static_assert(kProducerRegisters + kWarpGroups * kConsumerRegisters <= (1 + kWarpGroups) * kLaunchRegisters);

  using HeadDim = Int<kHeadDim>;
  using TileN = Int<kTileN>;
  using Rows = Int<kRowsPerWarpGroup>;

  using MmaQK = decltype(make_tiled_mma(
      GMMA::ss_op_selector<Element, Element, float, Shape<Rows, TileN, HeadDim>, GMMA::Major::K, GMMA::Major::K>()));
  using MmaPV = decltype(make_tiled_mma(
      GMMA::rs_op_selector<Element, Element, float, Shape<Rows, HeadDim, TileN>, GMMA::Major::K, GMMA::Major::MN>()));

  // 128-byte swizzle: a slab is 64 dims wide, whole token rows inside a slab are contiguous, one TMA box a slab.
  using AtomK = GMMA::Layout_K_SW128_Atom<Element>;
  using AtomMN = GMMA::Layout_MN_SW128_Atom<Element>;
  using LayoutQ = decltype(tile_to_shape(AtomK{}, Shape<Rows, HeadDim, Int<kWarpGroups>, Int<kQStages>>{}));
  using LayoutK = decltype(tile_to_shape(AtomK{}, Shape<TileN, HeadDim, Int<kKvStages>>{}));
  using LayoutV = decltype(tile_to_shape(AtomMN{}, Shape<HeadDim, TileN, Int<kKvStages>>{}, Step<_2, _1, _3>{}));
  static_assert(cosize_v<LayoutK> == cosize_v<LayoutV>, "K and V tiles share the same slots");

  static constexpr int kQBytes = kTileM * kHeadDim * sizeof(Element);
  static constexpr int kKvBytes = kTileN * kHeadDim * sizeof(Element);

  using Barrier = cutlass::arch::ClusterBarrier;
  using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

  static constexpr int kChunkSteps = 32;  // block indices fetched at once, one a lane
  static constexpr int kChunks = 4;       // chunks in flight between the list walker and the loader

  // A run of steps of one tile. `first` opens the tile; a negative q_tile ends the stream.
  struct Chunk {
    int q_tile, q_head, batch;
    int num_steps;
    bool first, last;
    int steps[kChunkSteps];
  };

  struct Tile {
    int q_tile, q_head, batch;  // q_tile < 0: no more tiles
    int num_blocks;             // 0: the tile selects nothing
  };

  struct SharedStorage {
    alignas(1024) Element q[cosize_v<LayoutQ>];
    alignas(1024) Element kv[cosize_v<LayoutK>];
    TransactionBarrier q_full[kQStages];
    TransactionBarrier kv_full[kKvStages];
    Barrier q_empty[kQStages];
    Barrier kv_empty[kKvStages];
    Barrier chunk_full[kChunks];
    Barrier chunk_empty[kChunks];
    Tile tiles[kQStages];
    int steps[kKvStages];  // the step of the K tile in each slot
    Chunk chunks[kChunks];
  };
  static_assert(sizeof(SharedStorage) <= Config::kSmemBytes, "families/attend.py and SharedStorage disagree");
};

// A step is one key block: its index, whether it is the tile's last, and which warp groups selected it.
struct Step {
  int packed;
  __device__ __forceinline__ static Step make(int block, bool last, int warp_groups) {
    return {(block << 3) | (int(last) << 2) | warp_groups};
  }
  __device__ __forceinline__ int block() const { return packed >> 3; }
  __device__ __forceinline__ bool last() const { return packed & 4; }
  __device__ __forceinline__ bool selected_by(int warp_group) const { return (packed >> warp_group) & 1; }
};

}  // namespace prism::attend
