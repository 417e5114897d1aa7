// The cut-off of one row by a search on the value: no sort. Sums and counts are integers, so exact and free of order.
//
// Runs on host and device: the caller supplies the sum, or the number, of all values >= x, e.g. one pass of a warp over its row.
#pragma once

#include <cute/config.hpp>

#include <cstdint>

namespace prism {

// The mass of probability 1; in long rows the most that it may be. p * 2^30 is exact in fp32, and a row's sum fits uint32.
constexpr uint32_t kFixedOne = 1u << 30;

constexpr uint32_t kAllTies = 0xffffffffu;

// Keeps values > value, and of those equal to it the `ties` with the lowest index. value 0 and all ties keep everything visible.
struct Cutoff {
  uint32_t value;
  uint32_t ties;
};

constexpr Cutoff kKeepAll{0u, kAllTies};
constexpr Cutoff kKeepNone{0xffffffffu, kAllTies};

// What a search starts from: every value is below bound. The rest guides it, right or wrong: mean and deviation of log2 of a value,
// weighted with it, and octaves by which a guess may miss.
struct CutoffStart {
  uint32_t bound;
  float centre, width, spread;
};

// A search for the shortest prefix whose sum reaches target. low and high bracket the cut-off: the sums of the values at and above
// each are sum_low >= target > sum_high, the sum at 0 taken as infinite.
struct CutoffSearch {
  static constexpr float kMargin = 0.3f;  // of the root of the number of candidates: so far from a guess is the next probe
  static constexpr float kFewest = 4.f;   // candidates, from which on their mean separates them
  static constexpr int kHalving = 4;      // every so many turns the bracket is halved, whatever the values look like

  uint32_t target, low, high, sum_low, sum_high;
  float step;  // octaves to go while one side is unknown; doubles

  CUTE_HOST_DEVICE CutoffSearch(uint32_t sum_target, CutoffStart const& start)
      : target(sum_target), low(0), high(start.bound), sum_low(0), sum_high(0), step(start.spread) {}

  // Takes in the sum of all values >= probe.
  CUTE_HOST_DEVICE void learn(uint32_t probe, uint32_t sum) {
    learn_low(probe, sum);
    learn_high(probe, sum);
  }
  // The same of several probes: the lower end from the least one on, the upper end from the largest one on.
  CUTE_HOST_DEVICE void learn_low(uint32_t probe, uint32_t sum) {
    if (sum >= target) low = probe, sum_low = sum;
  }
  CUTE_HOST_DEVICE void learn_high(uint32_t probe, uint32_t sum) {
    if (sum < target) high = probe, sum_high = sum;
  }

  // Whether the cut-off is known: one value is left, or several equal ones.
  CUTE_HOST_DEVICE bool settled(Cutoff& cutoff) const {
    // Two values in [low, high) would add up to 2 * low or more: a smaller sum is a single value, the one sought.
    uint32_t const mass = sum_low - sum_high;
    if (low > 0 && mass < 2 * low) {
      cutoff = {mass, kAllTies};
      return true;
    }
    if (high - low > 1) return false;
    cutoff = low == 0 ? kKeepAll : Cutoff{low, (target - sum_high + low - 1) / low};
    return true;
  }

  // Whether one value is left, or several equal ones, for low > 0; settled() tells which.
  CUTE_HOST_DEVICE bool single() const { return high - low <= 1 || sum_low - sum_high < 2 * low; }

  // Whether at most `count` values are left, a power of two; the number is not known better than that.
  template <uint32_t count>
  CUTE_HOST_DEVICE bool few() const {
    static_assert((count & (count - 1)) == 0, "a shift");
    return low > 0 && (sum_low - sum_high) / count < low;
  }

  // Where to look next, from turn 1 on.
  CUTE_HOST_DEVICE uint32_t next_probe(int turn) {
    if (low == 0 || sum_high == 0) return inside(probe_outwards());
    if (turn % kHalving == 0) return low + (high - low) / 2;
    // Candidates are what adds up to mass: at most `most` values of [low, high).
    uint32_t const mass = sum_low - sum_high;
    float const most = float(mass) / float(low);
    if (most < kFewest) {
      uint32_t const count = uint32_t(most);
      return inside((mass + count - 1) / count);
    }
    // As if they were spread evenly, a little towards the farther end, to bring that in too.
    float const place = float(sum_low - target) / float(mass), margin = kMargin / sqrtf(most);
    float const part = place < 0.5f ? place + margin : place - margin, ratio = float(high) / float(low);
    float const ahead = ratio > 2.f ? float(low) * (exp2f(part * log2f(ratio)) - 1.f) : float(high - low) * part;
    return inside(low + uint32_t(ahead > 0.f ? ahead : 0.f));
  }

  // Every probe lies strictly between low and high, which are at least 2 apart.
  CUTE_HOST_DEVICE uint32_t inside(uint32_t probe) const {
    return probe <= low ? low + 1 : probe >= high ? high - 1 : probe;
  }

 private:
  CUTE_HOST_DEVICE uint32_t probe_outwards() {
    float const factor = exp2f(step);
    step *= 2.f;
    if (low == 0) return uint32_t(float(high) / factor);
    float const above = float(low) * factor;
    return above < float(high) ? uint32_t(above) : low + (high - low) / 2;
  }
};

// The shortest prefix, in falling order, whose sum reaches target, or all values. target: at least 1. guess: the first probe.
// sum_at_least(x): the sum of all values >= x, for x >= 1, below 2^32. narrow(search): moves low and high together, once, when few values
// are left between them.
template <class SumAtLeast, class Narrow>
CUTE_HOST_DEVICE Cutoff find_cutoff(uint32_t target, uint32_t guess, CutoffStart const& start, SumAtLeast const& sum_at_least,
                                    Narrow const& narrow) {
  constexpr uint32_t kFew = 128;  // simulated: with it 2 or 3 sums do for rows of 256 to 2048 values, flat or peaked, before and after
  CutoffSearch search(target, start);
  Cutoff cutoff = kKeepAll;
  uint32_t probe = search.inside(guess);
  bool narrowed = false;
  for (int turn = 1;; ++turn) {
    search.learn(probe, sum_at_least(probe));
    if (search.settled(cutoff)) return cutoff;
    if (!narrowed && search.few<kFew>()) {
      narrow(search);
      if (search.settled(cutoff)) return cutoff;
      narrowed = true;
    }
    probe = search.next_probe(turn);
  }
}

// The first `rank` values in falling order. bound: above every value. count_at_least(x): the number of values >= x, for x >= 1.
template <class CountAtLeast>
CUTE_HOST_DEVICE Cutoff find_rank(uint32_t rank, uint32_t bound, CountAtLeast const& count_at_least) {
  if (rank == 0) return kKeepNone;
  uint32_t low = 0, high = bound, count_high = 0;  // count(>= low) >= rank > count(>= high), taking the count at 0 as infinite
  while (high - low > 1) {
    uint32_t const probe = low + (high - low) / 2, count = count_at_least(probe);
    if (count == rank) return {probe, kAllTies};
    if (count > rank) {
      low = probe;
    } else {
      high = probe;
      count_high = count;
    }
  }
  return {low, rank - count_high};
}

}  // namespace prism
