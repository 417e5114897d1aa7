// What one warp makes of a row of scores: probabilities, masses, cut-off, bit masks (method.md steps 4 and 5).
#pragma once

#include "select/cutoff.h"
#include "select/params.h"
#include "select/sm90/row.cuh"
#include "select/sm90/size_sums.cuh"

namespace prism {

// The threshold's share of what a row's masses add up to, rounded up; at least 1. threshold < 1.
CUTE_DEVICE uint32_t share_of(uint32_t total, float threshold) {
  uint32_t const share = __float2uint_ru(threshold * 0x1p32f);
  return max(__umulhi(total, share) + (total * share != 0 ? 1u : 0u), 1u);
}

// What exponentiate learns of a row. sum, top: of its exponentials. centre, width: mean and deviation of log2 of an exponential,
// weighted with it, by a sample; they guide a search and nothing else.
struct Exponentials {
  float sum, top, centre, width;
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
  float whole[] = {(sums[0] + sums[1]) + (sums[2] + sums[3]), sums[0], first, second};
  warp_sums(whole, threadIdx.x % kWarpSize);
  float const centre = whole[2] / whole[1], variance = whole[3] / whole[1] - centre * centre;
  return {whole[0], exp2f(fmaf(top, scale, shift)), centre, sqrtf(fmaxf(variance, 0.f))};
}

// Of a row of masses. largest: its largest value, up to the 2^-22 by which exp2 may be wrong. centre, width: of its values.
CUTE_DEVICE CutoffStart cutoff_start(uint32_t largest, float centre, float width) {
  constexpr float kLeastSpread = 0.01f, kSpread = 0.3f;  // octaves; of the width. Simulated: of few sums the fewest
  return {largest + (largest >> 16) + 2, centre, width, fmaxf(kSpread * width, kLeastSpread)};
}

// A row of masses: where its search starts, and what they add up to.
struct MassStart : CutoffStart {
  uint32_t total;
};

// Values to masses, round(value * unit). top: the largest value, up to rounding. A NaN row becomes all zeros.
template <class Row>
CUTE_DEVICE MassStart fix(Row& row, float unit, float top, float centre, float width) {
  uint32_t parts[kParts] = {};
  row.update([&](int, uint32_t bits, int part) {
    uint32_t const mass = __float2uint_rn(__uint_as_float(bits) * unit);
    parts[part] += mass;
    return mass;
  });
  uint32_t const total = __reduce_add_sync(kFullWarp, (parts[0] + parts[1]) + (parts[2] + parts[3]));
  return {cutoff_start(__float2uint_rn(top * unit), centre, width), total};
}

// One row alone: p is its softmax.
template <class Row>
CUTE_DEVICE MassStart fix_row(Row& row, float scale) {
  Exponentials const e = exponentiate(row, scale);
  float const unit = __frcp_rn(e.sum) * float(kFixedOne);  // a power of two: p rounds once
  return fix(row, unit, e.top, e.centre + __log2f(unit), e.width);
}

// sum += p where p >= x, in two instructions; the compiler makes three.
CUTE_DEVICE void add_if_at_least(uint32_t& sum, uint32_t p, uint32_t x) {
  asm("{ .reg .pred yes; setp.ge.u32 yes, %1, %2; @yes add.u32 %0, %0, %1; }" : "+r"(sum) : "r"(p), "r"(x));
}

// The first `rank` masses of a row, in falling order.
template <class Row>
CUTE_DEVICE Cutoff rank_cutoff(Row const& row, uint32_t rank, uint32_t bound) {
  return find_rank(rank, bound, [&](uint32_t x) {
    uint32_t count = 0;
    row.visit([&](int, uint32_t p, int) { count += p >= x ? 1u : 0u; });
    return __reduce_add_sync(kFullWarp, count);
  });
}

// Where the cut-off lies, if the mass of a row is spread over its values like a normal distribution. quantile: the threshold's.
CUTE_DEVICE uint32_t guess_cutoff(CutoffStart const& start, float quantile) {
  return __float2uint_rz(exp2f(start.centre - quantile * start.width));
}
CUTE_DEVICE float quantile_of(float threshold) { return normcdfinvf(fminf(fmaxf(threshold, 0.001f), 0.999f)); }

// What a band's rows are cut by.
struct CutRule {
  CutKind kind;
  float threshold, quantile;

  CUTE_DEVICE CutRule(CutKind cut_kind, float cut_threshold)
      : kind(cut_kind), threshold(cut_threshold), quantile(quantile_of(cut_threshold)) {}
};

// The cut-off of a row of masses. A threshold of 1 or more (or NaN) keeps all. kAnyKind: false where it is known to be top-p.
// narrow(search): see find_cutoff.
template <bool kAnyKind, class Row, class Narrow>
CUTE_DEVICE Cutoff rule_cutoff(Row const& row, MassStart const& start, CutRule const& rule, int num_visible, Narrow const& narrow) {
  if (kAnyKind && rule.kind != CutKind::kTopP) {
    float const count = rule.kind == CutKind::kTopK ? rule.threshold : rule.threshold * float(num_visible);
    return rank_cutoff(row, __float2uint_ru(count), start.bound);
  }
  if (!(rule.threshold < 1.f)) return kKeepAll;
  if (rule.threshold <= 0.f) return kKeepNone;
  auto const sum_at_least = [&](uint32_t x) {
    uint32_t parts[kParts] = {};
    row.visit([&](int, uint32_t p, int part) { add_if_at_least(parts[part], p, x); });
    return __reduce_add_sync(kFullWarp, (parts[0] + parts[1]) + (parts[2] + parts[3]));
  };
  return find_cutoff(share_of(start.total, rule.threshold), guess_cutoff(start, rule.quantile), start, sum_at_least, narrow);
}

// With memory of this warp's for the last step, or without: more sums are then taken.
template <bool kAnyKind, class Row>
CUTE_DEVICE Cutoff row_cutoff(Row const& row, MassStart const& start, CutRule const& rule, int num_visible, SizeSums& sums) {
  return rule_cutoff<kAnyKind>(row, start, rule, num_visible, [&](CutoffSearch& search) { sums.narrow(row, search); });
}
template <bool kAnyKind, class Row>
CUTE_DEVICE Cutoff row_cutoff(Row const& row, MassStart const& start, CutRule const& rule, int num_visible) {
  return rule_cutoff<kAnyKind>(row, start, rule, num_visible, [](CutoffSearch&) {});
}

// The lowest `count` set bits of x.
CUTE_DEVICE uint32_t lowest_bits(uint32_t x, int count) {
  for (int drop = __popc(x) - count; drop > 0; --drop) x &= ~(0x80000000u >> __clz(int(x)));
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

// Of one word of a row a lane: takes away from kept the tied columns after the first `ties` of the row. ties_before: the row's tied
// columns in words before these; grows.
CUTE_DEVICE uint32_t drop_ties(uint32_t kept, uint32_t tied, uint32_t ties, int& ties_before, int lane) {
  int const rank = warp_prefix_sum(__popc(tied), lane);  // of the last tie of this word, counted from lane 0
  int64_t const end = int64_t(ties_before) + rank, start = end - __popc(tied);
  if (end > ties) kept &= ~tied | lowest_bits(tied, ties > start ? int(ties - start) : 0);
  ties_before += __shfl_sync(kFullWarp, rank, kWarpSize - 1);
  return kept;
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
      kept = drop_ties(kept, tied, cutoff.ties, ties_before, lane);
    }
    count += __popc(kept);
    if (visible != 0) put(first + lane, kept);
  });
  return __reduce_add_sync(kFullWarp, count);
}

}  // namespace prism
