// Shapes, shared-memory layouts and matrix instructions of one attend kernel, derived from its Config.
#pragma once

#include <cute/tensor.hpp>

#include <cute/atom/copy_traits_sm90_tma.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cutlass/arch/barrier.h>

namespace prism::attend {

using namespace cute;

// One entry of a tile's list: a key block, whether it is in the tile's last step, and which warp groups selected it.
struct Block {
  int packed;
  __device__ __forceinline__ static Block make(int index, bool last, int warp_groups) {
    return {(index << 3) | (int(last) << 2) | warp_groups};
  }
  __device__ __forceinline__ static Block none() { return {-1}; }
  __device__ __forceinline__ bool exists() const { return packed >= 0; }
  __device__ __forceinline__ int index() const { return packed >> 3; }
  __device__ __forceinline__ bool last() const { return packed & 4; }
  __device__ __forceinline__ bool selected_by(int warp_group) const { return (packed >> warp_group) & 1; }
};

// What one K tile holds. Only the last entry of a tile's last step can be missing.
template <int kBlocks>
struct Step {
  Block blocks[kBlocks];
  __device__ __forceinline__ bool last() const { return blocks[0].last(); }
  __device__ __forceinline__ bool selected_by(int warp_group) const { return blocks[0].selected_by(warp_group); }
};

template <class Config_>
struct Traits {
  using Config = Config_;
  using Element = typename Config::Element;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kBlockQ = Config::kBlockSizeQ;
  static constexpr int kTileM = Config::kTileM;  // query rows of one CTA
  static constexpr int kTileN = Config::kTileN;  // keys of one step
  static constexpr int kBlockK = Config::kBlockSizeK;
  static constexpr int kBlocksPerTile = kTileN / kBlockK;  // any two selected blocks of 64 keys make one tile of 128
  static constexpr int kRowsPerWarpGroup = 64;  // M of wgmma
  static constexpr int kWarpGroups = kTileM / kRowsPerWarpGroup;
  static constexpr int kLists = kTileM / kBlockQ;  // block lists a CTA walks together
  static constexpr int kQStages = 2;               // the next tile's Q loads while this tile computes; O leaves through its Q slot
  static constexpr int kKvStages = Config::kKvStages;  // slots of one K or V tile each
  static_assert(kTileM % kRowsPerWarpGroup == 0 && kTileM % kBlockQ == 0);
  static_assert(kLists == 1 || kLists == kWarpGroups, "a warp group walks one list");
  static_assert(kTileN % kBlockK == 0 && (kLists == 1 || kBlocksPerTile == 1), "a merged list has one block a step");

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

  // Q from registers (32 a thread at head_dim 128) halves what Q K^T reads from shared memory beside the copies coming in.
  static constexpr bool kQInRegisters = Config::kQInRegisters;
  using QKShape = Shape<Rows, TileN, HeadDim>;
  static constexpr auto qk_atom() {
    if constexpr (kQInRegisters) return GMMA::rs_op_selector<Element, Element, float, QKShape>();
    else return GMMA::ss_op_selector<Element, Element, float, QKShape>();
  }
  using MmaQK = decltype(make_tiled_mma(qk_atom()));
  using MmaPV = decltype(make_tiled_mma(
      GMMA::rs_op_selector<Element, Element, float, Shape<Rows, HeadDim, TileN>, GMMA::Major::K, GMMA::Major::MN>()));

  // 128-byte swizzle: a slab is 64 dims wide, whole token rows inside a slab are contiguous, and one TMA box is one slab of
  // one block.
  static constexpr int kSlabDims = 64;
  static constexpr int kSlabs = kHeadDim / kSlabDims;
  using SlabDims = Int<kSlabDims>;
  using BlockK = Int<kBlockK>;
  using AtomK = GMMA::Layout_K_SW128_Atom<Element>;
  using AtomMN = GMMA::Layout_MN_SW128_Atom<Element>;
  using LayoutQ = decltype(tile_to_shape(AtomK{}, Shape<Rows, HeadDim, Int<kWarpGroups>, Int<kQStages>>{}));
  using LayoutK = decltype(tile_to_shape(AtomK{}, Shape<TileN, HeadDim, Int<kKvStages>>{}));
  using LayoutV = decltype(tile_to_shape(AtomMN{}, Shape<HeadDim, TileN, Int<kKvStages>>{}, cute::Step<_2, _1, _3>{}));
  using BoxK = decltype(tile_to_shape(AtomK{}, Shape<BlockK, SlabDims>{}));
  using BoxV = decltype(tile_to_shape(AtomMN{}, Shape<SlabDims, BlockK>{}));
  static_assert(cosize_v<LayoutK> == cosize_v<LayoutV>, "K and V tiles share the same slots");

  static constexpr int kQBytes = kTileM * kHeadDim * sizeof(Element);
  static constexpr int kKvBytes = kTileN * kHeadDim * sizeof(Element);

  using Barrier = cutlass::arch::ClusterBarrier;
  using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

  static constexpr int kChunkBlocks = 32;  // block indices fetched at once, one a lane
  static constexpr int kChunks = 4;       // chunks in flight between the list walker and the loader

  // A run of blocks of one tile. `first` opens the tile, `last` closes it; a negative q_tile ends the stream.
  struct Chunk {
    int q_tile, q_head, batch;
    int num_blocks;
    bool first, last;
    int blocks[kChunkBlocks];
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
    Step<kBlocksPerTile> steps[kKvStages];  // of the K tile in each slot
    Chunk chunks[kChunks];
  };
  static_assert(sizeof(SharedStorage) <= Config::kSmemBytes, "families/attend.py and SharedStorage disagree");
};

}  // namespace prism::attend
