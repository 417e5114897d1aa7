// How many values of a row lie where, by their logarithm: counts in shared memory that the first pass fills, and the stretch of buckets
// in which the cut-off is to be sought. They only guide. Four threads, a quad, share two rows.
#pragma once

#include "select/sm90/cut.cuh"
#include "shared/warp.cuh"

namespace prism {

// What is to be found out about a row is done by two threads of its quad, one beside the other: a thread's own row is the first or the
// second of the two that it has columns of.
constexpr int kOwners = 2;  // of a row
CUTE_DEVICE int own_row() { return int(threadIdx.x) % 2; }
CUTE_DEVICE int owner() { return int(threadIdx.x) / 2 % kOwners; }
template <class T>
CUTE_DEVICE T of_other_owner(T x) { return __shfl_xor_sync(kFullWarp, x, 2); }
template <class T>
CUTE_DEVICE T row_sum(T x) { return x + of_other_owner(x); }
template <class T>
CUTE_DEVICE T of_own_row(T const (&of_rows)[2]) { return own_row() == 0 ? of_rows[0] : of_rows[1]; }

// Bucket b holds what is nearest to first + b * step, in octaves; the outer ones also what lies beyond. Counts are the bits of floats, from
// kNone on.
struct Buckets {
  static constexpr int kCount = 64;
  static constexpr uint32_t kNone = 0x4b000000u;  // of 2^23: the next bits are those of 2^23 + 1
  // Words from row to row: rows fall into different banks, are read 16 bytes at once, and have room for RowNotes.
  static constexpr int kStride = kCount + 4;
  // Of the deviation of a row's sample, about its mean: what is to be resolved. The cut-off lies above the mean in rows of few strong
  // columns, below it in even ones. A row of equal values has a deviation of 0.
  static constexpr float kBelow = 2.5f, kAbove = 3.5f, kLeastDeviation = 0x1p-14f;
  // In even rows what lies well above the cut-off is not told apart: lanes that count in one word, the row's last bucket, wait for nobody,
  // and the other buckets are narrower. The last one begins so many deviations above where normally spread logarithms would have the
  // cut-off, and further by what their mass lies above their mean; for each deviation less above, the first one ends so much further down:
  // hardly an even row of 2048 values has any there, which are not known well. (Simulated; with 1.25 more rows have their cut-off above.)
  static constexpr float kBeyond = 1.5f, kFurther = 0.3f;
  // Octaves above the mean. A row is even only if no column, also none that the sample lacks, can be more: one that outweighs the others
  // moves the cut-off to where even rows do not tell values apart.
  static constexpr float kMostEven = 8.f;

  float slope, offset;  // a value lies at slope * octaves + offset, from 0 to 1

  // most: octaves above the mean that no value exceeds.
  CUTE_DEVICE static Buckets about(float mean, float deviation, float most, float threshold) {
    constexpr float kLn2 = 0.6931472f;
    constexpr float kNormal = 1.f / 1.7f;  // times a quantile of the logistic distribution: about that of the normal one
    constexpr float kLeastAbove = -1.f;    // however near to 1 the threshold is, the buckets have a width
    float const mass = kLn2 * deviation, cutoff = mass + kNormal * __logf(1.f / threshold - 1.f);
    float const wanted = most <= kMostEven ? fmaxf(cutoff + mass + kBeyond, kLeastAbove) : kAbove;
    float const above = fminf(wanted, kAbove), below = kBelow + kFurther * (kAbove - above);
    float const width = fmaxf(deviation, kLeastDeviation), slope = 1.f / ((below + above) * width);
    return {slope, (below * width - mean) * slope};
  }
  CUTE_DEVICE float step() const { return 1.f / (slope * float(kCount - 1)); }
  CUTE_DEVICE float first() const { return -offset / slope; }

  // What to add to four times a bucket's number, the lower bits of a float above 2^23, for the address of a row's count (RowSums::add).
  CUTE_DEVICE static uint32_t place_of(uint32_t const* counts) {
    return cute::cast_smem_ptr_to_uint(counts) - __float_as_uint(0x1p23f) * uint32_t(sizeof(uint32_t));
  }
  CUTE_DEVICE static float number(uint32_t count) { return __uint_as_float(count) - 0x1p23f; }
  CUTE_DEVICE static void count(uint32_t place) { asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(place)); }
};

// A stretch in octaves. It has no end where it reaches an outer bucket.
struct Stretch {
  float low, high;
};

