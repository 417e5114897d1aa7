// Sums of exponentials over the key blocks that one thread owns of a 64 x 128 wgmma accumulator, and a row's whole sum.
//
// Accumulator layout of wgmma m64nNk16, thread t of the warp group: element 4*n + 2*r + e lies at row 16*(t/32) + (t%32)/4 + 8*r and
// place 8*n + 2*(t%4) + e, which holds sub-column 32*(t%4) + 2*n + e (traits.cuh). So a thread holds 32 columns of two rows.
//
// A row's reference point is the largest logit of its first tile. It moves only where a sum outgrows what packed_sums.cuh holds: no
// maximum is taken of later tiles. Logits are not overwritten, so that a tile can be summed again after a move.
#pragma once

#include "score/sm90/packed_sums.cuh"

#include <cute/tensor.hpp>

namespace prism::score {

template <int kBlocks>
struct Exponentials {
  static constexpr int kRows = 2;     // rows a thread holds
  static constexpr int kColumns = 32;  // of a row that a thread holds
  static constexpr int kPairs = kColumns / 2;
  static constexpr float kMoved = 50.0f;  // octaves above its point at which a logit moves it

  float scale_log2;        // softmax_scale * log2(e)
  float reference[kRows];  // the point that exponents are counted from, log2 units, less kUnitOctaves
  float total[kRows];      // this thread's share of the row's sum
  float sums[kRows][kBlocks];

  __device__ __forceinline__ explicit Exponentials(float scale) : scale_log2(scale) {}

  // Opens a row: its reference point from the first tile's logits; hidden ones are -inf.
  template <class Tensor>
  __device__ __forceinline__ void open(Tensor const& tS) {
    float largest[kRows];
    row_max(tS, largest);
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      reference[r] = largest[r] * scale_log2 - kUnitOctaves;
      total[r] = 0.0f;
    }
  }

  // The sums of a tile. rescale(factors): what was stored of earlier tiles is multiplied by the rows' factors.
  template <class Tensor, class Rescale>
  __device__ __forceinline__ void add(Tensor const& tS, Rescale const& rescale) {
    sum_blocks(tS);
    float most = 0.0f;
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      CUTE_UNROLL
      for (int b = 0; b < kBlocks; ++b) most = fmaxf(most, sums[r][b]);
    }
    if (__any_sync(~0u, most > kMostPacked)) {
      float factors[kRows];
      move_references(tS, factors);
      rescale(factors);
      sum_blocks(tS);
    }
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      CUTE_UNROLL
      for (int b = 0; b < kBlocks; ++b) total[r] += sums[r][b];
    }
  }

  // One over the row's whole sum.
  __device__ __forceinline__ float inverse_total(int r) const {
    float sum = total[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    return 1.0f / sum;
  }

 private:
  template <class Tensor>
  __device__ __forceinline__ void sum_blocks(Tensor const& tS) {
    constexpr int kBlockPairs = kPairs / kBlocks;
    CUTE_UNROLL
    for (int pair = 0; pair < kPairs; ++pair) {
      CUTE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float const first = exp2f(tS(4 * pair + 2 * r) * scale_log2 - reference[r]);
        float const both = first + exp2f(tS(4 * pair + 2 * r + 1) * scale_log2 - reference[r]);
        float& sum = sums[r][pair / kBlockPairs];
        sum = pair % kBlockPairs == 0 ? both : sum + both;
      }
    }
  }

  // The largest logit of each row, over the quad that shares it.
  template <class Tensor>
  static __device__ __forceinline__ void row_max(Tensor const& tS, float (&result)[kRows]) {
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) result[r] = -INFINITY;
    CUTE_UNROLL
    for (int i = 0; i < cute::size(tS); ++i) result[(i / 2) % 2] = fmaxf(result[(i / 2) % 2], tS(i));
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      result[r] = fmaxf(result[r], __shfl_xor_sync(~0u, result[r], 1));
      result[r] = fmaxf(result[r], __shfl_xor_sync(~0u, result[r], 2));
    }
  }

  // Moves the points of the rows that have outgrown them; a row is moved or not by its own logits alone.
  template <class Tensor>
  __device__ __forceinline__ void move_references(Tensor const& tS, float (&factors)[kRows]) {
    constexpr float kColumnsOctaves = 5.0f;
    static_assert(kColumns == 1 << int(kColumnsOctaves) && kUnitOctaves + kMoved + kColumnsOctaves < kMostOctaves,
                  "a sum that is too large must hold a logit that moves the point");
    float largest[kRows];
    row_max(tS, largest);
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float const growth = largest[r] * scale_log2 - kUnitOctaves - reference[r];
      float const moved = growth > kMoved ? reference[r] + growth : reference[r];
      factors[r] = exp2f(reference[r] - moved);
      reference[r] = moved;
      total[r] *= factors[r];
    }
  }
};

}  // namespace prism::score
