// Shapes, shared-memory layouts and matrix instructions of one attend kernel, derived from its Config.
#pragma once

#include <cute/tensor.hpp>

#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cutlass/arch/barrier.h>

#include <algorithm>
#include <numeric>

namespace prism::attend {

using namespace cute;

// One entry of a tile's list: a key block (or a part of one that is wider than a step), whether some row of the tile does not see all
// of it, whether it is in the tile's last step, and which warp groups selected it.
struct Entry {
  int packed;
  __device__ __forceinline__ static Entry make(int index, bool masked, bool last, int warp_groups) {
    return {(index << 4) | (int(masked) << 3) | (int(last) << 2) | warp_groups};
  }
  __device__ __forceinline__ static Entry none() { return {-1}; }
  __device__ __forceinline__ bool exists() const { return packed >= 0; }
  __device__ __forceinline__ int index() const { return packed >> 4; }
  __device__ __forceinline__ int masked() const { return packed & 8; }  // also where it does not exist
  __device__ __forceinline__ bool last() const { return packed & 4; }
  __device__ __forceinline__ bool selected_by(int warp_group) const { return (packed >> warp_group) & 1; }
};

// What one K tile holds. Entries can be missing at the end of a tile's last step, never the first.
template <int kEntries>
struct Step {
  Entry entries[kEntries];
  __device__ __forceinline__ bool last() const { return entries[0].last(); }
  __device__ __forceinline__ bool selected_by(int warp_group) const { return entries[0].selected_by(warp_group); }
  __device__ __forceinline__ bool whole() const { return kEntries == 1 || entries[kEntries - 1].exists(); }
  __device__ __forceinline__ int masked() const {  // a bit, so that it can be tested together with others
    int any = 0;
    CUTE_UNROLL
    for (int i = 0; i < kEntries; ++i) any |= entries[i].packed;
    return Entry{any}.masked();
  }
};

template <class Config_>
struct Traits {
  using Config = Config_;
  using Element = typename Config::Element;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kBlockQ = Config::kBlockSizeQ;
  static constexpr int kBlockK = Config::kBlockSizeK;
  static constexpr int kTileM = Config::kTileM;  // query rows of one team
  static constexpr int kTileN = Config::kTileN;  // keys of one step
  static constexpr int kRowsPerWarpGroup = 64;   // M of wgmma
  static constexpr int kWarpGroups = kTileM / kRowsPerWarpGroup;
  static constexpr int kQStages = Config::kQStages;    // O leaves through its tile's Q slot
  static constexpr int kKvStages = Config::kKvStages;  // slots of one K or V tile each
  static_assert(kTileM % kRowsPerWarpGroup == 0);
  // Threads of a warp group that arrive when its output has left a Q slot: the one that waited for that. With one slot the next tile's
  // coordinates are written at once where all of them read this tile's; all arrive then, since racecheck does not see the order
  // that a named barrier between the reads and the one arrival makes.
  static constexpr int kQReleases = kQStages == 1 ? 128 : 1;

  // Rows of a warp group are (position, head of the list) with the head fastest: a power of two of positions, as many as fit.
  static constexpr int kHeadsPerList = Config::kHeadsPerList;
  static constexpr int largest_power_of_two(int x) { return x < 2 ? x : 2 * largest_power_of_two(x / 2); }
  static constexpr int kPositionsPerWarpGroup = largest_power_of_two(kRowsPerWarpGroup / kHeadsPerList);
  static constexpr int kUsedRows = kPositionsPerWarpGroup * kHeadsPerList;  // of a warp group; the others compute on zeros
  // The tiles of a cluster's CTAs lie side by side and walk one list together: each CTA copies a part of every K and V tile to all.
  // A tile is one team's; what is said of a CTA here holds for one of its teams.
  static constexpr int kCluster = Config::kCluster;
  static constexpr int kCtaPositions = kPositionsPerWarpGroup * kWarpGroups;
  static constexpr int kTilePositions = kCtaPositions * kCluster;
  static_assert(kUsedRows <= kRowsPerWarpGroup && kHeadsPerList >= 1);

  // A tile walks one list, which may serve several tiles; or, with short query blocks, the lists of neighbours merged.
  static constexpr int kLists = std::max(1, kTilePositions / kBlockQ);
  static constexpr int kTilesPerList = std::max(1, kBlockQ / kTilePositions);
  static_assert(kTilePositions % kBlockQ == 0 || kBlockQ % kTilePositions == 0);
  static_assert(kLists == 1 || (kLists == kWarpGroups && kCluster == 1), "a warp group walks one list");

