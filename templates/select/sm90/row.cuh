// One row of scores, one warp: softmax, fixed-point probabilities, cut-off, bit mask. Column c belongs to lane c % 32 and
// word c / 32, whatever the row's length, so that a row's result depends on its visible columns only.
//
// Callbacks take (word, value, part): part = word % kParts names one of the independent chains of a sum.
#pragma once

#include "select/cutoff.h"
#include "select/sm90/scores.cuh"
#include "shared/cluster.cuh"

namespace prism {

constexpr int kBatchWords = kWarpSize;  // words of a row whose bit masks one warp holds, one a lane
constexpr int kParts = 4;               // chains of a lane's sum: an add takes 4 cycles

// A row's scores where the cluster left them: one slice per CTA, in shared memory or in scratch.
template <int kCluster, bool kInScratch>
struct RowSource {
  float* mine;           // this row in the slice of CTA 0 (scratch), or in this CTA's (shared memory)
  int64_t slice_floats;  // scratch: from one CTA's slice to the next

  CUTE_DEVICE float* slice(int rank) const {
    if constexpr (kInScratch) return mine + rank * slice_floats;
    else return cluster_peer(mine, rank);
  }
};

// A row held in registers. Values are raw 32-bit: first scores, then fixed-point probabilities.
template <int kCluster>
class RegisterRow {
  using Layout = ScoreLayout<kCluster>;

 public:
  static constexpr int kMaxWords = 64;

  CUTE_DEVICE RegisterRow(RowSource<kCluster, false> const& source, int num_visible, int lane)
      : num_words_((num_visible + 31) / 32) {
    CUTE_UNROLL
    for (int group = 0; group < kMaxWords / Layout::kGroupWords; ++group) {
      if (group * Layout::kGroupWords >= num_words_) {  // or the registers would be live all through the kernel
        CUTE_UNROLL
        for (int i = 0; i < Layout::kGroupWords; ++i) value_[group * Layout::kGroupWords + i] = 0;
        continue;
      }
      CUTE_UNROLL
      for (int rank = 0; rank < kCluster; ++rank) {
        float4 const v = *reinterpret_cast<float4 const*>(source.slice(rank) + group * Layout::kGroupFloats + lane * 4);
        float const scores[] = {v.x, v.y, v.z, v.w};
        CUTE_UNROLL
        for (int i = 0; i < Layout::kGroupSlots; ++i) {
          int const word = group * Layout::kGroupWords + i * kCluster + rank;
          value_[word] = __float_as_uint(word * kWarpSize + lane < num_visible ? scores[i] : -INFINITY);
        }
      }
    }
  }

  CUTE_DEVICE int num_words() const { return num_words_; }

  template <class F>
  CUTE_DEVICE void update(F const& f) {
    CUTE_UNROLL
    for (int first = 0; first < kMaxWords; first += kParts) {
      if (first >= num_words_) break;
      CUTE_UNROLL
      for (int i = 0; i < kParts; ++i) value_[first + i] = f(first + i, value_[first + i], i);
    }
  }

  template <class F>
  CUTE_DEVICE void visit(F const& f) const {
    CUTE_UNROLL
    for (int first = 0; first < kMaxWords; first += kParts) {
      if (first >= num_words_) break;
      CUTE_UNROLL
      for (int i = 0; i < kParts; ++i) f(first + i, value_[first + i], i);
    }
  }

  // batch: of kBatchWords words; a constant after unrolling.
  template <class F>
  CUTE_DEVICE void visit_batch(int batch, F const& f) const {
    CUTE_UNROLL
    for (int first = 0; first < kBatchWords; first += kParts) {
      int const word = batch * kBatchWords + first;
      if (word >= num_words_) break;
      CUTE_UNROLL
      for (int i = 0; i < kParts; ++i) f(word + i, value_[word + i], i);
    }
  }

  template <class F>
  CUTE_DEVICE void each_batch(F const& f) const {
    CUTE_UNROLL
    for (int batch = 0; batch < kMaxWords / kBatchWords; ++batch) {
      if (batch * kBatchWords >= num_words_) break;
      f(batch);
    }
  }

 private:
  uint32_t value_[kMaxWords];
  int num_words_;
};

// A row left in scratch: any length. Only its own warp touches it.
template <int kCluster>
class MemoryRow {
  using Layout = ScoreLayout<kCluster>;

 public:
  CUTE_DEVICE MemoryRow(RowSource<kCluster, true> const& source, int num_visible, int lane)
      : source_(source), lane_(lane), num_words_((num_visible + 31) / 32) {
    for (int word = num_visible / kWarpSize; word < padded_words(); ++word) {  // a row's slots come in fours: room enough
      if (word * kWarpSize + lane >= num_visible) at(word) = __float_as_uint(-INFINITY);
    }
  }

  CUTE_DEVICE int num_words() const { return num_words_; }

  template <class F>
  CUTE_DEVICE void update(F const& f) {
    for (int first = 0; first < num_words_; first += kParts) {
      CUTE_UNROLL
      for (int i = 0; i < kParts; ++i) at(first + i) = f(first + i, at(first + i), i);
    }
  }

  template <class F>
  CUTE_DEVICE void visit(F const& f) const {
    visit_words(0, num_words_, f);
  }

