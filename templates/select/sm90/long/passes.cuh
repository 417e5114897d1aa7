// What one thread makes of its 32 columns of two rows of a tile of scores, in each kind of pass. Scores are never stored: every pass has
// its own products, which give the same bits.
#pragma once

#include "select/long_params.h"
#include "select/sm90/long/bracket.cuh"

#include <cute/tensor.hpp>

namespace prism {

constexpr int kThreadColumns = 32;
constexpr int kThreadRows = 2;

// Of the accumulator: element 4n + 2r + e is row r, column 2n + e (traits.cuh).
CUTE_HOST_DEVICE constexpr int element_of(int column, int r) { return column / 2 * 4 + 2 * r + column % 2; }

// Four factors. Volatile, so that they are loaded where they stand: the compiler would load all of a tile's at once, and spill.
CUTE_DEVICE float4 load_factors(float const* from) {
  float4 x;
  asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(from));
  return x;
}

// f(column, row, score): score undoes the scaling of the key mean. down: of the tile, moved on to the thread's place in its quad.
template <class Tensor, class F>
CUTE_DEVICE void each_score(Tensor const& acc, float const* down, F const& f) {
  constexpr int kFours = kThreadColumns / 4, kFromFour = 4 * 4;  // the other threads' lie between
  float4 next = load_factors(down);
  CUTE_UNROLL
  for (int four = 0; four < kFours; ++four) {
    float const factor[] = {next.x, next.y, next.z, next.w};
    if (four + 1 < kFours) next = load_factors(down + (four + 1) * kFromFour);
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) {
      int const column = four * 4 + i;
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) f(column, r, acc(element_of(column, r)) * factor[i]);
    }
  }
}

// The first pass: a row's sum of exponentials, and counts of its values. Exponents are counted from a reference point, the largest logit of
// the row's first tile, which moves only where a later tile outgrows it by far.
struct RowSums {
  static constexpr float kMostSum = 0x1p60f;  // of a tile: beyond it the point moves

  float scale[kThreadRows];  // from a score to a logit in octaves
  float reference[kThreadRows], total[kThreadRows];
  Buckets buckets[kThreadRows];  // in octaves from the reference point
  uint32_t place[kThreadRows];   // of the rows' counts

  CUTE_DEVICE void start() {
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      reference[r] = -INFINITY;
      total[r] = 0.f;
      buckets[r] = Buckets::about(0.f, 1.f);
    }
  }

  // A tile. first: of the row. A row moves by its own logits alone. (Values of a tile in which a row moved are counted twice.)
  template <class Tensor>
  CUTE_DEVICE void add(Tensor const& acc, float const* down, bool first) {
    float sum[kThreadRows] = {INFINITY, INFINITY};  // a row without a point is to get one
    bool look = first;
    #pragma unroll 1
    for (;;) {
      if (look) move(acc, down, sum);
      if (first) place_buckets(acc, down);
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) sum[r] = 0.f;
      each_score(acc, down, [&](int, int r, float score) {
        float const octaves = fmaf(score, scale[r], -reference[r]);
        sum[r] += exp2f(octaves);
        buckets[r].count(place[r], octaves);
      });
      if (look || !__any_sync(kFullWarp, !(fmaxf(sum[0], sum[1]) <= kMostSum))) break;
      look = true;
    }
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) total[r] += sum[r];
  }

 private:
  // Moves the points of the rows that have outgrown them. sum: of the tile.
  template <class Tensor>
  CUTE_DEVICE void move(Tensor const& acc, float const* down, float const (&sum)[kThreadRows]) {
    float most[kThreadRows];
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) most[r] = -INFINITY;
    each_score(acc, down, [&](int, int r, float score) { most[r] = fmaxf(most[r], score); });
    bool grown[kThreadRows];
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {  // every lane, before any branch
      most[r] = quad_max(most[r]) * scale[r];
      grown[r] = quad_max(sum[r]) > kMostSum;
    }
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      if (!grown[r]) continue;
      float const growth = most[r] - reference[r];
      reference[r] = most[r];
      total[r] *= exp2f(-growth);
      buckets[r].offset += growth * buckets[r].slope;
    }
  }

  template <class Tensor>
  CUTE_DEVICE void place_buckets(Tensor const& acc, float const* down) {
    float visible[kThreadRows] = {}, first[kThreadRows] = {}, second[kThreadRows] = {};
    each_score(acc, down, [&](int, int r, float score) {
      float const octaves = fmaf(score, scale[r], -reference[r]);
      if (octaves > -INFINITY) {  // not hidden
        visible[r] += 1.f;
        first[r] += octaves;
        second[r] = fmaf(octaves, octaves, second[r]);
      }
    });
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      float const inverse = 1.f / quad_sum(visible[r]), mean = quad_sum(first[r]) * inverse;
      float const variance = quad_sum(second[r]) * inverse - mean * mean;
      buckets[r] = Buckets::about(mean, sqrtf(fmaxf(variance, 0.f)));
    }
  }
};

