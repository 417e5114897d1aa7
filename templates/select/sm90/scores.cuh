// Scores of one tile: block means of q times block means of k over one band, fp32 accuracy from fp16 tensor cores.
//
// Each fp32 operand, scaled by a power of two so that it cannot overflow, is split into two fp16 parts, x = hi + lo: 22 bits
// of significand, as two tf32 would have, at twice the rate. hi*hi + hi*lo + lo*hi leaves a relative error near 2^-21.
// A column's score depends on its own row of k_mean only, never on how many columns there are.
#pragma once

#include "shared/bands.cuh"
#include "shared/warp.cuh"

#include <cute/arch/mma_sm80.hpp>
#include <cute/tensor.hpp>

#include <cuda_fp16.h>

namespace prism {

constexpr int kMmaRows = 16;         // SM80_16x8x16: rows of A, columns of B
constexpr int kMmaCols = 8;
constexpr int kMmaRowsPerThread = 2; // rows g and g + 8 of lane 4g + t

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

// The power of two that brings every mean of a head, whose squares add up to `energy`, below 2^15: an fp16, and fp16 has
// no values left to lose but those below 2^-24, some 2^-30 of a typical mean.
CUTE_DEVICE float half_scale(float energy) {
  constexpr int kBias = 127, kTop = 14;
  int const exponent = int(__float_as_uint(energy) >> 23 & 0xffu) - kBias;  // sqrt(energy) < 2^(exponent / 2 + 1)
  return __uint_as_float(uint32_t(kTop - (exponent >> 1) + kBias) << 23);
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

  // q_mean: the tile's first row. Rows at and past num_rows repeat the last: computed, never stored.
  template <int kThreads>
  CUTE_DEVICE void stage(float const* q_mean, int row_stride, int num_rows, float scale) {
    constexpr int kWarps = kThreads / kWarpSize;
    static_assert(kWarps % kMTiles == 0, "a warp stages pairs of one row tile");
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    int const m = warp % kMTiles, row = m * kMmaRows + lane / 4;
    float const* top_row = q_mean + min(row, num_rows - 1) * row_stride + 4 * (lane % 4);
    float const* bottom_row = q_mean + min(row + 8, num_rows - 1) * row_stride + 4 * (lane % 4);
    cute::for_each(cute::make_seq<kPairs>{}, [&](auto pair) {
      if (int(pair) % (kWarps / kMTiles) != warp / kMTiles) return;
      using Pair = ChunkPair<Band, decltype(pair)::value>;
      float4 const top = Pair::load(top_row, lane % 4), bottom = Pair::load(bottom_row, lane % 4);
      HalfPairs const a0 = split_half(top.x * scale, top.y * scale);
      HalfPairs const a1 = split_half(bottom.x * scale, bottom.y * scale);
      HalfPairs const a2 = split_half(top.z * scale, top.w * scale);
      HalfPairs const a3 = split_half(bottom.z * scale, bottom.w * scale);
      high[pair][m][lane] = make_uint4(a0.high, a1.high, a2.high, a3.high);
      low[pair][m][lane] = make_uint4(a0.low, a1.low, a2.low, a3.low);
    });
  }
};

// Columns of scores are dealt to the CTAs of a cluster in words of 32: word w to CTA w % kCluster, as its slot w / kCluster.
// Slots are kept in groups of four that lie side by side per column, so that a lane moves four of them at a time.
template <int kCluster>
struct ScoreLayout {
  static constexpr int kGroupSlots = 4;
  static constexpr int kGroupFloats = kGroupSlots * kWarpSize;  // of one row
  static constexpr int kGroupWords = kGroupSlots * kCluster;    // that a group of every CTA covers

  CUTE_HOST_DEVICE static constexpr int num_groups(int num_words) { return (num_words + kGroupWords - 1) / kGroupWords; }

  // Floats from row to row: 4 more than a multiple of 32, so that the two rows that one phase of an accumulator store
  // touches fall into different shared memory banks.
  CUTE_HOST_DEVICE static constexpr int row_stride(int num_groups) { return num_groups * kGroupFloats + 4; }
};

// One warp's share: scores of the tile's rows with 8 columns of each of kNTiles neighbouring slots, times `scale`.
// RowStride: an int, or a constant of the same name where the tile has one shape.
template <class Band, int kTileRows, int kCluster, int kHeadDim, int kNTiles, class RowStride>
struct ScoreUnit {
  using Fragments = QueryFragments<Band, kTileRows>;
  using Layout = ScoreLayout<kCluster>;
  static constexpr int kMTiles = Fragments::kMTiles;
  using Accumulator = float[kMTiles][kNTiles][4];
  static_assert(kNTiles == 2 || kNTiles == 4, "slots are stored two or four at a time");

  // first_word: of the first slot. part: which 8 columns of a word. k_mean: scaled by k_scale before the split.
  // Columns at and past num_cols repeat the last one: their values mean nothing. scores: of the first slot, in the tile's row 0.
  CUTE_DEVICE static void run(Fragments const& q, float const* k_mean, int first_word, int part, int num_cols,
                              float k_scale, float const& scale, float* scores, RowStride row_stride) {
    int const lane = threadIdx.x % kWarpSize;
    Accumulator acc = {};
    float const* rows[kNTiles];
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) {
      int const column = (first_word + n * kCluster) * kWarpSize + part * kMmaCols + lane / 4;
      rows[n] = k_mean + min(column, num_cols - 1) * kHeadDim + 4 * (lane % 4);
      asm("" : "+l"(rows[n]));  // one address and immediate offsets, where ptxas would make an address for every load
    }
    float4 k[kNTiles];
    load<0>(k, rows, lane);
    cute::for_each(cute::make_seq<Fragments::kPairs>{}, [&](auto pair) {
      constexpr int kPair = decltype(pair)::value;
      HalfPairs b[kNTiles][2];
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) {
        b[n][0] = split_half(k[n].x * k_scale, k[n].y * k_scale);
        b[n][1] = split_half(k[n].z * k_scale, k[n].w * k_scale);
      }
      if constexpr (kPair + 1 < Fragments::kPairs) load<kPair + 1>(k, rows, lane);  // in flight under the MMAs
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
    store(acc, scores, part, row_stride, scale, lane);
  }

  // k: this lane's dims of the pair, of slot n's column.
  template <int kPair>
  CUTE_DEVICE static void load(float4 (&k)[kNTiles], float const* const (&rows)[kNTiles], int lane) {
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) k[n] = ChunkPair<Band, kPair>::load(rows[n], lane % 4);
  }

  CUTE_DEVICE static void store(Accumulator const& acc, float* scores, int part, RowStride row_stride, float scale,
                                int lane) {
    CUTE_UNROLL
    for (int m = 0; m < kMTiles; ++m) {
      CUTE_UNROLL
      for (int i = 0; i < 2 * kMmaRowsPerThread; ++i) {  // row half i / 2, column i % 2
        int const row = m * kMmaRows + i / 2 * 8 + lane / 4, column = part * kMmaCols + lane % 4 * 2 + i % 2;
        float* dst = scores + row * row_stride + column * Layout::kGroupSlots;
        if constexpr (kNTiles == 4) {
          *reinterpret_cast<float4*>(dst) =
              make_float4(acc[m][0][i] * scale, acc[m][1][i] * scale, acc[m][2][i] * scale, acc[m][3][i] * scale);
        } else {
          *reinterpret_cast<float2*>(dst) = make_float2(acc[m][0][i] * scale, acc[m][1][i] * scale);
        }
      }
    }
  }
};

}  // namespace prism
