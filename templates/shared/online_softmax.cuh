// Online softmax over the rows that one thread holds of a 64 x N wgmma accumulator.
//
// Accumulator layout of wgmma m64nNk16, thread t of the warp group: element 4*n + 2*r + c lies at
//   row  16*(t/32) + (t%32)/4 + 8*r,   column  8*n + 2*(t%4) + c.
// So a thread holds two rows (r = 0, 1), each shared by the four threads of a quad.
//
// A row's reference point is the largest logit of its first keys, and is not compared with every later one before the
// exponentials are taken. They are taken against the point at hand, and their *sum* is watched, which is wanted anyway and which none
// of them exceeds. Only when it shows that the point is too low is the point moved and what was computed brought along.
#pragma once

#include "shared/warp.cuh"

#include <cute/tensor.hpp>

namespace prism {

struct OnlineSoftmax {
  static constexpr int kRows = 2;  // rows a thread holds
  // The point moves when a thread's probabilities of a step add up to more than this beside what the thread has added up of the row
  // before. Moved always, a row's largest probability is exactly 1; moved seldom, it is rounded to 16 bits, which shows where the rest of
  // the row is small: it is at most 5/6 of the sum. (A thread that holds the reference has at least 1 and may add 5; another may add
  // 4 + s beside 1 + s.) A row's first keys are free, since none exceeds 1. Of 64 rows of random logits one moves once or twice in a
  // tile's steps, and each time the warp group waits for 450 to 1000 cycles. (A largest probability of 8 whatever the sum moved 2 to 6
  // times; sums of up to 24 had more than twice torch's error in 2 of 48 cases.)
  static constexpr float kMostGrowth = 4.0f;
  static constexpr float kMostSum = 0x1p15f;  // however much the row has come to: fp16 ends at 65504
  // Beyond this a step's logits are computed again: fp32 ends at 2^128, and a row of a step, 128 times 2^120, still has a finite sum.
  static constexpr float kMostFinite = 0x1p120f;

  float scale_log2;        // softmax_scale * log2(e)
  float reference[kRows];  // the point that exponents are counted from, log2 units; 0 until the row has seen a key
  float row_sum[kRows];    // this thread's share; the quad is summed once, at the end
  float allowed[kRows];    // what this thread's probabilities of a step may add up to
  float o_scale[kRows];    // what the output accumulator must be multiplied by after a step that returned true
  bool seen[kRows];        // whether the row has seen a key
  int unseen;              // not 0 while some row of this warp has not

  __device__ __forceinline__ explicit OnlineSoftmax(float scale) : scale_log2(scale) { reset(); }

  __device__ __forceinline__ void reset() {
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      reference[r] = 0.0f;
      row_sum[r] = 0.0f;
      seen[r] = false;
    }
    unseen = 1;
  }

