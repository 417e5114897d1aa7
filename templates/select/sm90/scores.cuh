// Scores of one tile: block means of q times block means of k over one band, fp32 accuracy from fp16 tensor cores.
//
// Each mean, scaled by a power of two of its own so that it cannot overflow, is split into two fp16 parts, x = hi + lo: 22 bits
// of significand, as two tf32 would have, at twice the rate. hi*hi + hi*lo + lo*hi leaves a relative error near 2^-21.
// A score depends on its own two means only: not on how many rows or columns there are, nor on the other means of a head.
#pragma once

#include "select/sm90/fragments.cuh"
#include "select/sm90/keys.cuh"

#include <cute/arch/mma_sm80.hpp>
#include <cute/algorithm/tuple_algorithms.hpp>
#include <cute/arch/util.hpp>

#include <algorithm>

namespace prism {

CUTE_DEVICE void mma_half(float (&d)[4], uint4 const& a, uint32_t b0, uint32_t b1) {
  cute::SM80_16x8x16_F32F16F16F32_TN::fma(d[0], d[1], d[2], d[3], a.x, a.y, a.z, a.w, b0, b1, d[0], d[1], d[2], d[3]);
}

// One warp's share: scores of the tile's rows with kCols columns of a group.
template <class Band, int kTileRows, int kHeadDim, bool kPrepared>
struct ScoreUnit {
  static constexpr int kCols = kLanesCols;
  static constexpr int kPerGroup = kGroupCols / kCols;

  using Fragments = QueryFragments<Band, kTileRows>;
  static constexpr int kMTiles = Fragments::kMTiles;
  using Keys = UnitKeys<Band, kHeadDim, kPrepared>;
  // k-steps whose loads are in flight; halves leave registers for more.
  static constexpr int kDepth = std::min(Fragments::kPairs, !kPrepared || kMTiles > 1 ? 2 : 3);
  using Accumulator = float[kMTiles][kNTiles][4];

  // keys: of the head. index: of the unit among those of a row. Values of columns at and past num_cols mean nothing.
  // put(half_tile, scores): the lane's four neighbouring scores in row kHalfRows * half_tile + lane / 4.
  template <class Put>
  CUTE_DEVICE static void run(Fragments const& q, Keys const& keys, int index, int num_cols, Put const& put) {
    int const lane = threadIdx.x % kWarpSize;
    Accumulator acc = {};
    uint4 k[kDepth][kNTiles];
    typename Keys::Unit unit = keys.unit(index, num_cols, lane);
    cute::for_each(cute::make_seq<kDepth>{}, [&](auto pair) { unit.template load<decltype(pair)::value>(k[pair], lane); });
    unit.start();
    cute::for_each(cute::make_seq<Fragments::kPairs>{}, [&](auto pair) {
      constexpr int kPair = decltype(pair)::value;
      uint4(&now)[kNTiles] = k[kPair % kDepth];
      uint4 b[kNTiles];
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) b[n] = unit.halves(now[n], n);
      if constexpr (kPair + kDepth < Fragments::kPairs) {
        unit.template load<kPair + kDepth>(now, lane);
      } else if constexpr (kPair + 1 == Fragments::kPairs) {
        unit.load_down();  // not before: registers are short
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
    float4 const down = unit.finish(lane);
    CUTE_UNROLL
    for (int half_tile = 0; half_tile < 2 * kMTiles; ++half_tile) {
      int const m = half_tile / 2, i = half_tile % 2 * 2;
      float const(&left)[4] = acc[m][0], (&right)[4] = acc[m][1];
      put(half_tile, make_float4(left[i] * down.x, left[i + 1] * down.y, right[i] * down.z, right[i + 1] * down.w));
    }
  }
};

}  // namespace prism
