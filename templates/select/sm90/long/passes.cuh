// What one thread makes of its 32 columns of two rows of a tile of scores, in each kind of pass. Scores are never stored: every pass has
// its own products, which give the same bits.
#pragma once

#include "select/long_params.h"
#include "select/sm90/long/bracket.cuh"
#include "select/sm90/long/traits.cuh"

#include <cute/tensor.hpp>

namespace prism {

constexpr int kThreadColumns = kTileHalves * kHalfColumns;
constexpr int kThreadRows = 2;

// Of the accumulator: element 4n + 2r + e is row r, column 2n + e (traits.cuh).
CUTE_HOST_DEVICE constexpr int element_of(int column, int r) { return column / 2 * 4 + 2 * r + column % 2; }

// f(column, row, score), of every so many columns.
template <int kEvery = 1, class Tensor, class F>
CUTE_DEVICE void each_score(Tensor const& acc, F const& f) {
  CUTE_UNROLL
  for (int column = 0; column < kThreadColumns; column += kEvery) {
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) f(column, r, acc(element_of(column, r)));
  }
}

// The same in two steps, group by group: x = first(row, score) of all of a group, so that their latencies overlap, then
// second(column, row, x) in order.
constexpr int kGroupColumns = 2;
template <class X, class Tensor, class First, class Second>
CUTE_DEVICE void each_group(Tensor const& acc, int halves, First const& first, Second const& second) {
  CUTE_UNROLL
  for (int group = 0; group < kThreadColumns; group += kGroupColumns) {
    if (group == kHalfColumns && halves == 1) break;
    X x[kGroupColumns][kThreadRows];
    CUTE_UNROLL
    for (int i = 0; i < kGroupColumns * kThreadRows; ++i) {
      x[i / kThreadRows][i % kThreadRows] = first(i % kThreadRows, acc(element_of(group + i / kThreadRows, i % kThreadRows)));
    }
    CUTE_UNROLL
    for (int i = 0; i < kGroupColumns * kThreadRows; ++i) {
      second(group + i / kThreadRows, i % kThreadRows, x[i / kThreadRows][i % kThreadRows]);
    }
  }
}

// Of logits in octaves, as far as they have been looked at.
struct Moments {
  float number, mean, variance;

  CUTE_DEVICE Moments with(Moments const& other) const {
    float const all = number + other.number, part = other.number / all, apart = other.mean - mean;
    return {all, fmaf(part, apart, mean), fmaf(part, other.variance - variance, variance) + part * (1.f - part) * apart * apart};
  }
};

// What is known of a row before the first pass counts its values.
struct RowNotes {
  Moments sample;
  float error;  // in octaves, of a score of the first pass
};

// The first pass: a row's sum of exponentials, and counts of its values, from scores of high halves: it tells where to look, and about what
// the row adds up to. Exponents are counted from a reference point, the largest logit of the row's sample and first tile or so,
// which moves only where a later tile outgrows it by far.
struct RowSums {
  static constexpr float kMostSum = 0x1p60f;  // of a tile: beyond it the point moves

  float threshold;
  float scale[kThreadRows];  // from a score to a logit in octaves
  float reference[kThreadRows], total[kThreadRows];
  Buckets buckets[kThreadRows];  // in octaves from the reference point
  uint32_t place[kThreadRows];   // of the rows' counts

