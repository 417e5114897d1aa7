// What one warp makes of a row of scores: probabilities, fixed point, cut-off, bit masks (method.md steps 4 and 5).
#pragma once

#include "select/cutoff.h"
#include "select/params.h"
#include "select/sm90/row.cuh"

namespace prism {

// What exponentiate learns of a row. sum, top: of its exponentials. centre, width: mean and deviation of log2 of an exponential,
// weighted with it, by a sample; they guide a search and nothing else.
struct Exponentials {
  float sum, top, centre, width;
};

// A row in fixed point: every value is below bound; centre and width are those of log2 of a value.
struct FixedRange {
  uint32_t bound;
  float centre, width;
};

// Scores to exponentials relative to the largest. scale: from a score to a logit in units of log2. A NaN spoils the row's sum.
template <class Row>
CUTE_DEVICE Exponentials exponentiate(Row& row, float scale) {
  constexpr float kFar = -1000.f;  // octaves: exp2 is 0 there; hidden columns lie at -inf
  float tops[kParts], sums[kParts], first = 0.f, second = 0.f;
  CUTE_UNROLL
  for (int i = 0; i < kParts; ++i) tops[i] = -INFINITY, sums[i] = 0.f;
  row.visit([&](int, uint32_t bits, int part) { tops[part] = fmaxf(tops[part], __uint_as_float(bits)); });
  float const top = warp_max(fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]))), shift = -top * scale;
  row.update([&](int, uint32_t bits, int part) {
    float const distance = fmaf(__uint_as_float(bits), scale, shift), e = exp2f(distance);
    sums[part] += e;
    if (part == 0) {
      float const finite = fmaxf(distance, kFar), moment = e * finite;
      first += moment;
      second += moment * finite;
    }
    return __float_as_uint(e);
  });
  float const sum = warp_sum((sums[0] + sums[1]) + (sums[2] + sums[3])), sample = warp_sum(sums[0]);
  float const centre = warp_sum(first) / sample, variance = warp_sum(second) / sample - centre * centre;
  return {sum, exp2f(fmaf(top, scale, shift)), centre, sqrtf(fmaxf(variance, 0.f))};
}

// Values to p_fix = round(value * unit). top: the largest value, up to rounding. A NaN row becomes all zeros.
template <class Row>
CUTE_DEVICE FixedRange fix(Row& row, float unit, float top, float centre, float width) {
  row.update([&](int, uint32_t bits, int) { return __float2uint_rn(__uint_as_float(bits) * unit); });
  uint32_t const largest = __float2uint_rn(top * unit);  // exp2 may be wrong by 2^-22
  return {largest + (largest >> 16) + 2, centre, width};
}

// One row alone: p is its softmax.
template <class Row>
CUTE_DEVICE FixedRange fix_row(Row& row, float scale) {
  Exponentials const e = exponentiate(row, scale);
  float const unit = __frcp_rn(e.sum) * float(kFixedOne);  // a power of two: p rounds once
  return fix(row, unit, e.top, e.centre + __log2f(unit), e.width);
}

// sum += p where p >= x, in two instructions; the compiler makes three.
CUTE_DEVICE void add_if_at_least(uint32_t& sum, uint32_t p, uint32_t x) {
  asm("{ .reg .pred yes; setp.ge.u32 yes, %1, %2; @yes add.u32 %0, %0, %1; }" : "+r"(sum) : "r"(p), "r"(x));
}

// The first `rank` values of a fixed-point row, in falling order.
template <class Row>
CUTE_DEVICE Cutoff rank_cutoff(Row const& row, uint32_t rank, uint32_t bound) {
  return find_rank(rank, bound, [&](uint32_t x) {
    uint32_t count = 0;
    row.visit([&](int, uint32_t p, int) { count += p >= x ? 1u : 0u; });
    return __reduce_add_sync(kFullWarp, count);
  });
}

// What a band's rows are cut by. quantile: the threshold's, of the normal distribution; it guides the search.
struct CutRule {
  CutKind kind;
  float threshold, quantile;

  CUTE_DEVICE CutRule(CutKind cut_kind, float cut_threshold)
      : kind(cut_kind), threshold(cut_threshold), quantile(normcdfinvf(fminf(fmaxf(cut_threshold, 0.001f), 0.999f))) {}
};

