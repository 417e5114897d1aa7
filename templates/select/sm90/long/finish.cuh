// The cut-off of rows among the few values of their brackets, exactly, and the bits that it keeps of them. A thread looks after one of its
// quad's rows (own_row), as one other does.
#pragma once

#include "select/sm90/long/passes.cuh"

namespace prism {

// A thread's part of its own row's list: two entries of every four, 16 bytes.
struct ListedRow {
  static constexpr int kMost = kListEntries / kOwners;
  static constexpr int kHeld = 32;  // whose values are in registers, loaded and looked at together, group by group
  static constexpr int kGroup = 4;
  static_assert((kMost - kHeld) * kWarpSize <= 16 * Buckets::kStride, "the others, in place of a warp's counts");

  uint2 const* list;  // of the row
  int found;          // its entries
  uint32_t* more;     // shared memory for the values beyond those held, of every kWarpSize words this lane's
  uint32_t held[kHeld], column[kHeld];  // value 0 behind the list's end
  int most;  // entries of the warp's longest list: groups behind them are left out

  CUTE_DEVICE void load(uint2 const* entries, int number, uint32_t* room) {
    list = entries, found = number, more = room;
    most = int(__reduce_max_sync(kFullWarp, uint32_t(found)));
    CUTE_UNROLL
    for (int i = 0; i < kHeld; i += 2) {
      uint4 two = make_uint4(0, 0, 0, 0);
      if (place(i) < found) two = *reinterpret_cast<uint4 const*>(list + place(i));
      held[i] = two.x, column[i] = two.y;
      held[i + 1] = place(i + 1) < found ? two.z : 0u, column[i + 1] = two.w;
    }
    #pragma unroll 2
    for (int i = kHeld; place(i) < found; ++i) more_of(i) = entry(i).x;
  }

  // Moves the ends of a search until one value is left between them, or equal ones; sum_high: as it begins. Three probes at once, whose
  // sums do not wait for each other, take 5 turns for a warp's 16 rows, where halving takes 11 (narrow and wide lists, simulated on the
  // CPU). The middle one is the mean of the last two or three values, which lies between them.
  CUTE_DEVICE void narrow(CutoffSearch& search, bool decided) const {
    constexpr int kProbes = 3;
    uint32_t const above = search.sum_high;
    search.high = min(search.high, largest() + 1u);  // much less than the bracket's end, where that had none
    #pragma unroll 1
    while (!__all_sync(kFullWarp, decided || search.single())) {
      uint32_t probe[kProbes], sum[kProbes] = {};
      probe[1] = search.inside(middle(search));
      probe[0] = search.inside(halfway(search.low, probe[1]));
      probe[2] = search.inside(halfway(probe[1], search.high));
      auto const add = [&](uint32_t value) {
        CUTE_UNROLL
        for (int i = 0; i < kProbes; ++i) add_if_at_least(sum[i], value, probe[i]);
      };
      each_held([&](int i) { add(held[i]); });
      #pragma unroll 1
      for (int i = kHeld; place(i) < found; ++i) add(more_of(i));
      __syncwarp();
      CUTE_UNROLL
      for (int i = 0; i < kProbes; ++i) sum[i] = above + row_sum(sum[i]);
      CUTE_UNROLL
      for (int i = 0; i < kProbes; ++i) search.learn_low(probe[i], sum[i]);
      CUTE_UNROLL
      for (int i = kProbes - 1; i >= 0; --i) search.learn_high(probe[i], sum[i]);
    }
  }

  // Adds to the row's bit mask what the cut-off keeps of the list; of ties the first columns.
  CUTE_DEVICE void keep(Cutoff const& cutoff, uint32_t* kept) const {
    bool const ties = cutoff.ties != kAllTies;
    uint32_t const from = max(cutoff.value + (ties ? 1u : 0u), 1u);  // values from here on are kept
    each_held([&](int i) { add_column(kept, column[i], held[i] >= from); });
    #pragma unroll 2
    for (int i = kHeld; place(i) < found; ++i) add_column(kept, entry(i).y, more_of(i) >= from);
    if (ties) keep_ties(cutoff, kept);
  }

 private:
  // f(i), of the held values.
  template <class F>
  CUTE_DEVICE void each_held(F const& f) const {
    CUTE_UNROLL
    for (int group = 0; group < kHeld; group += kGroup) {
      if (most <= group * kOwners) break;
      CUTE_UNROLL
      for (int i = group; i < group + kGroup; ++i) f(i);
    }
  }
  CUTE_DEVICE int place(int i) const { return (i / 2 * kOwners + owner()) * 2 + i % 2; }
  CUTE_DEVICE uint2 const& entry(int i) const { return list[place(i)]; }
  CUTE_DEVICE uint32_t& more_of(int i) const { return more[(i - kHeld) * kWarpSize]; }

  CUTE_DEVICE uint32_t largest() const {
    uint32_t value = 0;
    each_held([&](int i) { value = max(value, held[i]); });
    #pragma unroll 2
    for (int i = kHeld; place(i) < found; ++i) value = max(value, more_of(i));
    __syncwarp();
    return max(value, of_other_owner(value));
  }

  // Between two values, in octaves or nearly so. From 2^24 on rounding may put probes out of order, which costs turns.
  CUTE_DEVICE static uint32_t halfway(uint32_t low, uint32_t high) {
    return __float2uint_rz(__uint_as_float((__float_as_uint(float(low)) + __float_as_uint(float(high))) / 2));
  }
  CUTE_DEVICE static uint32_t middle(CutoffSearch const& search) {
    uint32_t const mass = search.sum_low - search.sum_high;  // of mass / low values at most
    if (mass / 3 < search.low) return (mass + 1) / 2;
    return mass / 4 < search.low ? (mass + 2) / 3 : halfway(search.low, search.high);
  }

  // Hardly ever: a tie is kept if it has few enough before it.
  CUTE_DEVICE void keep_ties(Cutoff const& cutoff, uint32_t* kept) const {
    #pragma unroll 1
    for (int i = 0; place(i) < found; ++i) {
      uint2 const own = entry(i);
      if (own.x != cutoff.value) continue;
      uint32_t before = 0;
      #pragma unroll 1
      for (int other = 0; other < found; ++other) before += list[other].x == own.x && list[other].y < own.y;
      add_column(kept, own.y, before < cutoff.ties);
    }
  }

  // No load to wait for, and no branch.
  CUTE_DEVICE static void add_column(uint32_t* kept, uint32_t column, bool yes) {
    asm volatile("{ .reg .pred yes; setp.ne.u32 yes, %2, 0; @yes red.relaxed.gpu.global.or.b32 [%0], %1; }"
                 ::"l"(kept + column / 32), "r"(1u << column % 32), "r"(uint32_t(yes)) : "memory");
  }
};

}  // namespace prism