  CUTE_DEVICE void start() {
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      reference[r] = -INFINITY;
      total[r] = 0.f;
      buckets[r] = {1.f, 0.f};
    }
  }

  // A tile. step: kSample, of a tile that comes again, kFirst, of the row's first one, or kOther. notes: of both rows. A row moves by its
  // own logits alone. (Where a row of the warp moved, or holds a NaN, a tile's values are counted twice.)
  enum class Step { kSample, kFirst, kOther };
  template <class Tensor>
  CUTE_DEVICE void add(Tensor const& acc, Step step, int halves, RowNotes* const (&notes)[kThreadRows]) {
    float sum[kThreadRows];
    bool moved = false;
    if (step != Step::kOther) measure(acc, step, notes);
    if (step == Step::kSample) return;
    #pragma unroll 1
    for (;;) {
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) sum[r] = 0.f;
      struct Value {
        float power;
        uint32_t place;
      };
      each_group<Value>(
          acc, halves,
          [&](int r, float score) {
            Value value;
            asm volatile(
                "{ .reg .f32 octaves, part; fma.rn.ftz.f32 octaves, %2, %3, %4; ex2.approx.ftz.f32 %0, octaves;\n\t"
                "fma.rn.ftz.sat.f32 part, octaves, %5, %6; fma.rn.ftz.f32 part, part, %7, %8;\n\t"
                "mov.b32 %1, part; mad.lo.u32 %1, %1, 4, %9; }"
                : "=f"(value.power), "=r"(value.place)
                : "f"(score), "f"(scale[r]), "f"(-reference[r]), "f"(buckets[r].slope), "f"(buckets[r].offset),
                  "f"(float(Buckets::kCount - 1)), "f"(0x1p23f), "r"(place[r]));
            return value;
          },
          [&](int, int r, Value const& value) {
            Buckets::count(value.place);
            sum[r] += value.power;
          });
      if (moved || !__any_sync(kFullWarp, !(fmaxf(sum[0], sum[1]) <= kMostSum))) break;
      move(acc, sum);
      moved = true;
    }
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) total[r] += sum[r];
  }

 private:
  // Moves the points of the rows that have outgrown them. sum: of the tile.
  template <class Tensor>
  CUTE_DEVICE void move(Tensor const& acc, float const (&sum)[kThreadRows]) {
    float most[kThreadRows];
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) most[r] = -INFINITY;
    each_score(acc, [&](int, int r, float score) { most[r] = fmaxf(most[r], score); });
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

  // What every second column shows: a point for rows that have none, or a lower one, and where to count.
  template <class Tensor>
  CUTE_DEVICE void measure(Tensor const& acc, Step step, RowNotes* const (&notes)[kThreadRows]) {
    constexpr int kEvery = 2;  // of 64 columns of a tile a deviation is known to a twelfth
    float most[kThreadRows] = {-INFINITY, -INFINITY}, visible[kThreadRows] = {}, first[kThreadRows] = {}, second[kThreadRows] = {};
    each_score<kEvery>(acc, [&](int, int r, float score) { most[r] = fmaxf(most[r], score); });
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) reference[r] = fmaxf(reference[r], quad_max(most[r]) * scale[r]);
    each_score<kEvery>(acc, [&](int, int r, float score) {
      float const octaves = fmaf(score, scale[r], -reference[r]);
      if (octaves > -INFINITY) {  // not hidden
        visible[r] += 1.f;
        first[r] += octaves;
        second[r] = fmaf(octaves, octaves, second[r]);
      }
    });
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      float const number = quad_sum(visible[r]), mean = quad_sum(first[r]) / number;
      Moments const now{number, mean + reference[r], fmaxf(quad_sum(second[r]) / number - mean * mean, 0.f)};
      if (step == Step::kSample) {
        if (threadIdx.x % 4 == 0) notes[r]->sample = now;
      } else {
        Moments const both = notes[r]->sample.with(now);
        float const most = notes[r]->error * (1.f / kHighError) - both.mean;  // the product of the largest lengths
        buckets[r] = Buckets::about(both.mean - reference[r], sqrtf(both.variance), most, threshold);
      }
    }
    __syncwarp();
  }
};

// A pass with a bracket: bits of what is kept for certain, values and columns of what lies in the bracket.
struct RowBits {
  static constexpr int kTogether = 4;  // whose values are made before any is looked at: their latencies overlap
  static constexpr int kStageBytes = kHalfColumns * kThreadRows * kWarpSize * 4;  // a warp's values of half a tile, in shared memory
  // Behind them a counter for each of the warp's rows.
  static constexpr int kNextRow = 8;  // rows from a thread's first to its second
  static constexpr int kFoundBytes = kThreadRows * kNextRow * int(sizeof(uint32_t));
  static_assert(kStageBytes + kFoundBytes <= 16 * Buckets::kStride * int(sizeof(uint32_t)), "in place of a warp's counts");
  static constexpr int kFourBytes = kWarpSize * 16;  // from four neighbouring values to the next four: [row][four][lane][4]

  float scale[kThreadRows], shift[kThreadRows];  // from a score to log2 of its fixed-point value
  uint32_t low[kThreadRows], high[kThreadRows];
  uint32_t total[kThreadRows];  // of all values; these sums are of this thread
  uint32_t sum_high[kThreadRows], sum_between[kThreadRows];  // until end(), sum_between[0] is that of both rows
  uint32_t kept[kThreadRows];  // of half a tile
  uint2* lists;                // of all CTAs
  uint32_t first_entry;        // there, of this thread's first row
  uint32_t stage;              // address: of this lane's first four values
  // Address, kStageBytes below (an instruction adds that; an address more in a register would spill): of the first row's counter of values
  // in its bracket, listed or not.
  uint32_t found;

