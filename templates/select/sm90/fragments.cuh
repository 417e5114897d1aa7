// Means as pairs of fp16, and the q side of a tile in the order in which lanes feed the tensor cores.
#pragma once

#include "shared/bands.cuh"
#include "shared/warp.cuh"

#include <cute/algorithm/tuple_algorithms.hpp>

#include <cutlass/cutlass.h>

#include <cuda_fp16.h>

namespace prism {

constexpr int kMmaRows = 16;  // SM80_16x8x16: rows of A, columns of B
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

  template <int kPair>
  using Pair = ChunkPair<Band, kPair>;

  // The lane's halves of rows g and g + 8 of row tile m.
  CUTE_DEVICE void put(int pair, int m, int lane, uint4 const& top, uint4 const& bottom) {
    high[pair][m][lane] = make_uint4(top.x, bottom.x, top.y, bottom.y);
    low[pair][m][lane] = make_uint4(top.z, bottom.z, top.w, bottom.w);
  }

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
      put(int(pair), m, lane, top, bottom);
    });
  }
};

}  // namespace prism
