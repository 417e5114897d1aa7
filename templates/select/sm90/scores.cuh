// Scores of one tile: block means of q times block means of k over one band, fp32 accuracy from fp16 tensor cores.
//
// Each mean, scaled by a power of two of its own so that it cannot overflow, is split into two fp16 parts, x = hi + lo: 22 bits
// of significand, as two tf32 would have, at twice the rate. hi*hi + hi*lo + lo*hi leaves a relative error near 2^-21.
// A score depends on its own two means only: not on how many rows or columns there are, nor on the other means of a head.
#pragma once

#include "shared/bands.cuh"
#include "shared/warp.cuh"

#include <cute/arch/mma_sm80.hpp>
#include <cute/algorithm/tuple_algorithms.hpp>
#include <cute/arch/util.hpp>

#include <cuda_fp16.h>

namespace prism {

constexpr int kMmaRows = 16;         // SM80_16x8x16: rows of A, columns of B
constexpr int kMmaCols = 8;
constexpr int kHalfRows = 8;         // rows g and g + 8 of lane 4g + t

// Two values as two pairs of fp16: hi + lo.
struct HalfPairs {
  uint32_t high, low;
};

CUTE_DEVICE HalfPairs split_half(float x, float y) {
  __half2 const high = __floats2half2_rn(x, y);
  float2 const back = __half22float2(high);
  __half2 const low = __floats2half2_rn(x - back.x, y - back.y);
  return {reinterpret_cast<uint32_t const&>(high), reinterpret_cast<uint32_t const&>(low)};
}

// A power of two and its reciprocal, both exact.
struct HalfScale {
  float up, down;
};

// Brings a mean whose squares add up to `energy` below 2^15: an fp16, and fp16 has no values left to lose but those below
// 2^-24, some 2^-30 of the mean's largest.
CUTE_DEVICE HalfScale half_scale(float energy) {
  constexpr int kBias = 127, kTop = 14;
  int const exponent = int(__float_as_uint(energy) >> 23 & 0xffu) - kBias;  // sqrt(energy) < 2^(exponent / 2 + 1)
  int const shift = kTop - (exponent >> 1);
  return {__uint_as_float(uint32_t(kBias + shift) << 23), __uint_as_float(uint32_t(kBias - shift) << 23)};
}

CUTE_DEVICE void mma_half(float (&d)[4], uint4 const& a, uint32_t b0, uint32_t b1) {
  cute::SM80_16x8x16_F32F16F16F32_TN::fma(d[0], d[1], d[2], d[3], a.x, a.y, a.z, a.w, b0, b1, d[0], d[1], d[2], d[3]);
}

// Two chunks make one k-step, one 16-byte load a lane: lanes 0, 1 of a quad hold the first chunk, lanes 2, 3 the second.
// Which dims stand for which k of the MMA is free, as long as A and B agree: x, y for 2t, 2t+1 and z, w for 2t+8, 2t+9.
template <class Band, int kPair>
struct ChunkPair {
  static constexpr int kFirst = Band::kChunks[2 * kPair] * kChunkDims;
  static constexpr int kSecond = Band::kChunks[2 * kPair + 1] * kChunkDims;
  static constexpr int kGap = kSecond - kFirst - kChunkDims;  // dims between the two; 0: an immediate offset

  // row: one block mean, moved on by 4 * t. t: the lane's place in its quad.
  CUTE_DEVICE static float4 load(float const* row, int t) {
    int const offset = kGap != 0 && t >= 2 ? kFirst + kGap : kFirst;
    return __ldg(reinterpret_cast<float4 const*>(row + offset));
  }
};

// The q side of a tile for one band, split once and kept in shared memory in the order in which lanes feed the MMA.
template <class Band, int kTileRows>
struct QueryFragments {
  static_assert(Band::kSize % 2 == 0, "a band must be a multiple of 16 dims");
  static constexpr int kPairs = Band::kSize / 2;
  static constexpr int kMTiles = kTileRows / kMmaRows;

  alignas(16) uint4 high[kPairs][kMTiles][kWarpSize];
  alignas(16) uint4 low[kPairs][kMTiles][kWarpSize];