  CUTE_DEVICE void start() {
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) total[r] = sum_high[r] = sum_between[r] = 0;
  }

  // Once a pass is over.
  CUTE_DEVICE void end() { sum_between[0] -= sum_between[1]; }

  // A tile, or its first half alone. first_column: this thread's. each(first, i, row, value): told of all fixed-point values, of column i
  // from the thread's first one in a half. keep(first): once the bits of a half are known.
  template <class Tensor, class Each, class Keep>
  CUTE_DEVICE void add(Tensor const& acc, int first_column, int halves, Each const& each, Keep const& keep) {
    append(look<0>(acc, first_column, each), first_column);
    keep(first_column);
    if (halves == 1) return;
    append(look<1>(acc, first_column + kHalfTile, each), first_column + kHalfTile);
    keep(first_column + kHalfTile);
  }

 private:
  // Returns what lies in the bracket: a bit for each column of row 0, then of row 1.
  template <int kHalf, class Tensor, class Each>
  CUTE_DEVICE uint32_t look(Tensor const& acc, int column, Each const& each) {
    uint32_t open = 0;
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) kept[r] = 0;
    CUTE_UNROLL
    for (int first = 0; first < kHalfColumns; first += kTogether) {
      uint32_t x[kThreadRows][kTogether];
      CUTE_UNROLL
      for (int i = 0; i < kTogether * kThreadRows; ++i) {
        int const r = i % kThreadRows, place = first + i / kThreadRows;
        x[r][i / kThreadRows] = fixed(r, acc(element_of(kHalf * kHalfColumns + place, r)));
      }
      CUTE_UNROLL
      for (int i = 0; i < kTogether * kThreadRows; ++i) {
        int const r = i % kThreadRows, place = first + i / kThreadRows;
        each(column, place, r, x[r][i / kThreadRows]);
        asm volatile(
            "{ .reg .pred above, between; setp.ge.u32 above, %3, %4; @above add.u32 %0, %0, %3; @above or.b32 %1, %1, %6;\n\t"
            "setp.ge.and.u32 between, %3, %5, !above; @between or.b32 %2, %2, %7; }"
            : "+r"(sum_high[r]), "+r"(kept[r]), "+r"(open)
            : "r"(x[r][i / kThreadRows]), "r"(high[r]), "r"(low[r]), "r"(1u << place), "r"(1u << (r * kHalfColumns + place)));
      }
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        CUTE_UNROLL
        for (int i = 0; i < kTogether; i += 4) {
          total[r] += x[r][i] + x[r][i + 1];
          total[r] += x[r][i + 2] + x[r][i + 3];
          uint32_t const place = stage + (r * (kHalfColumns / 4) + (first + i) / 4) * kFourBytes;
          uint32_t const four = 0xfu << (r * kHalfColumns + first + i);
          asm volatile(  // only what append() will read
              "{ .reg .pred some; .reg .b32 x; and.b32 x, %5, %6; setp.ne.u32 some, x, 0;\n\t"
              "@some st.shared.v4.u32 [%0], {%1, %2, %3, %4}; }" ::"r"(place),
              "r"(x[r][i]), "r"(x[r][i + 1]), "r"(x[r][i + 2]), "r"(x[r][i + 3]), "r"(open), "r"(four));
        }
      }
    }
    return open;
  }

  CUTE_DEVICE uint32_t fixed(int r, float score) const {
    uint32_t x;
    asm volatile("{ .reg .f32 p; fma.rn.ftz.f32 p, %1, %2, %3; ex2.approx.ftz.f32 p, p; cvt.rni.u32.f32 %0, p; }"
                 : "=r"(x) : "f"(score), "f"(scale[r]), "f"(shift[r]));
    return x;
  }

  // Lists what half a tile has in the brackets, in any order: what follows from a list does not depend on it.
  CUTE_DEVICE void append(uint32_t open, int first_column) {
    static_assert(kHalfColumns == 16 && kThreadRows == 2);
    #pragma unroll 1
    for (; open != 0; open &= open - 1) {
      uint32_t const bit = uint32_t(__ffs(int(open)) - 1);
      bool const second = bit >= kHalfColumns;
      uint32_t x, place;
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(stage + bit / 4 * kFourBytes + bit % 4 * 4));
      uint32_t const counter = found + (second ? kNextRow * uint32_t(sizeof(uint32_t)) : 0u);
      asm volatile("atom.shared.add.u32 %0, [%1+%2], 1;" : "=r"(place) : "r"(counter), "n"(kStageBytes));
      if (place < kListEntries) {
        lists[first_entry + (second ? uint32_t(kNextRow * kListEntries) : 0u) + place] = make_uint2(x, first_column + bit % kHalfColumns);
      }
      sum_between[0] += x;
      sum_between[1] += second ? x : 0u;
    }
    __syncwarp();
  }
};

// Where this thread's probabilities of a tile go.
struct ProbsPlace {
  int32_t* out;  // of row 0
  int next_row;  // so many integers on

  // At once: the compiler would keep all of a tile's, and spill.
  CUTE_DEVICE void put(bool visible, int i, int r, uint32_t x) const {
    asm volatile("{ .reg .pred yes; .reg .s64 at; setp.ne.u32 yes, %0, 0; mad.wide.s32 at, %2, 4, %1; @yes st.global.u32 [at], %3; }"
                 ::"r"(uint32_t(visible)), "l"(out), "r"(r * next_row + i), "r"(x));
  }
};

}  // namespace prism