// The cut-off of a fixed-point row. A mass of 1 or more (or NaN) keeps all.
template <class Row>
CUTE_DEVICE Cutoff row_cutoff(Row const& row, FixedRange const& range, CutRule const& rule, int num_visible) {
  if (rule.kind != CutKind::kTopP) {
    float const count = rule.kind == CutKind::kTopK ? rule.threshold : rule.threshold * float(num_visible);
    return rank_cutoff(row, __float2uint_ru(count), range.bound);
  }
  if (!(rule.threshold < 1.f)) return kKeepAll;
  uint32_t const target = __float2uint_ru(rule.threshold * float(kFixedOne));
  if (target == 0) return kKeepNone;
  constexpr float kLeastSpread = 0.02f;  // octaves
  uint32_t const guess = __float2uint_rz(exp2f(range.centre - rule.quantile * range.width));
  return find_cutoff(target, guess, fmaxf(0.5f * range.width, kLeastSpread), range.bound, [&](uint32_t x) {
    uint32_t sums[kParts] = {};
    row.visit([&](int, uint32_t p, int part) { add_if_at_least(sums[part], p, x); });
    return __reduce_add_sync(kFullWarp, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  });
}

// The lowest `count` set bits of x.
CUTE_DEVICE uint32_t lowest_bits(uint32_t x, int count) {
  for (int drop = __popc(x) - count; drop > 0; --drop) x &= ~(0x80000000u >> __clz(int(x)));
  return x;
}

// An inclusive prefix sum over the lanes.
CUTE_DEVICE int warp_prefix_sum(int x, int lane) {
  CUTE_UNROLL
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    int const other = __shfl_up_sync(kFullWarp, x, offset);
    if (lane >= offset) x += other;
  }
  return x;
}

// Bits first .. end - 1 of a word, either of which may lie outside it.
CUTE_DEVICE uint32_t bit_range(int first, int end) {
  uint32_t const below_end = end >= kWarpSize ? ~0u : end > 0 ? (1u << end) - 1u : 0u;
  uint32_t const below_first = first >= kWarpSize ? ~0u : first > 0 ? (1u << first) - 1u : 0u;
  return below_end & ~below_first;
}

// Turns a matrix of 32 x 32 bits about its diagonal: lane i gets as bit j what lane j had as bit i.
CUTE_DEVICE uint32_t warp_transpose(uint32_t x, int lane) {
  uint32_t low = 0x0000ffffu;  // the lower half of each 2 * offset bits
  CUTE_UNROLL
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2, low ^= low << offset) {
    uint32_t const other = __shfl_xor_sync(kFullWarp, x, offset);
    x = (lane & offset) == 0 ? (x & low) | (other & low) << offset : (x & ~low) | (other & ~low) >> offset;
  }
  return x;
}

// Sets bit `place` where p >= x, or p == x: two instructions each.
CUTE_DEVICE void bit_if_at_least(uint32_t& bits, uint32_t p, uint32_t x, int place) {
  asm("{ .reg .pred yes; setp.ge.u32 yes, %1, %2; @yes or.b32 %0, %0, %3; }" : "+r"(bits) : "r"(p), "r"(x), "r"(1u << place));
}
CUTE_DEVICE void bit_if_equal(uint32_t& bits, uint32_t p, uint32_t x, int place) {
  asm("{ .reg .pred yes; setp.eq.u32 yes, %1, %2; @yes or.b32 %0, %0, %3; }" : "+r"(bits) : "r"(p), "r"(x), "r"(1u << place));
}

// Calls put(word, bits) on the lane that holds that word of the row's bit mask: the columns that the cut-off keeps. Returns their
// number.
template <class Row, class Put>
CUTE_DEVICE int kept_words(Row const& row, Cutoff cutoff, int num_visible, int lane, Put const& put) {
  int ties_before = 0, count = 0;
  row.each_batch([&](int batch, auto const& bits_of) {
    int const first = batch * kBatchWords;
    uint32_t const visible = bit_range(0, num_visible - (first + lane) * kWarpSize);  // hidden columns hold 0
    uint32_t kept = visible & warp_transpose(bits_of([&](uint32_t& bits, uint32_t p, int place) {
                      bit_if_at_least(bits, p, cutoff.value, place);
                    }), lane);
    if (cutoff.ties != kAllTies) {
      uint32_t const tied = visible & warp_transpose(bits_of([&](uint32_t& bits, uint32_t p, int place) {
                              bit_if_equal(bits, p, cutoff.value, place);
                            }), lane);
      int const rank = warp_prefix_sum(__popc(tied), lane);  // of the last tie of this word, counted from the batch's start
      int64_t const end = int64_t(ties_before) + rank, start = end - __popc(tied), ties = cutoff.ties;
      if (end > ties) kept &= ~tied | lowest_bits(tied, ties > start ? int(ties - start) : 0);
      ties_before += __shfl_sync(kFullWarp, rank, kWarpSize - 1);
    }
    count += __popc(kept);
    if (visible != 0) put(first + lane, kept);
  });
  return __reduce_add_sync(kFullWarp, count);
}

}  // namespace prism
