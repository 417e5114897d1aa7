// What select's kernel is made of, derived from its Config: sizes, shared memory, and which rows a tile holds.
#pragma once

#include "select/params.h"
#include "select/sm90/calibrate.cuh"
#include "select/sm90/cut.cuh"
#include "select/sm90/emit.cuh"
#include "select/sm90/scores.cuh"

#include <cutlass/arch/barrier.h>

#include <type_traits>

namespace prism {

// Config: HighBand, LowBand, kHeadDim, and a shape: kTileRows, kThreads, kCluster, kCtasPerSm, kWords of 32 columns in the longest
// row, kPrepared.
template <class Config, SelectMode kMode>
struct SelectLayout {
  using High = typename Config::HighBand;
  using Low = typename Config::LowBand;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kTileRows = Config::kTileRows;
  static constexpr int kThreads = Config::kThreads;
  static constexpr int kCluster = Config::kCluster;
  static constexpr bool kPrepared = Config::kPrepared;
  static constexpr bool kGroup = kMode == SelectMode::kGroup, kPlain = kMode == SelectMode::kPlain;
  static constexpr int kLeastWords = 2 * kStepWords;  // both bands of a row, each read in whole steps
  static constexpr int kWords = Config::kWords < kLeastWords ? kLeastWords : Config::kWords;  // that a row has room for
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kCtaRows = kTileRows / kCluster;     // rows of a tile that a CTA owns
  static constexpr int kMaxHeads = kGroup ? kCtaRows : 1;   // q heads of a list: their rows lie in one CTA

  // A lane has registers for so many words; a longer row stays in shared memory.
  static constexpr int kMostRegisterWords = 64;
  static constexpr bool kInRegisters = kWords <= kMostRegisterWords;
  using Row = std::conditional_t<kInRegisters, RegisterRow<kInRegisters ? kWords : kMostRegisterWords>, MemoryRow>;
  using Energies = EnergySums<kMaxHeads + 1, kWarps, kCluster>;
  struct NoEnergies {};

  static_assert(kTileRows % kMmaRows == 0 && kThreads % kWarpSize == 0);
  static_assert(kCtaRows % kHalfRows == 0 || kHalfRows % kCtaRows == 0, "a CTA's rows must not straddle half tiles");
  static_assert(kCluster == 1 || kCluster == 2 || kCluster == 4 || kCluster == 8, "the portable cluster sizes");

  // Of what prepare.cuh makes of q.
  CUTE_HOST_DEVICE static int64_t query_floats(int64_t heads, int num_q_blocks) { return heads * num_q_blocks * kHeadDim; }

  // Row r of a tile is owned by CTA r / kCtaRows and stands there for query block (r % kCtaRows) / heads and head r % heads.
  struct Tile {
    int list;             // within its batch entry
    int list_row;         // (batch, list) as one index
    int q_row, k_row;     // (batch, head) as one index; q_row: of the list's first q head
    int first_block, num_blocks;
  };

  struct SharedStorage {
    union {
      QueryFragments<High, kTileRows> q_high;
      SizeSums sums[kWarps];  // once the scores of the high band are there
    };
    QueryFragments<Low, kTileRows> q_low;
    float row_down[kTileRows];  // undoes the scaling of a row's q mean
    int num_visible[kTileRows];
    CutRule rules[kBands];
    std::conditional_t<kPrepared, NoEnergies, Energies> energies;
    float scales[kMaxHeads][kBands];  // with kPrepared: from a score of a list's head to its logit, but for prefix calibration
    cutlass::arch::ClusterTransactionBarrier full;  // the scores of a phase have arrived here, and this CTA's lanes have read q's fragments
    cutlass::arch::ClusterBarrier free;             // every warp of the cluster has read the scores of its rows
    Tile tile;                                      // here, because registers are short while scores are computed
  };