// A pass with a bracket: bits of what is kept for certain, bits and values of what lies in the bracket.
struct RowBits {
  static constexpr int kEntryBytes = 2 * kWarpSize * 4;  // from one value of a list to the next
  static constexpr int kMostEntries = kListEntries - 1 - kThreadColumns;  // before a tile: the list's end must not be the next one's start

  // From a score to log2 of an exponential, as in the first pass, and from that to a fixed-point value.
  float scale[kThreadRows], reference[kThreadRows], unit[kThreadRows];
  uint32_t low[kThreadRows], high[kThreadRows];
  uint32_t sum_high[kThreadRows], sum_between[kThreadRows];
  uint32_t list[kThreadRows];                     // where the next entries go: addresses, lower halves
  uint32_t list_top;                              // their upper half
  uint32_t kept[kThreadRows], open[kThreadRows];  // of the tile
  int dropped[kThreadRows];  // entries that a list had no room for

  CUTE_DEVICE void start(uint32_t* warp_list, int lane) {
    uint64_t const address = reinterpret_cast<uint64_t>(warp_list + lane);
    list_top = uint32_t(address >> 32);
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      list[r] = uint32_t(address) + r * kWarpSize * 4;
      sum_high[r] = sum_between[r] = 0;
      dropped[r] = 0;
    }
  }

  // Entries of a list: a warp's lie at a multiple of their size.
  CUTE_DEVICE static int count(uint32_t next) { return int(next % kWarpListBytes) / kEntryBytes; }

  // A tile. each(column, row, value): told of all fixed-point values.
  template <class Tensor, class Each>
  CUTE_DEVICE void add(Tensor const& acc, float const* down, Each const& each) {
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      int const excess = count(list[r]) - kMostEntries;
      if (excess > 0) dropped[r] += excess, list[r] -= excess * kEntryBytes;
      kept[r] = open[r] = 0;
    }
    each_score(acc, down, [&](int column, int r, float score) {
      uint32_t const x = __float2uint_rn(exp2f(fmaf(score, scale[r], -reference[r])) * unit[r]);
      each(column, r, x);
      asm volatile(
          "{ .reg .pred above, between; .reg .b64 place;\n\t"
          "setp.ge.u32 above, %6, %7; @above add.u32 %0, %0, %6; @above or.b32 %1, %1, %9;\n\t"
          "setp.ge.and.u32 between, %6, %8, !above; @between add.u32 %2, %2, %6; @between or.b32 %3, %3, %9;\n\t"
          "mov.b64 place, {%4, %5}; @between st.global.u32 [place], %6; @between add.u32 %4, %4, %10; }"
          : "+r"(sum_high[r]), "+r"(kept[r]), "+r"(sum_between[r]), "+r"(open[r]), "+r"(list[r])
          : "r"(list_top), "r"(x), "r"(high[r]), "r"(low[r]), "r"(1u << column), "n"(kEntryBytes));
    });
  }
};

// Where this thread's probabilities of a tile go.
struct ProbsPlace {
  int32_t* out;  // of row 0
  int64_t next_row;
  int visible[kThreadRows];  // of this thread's columns

  // At once: the compiler would keep all of a tile's, and spill.
  CUTE_DEVICE void put(int i, int r, uint32_t x) const {
    asm volatile("{ .reg .pred yes; setp.lt.s32 yes, %0, %1; @yes st.global.u32 [%2], %3; }" ::"r"(i), "r"(visible[r]),
                 "l"(out + r * next_row + i), "r"(x));
  }
};

}  // namespace prism
