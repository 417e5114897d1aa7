// Shapes, shared memory and the order of work of the kernel for long rows, derived from its Config.
//
// Thread t of a quad holds places 8n + 2t + e of a 64 x 128 accumulator. Place 64h + 8n + 2t + e of a tile, in its half h, holds column
// 64h + 16t + 2n + e, so that a thread's columns of a half are half a word of the row's bit mask.
#pragma once

#include "select/long_params.h"
#include "select/sm90/long/bracket.cuh"
#include "shared/bands.cuh"

#include <cute/tensor.hpp>

#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cutlass/arch/barrier.h>
#include <cutlass/numeric_types.h>

#include <algorithm>

namespace prism {

constexpr int kTileHalves = 2, kHalfTile = kLongColumns / kTileHalves;  // columns
constexpr int kHalfColumns = kHalfTile / 4;                             // of a thread
CUTE_HOST_DEVICE constexpr int place_in_tile(int column) {
  int const half = column / kHalfTile, owner = column % kHalfTile / kHalfColumns, index = column % kHalfColumns;
  return half * kHalfTile + index / 2 * 8 + owner * 2 + index % 2;
}

// What all lanes have alike, so that ptxas sees it, and has what follows from it in uniform registers.
CUTE_DEVICE int of_warp(int x) { return __shfl_sync(kFullWarp, x, 0); }

// Scores of high halves alone are wrong by less than kHighError of the product of both means' half_length: each high half by 2^-11 of its
// value, and those that fp16 has fewer bits for, together, by 2^-35 of the mean's length. energy: of all dims; of keys the head's largest.
constexpr float kHighError = 0x1.01p-10f;
CUTE_DEVICE float half_length(float band_energy, float energy) { return sqrtf(band_energy) + 0x1p-24f * sqrtf(energy); }

// Of a row's mean, or added up over blocks.
struct RowEnergy {
  float all, band;  // of all dims, and of the band that is looked at
};

// What an item's scores are scaled by.
struct ItemFacts {
  float threshold;
  float down, longest;         // of its KV head's KeyFacts
  RowEnergy q_total, k_total;  // added up over the blocks of its q head, and of its KV head

  // As EnergySums::total.
  CUTE_DEVICE float total(int side, int c, int heads) const {
    RowEnergy const& sums = side < heads ? q_total : k_total;
    return c == kAllDims ? sums.all : sums.band;
  }
};

// A CTA's work as its first loader tells the others: what takes divisions to find out, and what is to be loaded.
template <int kWarpGroups>
struct LongJob {
  struct Item {
    int q_row, first_row, first_sees, last_sees;  // rows of a tile see first_sees to last_sees columns; 0 without an item
    ItemFacts facts;
  };
  int band, num_items, num_tiles;  // num_items 0: there is no more work
  uint32_t verdicts;  // before those of this work
  int sample;  // a tile that the first pass sees before all others too, or 0
  Item items[kWarpGroups];  // the last one again where there are fewer
};

// Config: HighBand, LowBand, kHeadDim.
template <class Config>
struct LongTraits {
  using High = typename Config::HighBand;
  using Low = typename Config::LowBand;
  using Element = cutlass::half_t;
  static constexpr int kHeadDim = Config::kHeadDim;

  template <class Band>
  static constexpr int kBandSlabs = (Band::kDims + kSlabDims - 1) / kSlabDims;
  static constexpr int kSlabs = kBandSlabs<High> + kBandSlabs<Low>;
  static constexpr int kMostSlabs = std::max(kBandSlabs<High>, kBandSlabs<Low>);

  // Warp groups share a tile of keys. Four, beside the loaders', would leave a thread 112 registers: it spills, and near its limit ptxas
  // lays the passes out value after value, each waiting for the one before.
  static constexpr int kWarpGroups = kMostSlabs <= 4 ? 3 : 2;
  static constexpr int kConsumers = 128 * kWarpGroups;
  static constexpr int kThreads = kConsumers + 128;
  // Of a thread. setmaxnreg moves registers inside what the CTA got at launch: all but those of a CTA that writes lists. Those too with
  // probs, which only tests ask for: with fewer that kernel spills.
  CUTE_HOST_DEVICE static constexpr int launch_registers(bool probs) {
    return (kSmRegisters - (probs ? 0 : kEmitThreads * kEmitRegisters)) / kThreads / 8 * 8;
  }
  // With fewer it spills; with more, consumers do.
  CUTE_HOST_DEVICE static constexpr int loader_registers(bool probs) { return kWarpGroups == 2 ? 64 : probs ? 56 : 48; }
  CUTE_HOST_DEVICE static constexpr int consumer_registers(bool probs) {
    return cute::min((launch_registers(probs) * kThreads / 128 - loader_registers(probs)) / kWarpGroups / 8 * 8, 240);
  }

  static constexpr int64_t kPassesBytes = kSmBytes - 2 * kCtaBytes;  // beside a CTA that asks for none
  static constexpr int kMetadataBytes = 6144;  // barriers, and what is known of rows
  static constexpr int kQueryBytes = kWarpGroups * kMostSlabs * kQuerySlabBytes;
  static constexpr int kCountBytes = kWarpGroups * kLongRows * Buckets::kStride * int(sizeof(uint32_t));
  static constexpr int kSlotSlabs = kMostSlabs <= 3 ? kMostSlabs : 1;  // a barrier's: those of a tile, if there is room for two
  static constexpr int kSlotBytes = kSlotSlabs * kKeySlabBytes;
  static constexpr int kSlots = std::min(int(kPassesBytes - kMetadataBytes - kQueryBytes - kCountBytes) / kSlotBytes, 8);
  static_assert(kSlots >= 2, "a slot is freed once the next one is at work");
  // Whether a tile can be there before anybody has begun with it. If so warp groups ask for their products in turn: one's run under the
  // others' values, where together they would also wait together.
  static constexpr bool kTileFits = kSlots * kSlotSlabs >= kMostSlabs;

