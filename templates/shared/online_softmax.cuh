// Online softmax over the rows that one thread holds of a 64 x N wgmma accumulator.
//
// Accumulator layout of wgmma m64nNk16, thread t of the warp group: element 4*n + 2*r + c lies at
//   row  16*(t/32) + (t%32)/4 + 8*r,   column  8*n + 2*(t%4) + c.
// So a thread holds two rows (r = 0, 1), each shared by the four threads of a quad.
#pragma once

#include <cute/tensor.hpp>

namespace prism {

struct OnlineSoftmax {
  static constexpr int kRows = 2;  // rows a thread holds
  // The accumulator is rescaled only when a row maximum has grown by more than this (log2 units); the final division by the row
  // sum is exact about the reference point. It is not larger, because the largest probability of a row is then rounded to 16
  // bits where it would have been exactly 1: at 1, that probability is at most 2 beside a sum of at least 3, and the rounding
  // error stays within 1.25 times that of eager rescaling (at 8 it tripled in rows that one key dominates: seen on an H200).
  static constexpr float kRescaleThreshold = 1.0f;

  float scale_log2;      // softmax_scale * log2(e)
  float row_max[kRows];  // reference point of the exponentials, in units of unscaled logits
  float row_sum[kRows];  // this thread's share; the quad is summed once, at the end
  float o_scale[kRows];  // what the output accumulator must be multiplied by after the last step

  __device__ __forceinline__ explicit OnlineSoftmax(float scale) : scale_log2(scale) { reset(); }

  __device__ __forceinline__ void reset() {
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      row_max[r] = -INFINITY;
      row_sum[r] = 0.0f;
    }
  }

  // Turns logits into unnormalised probabilities in place. Returns true if the output accumulator must be rescaled by o_scale.
  template <class Tensor>
  __device__ __forceinline__ bool step(Tensor& tS) {
    // One running maximum a row and column parity: four chains hide the latency that two would show.
    float partial[2 * kRows];
    CUTE_UNROLL
    for (int i = 0; i < 2 * kRows; ++i) partial[i] = fmaxf(row_max[i / 2], tS(i));
    CUTE_UNROLL
    for (int i = 2 * kRows; i < cute::size(tS); ++i) partial[i % 4] = fmaxf(partial[i % 4], tS(i));
    float new_max[kRows];
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) new_max[r] = fmaxf(partial[2 * r], partial[2 * r + 1]);
    bool grown = false;
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      new_max[r] = fmaxf(new_max[r], __shfl_xor_sync(~0u, new_max[r], 1));
      new_max[r] = fmaxf(new_max[r], __shfl_xor_sync(~0u, new_max[r], 2));
      grown |= (new_max[r] - row_max[r]) * scale_log2 > kRescaleThreshold;  // NaN (-inf minus -inf) compares false
    }
    bool const rescale = __any_sync(~0u, grown);
    if (rescale) {
      CUTE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        o_scale[r] = exp2f((row_max[r] - finite_or_zero(new_max[r])) * scale_log2);
        row_sum[r] *= o_scale[r];
        row_max[r] = new_max[r];
      }
    }
    float offset[kRows];
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) offset[r] = finite_or_zero(row_max[r]) * scale_log2;
    CUTE_UNROLL
    for (int i = 0; i < cute::size(tS); ++i) tS(i) = exp2f(tS(i) * scale_log2 - offset[(i / 2) % 2]);
    CUTE_UNROLL
    for (int i = 0; i < cute::size(tS); ++i) row_sum[(i / 2) % 2] += tS(i);
    return rescale;
  }

  // Multiplies the output accumulator by o_scale.
  template <class Tensor>
  __device__ __forceinline__ void rescale(Tensor& tO) const {
    CUTE_UNROLL
    for (int i = 0; i < cute::size(tO); ++i) tO(i) *= o_scale[(i / 2) % 2];
  }

  // Divides the accumulator by the row sums and writes each row's natural-log LSE. A row that saw no key gets 0 and -inf.
  template <class Tensor>
  __device__ __forceinline__ void finalize(Tensor& tO, float (&lse)[kRows]) {
    constexpr float kLn2 = 0.693147180559945309f;
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      row_sum[r] += __shfl_xor_sync(~0u, row_sum[r], 1);
      row_sum[r] += __shfl_xor_sync(~0u, row_sum[r], 2);
      bool const seen = row_sum[r] > 0.0f;
      o_scale[r] = seen ? 1.0f / row_sum[r] : 0.0f;
      lse[r] = seen ? kLn2 * (row_max[r] * scale_log2 + log2f(row_sum[r])) : -INFINITY;
    }
    rescale(tO);
  }

 private:
  // The reference point of a row that has seen no key yet: any finite value, since every probability is exp2(-inf) = 0.
  static __device__ __forceinline__ float finite_or_zero(float m) { return m == -INFINITY ? 0.0f : m; }
};

}  // namespace prism
