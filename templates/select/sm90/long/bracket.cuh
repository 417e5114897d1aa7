// Where a row's cut-off may lie: a bracket of fixed-point values that is guessed, tried in a pass over the row, and narrowed until few
// enough values lie in it. Both threads that look after a row know the same of it.
#pragma once

#include "select/sm90/long/buckets.cuh"

namespace prism {

// What is known of a row's cut-off.
struct RowBracket {
  static constexpr uint32_t kBound = kFixedOne + (kFixedOne >> 16);  // exp2 and the row's sum may be wrong by 2^-20
  static constexpr float kFew = 64.f;  // values that are taken whole

  // What passes with other brackets have shown, as of CutoffSearch: the cut-off lies from `low` to `high`.
  struct Known {
    uint32_t low = 0, high = kBound, sum_low = 0, sum_high = 0;
    uint32_t ties = kAllTies;  // once decided: of the values that equal the cut-off, so many are still to be kept
  };

  uint32_t low, high;  // tried: values from high on are kept, those below low not

  // A row of which nothing is asked: all is kept, or nothing.
  CUTE_DEVICE void decide(bool keep_all) { low = high = keep_all ? 0u : ~0u; }
  CUTE_DEVICE bool decided() const { return low == high; }

  // unit: of fixed point, in octaves from what the stretch's are counted from.
  CUTE_DEVICE void guess(Stretch const& stretch, float unit) {
    auto const value = [&](float octaves) { return __float2uint_rz(exp2f(octaves + unit)); };
    low = max(min(value(stretch.low), kBound - 1u), 1u);  // hidden columns hold 0
    high = max(min(value(stretch.high), kBound - 1u) + 1u, low + 1u);
  }
  // Of a row that is listed whole: of so few columns that its sample tells little.
  static constexpr int kWholeColumns = 48;
  static_assert(kWholeColumns <= kListEntries);
  CUTE_DEVICE void take_whole() { low = 1, high = kBound; }

  // Takes in the sums at and above both ends, the number of the values between them, and whether all of them are listed. Returns
  // whether the cut-off lies there, and can be found; or moves the ends: by how close the values between them lie, and after some turns by
  // what is known of the sums, every third time by a half. Where ties do not fit into the lists, the next pass keeps values from them on,
  // and of the ties the first `ties`.
  CUTE_DEVICE bool learn(Known& known, uint32_t target, uint32_t sum_low, uint32_t sum_high, int found, bool listed, int turn) {
    if (decided()) return true;
    bool const above = sum_high >= target, below = !above && low > 0 && sum_low < target, inside = !above && !below;
    if (inside && listed) return true;
    if (inside && high - low == 1) {  // more ties than a list has room for
      known.ties = (target - sum_high + low - 1) / low;
      high = low;
      return false;
    }
    CutoffSearch search(target, CutoffStart{known.high, 0.f, 0.f, exp2f(float(turn - 2))});
    search.low = known.low;
    search.sum_low = known.sum_low;
    search.sum_high = known.sum_high;
    if (!below) search.learn(high, sum_high);
    if (!above && low > 0) search.learn(low, sum_low);
    known = {search.low, search.high, search.sum_low, search.sum_high, kAllTies};
    if (known.high <= 1) {  // a row without mass
      decide(true);
      return false;
    }
    uint32_t const between = sum_low - sum_high;
    if (inside && between % uint32_t(found) == 0) {  // perhaps all of them are the same: the ends of a tie
      low = between / uint32_t(found);
      high = low + 1;
    } else if (!(turn <= kByDensity && found >= kFewFound && move_by_density(search, inside, above, sum_low, sum_high, found))) {
      move(search, inside, turn);
    }
    return false;
  }

 private:
  static constexpr int kByDensity = 4;  // turns, after which values are taken to lie anywhere
  static constexpr int kFewFound = 4;   // values between the ends that tell how close values lie

  // As close as the values between the ends lie to each other, so do those beyond, and those about the place of the cut-off. False if that
  // leads nowhere.
  CUTE_DEVICE bool move_by_density(CutoffSearch const& search, bool inside, bool above, uint32_t sum_low, uint32_t sum_high, int found) {
    constexpr float kMore = 8.f, kMostHalf = 40.f;  // values; a list has room for twice as many and more
    float const between = float(sum_low - sum_high), number = float(found), top = float(high), bottom = float(low);
    float const span = 2.f * (top - between / number), gap = span / number;  // as they lie about their mean
    float from, to;
    if (inside) {
      float const centre = top - span * float(search.target - sum_high) / between;
      float const half = gap * fminf(2.f * sqrtf(number) + kMore, kMostHalf);
      from = centre - half, to = centre + half;
    } else {
      float const missing = above ? float(sum_high - search.target) / top : float(search.target - sum_low) / bottom;
      float const reach = gap * (missing + 2.f * sqrtf(missing) + kMore);
      from = above ? top : bottom - reach, to = above ? top + reach : bottom;
    }
    from = fmaxf(from, float(search.low)), to = fminf(to, float(search.high));
    if (!(to - from >= 1.f)) return false;
    low = max(__float2uint_rz(from), 1u);
    high = max(__float2uint_rz(to), low + 1u);
    return true;
  }

  // too_many: the values between the ends did not fit.
  CUTE_DEVICE void move(CutoffSearch& search, bool too_many, int turn) {
    uint32_t const width = search.high - search.low;
    // The neighbourhood of a guess that missed, wider every time: mostly it missed by little.
    int const doublings = min(turn, 16);
    uint32_t const reach = high - low > kBound >> doublings ? kBound : (high - low) << doublings;
    bool const few = !too_many && search.low > 0 && float(search.sum_low - search.sum_high) <= kFew * float(search.low);
    if (width <= 1 || few) {
      low = search.low;
      high = search.high;
    } else if (search.low == 0) {
      low = search.high > reach ? search.high - reach : 1u;
      high = search.high;
    } else if (search.sum_high == 0) {
      low = search.low;
      high = too_many ? search.next_probe(1) : min(low + reach, search.high);
    } else {
      // A window about where the cut-off would lie if the values were spread evenly; at times a wide one, whatever they look like.
      bool const halve = turn % 3 == 0;
      float const part = halve ? 0.5f : float(search.sum_low - search.target) / float(search.sum_low - search.sum_high);
      uint32_t const window = max(halve ? width / 2 : width / 8, 1u), centre = uint32_t(part * float(width));
      low = search.low + min(centre > window / 2 ? centre - window / 2 : 0u, width - window);
      high = low + window;
    }
  }
};

}  // namespace prism
