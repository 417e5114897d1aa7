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

#include <algorithm>

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

// Four neighbouring dims of a mean in 16 bytes: the high parts of two and two dims, then the low parts.
CUTE_DEVICE uint4 split_four(float4 const& x, float up) {
  HalfPairs const first = split_half(x.x * up, x.y * up), second = split_half(x.z * up, x.w * up);
  return make_uint4(first.high, second.high, first.low, second.low);
}

// The same of what lies in memory: four floats, or with kPrepared what prepare.cuh made of them.
template <bool kPrepared>
CUTE_DEVICE uint4 as_halves(uint4 const& x, float up) {
  if constexpr (kPrepared) return x;
  else return split_four(reinterpret_cast<float4 const&>(x), up);
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
  CUTE_DEVICE static uint4 load(float const* row, int t) {
    int const offset = kGap != 0 && t >= 2 ? kFirst + kGap : kFirst;
    return __ldg(reinterpret_cast<uint4 const*>(row + offset));
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

  // mean(row), scale(row): of the tile's rows. scale is not asked with kPrepared.
  template <int kThreads, bool kPrepared, class Mean, class Scale>
  CUTE_DEVICE void stage(Mean const& mean, Scale const& scale) {
    constexpr int kWarps = kThreads / kWarpSize;
    static_assert(kWarps % kMTiles == 0, "a warp stages pairs of one row tile");
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    int const m = warp % kMTiles, row = m * kMmaRows + lane / 4;
    float const* top_row = mean(row) + 4 * (lane % 4);
    float const* bottom_row = mean(row + kHalfRows) + 4 * (lane % 4);
    float const top_scale = kPrepared ? 1.f : scale(row), bottom_scale = kPrepared ? 1.f : scale(row + kHalfRows);
    cute::for_each(cute::make_seq<kPairs>{}, [&](auto pair) {
      if (int(pair) % (kWarps / kMTiles) != warp / kMTiles) return;
      using Pair = ChunkPair<Band, decltype(pair)::value>;
      uint4 const top = as_halves<kPrepared>(Pair::load(top_row, lane % 4), top_scale);
      uint4 const bottom = as_halves<kPrepared>(Pair::load(bottom_row, lane % 4), bottom_scale);
      high[pair][m][lane] = make_uint4(top.x, bottom.x, top.y, bottom.y);
      low[pair][m][lane] = make_uint4(top.z, bottom.z, top.w, bottom.w);
    });
  }
};

// A row of scores is kept in groups of 128 columns, four words of 32. Lane l of the warp that will take the row finds column l of
// each of the four words side by side, so that it moves them at once.
constexpr int kGroupWords = 4;
constexpr int kGroupCols = kGroupWords * kWarpSize;
constexpr int kLanesCols = 4 * kGroupWords;  // of four lanes of the row's warp: 16, side by side

CUTE_HOST_DEVICE constexpr int num_groups(int num_cols) { return (num_cols + kGroupCols - 1) / kGroupCols; }

// Where prepare.cuh puts four dims of a key mean, in 16 bytes: a warp then reads the chunk of a unit's n-tile in one piece of 256 bytes.
template <int kHeadDim>
struct KeyHalves {
  static constexpr int kChunks = kHeadDim / kChunkDims;
  static constexpr int kChunkVectors = 2 * kMmaCols;
  static constexpr int kTileVectors = kChunks * kChunkVectors;  // of an n-tile

  // Of a head, in floats: whole groups of columns.
  CUTE_HOST_DEVICE static int64_t head_floats(int num_k_blocks) { return int64_t(num_groups(num_k_blocks)) * kGroupCols * kHeadDim; }

  // four: the dims 4 * four and on.
  CUTE_HOST_DEVICE static int place(int column, int four) {
    int const group = column / kGroupCols, word = column % kGroupCols / kWarpSize, lane = column % kWarpSize;
    int const tile = (group * (kWarpSize / 4) + lane / 4) * 2 + word / 2, x = lane % 4 * 2 + word % 2;
    return tile * kTileVectors + four / 2 * kChunkVectors + x * 2 + four % 2;
  }
};

// One warp's share: scores of the tile's rows with kCols columns of a group. kWide: such times 16; with more, q is read less often.
template <class Band, int kTileRows, int kHeadDim, bool kPrepared, int kWide>
struct ScoreUnit {
  static constexpr int kCols = kWide * kLanesCols;
  static constexpr int kPerGroup = kGroupCols / kCols;

  using Fragments = QueryFragments<Band, kTileRows>;
  using Halves = KeyHalves<kHeadDim>;
  static constexpr int kMTiles = Fragments::kMTiles;
  static constexpr int kNTiles = 2 * kWide;
  // k-steps whose loads are in flight; halves leave registers for more.
  static constexpr int kDepth = std::min(Fragments::kPairs, kPrepared && kMTiles == 1 && kWide == 1 ? 3 : 2);
  using Accumulator = float[kMTiles][kNTiles][4];

  // k_mean (or KeyHalves), k_energy: of the head. Columns at and past num_cols repeat the last one: their values mean nothing.
  // put(half_tile, part, scores): the lane's four neighbouring scores in row kHalfRows * half_tile + lane / 4, in the part-th 16 columns.
  template <class Put>
  CUTE_DEVICE static void run(Fragments const& q, float const* k_mean, float const* k_energy, int group, int unit,
                              int num_cols, Put const& put) {
    int const lane = threadIdx.x % kWarpSize;
    Accumulator acc = {};
    float const* rows[kPrepared ? 1 : kNTiles];
    uint4 k[kDepth][kNTiles];
    float energy[kNTiles];
    // Column x of n-tile n stands for word n % 2 * 2 + x % 2 and lane 4 * (kWide * unit + n / 2) + x / 2 of the group.
    int const x = lane / 4, first = group * kGroupCols + x % 2 * kWarpSize + 4 * kWide * unit + x / 2;
    auto const column = [&](int n) { return min(first + n % 2 * 2 * kWarpSize + n / 2 * 4, num_cols - 1); };
    if constexpr (kPrepared) {
      rows[0] = k_mean + 4 * ((group * kPerGroup + unit) * kNTiles * Halves::kTileVectors + x * 2 + lane % 2);
      asm("" : "+l"(rows[0]));  // one address and immediate offsets, where ptxas would make an address for every load
    } else {
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) {
        energy[n] = __ldg(k_energy + column(n) * 3 + 2);
        rows[n] = k_mean + column(n) * kHeadDim + 4 * (lane % 4);
        asm("" : "+l"(rows[n]));
      }
    }
    cute::for_each(cute::make_seq<kDepth>{}, [&](auto pair) { load<decltype(pair)::value>(k[pair], rows, lane); });
    HalfScale scale[kNTiles];
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) scale[n] = kPrepared ? HalfScale{} : half_scale(energy[n]);
    cute::for_each(cute::make_seq<Fragments::kPairs>{}, [&](auto pair) {
      constexpr int kPair = decltype(pair)::value;
      uint4(&now)[kNTiles] = k[kPair % kDepth];
      uint4 b[kNTiles];
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) b[n] = as_halves<kPrepared>(now[n], scale[n].up);
      if constexpr (kPair + kDepth < Fragments::kPairs) {
        load<kPair + kDepth>(now, rows, lane);
      } else if constexpr (kPrepared && kPair + 1 == Fragments::kPairs) {  // not before: registers are short
        CUTE_UNROLL
        for (int n = 0; n < kNTiles; ++n) energy[n] = __ldg(k_energy + column(n) * 3 + 2);
      }
      CUTE_UNROLL
      for (int m = 0; m < kMTiles; ++m) {
        uint4 const high = q.high[kPair][m][lane], low = q.low[kPair][m][lane];
        CUTE_UNROLL
        for (int n = 0; n < kNTiles; ++n) mma_half(acc[m][n], low, b[n].x, b[n].y);  // small terms first
        CUTE_UNROLL
        for (int n = 0; n < kNTiles; ++n) mma_half(acc[m][n], high, b[n].z, b[n].w);
        CUTE_UNROLL
        for (int n = 0; n < kNTiles; ++n) mma_half(acc[m][n], high, b[n].x, b[n].y);
      }
    });
    if constexpr (kPrepared) {
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) scale[n] = half_scale(energy[n]);
    }
    float down[kNTiles][2];  // of this lane's columns 2t and 2t + 1 of each n-tile
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) {
      CUTE_UNROLL
      for (int e = 0; e < 2; ++e) down[n][e] = __shfl_sync(kFullWarp, scale[n].down, 4 * (2 * (lane % 4) + e));
    }
    CUTE_UNROLL
    for (int half_tile = 0; half_tile < 2 * kMTiles; ++half_tile) {
      int const m = half_tile / 2, i = half_tile % 2 * 2;
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; n += 2) {
        put(half_tile, n / 2, make_float4(acc[m][n][i] * down[n][0], acc[m][n][i + 1] * down[n][1], acc[m][n + 1][i] * down[n + 1][0],
                                          acc[m][n + 1][i + 1] * down[n + 1][1]));
      }
    }
  }

  // k: this lane's dims of the pair, of each n-tile's column.
  template <int kPair, class Rows>
  CUTE_DEVICE static void load(uint4 (&k)[kNTiles], Rows const& rows, int lane) {
    using Pair = ChunkPair<Band, kPair>;
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) {
      if constexpr (kPrepared) {
        constexpr int kFirst = Band::kChunks[2 * kPair] * Halves::kChunkVectors;
        constexpr int kSecond = Band::kChunks[2 * kPair + 1] * Halves::kChunkVectors;
        auto const* tile = reinterpret_cast<uint4 const*>(rows[0]) + n * Halves::kTileVectors;
        k[n] = __ldg(tile + (lane % 4 < 2 ? kFirst : kSecond));
      } else {
        k[n] = Pair::load(rows[n], lane % 4);
      }
    }
  }
};

}  // namespace prism
