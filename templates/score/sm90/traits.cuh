// Shapes, shared-memory layouts and the matrix instruction of one score kernel, derived from its Config.
//
// Who owns what in a 64 x 128 accumulator decides the order of k's means in memory. Thread t of a quad holds columns 8n + 2t and
// 8n + 2t + 1 of every n. So that these are whole key blocks, and sums over a block never leave the thread, place 8n + 2t + e of a
// tile holds sub-column 32t + 2n + e of it.
#pragma once

#include "score/params.h"

#include <cute/tensor.hpp>

#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cutlass/arch/barrier.h>
#include <cutlass/numeric_types.h>

namespace prism::score {

using namespace cute;

template <class Config_>
struct Traits {
  using Config = Config_;
  using Element = cutlass::half_t;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kRows = 64;  // M of wgmma: sub-rows of one warp group
  static constexpr int kWarpRows = 16;
  static constexpr int kWarpGroups = Config::kWarpGroups;
  static constexpr int kKStages = Config::kKStages;

  static constexpr int kThreadColumns = kTileColumns / 4;  // that a thread owns: of a quad, whole key blocks
  static constexpr int kThreadBlocks = kThreadColumns / Config::kColumnsPerBlock;
  static constexpr int kTileBlocks = kTileColumns / Config::kColumnsPerBlock;
  static_assert(kThreadBlocks * Config::kColumnsPerBlock == kThreadColumns, "a key block must lie in one thread");

  static constexpr int kPartRows = Config::kRowsPerBlock < kMostRowsPerPart ? Config::kRowsPerBlock : kMostRowsPerPart;
  static constexpr int kWarpParts = kWarpRows / kPartRows;
  static_assert(kWarpParts * kPartRows == kWarpRows, "a part must lie in one warp");

  static constexpr int kThreads = 128 * (1 + kWarpGroups);
  // setmaxnreg moves registers inside what the CTA got at launch: 65536 / threads, rounded down to a multiple of 8. Asking
  // for one more than that pool holds never returns.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8 < 248 ? 65536 / kThreads / 8 * 8 : 248;
  static constexpr int kHelperRegisters = 96;  // of the loader and the combiners: 16 rows in flight take 64
  static constexpr int kWantedRegisters = ((1 + kWarpGroups) * kLaunchRegisters - kHelperRegisters) / kWarpGroups / 8 * 8;
  static constexpr int kConsumerRegisters = kWantedRegisters < 240 ? kWantedRegisters : 240;

  using HeadDim = Int<kHeadDim>;
  using Columns = Int<kTileColumns>;
  using Mma = decltype(make_tiled_mma(GMMA::ss_op_selector<Element, Element, float, Shape<Int<kRows>, Columns, HeadDim>>()));

  // A slab is as many dims as one swizzle spans; one TMA box is one slab of a warp group's rows or of a tile's columns.
  static constexpr int kSlabDims = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kSlabs = kHeadDim / kSlabDims;
  static_assert(kHeadDim % kSlabDims == 0);
  using Atom = std::conditional_t<kSlabDims == 64, GMMA::Layout_K_SW128_Atom<Element>, GMMA::Layout_K_SW64_Atom<Element>>;
  using LayoutQ = decltype(tile_to_shape(Atom{}, Shape<Int<kRows>, HeadDim, Int<kWarpGroups>>{}));
  using LayoutK = decltype(tile_to_shape(Atom{}, Shape<Columns, HeadDim, Int<kKStages>>{}));

  static constexpr int kQBytes = kRows * kHeadDim * sizeof(Element);  // of one warp group
  static constexpr int kKBytes = kTileColumns * kHeadDim * sizeof(Element);

  static constexpr int kCombinerWarps = 3;  // beside the loader's warp
  static constexpr int kSumsStages = 2;     // tiles whose sums wait in memory: one is being combined, one computed

  using Barrier = cutlass::arch::ClusterBarrier;
  using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

  struct SharedStorage {
    alignas(1024) Element q[cosize_v<LayoutQ>];
    alignas(1024) Element k[cosize_v<LayoutK>];
    TransactionBarrier q_full[kWarpGroups];
    TransactionBarrier k_full[kKStages];
    Barrier q_empty[kWarpGroups];
    Barrier k_empty[kKStages];
    Barrier sums_full[kSumsStages];
    Barrier sums_empty[kSumsStages];
    float factors[kSumsStages][kWarpGroups * kRows];  // one over each row's total
  };
  static_assert(sizeof(SharedStorage) <= Config::kSmemBytes, "families/score.py and SharedStorage disagree");

  // Sums of a CTA: [kSumsStages][consumer warps][tiles][kWarpRows][kTileBlocks], packed.
  CUTE_HOST_DEVICE static int64_t sums_per_warp(int num_tiles) { return int64_t(num_tiles) * kWarpRows * kTileBlocks; }
  CUTE_HOST_DEVICE static int64_t sums_per_cta(int num_tiles) {
    return kSumsStages * 4 * kWarpGroups * sums_per_warp(num_tiles);
  }
  CUTE_DEVICE static uint16_t* warp_sums(Params const& p, int stage, int warp) {
    return p.sums + blockIdx.x * sums_per_cta(p.num_k_tiles) + (stage * 4 * kWarpGroups + warp) * sums_per_warp(p.num_k_tiles);
  }
};

// What a CTA computes at a time: heads_per_tile heads, and as many rows of each as its warp groups have. Longest first.
struct Tile {
  int head, row;   // of the first warp group; head: among those of the batch
  int num_k_tiles;

  template <class Traits>
  CUTE_DEVICE static Tile at(Params const& p, int index) {
    int const rows_per_tile = Traits::kRows * Traits::kWarpGroups / p.heads_per_tile;
    int const row_tile = p.num_row_tiles - 1 - index / p.num_head_tiles;
    int const row = row_tile * rows_per_tile, last = min(row + rows_per_tile, p.num_sub_rows) - 1;
    return {index % p.num_head_tiles * p.heads_per_tile, row, (p.num_visible(last) + kTileColumns - 1) / kTileColumns};
  }

  template <class Traits>
  CUTE_DEVICE int head_of(Params const& p, int warp_group) const { return head + warp_group % p.heads_per_tile; }

  template <class Traits>
  CUTE_DEVICE int row_of(Params const& p, int warp_group) const { return row + warp_group / p.heads_per_tile * Traits::kRows; }
};

// The tiles of a CTA, back and forth over the grid, so that every CTA gets about as many columns.
struct TileWalk {
  int index, round = 0;

  CUTE_DEVICE TileWalk() : index(int(blockIdx.x)) {}
  CUTE_DEVICE void advance() {
    ++round;
    int const place = round % 2 == 0 ? int(blockIdx.x) : int(gridDim.x - 1 - blockIdx.x);
    index = round * int(gridDim.x) + place;
  }
  CUTE_DEVICE bool done(Params const& p) const { return index >= p.num_row_tiles * p.num_head_tiles; }
};

}  // namespace prism::score
