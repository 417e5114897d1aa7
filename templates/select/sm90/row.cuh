// One row of scores, one warp: softmax, fixed-point probabilities, cut-off, bit mask. Column c belongs to lane c % 32 and
// word c / 32, whatever the row's length, so that a row's result depends on its visible columns only.
#pragma once

#include "select/cutoff.h"
#include "shared/warp.cuh"

#include <cute/tensor.hpp>

namespace prism {

constexpr int kBatchWords = kWarpSize;  // words of a row whose bit masks one warp holds, one a lane

// A row held in registers: one batch of words. Values are raw 32-bit: first scores, then fixed-point probabilities.
class RegisterRow {
 public:
  static constexpr int kMaxColumns = kBatchWords * kWarpSize;

  CUTE_DEVICE RegisterRow(float const* scores, int num_visible, int lane) : num_words_((num_visible + 31) / 32) {
    update([&](int word, uint32_t) {
      int const column = word * kWarpSize + lane;
      return __float_as_uint(column < num_visible ? scores[column] : -INFINITY);
    });
  }

  CUTE_DEVICE int num_words() const { return num_words_; }

  template <class F>
  CUTE_DEVICE void update(F const& f) {
    CUTE_UNROLL
    for (int group = 0; group < kBatchWords; group += kGroup) {
      if (group >= num_words_) break;
      CUTE_UNROLL
      for (int i = 0; i < kGroup; ++i) value_[group + i] = f(group + i, value_[group + i]);
    }
  }

  template <class F>
  CUTE_DEVICE void visit(F const& f) const {
    CUTE_UNROLL
    for (int group = 0; group < kBatchWords; group += kGroup) {
      if (group >= num_words_) break;
      CUTE_UNROLL
      for (int i = 0; i < kGroup; ++i) f(group + i, value_[group + i]);
    }
  }

  template <class F>
  CUTE_DEVICE void visit_batch(int, F const& f) const {
    visit(f);
  }

 private:
  static constexpr int kGroup = 4;  // words between two tests for the end of the row; past it they hold -inf, then 0

  uint32_t value_[kBatchWords];
  int num_words_;
};

// A row left where its scores are, in shared or global memory: any length. Only its own warp touches it.
class MemoryRow {
 public:
  CUTE_DEVICE MemoryRow(float* scores, int num_visible, int lane)
      : value_(reinterpret_cast<uint32_t*>(scores) + lane), num_words_((num_visible + 31) / 32) {
    int const last = num_words_ - 1;
    if (last * kWarpSize + lane >= num_visible) value_[last * kWarpSize] = __float_as_uint(-INFINITY);
  }

  CUTE_DEVICE int num_words() const { return num_words_; }

  template <class F>
  CUTE_DEVICE void update(F const& f) {
    #pragma unroll 4
    for (int word = 0; word < num_words_; ++word) value_[word * kWarpSize] = f(word, value_[word * kWarpSize]);
  }

  template <class F>
  CUTE_DEVICE void visit(F const& f) const {
    #pragma unroll 8
    for (int word = 0; word < num_words_; ++word) f(word, value_[word * kWarpSize]);
  }

  template <class F>
  CUTE_DEVICE void visit_batch(int first, F const& f) const {
    int const end = min(first + kBatchWords, num_words_);
    #pragma unroll 4
    for (int word = first; word < end; ++word) f(word, value_[word * kWarpSize]);
  }

 private:
  uint32_t* value_;
  int num_words_;
};

// Scores to p_fix = round(p * 2^30), p the fp32 softmax. Returns a bound above every value. A NaN row becomes all zeros.
template <class Row>
CUTE_DEVICE uint32_t softmax_fixed(Row& row) {
  constexpr float kLog2e = 1.4426950408889634f;
  float top = -INFINITY;
  row.visit([&](int, uint32_t bits) { top = fmaxf(top, __uint_as_float(bits)); });
  top = warp_max(top);
  float sum = 0.f;
  row.update([&](int, uint32_t bits) {
    float const e = exp2f((__uint_as_float(bits) - top) * kLog2e);
    sum += e;
    return __float_as_uint(e);
  });
  float const inverse = __frcp_rn(warp_sum(sum));
  row.update([&](int, uint32_t bits) {
    return __float2uint_rn(__uint_as_float(bits) * inverse * float(kFixedOne));
  });
  uint32_t const largest = __float2uint_rn(inverse * float(kFixedOne));  // where the score is top
  return largest + (largest >> 16) + 2;  // exp2 near 0 may exceed 1 by its rounding, about 2^-22
}

// The threshold's cut-off on a fixed-point row. threshold: cumulative probability; 1 or more (or NaN) keeps all.
template <class Row>
CUTE_DEVICE Cutoff row_cutoff(Row const& row, uint32_t bound, float threshold) {
  if (!(threshold < 1.f)) return kKeepAll;
  uint32_t const target = __float2uint_ru(threshold * float(kFixedOne));
  if (target == 0) return kKeepNone;
  return find_cutoff(target, bound, [&](uint32_t x) {
    uint32_t sum = 0;
    row.visit([&](int, uint32_t p) { sum += p >= x ? p : 0u; });
    return __reduce_add_sync(kFullWarp, sum);
  });
}

// The lowest `count` set bits of x.
CUTE_DEVICE uint32_t lowest_bits(uint32_t x, int count) {
  for (int drop = __popc(x) - count; drop > 0; --drop) x &= ~(0x80000000u >> __clz(int(x)));
  return x;
}

// Calls put(word, bits) on the lane that holds that word of the row's bit mask: the columns that the cut-off keeps.
template <class Row, class Put>
CUTE_DEVICE void kept_words(Row const& row, Cutoff cutoff, int num_visible, int lane, Put const& put) {
  uint32_t ties_before = 0;
  for (int first = 0; first < row.num_words(); first += kBatchWords) {
    uint32_t above = 0, tied = 0;  // of word first + lane
    row.visit_batch(first, [&](int word, uint32_t p) {
      uint32_t const word_above = __ballot_sync(kFullWarp, p > cutoff.value);
      uint32_t const word_tied = __ballot_sync(kFullWarp, p == cutoff.value);
      if (lane == word % kWarpSize) above = word_above, tied = word_tied;
    });
    int const columns = num_visible - (first + lane) * kWarpSize;
    uint32_t const visible = columns >= kWarpSize ? kFullWarp : columns > 0 ? (1u << columns) - 1u : 0u;
    tied &= visible;  // hidden columns hold 0
    uint32_t rank = __popc(tied);  // of the last tie of this word, counted from the row's start
    CUTE_UNROLL
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      uint32_t const other = __shfl_up_sync(kFullWarp, rank, offset);
      if (lane >= offset) rank += other;
    }
    uint32_t const end = ties_before + rank, start = end - __popc(tied);
    if (end > cutoff.ties) tied = lowest_bits(tied, cutoff.ties > start ? int(cutoff.ties - start) : 0);
    ties_before += __shfl_sync(kFullWarp, rank, kWarpSize - 1);
    if (visible != 0) put(first + lane, above | tied);
  }
}

}  // namespace prism