  CUTE_HOST_DEVICE static int heads(SelectParams const& p) { return kGroup ? p.heads_per_list : 1; }
  CUTE_HOST_DEVICE static int num_lists(SelectParams const& p) { return kGroup ? p.num_kv_heads : p.num_q_heads; }
  CUTE_HOST_DEVICE static int cta_blocks(SelectParams const& p) { return kCtaRows / heads(p); }
  CUTE_HOST_DEVICE static int num_row_tiles(SelectParams const& p) {
    int const tile_blocks = kCluster * cta_blocks(p);
    return (p.num_q_blocks + tile_blocks - 1) / tile_blocks;
  }
  CUTE_HOST_DEVICE static int64_t num_tiles(SelectParams const& p) {
    return int64_t(p.batch) * p.num_lists() * num_row_tiles(p);
  }

  // Dynamic shared memory: SharedStorage, kCtaRows rows of scores unless they live in scratch, bit masks.
  // A row in shared memory has room for kWords words: of one band, or of both where rows are short.
  static constexpr int kBandFloats = kWords / kBands * kWarpSize;
  CUTE_HOST_DEVICE static bool in_scratch(int num_k_blocks) { return mask_words(num_k_blocks) > Config::kWords; }
  CUTE_HOST_DEVICE static bool both_bands(int num_k_blocks) {
    return num_groups(num_k_blocks) * kGroupWords <= kWords / kBands;
  }
  // Floats from row to row. In shared memory 16 more than a multiple of 32, so that two rows of a store fall into different banks.
  template <bool kInScratch>
  CUTE_HOST_DEVICE static auto row_stride(int num_k_blocks) {
    if constexpr (kInScratch) return num_groups(num_k_blocks) * kGroupCols;
    else return std::integral_constant<int, kWords * kWarpSize + 16>{};
  }
  template <bool kInScratch>
  CUTE_HOST_DEVICE static int64_t tile_floats(int num_k_blocks) {
    return int64_t(kCtaRows) * row_stride<kInScratch>(num_k_blocks);
  }
  template <bool kInScratch>
  CUTE_HOST_DEVICE static int64_t masks_offset() {
    return int64_t(sizeof(SharedStorage)) + (kInScratch ? 0 : tile_floats<false>(0) * int64_t(sizeof(float)));
  }
  template <bool kInScratch>
  CUTE_HOST_DEVICE static int64_t smem_bytes(SelectParams const& p) {
    int64_t const words = int64_t(cta_blocks(p)) * mask_words(p.num_k_blocks) * (p.may_overflow() ? 2 : 1);
    return masks_offset<kInScratch>() + words * int64_t(sizeof(uint32_t));
  }

  // Tiles are counted by their list first, so that the lists of a KV head meet in L2 with its k_mean; then by rows, longest first.
  CUTE_DEVICE static Tile tile_at(SelectParams const& p, int list, int row_place, int batch) {
    int const lists = num_lists(p), list_row = batch * lists + list, tile_blocks = kCluster * cta_blocks(p);
    int const first = (num_row_tiles(p) - 1 - row_place) * tile_blocks;
    int const kv_head = int(unsigned(list) * unsigned(p.num_kv_heads) / unsigned(lists));
    return {list,  list_row, list_row * heads(p), batch * p.num_kv_heads + kv_head,
            first, min(tile_blocks, p.num_q_blocks - first)};
  }

  // The query block of a tile's row; rows that stand for nothing repeat others.
  CUTE_DEVICE static int q_block_of_row(SelectParams const& p, Tile const& tile, int row) {
    int const blocks = cta_blocks(p), index = row % kCtaRows;
    return tile.first_block + min(row / kCtaRows * blocks + min(index / heads(p), blocks - 1), tile.num_blocks - 1);
  }

  // Where its mean and energies are, in blocks.
  CUTE_DEVICE static int64_t block_of_row(SelectParams const& p, Tile const& tile, int row) {
    return int64_t(tile.q_row + row % kCtaRows % heads(p)) * p.num_q_blocks + q_block_of_row(p, tile, row);
  }
};

}  // namespace prism