  using SlabDims = cute::Int<kSlabRowBytes / int(sizeof(Element))>;
  using Atom = cute::GMMA::Layout_K_SW128_Atom<Element>;
  using LayoutQ = decltype(cute::tile_to_shape(
      Atom{}, cute::Shape<cute::Int<kLongRows>, SlabDims, cute::Int<kWarpGroups * kMostSlabs>>{}));
  using LayoutK = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kLongColumns>, SlabDims, cute::Int<kSlots * kSlotSlabs>>{}));
  using TileShape = cute::Shape<cute::Int<kLongRows>, cute::Int<kLongColumns>, cute::_16>;
  using Mma = decltype(cute::make_tiled_mma(cute::GMMA::ss_op_selector<Element, Element, float, TileShape>()));

  // Named barriers: of turns from 0 on, one for each warp group that makes halves of its rows, and that of the loaders.
  static constexpr uint32_t kSplitBarrier = kWarpGroups, kLoadersBarrier = 2 * kWarpGroups;
  static_assert(kLoadersBarrier + cutlass::arch::NamedBarrier::ReservedNamedBarrierCount < 16, "an SM has no more");

  using Barrier = cutlass::arch::ClusterBarrier;
  using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

  struct SharedStorage {
    alignas(1024) Element q[cute::cosize_v<LayoutQ>];
    alignas(1024) Element k[cute::cosize_v<LayoutK>];
    // With RowNotes behind each row's; then the warps' values of half a tile, and how many each row has listed; then those of lists.
    alignas(16) uint32_t counts[kWarpGroups][kLongRows][Buckets::kStride];
    RowEnergy energies[kWarpGroups][kLongRows];
    RowBracket::Known known[kWarpGroups][kLongRows];
    TransactionBarrier k_full[kSlots];
    Barrier job_full;
    Barrier job_empty;
    Barrier k_empty[kSlots];
    Barrier verdict;                      // all warps have said whether a row wants one more pass
    uint32_t again[2];                    // the last verdict with an even number, and with an odd one, by which some row wanted one
    LongJob<kWarpGroups> job;             // known once job_full, until job_empty
    int next_work;                        // what the first loader has claimed
    uint32_t job_phase[4 * kWarpGroups];  // of job_full, for each warp to wait for: registers are short
  };
  static_assert(sizeof(SharedStorage) <= kPassesBytes);

  CUTE_HOST_DEVICE static constexpr int band_slabs(int band) { return band == 0 ? kBandSlabs<High> : kBandSlabs<Low>; }
  CUTE_HOST_DEVICE static constexpr int first_slab(int band) { return band == 0 ? 0 : kBandSlabs<High>; }
};

// What a CTA works on at a time: one band of as many items as it has warp groups, all of one KV head. An item is 64 rows of a q head.
template <class Traits>
struct LongWork {
  int band, k_row, num_items, first_item;

  // Items of a KV head: its q heads side by side, the longest rows first (but see row_tile). Works, which CTAs take in this order: the same
  // of all KV heads and both bands side by side.
  CUTE_HOST_DEVICE static int items(LongParams const& p) { return p.select.num_q_heads / p.select.num_kv_heads * p.num_row_tiles; }
  CUTE_HOST_DEVICE static int count(LongParams const& p) {
    return (items(p) + Traits::kWarpGroups - 1) / Traits::kWarpGroups * p.select.batch * p.select.num_kv_heads * kBands;
  }

  CUTE_DEVICE static LongWork at(LongParams const& p, int index) {
    int const side = p.select.batch * p.select.num_kv_heads * kBands, first = index / side * Traits::kWarpGroups;
    return {kBands - 1 - index % side % kBands, index % side / kBands, min(Traits::kWarpGroups, items(p) - first), first};
  }

  CUTE_DEVICE int q_row(LongParams const& p, int item) const {
    int const heads = p.select.num_q_heads / p.select.num_kv_heads;
    return k_row * heads + (first_item + item) % heads;
  }
  CUTE_DEVICE int row_tile(LongParams const& p, int item) const {
    int const heads = p.select.num_q_heads / p.select.num_kv_heads;
    // The first row tile, whose rows are mostly listed whole, takes longer than so many others, without a prefix: it comes before them.
    constexpr int kAhead = 3;
    int const place = p.num_row_tiles - 1 - (first_item + item) / heads;
    return p.num_row_tiles <= kAhead || place > kAhead ? place : place == kAhead ? 0 : place + 1;
  }
  CUTE_DEVICE static int first_sees(LongParams const& p, int row_tile) { return p.select.num_visible(row_tile * kLongRows); }
  CUTE_DEVICE static int last_sees(LongParams const& p, int row_tile) {
    return p.select.num_visible(min((row_tile + 1) * kLongRows, p.select.num_q_blocks) - 1);
  }
};

}  // namespace prism