// Where the values from the largest down add up to `threshold` of `mass`, the sum of exp2 of all `columns`. counts: of the own row; hidden:
// columns that were counted in the first bucket and are none.
CUTE_DEVICE Stretch find_stretch(Buckets const& buckets, uint32_t const* counts, int columns, int hidden, float mass, float threshold) {
  constexpr int kLast = Buckets::kCount - 1, kOwn = Buckets::kCount / kOwners;  // buckets of a thread
  constexpr int kFew = 12;      // values: a stretch of fewer grows, since the mass of few values is not known well
  constexpr int kMostMore = 16;  // buckets on either side
  constexpr float kMostStrong = 80.f;
  constexpr float kMany = 12.f;  // values of one bucket: of so many, those about the interpolated place are taken
  // By so much the place may be wrong: five deviations of a place among so many values, or fewer where that would not fit into a list. Of
  // long rows four: a third pass now and then is little beside what a CTA does in all, and listing more costs each tile.
  constexpr int kManyColumns = 3072;
  constexpr float kLongDeviation = 2.f, kDeviation = 2.5f, kMostValues = 46.f, kBend = 0.01f;
  constexpr float kTop = 32.f;  // values from the bracket up: so few are taken whole, since the next larger one may lie octaves above
  constexpr float kMargin = 0.15f;                   // of a bucket
  constexpr float kPlaces = 2.9f;        // five deviations of a value's place in its bucket, in halves of the bucket
  constexpr float kLeastUnsure = 0.05f;  // values: for scores of high halves, which may be wrong by a hundredth of a deviation
  int const own_first = owner() * kOwn;
  // Values of bucket b are 2^(first + b * step) on average, and by `wide` more since they are spread over the bucket. The values below the
  // cut-off add up to what is not kept, so it is at least their mean.
  constexpr float kLn2 = 0.6931472f;
  float const first = buckets.first(), step = buckets.step(), ratio = exp2f(step), half = fminf(step * (0.5f * kLn2), 8.f);
  float const wide = half < 0.1f ? 1.f + half * half * (1.f / 6.f) : (__expf(half) - __expf(-half)) / (2.f * half);
  float const left = (1.f - threshold) * mass, least = __log2f(left / float(columns));
  int const least_bucket = int(fminf(fmaxf((least - first) / step, 0.f), float(kLast)));
  float number[kOwn], own[kOwn];  // values of this thread's buckets, and what they add up to
  CUTE_UNROLL
  for (int four = 0; four < kOwn; four += 4) {
    uint4 const x = *reinterpret_cast<uint4 const*>(counts + own_first + four);
    number[four] = Buckets::number(x.x), number[four + 1] = Buckets::number(x.y);
    number[four + 2] = Buckets::number(x.z), number[four + 3] = Buckets::number(x.w);
  }
  if (owner() == 0) number[0] -= float(hidden);
  float below = 0.f, value = wide * exp2f(fmaf(float(own_first), step, first));
  CUTE_UNROLL
  for (int i = 0; i < kOwn; ++i) {
    own[i] = number[i] * value;
    value *= ratio;
    if (i + 1 == kOwn && owner() + 1 == kOwners) own[i] = 0.f;  // of the last bucket it is known only that it has the rest
    below += own[i];
  }
  float const before = of_other_owner(below);
  float end = owner() == 0 ? 0.f : before;  // up to this thread's buckets, and then from one to the next
  // The bucket in which the mass from below passes what is not kept; if none does it is the last.
  int passed = 0;
  float under = 0.f;
  CUTE_UNROLL
  for (int i = 0; i < kOwn; ++i) {
    end += own[i];
    if (end <= left) ++passed, under = end;
  }
  int const bucket = min(row_sum(passed), kLast);
  under = fmaxf(under, of_other_owner(under));
  // How many values there are from a bucket up.
  auto const from = [&](int place) {
    float sum = 0.f;
    CUTE_UNROLL
    for (int i = 0; i < kOwn; ++i) sum += i >= place - own_first ? number[i] : 0.f;
    return row_sum(sum);
  };
  auto const count = [&](int place) {
    return place < 0 || place > kLast ? 0 : int(counts[place] - Buckets::kNone) - (place == 0 ? hidden : 0);
  };
  float const strong = from(least_bucket);
  int values = count(bucket), more = 0;
  // Inside the bucket the mass grows at an even rate, as its neighbours and the values themselves do.
  float const here = float(values), part = bucket == kLast ? mass - under : here * wide * exp2f(fmaf(float(bucket), step, first));
  float const part_place = (left - under) / fmaxf(part, 1e-30f);
  float const slope = fmaf(step, kLn2, float(count(bucket + 1) - count(bucket - 1)) / (2.f * here));
  float const place = fabsf(slope) < 0.1f ? fmaf(slope * 0.5f * part_place, 1.f - part_place, part_place)
                                          : __logf(fmaf(part_place, __expf(fminf(slope, 20.f)) - 1.f, 1.f)) / slope;
  // How far, in values like those here, the mass below the bucket may be off: each value lies somewhere in its bucket, those of the first
  // one anywhere below it. A cut-off further than that from both ends of its bucket lies inside it.
  float const unsure = fmaf(kPlaces * half, sqrtf(left * here / part), float(count(0)) * exp2f(-float(bucket) * step) + kLeastUnsure);
  bool const sure = bucket > 0 && bucket < kLast && fminf(part_place, 1.f - part_place) * here > unsure;
  #pragma unroll 1
  while (!sure && values < kFew && more < kMostMore) {
    ++more;
    values += count(bucket - more) + count(bucket + more);
  }
  float const deviation = columns < kManyColumns ? kDeviation : kLongDeviation;
  float const margin = fminf(deviation * rsqrtf(here) + kBend, kMostValues / here);  // of the bucket
  bool const inside = more == 0 && here >= kMany;
  float const top = from(bucket - more);  // every lane, before any branch
  bool const endless = !sure && (bucket + more >= kLast || top <= kTop);
  float down = inside ? place - margin : fminf(place - kMargin, -float(more) - (more > 0 ? kMargin : 0.f));
  float up = inside ? place + margin : fmaxf(place + kMargin, 1.f + float(more) + (more > 0 ? kMargin : 0.f));
  if (sure) down = fmaxf(place - margin, -kMargin), up = fminf(place + margin, 1.f + kMargin);
  float const bottom = least - 0.01f;  // the cut-off is at least the mean of what is not kept
  if (strong <= kMostStrong && least_bucket > 0) return {bottom, INFINITY};  // few strong values: all from there on
  float const origin = first + (float(bucket) - 0.5f) * step;
  return {bucket - more <= 0 ? bottom : fmaxf(fmaf(down, step, origin), bottom), endless ? INFINITY : fmaf(up, step, origin)};
}

}  // namespace prism
