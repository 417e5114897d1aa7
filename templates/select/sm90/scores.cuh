// Scores of one tile: block means of q times block means of k over one band, fp32 accuracy from tf32 tensor cores.
//
// Each fp32 operand is split into two tf32 parts, x = hi + lo; hi*hi + hi*lo + lo*hi leaves a relative error near 2^-21.
// A column's score depends on its own row of k_mean only, never on how many columns there are.
#pragma once

#include "shared/bands.cuh"
#include "shared/warp.cuh"

#include <cute/arch/mma_sm80.hpp>
#include <cute/tensor.hpp>

namespace prism {

constexpr int kMmaRows = 16;         // SM80_16x8x8: rows of A, columns of B
constexpr int kMmaCols = 8;
constexpr int kMmaRowsPerThread = 2; // rows g and g + 8 of lane 4g + t

// Upper 11 bits of the significand, rounded half away from zero: exactly a tf32. lo = x - hi is exact.
CUTE_DEVICE float tf32_high(float x) {
  constexpr uint32_t kHalfUlp = 0x1000u, kMask = 0xffffe000u;
  return __uint_as_float((__float_as_uint(x) + kHalfUlp) & kMask);
}

CUTE_DEVICE void mma_tf32(float (&d)[4], float4 const& a, float b0, float b1) {
  cute::SM80_16x8x8_F32TF32TF32F32_TN::fma(d[0], d[1], d[2], d[3], __float_as_uint(a.x), __float_as_uint(a.y),
                                           __float_as_uint(a.z), __float_as_uint(a.w), __float_as_uint(b0),
                                           __float_as_uint(b1), d[0], d[1], d[2], d[3]);
}

// Two chunks make two k-steps, one 16-byte load a lane: lanes 0, 1 of a quad hold the first chunk, lanes 2, 3 the second.
// Which of a lane's four dims go into which k-step is free, as long as A and B agree: x, y into step 0, z, w into step 1.
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

  alignas(16) float4 high[kPairs][2][kMTiles][kWarpSize];
  alignas(16) float4 low[kPairs][2][kMTiles][kWarpSize];

  // q_mean: the tile's first row. Rows at and past num_rows repeat the last: computed, never stored.
  template <int kThreads>
  CUTE_DEVICE void stage(float const* q_mean, int row_stride, int num_rows) {
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    cute::for_each(cute::make_seq<kPairs>{}, [&](auto pair) {
      CUTE_UNROLL
      for (int m = 0; m < kMTiles; ++m) {
        if ((int(pair) * kMTiles + m) % (kThreads / kWarpSize) != warp) continue;
        int const row = m * kMmaRows + lane / 4;
        using Pair = ChunkPair<Band, decltype(pair)::value>;
        float const* dims = q_mean + 4 * (lane % 4);
        float4 const top = Pair::load(dims + min(row, num_rows - 1) * row_stride, lane % 4);
        float4 const bottom = Pair::load(dims + min(row + 8, num_rows - 1) * row_stride, lane % 4);
        put(pair, 0, m, lane, make_float4(top.x, bottom.x, top.y, bottom.y));
        put(pair, 1, m, lane, make_float4(top.z, bottom.z, top.w, bottom.w));
      }
    });
  }

  CUTE_DEVICE void put(int pair, int step, int m, int lane, float4 const& a) {
    float4 const h = make_float4(tf32_high(a.x), tf32_high(a.y), tf32_high(a.z), tf32_high(a.w));
    high[pair][step][m][lane] = h;
    low[pair][step][m][lane] =
        make_float4(tf32_high(a.x - h.x), tf32_high(a.y - h.y), tf32_high(a.z - h.z), tf32_high(a.w - h.w));
  }
};

// scores[row * row_stride + column] = scale * <q_mean[row], k_mean[column]> over the band, for columns 0 .. num_cols - 1
// (and up to the next multiple of 32 at most: their values mean nothing). Every warp takes its own groups of columns.
template <class Band, int kTileRows, int kThreads, int kHeadDim>
struct BandScores {
  using Fragments = QueryFragments<Band, kTileRows>;
  static constexpr int kMTiles = Fragments::kMTiles;
  static constexpr int kPairs = Fragments::kPairs;
  static constexpr int kNTiles = 4 / kMTiles;  // 16 accumulator registers, and 12 MMAs for every 2 kMTiles loads of A
  static constexpr int kGroupCols = kNTiles * kMmaCols;
  static_assert(kNTiles > 0 && kWarpSize % kGroupCols == 0, "tile_rows must be 16, 32 or 64");

  CUTE_DEVICE static void run(Fragments const& q, float const* k_mean, int num_cols, float scale, float* scores,
                              int row_stride) {
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    #pragma unroll 1
    for (int col = warp * kGroupCols; col < num_cols; col += kThreads / kWarpSize * kGroupCols) {
      float acc[kMTiles][kNTiles][4] = {};
      accumulate(acc, q, k_mean, col, num_cols, lane);
      store(acc, scores + col, row_stride, scale, lane);
    }
  }

  CUTE_DEVICE static void accumulate(float (&acc)[kMTiles][kNTiles][4], Fragments const& q, float const* k_mean,
                                     int col, int num_cols, int lane) {
    float const* rows[kNTiles];
    CUTE_UNROLL
    for (int n = 0; n < kNTiles; ++n) {
      rows[n] = k_mean + min(col + n * kMmaCols + lane / 4, num_cols - 1) * kHeadDim + 4 * (lane % 4);
      asm("" : "+l"(rows[n]));  // one address and immediate offsets, where ptxas would make an address for every load
    }
    cute::for_each(cute::make_seq<kPairs>{}, [&](auto pair) {
      constexpr int kPair = decltype(pair)::value;
      float4 k[kNTiles];
      CUTE_UNROLL
      for (int n = 0; n < kNTiles; ++n) {
        k[n] = ChunkPair<Band, kPair>::load(rows[n], lane % 4);
      }
      CUTE_UNROLL
      for (int step = 0; step < 2; ++step) {
        CUTE_UNROLL
        for (int m = 0; m < kMTiles; ++m) {
          float4 const q_high = q.high[kPair][step][m][lane], q_low = q.low[kPair][step][m][lane];
          CUTE_UNROLL
          for (int n = 0; n < kNTiles; ++n) {
            float const b0 = step ? k[n].z : k[n].x, b1 = step ? k[n].w : k[n].y;
            float const h0 = tf32_high(b0), h1 = tf32_high(b1);
            mma_tf32(acc[m][n], q_low, h0, h1);  // small terms first
            mma_tf32(acc[m][n], q_high, b0 - h0, b1 - h1);
            mma_tf32(acc[m][n], q_high, h0, h1);
          }
        }
      }
    });
  }

  CUTE_DEVICE static void store(float const (&acc)[kMTiles][kNTiles][4], float* scores, int row_stride, float scale,
                                int lane) {
    CUTE_UNROLL
    for (int m = 0; m < kMTiles; ++m) {
      CUTE_UNROLL
      for (int half = 0; half < kMmaRowsPerThread; ++half) {
        float* dst = scores + (m * kMmaRows + half * 8 + lane / 4) * row_stride + lane % 4 * 2;
        CUTE_UNROLL
        for (int n = 0; n < kNTiles; ++n) {
          *reinterpret_cast<float2*>(dst + n * kMmaCols) =
              make_float2(acc[m][n][2 * half] * scale, acc[m][n][2 * half + 1] * scale);
        }
      }
    }
  }
};

}  // namespace prism