  // An entry is a whole block, or the largest part of one that a step is a multiple of. A step takes several beside each other.
  static constexpr int kEntryTokens = std::gcd(kBlockK, kTileN);
  static constexpr int kEntriesPerBlock = kBlockK / kEntryTokens;
  static constexpr int kEntriesPerStep = kTileN / kEntryTokens;
  static_assert(kLists == 1 || kEntriesPerStep == 1, "a merged list has one block a step");

  static constexpr int kTeams = Config::kTeams;  // of a CTA: a walker, a loader and consumers, with shared memory of their own
  static_assert(kTeams == 1 || kTeams == 2, "the producer warp group has four warps, a team takes two");
  static constexpr int kConsumerGroups = kTeams * kWarpGroups;
  static constexpr int kThreads = 128 * (1 + kConsumerGroups);
  // setmaxnreg moves registers inside what the CTA got at launch: 65536 / threads, rounded down to a multiple of 8. Asking
  // for one more than that pool holds never returns.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  // 32 leave four consumer warp groups 112, which are just enough; 24 leave two of them the 240 that head_dim 256 has use for. A merge of
  // two lists needs more than 24.
  static constexpr int kProducerRegisters = kTeams > 1 ? 32 : kHeadDim == 256 && kLists == 1 ? 24 : 40;
  static constexpr int kConsumerRegisters =
      ((1 + kConsumerGroups) * kLaunchRegisters - kProducerRegisters) / kConsumerGroups / 8 * 8;
  static_assert(kConsumerRegisters <= 256 && kLaunchRegisters <= 255);

  // S, P and O lie in registers. Where S and P of a step leave less than 16 for all else, its keys are taken in two halves.
  static constexpr int kHalves = kConsumerRegisters - kHeadDim / 2 - kTileN / 2 - kTileN / 4 < 16 ? 2 : 1;
  static constexpr int kHalfN = kTileN / kHalves;  // keys of S
  static_assert(kHalves == 1 || (kLists == 1 && kQStages == 2 && kTileN % 32 == 0 && (kEntriesPerStep == 1 || kEntriesPerStep == 2)));

  // A load is what one barrier tells of: one K or V tile; where steps have halves, K and V of a step, a *pair*, so that a step waits
  // once. A pair goes into two slots that come free together, since K is given back with V of the step before, once a step.
  static constexpr bool kPairs = kHalves == 2;
  static constexpr int kLoads = kPairs ? (kKvStages - 1) / 2 : kKvStages;  // on their way or in use
  static_assert(!kPairs || kKvStages % 2 == 1, "a pair's slots would not come free together");
  __device__ __forceinline__ static int next_slot(int slot) { return slot == kKvStages - 1 ? 0 : slot + 1; }

  // A slab is as many dims as one swizzle spans, whole token rows of a slab are contiguous, and one TMA box is one slab of one entry.
  static constexpr int kSlabDims = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kSlabs = kHeadDim / kSlabDims;
  static_assert(kHeadDim % kSlabDims == 0);

  // Q K^T takes Q from registers, but for the products that stand alone, where there are enough: it then reads up to a third less of
  // shared memory. Beside O and S in fp32 and P in 16 bits a thread has kRegistersLeft; a k-step of Q takes four of them, all else 40 at
  // most. Where all of Q is too much, whole slabs of it are held, and read again when logits are computed again (Consumer::soften),
  // which needs the most: 32 then do for all else. Merged lists at head_dim 192 were 1 to 3 % slower with it, at 256 no faster.
  static constexpr int kQSteps = kHeadDim / 16, kSlabSteps = kSlabDims / 16;
  static constexpr int kRegistersLeft = kConsumerRegisters - kHeadDim / 2 - kHalfN / 2 - kHalfN / 4;
  static constexpr int kSlabsInRegisters = std::min(std::max(0, kRegistersLeft - 32) / (4 * kSlabSteps), kSlabs - 1);
  static constexpr bool kMayHoldQ = kLists == 1 || kHeadDim <= 128, kMayHoldAllQ = kRegistersLeft - 40 >= 4 * kQSteps;
  static constexpr int kQStepsInRegisters = !kMayHoldQ ? 0 : kMayHoldAllQ ? kQSteps : kSlabsInRegisters * kSlabSteps;