  template <class F>
  CUTE_DEVICE void visit_batch(int batch, F const& f) const {
    visit_words(batch * kBatchWords, min((batch + 1) * kBatchWords, num_words_), f);
  }

  template <class F>
  CUTE_DEVICE void each_batch(F const& f) const {
    for (int batch = 0; batch * kBatchWords < num_words_; ++batch) f(batch);
  }

 private:
  CUTE_DEVICE int padded_words() const { return (num_words_ + kParts - 1) / kParts * kParts; }

  CUTE_DEVICE uint32_t& at(int word) const {
    int const slot = word / kCluster;
    return reinterpret_cast<uint32_t*>(source_.slice(word % kCluster))[slot / Layout::kGroupSlots * Layout::kGroupFloats +
                                                                       lane_ * Layout::kGroupSlots +
                                                                       slot % Layout::kGroupSlots];
  }

  template <class F>
  CUTE_DEVICE void visit_words(int begin, int end, F const& f) const {
    #pragma unroll 2
    for (int first = begin; first < end; first += kParts) {
      CUTE_UNROLL
      for (int i = 0; i < kParts; ++i) f(first + i, at(first + i), i);
    }
  }

  RowSource<kCluster, true> source_;
  int lane_, num_words_;
};

// What the search for a cut-off starts from: every value is below bound; floor is a guess at the smallest.
struct ValueRange {
  uint32_t floor, bound;
};

// Scores, in units of log2, to p_fix = round(p * 2^30), p the fp32 softmax. A NaN row becomes all zeros.
template <class Row>
CUTE_DEVICE ValueRange softmax_fixed(Row& row) {
  float tops[kParts], bottoms[kParts], sums[kParts];
  CUTE_UNROLL
  for (int i = 0; i < kParts; ++i) tops[i] = -INFINITY, bottoms[i] = INFINITY, sums[i] = 0.f;
  row.visit([&](int, uint32_t bits, int part) {
    float const score = __uint_as_float(bits);
    tops[part] = fmaxf(tops[part], score);
    bottoms[part] = fminf(bottoms[part], score == -INFINITY ? INFINITY : score);  // hidden columns
  });
  float const top = warp_max(fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3])));
  float const bottom = -warp_max(-fminf(fminf(bottoms[0], bottoms[1]), fminf(bottoms[2], bottoms[3])));
  row.update([&](int, uint32_t bits, int part) {
    float const e = exp2f(__uint_as_float(bits) - top);
    sums[part] += e;
    return __float_as_uint(e);
  });
  float const inverse = __frcp_rn(warp_sum((sums[0] + sums[1]) + (sums[2] + sums[3])));
  float const unit = inverse * float(kFixedOne);  // a power of two: p rounds once
  row.update([&](int, uint32_t bits, int) { return __float2uint_rn(__uint_as_float(bits) * unit); });
  uint32_t const largest = __float2uint_rn(unit);  // where the score is top
  // exp2 near 0 may exceed 1 by its rounding, about 2^-22
  return {__float2uint_rn(exp2f(bottom - top) * unit), largest + (largest >> 16) + 2};
}

// The threshold's cut-off on a fixed-point row. threshold: cumulative probability; 1 or more (or NaN) keeps all.
template <class Row>
CUTE_DEVICE Cutoff row_cutoff(Row const& row, ValueRange range, float threshold) {
  if (!(threshold < 1.f)) return kKeepAll;
  uint32_t const target = __float2uint_ru(threshold * float(kFixedOne));
  if (target == 0) return kKeepNone;
  return find_cutoff(target, range.floor, range.bound, [&](uint32_t x) {
    uint32_t sums[kParts] = {};
    row.visit([&](int, uint32_t p, int part) { sums[part] += p >= x ? p : 0u; });
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

// Calls put(word, bits) on the lane that holds that word of the row's bit mask: the columns that the cut-off keeps.
template <class Row, class Put>
CUTE_DEVICE void kept_words(Row const& row, Cutoff cutoff, int num_visible, int lane, Put const& put) {
  int ties_before = 0;
  row.each_batch([&](int batch) {
    int const first = batch * kBatchWords;
    uint32_t const visible = bit_range(0, num_visible - (first + lane) * kWarpSize);  // hidden columns hold 0
    uint32_t kept = 0;  // of word first + lane: values >= cutoff.value
    row.visit_batch(batch, [&](int word, uint32_t p, int) {
      uint32_t const at_least = __ballot_sync(kFullWarp, p >= cutoff.value);
      if (lane == word - first) kept = at_least;
    });
    if (cutoff.ties != kAllTies) {
      uint32_t tied = 0;
      row.visit_batch(batch, [&](int word, uint32_t p, int) {
        uint32_t const equal = __ballot_sync(kFullWarp, p == cutoff.value);
        if (lane == word - first) tied = equal;
      });
      tied &= visible;
      int const rank = warp_prefix_sum(__popc(tied), lane);  // of the last tie of this word, counted from the batch's start
      int64_t const end = int64_t(ties_before) + rank, start = end - __popc(tied), ties = cutoff.ties;
      if (end > ties) kept &= ~tied | lowest_bits(tied, ties > start ? int(ties - start) : 0);
      ties_before += __shfl_sync(kFullWarp, rank, kWarpSize - 1);
    }
    if (visible != 0) put(first + lane, kept & visible);
  });
}

}  // namespace prism
