// The k side: how a row of scores is cut into groups of columns, and what a warp reads to make some of them.
#pragma once

#include "select/params.h"
#include "select/sm90/fragments.cuh"

namespace prism {

// A row of scores is kept in groups of 128 columns, four words of 32. Lane l of the warp that will take the row finds column l of
// each of the four words side by side, so that it moves them at once.
constexpr int kGroupWords = 4;
constexpr int kGroupCols = kGroupWords * kWarpSize;
constexpr int kLanesCols = 4 * kGroupWords;  // of four lanes of the row's warp: 16, side by side
constexpr int kNTiles = kLanesCols / kMmaCols;  // that a warp computes at a time

CUTE_HOST_DEVICE constexpr int num_groups(int num_cols) { return (num_cols + kGroupCols - 1) / kGroupCols; }

// Where prepare.cuh puts four dims of a key mean, in 16 bytes: a warp then reads the chunk of a unit's n-tile in one piece of 256 bytes.
// Behind each two n-tiles come the factors that undo the scaling of their 16 columns, in the order of a row of scores.
template <int kHeadDim>
struct KeyHalves {
  static constexpr int kChunks = kHeadDim / kChunkDims;
  static constexpr int kChunkVectors = 2 * kMmaCols;
  static constexpr int kTileVectors = kChunks * kChunkVectors;  // of an n-tile
  static constexpr int kLineVectors = 8;                        // 128 bytes: of factors, half of them used, so that pieces stay whole lines
  static constexpr int kPairVectors = 2 * kTileVectors + kLineVectors;

  // Of a head, in floats: whole groups of columns.
  CUTE_HOST_DEVICE static int64_t head_floats(int num_k_blocks) {
    return int64_t(num_groups(num_k_blocks)) * (kGroupCols / kLanesCols) * kPairVectors * 4;
  }

  // four: the dims 4 * four and on.
  CUTE_HOST_DEVICE static int place(int column, int four) {
    int const group = column / kGroupCols, word = column % kGroupCols / kWarpSize, lane = column % kWarpSize;
    int const pair = group * (kWarpSize / 4) + lane / 4, x = lane % 4 * 2 + word % 2;
    return pair * kPairVectors + word / 2 * kTileVectors + four / 2 * kChunkVectors + x * 2 + four % 2;
  }

  // Where the factor of a column is, in floats.
  CUTE_HOST_DEVICE static int factor_place(int column) {
    int const group = column / kGroupCols, word = column % kGroupCols / kWarpSize, lane = column % kWarpSize;
    int const pair = group * (kWarpSize / 4) + lane / 4;
    return (pair * kPairVectors + 2 * kTileVectors + lane % 4) * 4 + word;
  }
};

// What a lane reads of a head's keys to make scores. Their means and energies:
template <class Band, int kHeadDim, bool kPrepared>
struct UnitKeys {
  float const *mean, *energy;  // of the head

  // Of one unit: columns and what scales them. Columns at and past num_cols repeat the last one.
  struct Unit {
    float const* rows[kNTiles];
    float energy[kNTiles];
    HalfScale scale[kNTiles];

    CUTE_DEVICE void start() {
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) scale[n] = half_scale(energy[n]);
    }
    template <int kPair>
    CUTE_DEVICE void load(uint4 (&k)[kNTiles], int lane) const {
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) k[n] = ChunkPair<Band, kPair>::load(rows[n], lane % 4);
    }
    CUTE_DEVICE uint4 halves(uint4 const& k, int n) const { return split_four(reinterpret_cast<float4 const&>(k), scale[n].up); }
    CUTE_DEVICE void load_down() {}
    // Of this lane's four neighbouring columns.
    CUTE_DEVICE float4 finish(int lane) const {
      auto const of = [&](int n, int e) { return __shfl_sync(kFullWarp, scale[n].down, 4 * (2 * (lane % 4) + e)); };
      return make_float4(of(0, 0), of(0, 1), of(1, 0), of(1, 1));
    }
  };

  CUTE_DEVICE UnitKeys(float const* k_mean, float const* k_energy, int) : mean(k_mean), energy(k_energy) {}

  CUTE_DEVICE Unit unit(int index, int num_cols, int lane) const {
    constexpr int kPerGroup = kGroupCols / kLanesCols;
    int const group = index / kPerGroup, place = index % kPerGroup;
    // Column x of n-tile n stands for word n * 2 + x % 2 and lane 4 * place + x / 2 of the group.
    int const x = lane / 4, first = group * kGroupCols + x % 2 * kWarpSize + 4 * place + x / 2;
    Unit unit;
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) {
      int const column = min(first + n * 2 * kWarpSize, num_cols - 1);
      unit.energy[n] = __ldg(energy + column * kComponents + kAllDims);
      unit.rows[n] = mean + column * kHeadDim + 4 * (lane % 4);
      asm("" : "+l"(unit.rows[n]));
    }
    return unit;
  }
};

// Or what prepare.cuh made of them:
template <class Band, int kHeadDim>
struct UnitKeys<Band, kHeadDim, true> {
  using Halves = KeyHalves<kHeadDim>;
  uint4 const* halves;  // this lane's; of two chunks that are neighbours, its own one's
  int to_factors;       // from there, in vectors

  struct Unit {
    uint4 const* tile;
    int to_factors;
    float4 down;

    CUTE_DEVICE void start() {}
    template <int kPair>
    CUTE_DEVICE void load(uint4 (&k)[kNTiles], int lane) const {
      constexpr int kFirst = Band::kChunks[2 * kPair] * Halves::kChunkVectors;
      constexpr int kGap = Band::kChunks[2 * kPair + 1] * Halves::kChunkVectors - kFirst - Halves::kChunkVectors;
      int const offset = kGap != 0 && lane % 4 >= 2 ? kFirst + kGap : kFirst;
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) k[n] = __ldg(tile + n * Halves::kTileVectors + offset);
    }
    CUTE_DEVICE uint4 halves(uint4 const& k, int) const { return k; }
    CUTE_DEVICE void load_down() { down = __ldg(reinterpret_cast<float4 const*>(tile + to_factors)); }
    CUTE_DEVICE float4 finish(int) const { return down; }
  };

  // k_halves: of the head.
  CUTE_DEVICE UnitKeys(float const* k_halves, float const*, int lane) {
    int const own = lane / 4 * 2 + lane % 2 + (lane % 4 < 2 ? 0 : Halves::kChunkVectors);
    halves = reinterpret_cast<uint4 const*>(k_halves) + own;
    to_factors = 2 * Halves::kTileVectors + lane % 4 - own;
  }

  CUTE_DEVICE Unit unit(int index, int, int) const {
    Unit unit{halves + index * Halves::kPairVectors, to_factors, {}};
    asm("" : "+l"(unit.tile));  // one address and immediate offsets, where ptxas would make an address for every load
    return unit;
  }
};

}  // namespace prism