  // Before each step: what its probabilities may add up to.
  __device__ __forceinline__ void set_bound() {
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) allowed[r] = fminf(kMostGrowth + row_sum[r], kMostSum);
  }

  // Before a step in which some row may see its first keys: gives a point to rows that have none; they hold no sum and no output yet.
  template <class Tensor>
  __device__ __forceinline__ void find_first_references(Tensor const& tS) {
    if (!unseen) return;
    float largest[kRows];
    row_max(tS, largest);
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (!seen[r] && largest[r] > -INFINITY) {
        reference[r] = largest[r] * scale_log2;
        seen[r] = true;
        allowed[r] = INFINITY;  // no probability of a row's first keys exceeds 1
      }
    }
    unseen = !__all_sync(~0u, seen[0] && seen[1]);
  }

  struct Nothing {
    __device__ __forceinline__ void operator()(int) const {}
  };

  // Turns logits into unnormalised probabilities in place; hidden logits are -inf. recompute() puts the logits back; among(n) is
  // called behind the n-th pair of exponentials. Returns true if the output accumulator must be rescaled by o_scale.
  template <class Tensor, class Recompute, class Among>
  __device__ __forceinline__ bool step(Tensor& tS, Recompute const& recompute, Among const& among) {
    float sum[kRows];
    exponentiate(tS, sum, among);
    bool const grown = __any_sync(~0u, exceeds(sum, allowed));
    if (grown) move_references(tS, sum, recompute);
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) row_sum[r] += sum[r];
    return grown;
  }

  // Multiplies the output accumulator by o_scale.
  template <class Tensor>
  __device__ __forceinline__ void rescale(Tensor& tO) const {
    CUTE_UNROLL
    for (int i = 0; i < cute::size(tO); ++i) tO(i) *= o_scale[(i / 2) % 2];
  }

  // Leaves in o_scale what rescale() divides the accumulator by the row sums with, and writes each row's natural-log LSE. A row that saw
  // no key gets 0 and -inf.
  __device__ __forceinline__ void finalize(float (&lse)[kRows]) {
    constexpr float kLn2 = 0.693147180559945309f;
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      row_sum[r] = quad_sum(row_sum[r]);
      o_scale[r] = seen[r] ? 1.0f / row_sum[r] : 0.0f;
      lse[r] = seen[r] ? kLn2 * (reference[r] + log2f(row_sum[r])) : -INFINITY;
    }
  }

 private:
  // Whether the sum of either row exceeds its bound. In PTX, since ptxas does not join two comparisons and an "or" by itself.
  static __device__ __forceinline__ int exceeds(float const (&sum)[kRows], float const (&bound)[kRows]) {
    static_assert(kRows == 2);
    int result;
    asm("{\n.reg .pred p;\nsetp.gt.ftz.f32 p, %1, %2;\nsetp.gt.or.ftz.f32 p, %3, %4, p;\nselp.b32 %0, 1, 0, p;\n}"
        : "=r"(result)
        : "f"(sum[0]), "f"(bound[0]), "f"(sum[1]), "f"(bound[1]));
    return result;
  }

  // sum: of this thread's probabilities in each row.
  template <class Tensor, class Among>
  __device__ __forceinline__ void exponentiate(Tensor& tS, float (&sum)[kRows], Among const& among) const {
    CUTE_UNROLL
    for (int i = 0; i < cute::size(tS); i += 2) {
      int const r = (i / 2) % 2;
      tS(i) = exp2f(tS(i) * scale_log2 - reference[r]);
      tS(i + 1) = exp2f(tS(i + 1) * scale_log2 - reference[r]);
      sum[r] = i < 2 * kRows ? tS(i) : sum[r] + tS(i);
      sum[r] += tS(i + 1);
      among(i / 2);
    }
  }

  // The largest logit of each row, over the quad that shares it. Even and odd columns apart: one chain would wait for every maximum.
  template <class Tensor>
  static __device__ __forceinline__ void row_max(Tensor const& tS, float (&result)[kRows]) {
    float largest[kRows][2];
    CUTE_UNROLL
    for (int i = 0; i < cute::size(tS); ++i) {
      float& so_far = largest[(i / 2) % 2][i % 2];
      so_far = i < 2 * kRows ? tS(i) : fmaxf(so_far, tS(i));
    }
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) result[r] = quad_max(fmaxf(largest[r][0], largest[r][1]));
  }

  // Moves the points of rows that have outgrown them, and brings along this step's probabilities and all sums.
  template <class Tensor, class Recompute>
  __device__ __forceinline__ void move_references(Tensor& tS, float (&sum)[kRows], Recompute const& recompute) {
    float largest[kRows];
    row_max(tS, largest);
    if (__any_sync(~0u, fmaxf(largest[0], largest[1]) > kMostFinite)) {
      recompute();
      row_max(tS, largest);
      CUTE_UNROLL
      for (int r = 0; r < kRows; ++r) move_reference(r, fmaxf(largest[r] * scale_log2 - reference[r], 0.0f));
      exponentiate(tS, sum, Nothing{});
    } else {
      CUTE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        move_reference(r, largest[r] > 1.0f ? log2f(largest[r]) : 0.0f);
        sum[r] *= o_scale[r];
      }
      rescale(tS);
    }
  }

  // growth: log2 units, at least 0.
  __device__ __forceinline__ void move_reference(int r, float growth) {
    float const moved = reference[r] + growth;
    o_scale[r] = exp2f(reference[r] - moved);  // of the growth as it was rounded into the reference
    reference[r] = moved;
    row_sum[r] *= o_scale[r];
  }
};

}  // namespace prism
