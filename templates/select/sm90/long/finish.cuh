// The cut-off of rows among the few values of their brackets, exactly, and the bits that it keeps of them. A quad does its two rows in
// step, so that one's latencies lie under the other's.
#pragma once

#include "select/sm90/long/passes.cuh"

namespace prism {

// A thread's part of its rows' lists: every fourth entry.
struct ListedRows {
  static constexpr int kMost = kListEntries / 4;
  static constexpr int kHeld = 16;  // whose values are in registers, loaded and looked at all together
  static constexpr int kMoreStep = kThreadRows * kWarpSize;  // shared memory for the others: words from entry to entry
  static_assert((kMost - kHeld) * kMoreStep <= 16 * Buckets::kStride, "in place of a warp's counts");

  uint32_t target[kThreadRows];
  uint2 const* list[kThreadRows];  // of the row
  int found[kThreadRows];          // its entries
  uint32_t* kept[kThreadRows];     // its bit mask
  uint32_t* more[kThreadRows];
  uint32_t held[kThreadRows][kHeld], column[kThreadRows][kHeld];  // value 0 behind the list's end
  int count[kThreadRows];             // of this thread

  CUTE_DEVICE void load() {
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) count[r] = (found[r] + 3 - int(threadIdx.x % 4)) / 4;
    each_held([&](int i, int r) {
      uint2 const own = i < count[r] ? entry(r, i) : make_uint2(0, 0);
      held[r][i] = own.x, column[r][i] = own.y;
    });
    each_few([&](int first) {
      uint32_t values[kFew][kThreadRows];
      of_few(first, [&](int i, int r) { values[i][r] = entry(r, first + i).x; });
      of_few(first, [&](int i, int r) { more_of(r, first + i) = values[i][r]; });
    });
  }

  // sum_high, sum_between: of all values from the bracket's upper end on, and of those in it.
  CUTE_DEVICE void find(RowBracket const (&bracket)[kThreadRows], uint32_t const (&sum_high)[kThreadRows],
                        uint32_t const (&sum_between)[kThreadRows], Cutoff (&cutoff)[kThreadRows]) const {
    CutoffSearch search[kThreadRows] = {begin(bracket[0], 0, sum_high[0], sum_between[0]),
                                        begin(bracket[1], 1, sum_high[1], sum_between[1])};
    // Halved, both rows in step and without a branch: a warp takes 9 or 10 turns, of a tenth of the instructions that guesses by
    // interpolation take, with 6 to 10 turns (lists of flat and peaked rows, simulated on the CPU).
    #pragma unroll 1
    while (!__all_sync(kFullWarp, (bracket[0].decided() || search[0].single()) && (bracket[1].decided() || search[1].single()))) {
      uint32_t probe[kThreadRows], sum[kThreadRows] = {};
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) probe[r] = search[r].inside(middle(search[r].low, search[r].high));
      each_held([&](int i, int r) { add_if_at_least(sum[r], held[r][i], probe[r]); });
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        #pragma unroll 2
        for (int i = kHeld; i < count[r]; ++i) add_if_at_least(sum[r], more_of(r, i), probe[r]);
      }
      __syncwarp();
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) search[r].learn(probe[r], sum_high[r] + quad_sum(sum[r]));
    }
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      cutoff[r] = kKeepAll;
      if (!bracket[r].decided()) search[r].settled(cutoff[r]);
    }
  }

  // Between two values, in octaves or nearly so.
  CUTE_DEVICE static uint32_t middle(uint32_t low, uint32_t high) {
    return __float2uint_rz(__uint_as_float((__float_as_uint(float(low)) + __float_as_uint(float(high))) / 2));
  }

  // Adds to the masks what the cut-offs keep of the lists; of ties the first columns.
  CUTE_DEVICE void keep(Cutoff const (&cutoff)[kThreadRows]) const {
    uint32_t from[kThreadRows];  // values from here on are kept
    bool ties[kThreadRows];
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) ties[r] = cutoff[r].ties != kAllTies, from[r] = cutoff[r].value + (ties[r] ? 1u : 0u);
    each_held([&](int i, int r) {
      if (i < count[r] && held[r][i] >= from[r]) add(r, column[r][i]);
    });
    each_few([&](int first) {
      uint32_t columns[kFew][kThreadRows] = {};
      of_few(first, [&](int i, int r) {
        if (more_of(r, first + i) >= from[r]) columns[i][r] = entry(r, first + i).y;
      });
      of_few(first, [&](int i, int r) {
        if (more_of(r, first + i) >= from[r]) add(r, columns[i][r]);
      });
    });
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      if (ties[r]) keep_ties(cutoff[r], r);
    }
  }

 private:
  CUTE_DEVICE uint2 const& entry(int r, int i) const { return list[r][4 * i + threadIdx.x % 4]; }

  // From the least to the largest value of the list: much less than the bracket, where that had no end.
  CUTE_DEVICE CutoffSearch begin(RowBracket const& bracket, int r, uint32_t sum_high, uint32_t sum_between) const {
    uint32_t least = ~0u, most = 0;
    CUTE_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      most = max(most, held[r][i]);
      if (i < count[r]) least = min(least, held[r][i]);
    }
    #pragma unroll 2
    for (int i = kHeld; i < count[r]; ++i) {
      most = max(most, more_of(r, i));
      least = min(least, more_of(r, i));
    }
    CUTE_UNROLL
    for (int offset = 1; offset < 4; offset *= 2) {
      least = min(least, __shfl_xor_sync(kFullWarp, least, offset));
      most = max(most, __shfl_xor_sync(kFullWarp, most, offset));
    }
    bool const any = found[r] > 0;
    CutoffSearch search(target[r], CutoffStart{any ? most + 1u : bracket.high, 0.f, 0.f, 1.f});
    search.low = any ? least : bracket.low;
    search.sum_low = sum_high + sum_between;
    search.sum_high = sum_high;
    return search;
  }

  template <class F>
  CUTE_DEVICE void each_held(F const& f) const {
    CUTE_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) f(i, r);
    }
  }

  CUTE_DEVICE uint32_t& more_of(int r, int i) const { return more[r][(i - kHeld) * kMoreStep]; }

  // f(first): for every few entries behind those in registers. of_few: f(i, row) for those of them that exist, so that their loads are
  // under way together. With more than two, the passes would spill.
  static constexpr int kFew = 2;
  template <class F>
  CUTE_DEVICE void each_few(F const& f) const {
    #pragma unroll 1
    for (int first = kHeld; first < max(count[0], count[1]); first += kFew) f(first);
  }
  template <class F>
  CUTE_DEVICE void of_few(int first, F const& f) const {
    CUTE_UNROLL
    for (int i = 0; i < kFew; ++i) {
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        if (first + i < count[r]) f(i, r);
      }
    }
  }

  // Hardly ever: a tie is kept if it has few enough before it.
  CUTE_DEVICE void keep_ties(Cutoff const& cutoff, int r) const {
    #pragma unroll 1
    for (int i = 0; i < count[r]; ++i) {
      uint2 const own = entry(r, i);
      if (own.x != cutoff.value) continue;
      uint32_t before = 0;
      #pragma unroll 1
      for (int other = 0; other < found[r]; ++other) before += list[r][other].x == own.x && list[r][other].y < own.y;
      if (before < cutoff.ties) add(r, own.y);
    }
  }

  // No load to wait for.
  CUTE_DEVICE void add(int r, uint32_t column) const {
    asm volatile("red.relaxed.gpu.global.or.b32 [%0], %1;" ::"l"(kept[r] + column / 32), "r"(1u << column % 32) : "memory");
  }
};

}  // namespace prism