  using HeadDim = Int<kHeadDim>;
  using TileN = Int<kTileN>;
  using HalfN = Int<kHalfN>;
  using Rows = Int<kRowsPerWarpGroup>;

  using MmaQK = decltype(make_tiled_mma(GMMA::ss_op_selector<Element, Element, float, Shape<Rows, HalfN, HeadDim>>()));
  using MmaQKInRegisters = decltype(make_tiled_mma(GMMA::rs_op_selector<Element, Element, float, Shape<Rows, HalfN, HeadDim>>()));
  using MmaPV = decltype(make_tiled_mma(
      GMMA::rs_op_selector<Element, Element, float, Shape<Rows, HeadDim, HalfN>, GMMA::Major::K, GMMA::Major::MN>()));

  using AtomK = std::conditional_t<kSlabDims == 64, GMMA::Layout_K_SW128_Atom<Element>, GMMA::Layout_K_SW64_Atom<Element>>;
  using AtomMN = std::conditional_t<kSlabDims == 64, GMMA::Layout_MN_SW128_Atom<Element>, GMMA::Layout_MN_SW64_Atom<Element>>;
  using LayoutQ = decltype(tile_to_shape(AtomK{}, Shape<Rows, HeadDim, Int<kWarpGroups>, Int<kQStages>>{}));
  using LayoutK = decltype(tile_to_shape(AtomK{}, Shape<TileN, HeadDim, Int<kKvStages>>{}));
  using LayoutV = decltype(tile_to_shape(AtomMN{}, Shape<HeadDim, TileN, Int<kKvStages>>{}, cute::Step<_2, _1, _3>{}));
  static_assert(cosize_v<LayoutK> == cosize_v<LayoutV>, "K and V tiles share the same slots");

  // First position of a warp group's rows.
  __device__ __forceinline__ static int first_position(int q_tile, int rank, int warp_group) {
    return q_tile * kTilePositions + rank * kCtaPositions + warp_group * kPositionsPerWarpGroup;
  }

  // Where the copy engine finds the boxes of those layouts, in elements.
  __host__ __device__ static constexpr int q_box_offset(int stage, int warp_group, int slab) {
    return ((stage * kWarpGroups + warp_group) * kSlabs + slab) * kRowsPerWarpGroup * kSlabDims;
  }
  __host__ __device__ static constexpr int kv_box_offset(int stage, int slab, int entry) {
    return ((stage * kSlabs + slab) * kTileN + entry * kEntryTokens) * kSlabDims;
  }

  static constexpr int kQBytes = kWarpGroups * kUsedRows * kHeadDim * sizeof(Element);
  static constexpr int kKvBytes = kTileN * kHeadDim * sizeof(Element);

  using Barrier = cutlass::arch::ClusterBarrier;
  using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

  static constexpr int kLanes = 32;
  static constexpr int kChunkEntries = kLanes / kEntriesPerStep * kEntriesPerStep;  // fetched at once, one a lane; whole steps
  // Chunks in flight between the list walker and the loader. With more a tile is claimed long before it starts.
  static constexpr int kChunks = 2;
  static constexpr int kMostSweepTiles = 5 * kLanes * kTeams;  // that a walker can sort: as many as a GH100's 144 SMs run at once

  struct Tile {
    int q_tile, list, batch;  // q_tile: of a whole cluster; list: of its batch; q_tile < 0: no more tiles
    int num_entries;          // of the chunk at hand; 0 in a tile's first chunk: the tile selects nothing
  };

  // A run of entries of one tile. `first` opens the tile, `last` closes it.
  struct Chunk {
    Tile tile;
    bool first, last;
    int entries[kLanes];  // every lane writes one
  };

  struct SharedStorage {
    alignas(1024) Element q[cosize_v<LayoutQ>];
    alignas(1024) Element kv[cosize_v<LayoutK>];
    TransactionBarrier q_full[kQStages];
    TransactionBarrier kv_full[kLoads];
    Barrier q_empty[kQStages];
    Barrier kv_empty[kLoads + 1];  // the last of a slot that nobody loads
    Barrier chunk_full[kChunks];
    Barrier chunk_empty[kChunks];
    Tile tiles[kQStages];
    Step<kEntriesPerStep> steps[kLoads];  // of the K tile in each
    Chunk chunks[kChunks];
  };
  static_assert(kTeams * sizeof(SharedStorage) <= Config::kSmemBytes, "families/attend.py and SharedStorage disagree");
};

}  // namespace prism::attend