  // mean(row), scale(row): of the tile's rows.
  template <int kThreads, class Mean, class Scale>
  CUTE_DEVICE void stage(Mean const& mean, Scale const& scale) {
    constexpr int kWarps = kThreads / kWarpSize;
    static_assert(kWarps % kMTiles == 0, "a warp stages pairs of one row tile");
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    int const m = warp % kMTiles, row = m * kMmaRows + lane / 4;
    float const* top_row = mean(row) + 4 * (lane % 4);
    float const* bottom_row = mean(row + kHalfRows) + 4 * (lane % 4);
    float const top_scale = scale(row), bottom_scale = scale(row + kHalfRows);
    cute::for_each(cute::make_seq<kPairs>{}, [&](auto pair) {
      if (int(pair) % (kWarps / kMTiles) != warp / kMTiles) return;
      using Pair = ChunkPair<Band, decltype(pair)::value>;
      float4 const top = Pair::load(top_row, lane % 4), bottom = Pair::load(bottom_row, lane % 4);
      HalfPairs const a0 = split_half(top.x * top_scale, top.y * top_scale);
      HalfPairs const a1 = split_half(bottom.x * bottom_scale, bottom.y * bottom_scale);
      HalfPairs const a2 = split_half(top.z * top_scale, top.w * top_scale);
      HalfPairs const a3 = split_half(bottom.z * bottom_scale, bottom.w * bottom_scale);
      high[pair][m][lane] = make_uint4(a0.high, a1.high, a2.high, a3.high);
      low[pair][m][lane] = make_uint4(a0.low, a1.low, a2.low, a3.low);
    });
  }
};

// A row of scores is kept in groups of 128 columns, four words of 32. Lane l of the warp that will take the row finds column l of
// each of the four words side by side, so that it moves them at once.
constexpr int kGroupWords = 4;
constexpr int kGroupCols = kGroupWords * kWarpSize;
constexpr int kUnitsPerGroup = 8;  // a unit is what one warp computes at a time: the columns of four lanes
constexpr int kUnitCols = kGroupCols / kUnitsPerGroup;

CUTE_HOST_DEVICE constexpr int num_groups(int num_cols) { return (num_cols + kGroupCols - 1) / kGroupCols; }

// One warp's share: scores of the tile's rows with the 16 columns of unit `unit` of a group.
template <class Band, int kTileRows, int kHeadDim>
struct ScoreUnit {
  using Fragments = QueryFragments<Band, kTileRows>;
  static constexpr int kMTiles = Fragments::kMTiles;
  static constexpr int kNTiles = 2;
  static constexpr int kDepth = Fragments::kPairs < 2 ? Fragments::kPairs : 2;  // k-steps whose loads are in flight
  using Accumulator = float[kMTiles][kNTiles][4];

  // k_mean, k_energy: of the head. Columns at and past num_cols repeat the last one: their values mean nothing.
  // put(half_tile, scores): the lane's four neighbouring scores in row kHalfRows * half_tile + lane / 4.
  template <class Put>
  CUTE_DEVICE static void run(Fragments const& q, float const* k_mean, float const* k_energy, int group, int unit,
                              int num_cols, Put const& put) {
    int const lane = threadIdx.x % kWarpSize;
    Accumulator acc = {};
    float const* rows[kNTiles];
    float4 k[kDepth][kNTiles];
    float energy[kNTiles];
    // Column x of n-tile n stands for word 2n + x % 2 and lane 4 * unit + x / 2 of the group.
    int const x = lane / 4, first = group * kGroupCols + x % 2 * kWarpSize + 4 * unit + x / 2;
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) {
      int const column = min(first + 2 * n * kWarpSize, num_cols - 1);
      energy[n] = __ldg(k_energy + column * 3 + 2);
      rows[n] = k_mean + column * kHeadDim + 4 * (lane % 4);
      asm("" : "+l"(rows[n]));  // one address and immediate offsets, where ptxas would make an address for every load
    }
    cute::for_each(cute::make_seq<kDepth>{}, [&](auto pair) { load<decltype(pair)::value>(k[pair], rows, lane); });
    HalfScale scale[kNTiles];
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) scale[n] = half_scale(energy[n]);
    cute::for_each(cute::make_seq<Fragments::kPairs>{}, [&](auto pair) {
      constexpr int kPair = decltype(pair)::value;
      float4(&now)[kNTiles] = k[kPair % kDepth];
      HalfPairs b[kNTiles][2];
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) {
        float const up = scale[n].up;
        b[n][0] = split_half(now[n].x * up, now[n].y * up);
        b[n][1] = split_half(now[n].z * up, now[n].w * up);
      }
      if constexpr (kPair + kDepth < Fragments::kPairs) load<kPair + kDepth>(now, rows, lane);
      CUTE_UNROLL
      for (int m = 0; m < kMTiles; ++m) {
        uint4 const high = q.high[kPair][m][lane], low = q.low[kPair][m][lane];
        CUTE_UNROLL
        for (int n = 0; n < kNTiles; ++n) mma_half(acc[m][n], low, b[n][0].high, b[n][1].high);  // small terms first
        CUTE_UNROLL
        for (int n = 0; n < kNTiles; ++n) mma_half(acc[m][n], high, b[n][0].low, b[n][1].low);
        CUTE_UNROLL
        for (int n = 0; n < kNTiles; ++n) mma_half(acc[m][n], high, b[n][0].high, b[n][1].high);
      }
    });
    float down[kNTiles][2];  // of this lane's columns 2t and 2t + 1 of each n-tile
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) {
      CUTE_UNROLL
      for (int e = 0; e < 2; ++e) down[n][e] = __shfl_sync(kFullWarp, scale[n].down, 4 * (2 * (lane % 4) + e));
    }
    CUTE_UNROLL
    for (int half_tile = 0; half_tile < 2 * kMTiles; ++half_tile) {
      int const m = half_tile / 2, i = half_tile % 2 * 2;
      put(half_tile, make_float4(acc[m][0][i] * down[0][0], acc[m][0][i + 1] * down[0][1], acc[m][1][i] * down[1][0],
                                 acc[m][1][i + 1] * down[1][1]));
    }
  }

  // k: this lane's dims of the pair, of each n-tile's column.
  template <int kPair>
  CUTE_DEVICE static void load(float4 (&k)[kNTiles], float const* const (&rows)[kNTiles], int lane) {
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) k[n] = ChunkPair<Band, kPair>::load(rows[n], lane % 4);
  }
};

}  // namespace prism
