// The cut-off of one row by a search on the value: no sort. Sums and counts are integers, so exact and free of order.
//
// Runs on host and device: the caller supplies the sum, or the number, of all values >= x, e.g. one pass of a warp over its row.
#pragma once

#include <cute/config.hpp>

#include <cstdint>

namespace prism {

constexpr uint32_t kFixedOne = 1u << 30;  // probability 1: p * 2^30 is exact in fp32, and a row's sum fits uint32

constexpr uint32_t kAllTies = 0xffffffffu;

// Keeps values > value, and of those equal to it the `ties` with the lowest index. value 0 and all ties keep everything visible.
struct Cutoff {
  uint32_t value;
  uint32_t ties;
};

constexpr Cutoff kKeepAll{0u, kAllTies};
constexpr Cutoff kKeepNone{0xffffffffu, kAllTies};

// Where a search for the shortest prefix stands: low and high bracket the cut-off, sum_low >= target > sum_high are the sums of
// the values at and above each, the sum at 0 taken as infinite.
struct CutoffSearch {
  static constexpr float kMargin = 0.3f;  // of the root of the number of candidates: so far from a guess is the next probe
  static constexpr float kFewest = 4.f;   // candidates, from which on their mean separates them
  static constexpr int kHalving = 4;      // every so many turns the bracket is halved, whatever the values look like

  uint32_t target, low, high, sum_low, sum_high;
  float step;  // octaves to go while one side is unknown; doubles

  CUTE_HOST_DEVICE uint32_t next_probe(int turn) {
    if (low == 0 || sum_high == 0) return probe_outwards();
    if (turn % kHalving == 0) return low + (high - low) / 2;
    // Candidates are what adds up to mass: at most `most` values of [low, high).
    uint32_t const mass = sum_low - sum_high;
    float const most = float(mass) / float(low);
    if (most < kFewest) {
      uint32_t const count = uint32_t(most);
      return (mass + count - 1) / count;
    }
    // As if they were spread evenly, a little towards the farther end, to bring that in too.
    float const place = float(sum_low - target) / float(mass), margin = kMargin / sqrtf(most);
    float const part = place < 0.5f ? place + margin : place - margin, ratio = float(high) / float(low);
    float const ahead = ratio > 2.f ? float(low) * (exp2f(part * log2f(ratio)) - 1.f) : float(high - low) * part;
    return low + uint32_t(ahead > 0.f ? ahead : 0.f);
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

// The shortest prefix, in falling order, whose sum reaches target. target: 1 .. 2^30. bound: above every value, which add up to
// about 2^30. guess: where the cut-off may lie; spread: octaves by which it may be wrong. Both only save probes.
// sum_at_least(x): the sum of all values >= x, for x >= 1, below 2^32.
template <class SumAtLeast>
CUTE_HOST_DEVICE Cutoff find_cutoff(uint32_t target, uint32_t guess, float spread, uint32_t bound, SumAtLeast const& sum_at_least) {
  CutoffSearch search{target, 0, bound, 0, 0, spread};
  uint32_t probe = guess;
  for (int turn = 1; search.high - search.low > 1; ++turn) {
    probe = probe <= search.low ? search.low + 1 : probe >= search.high ? search.high - 1 : probe;
    uint32_t const sum = sum_at_least(probe);
    if (sum >= target) {
      search.low = probe;
      search.sum_low = sum;
    } else {
      search.high = probe;
      search.sum_high = sum;
    }
    // Two values in [low, high) would add up to 2 * low or more: a smaller sum is a single value, the one sought.
    uint32_t const mass = search.sum_low - search.sum_high;
    if (search.low > 0 && mass < 2 * search.low) return {mass, kAllTies};
    probe = search.next_probe(turn);
  }
  if (search.low == 0) return kKeepAll;
  return {search.low, (target - search.sum_high + search.low - 1) / search.low};
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
