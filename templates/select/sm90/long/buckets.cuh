// How many values of a row lie where, by their logarithm: counts in shared memory that the first pass fills, and the stretch of buckets
// in which the cut-off is to be sought. They only guide. Four threads, a quad, share a row.
#pragma once

#include "select/sm90/cut.cuh"

namespace prism {

template <class T>
CUTE_DEVICE T quad_sum(T x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}
CUTE_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

// Bucket b holds what is nearest to first + b * step, in octaves; the outer ones also what lies beyond.
struct Buckets {
  static constexpr int kCount = 64;
  static constexpr int kStride = kCount + 1;  // words from row to row: odd, so that rows fall into different banks
  // Of the deviation of a row's first tile, about its mean: what is to be resolved. The cut-off lies above the mean in rows of few strong
  // columns, below it in even ones. A row of equal values has a deviation of 0.
  static constexpr float kBelow = 3.5f, kAbove = 4.5f, kLeastDeviation = 0x1p-14f;

  float slope, offset;  // a value lies at slope * octaves + offset, from 0 to 1

  CUTE_DEVICE static Buckets about(float mean, float deviation) {
    float const width = fmaxf(deviation, kLeastDeviation), slope = 1.f / ((kBelow + kAbove) * width);
    return {slope, (kBelow * width - mean) * slope};
  }
  CUTE_DEVICE float step() const { return 1.f / (slope * float(kCount - 1)); }
  CUTE_DEVICE float first() const { return -offset / slope; }

  // Counts a value. place: place_of(counts of the row). Four instructions: the bucket's number is the lower bits of a float above 2^23.
  CUTE_DEVICE static uint32_t place_of(uint32_t const* counts) {
    return cute::cast_smem_ptr_to_uint(counts) - __float_as_uint(0x1p23f) * uint32_t(sizeof(uint32_t));
  }
  CUTE_DEVICE void count(uint32_t place, float octaves) const {
    float const bucket = fmaf(__saturatef(fmaf(octaves, slope, offset)), float(kCount - 1), 0x1p23f);
    asm volatile("{ .reg .b32 x; mad.lo.u32 x, %0, 4, %1; red.shared.add.u32 [x], 1; }" ::"r"(__float_as_uint(bucket)), "r"(place));
  }
};

// A stretch in octaves. It has no end where it reaches an outer bucket.
struct Stretch {
  float low, high;
};

// Where the values from the largest down add up to `threshold` of `mass`, the sum of exp2 of all `columns`. counts: of the row; hidden:
// columns that were counted in the first bucket and are none.
CUTE_DEVICE Stretch find_stretch(Buckets const& buckets, uint32_t const* counts, int columns, int hidden, float mass, float threshold) {
  constexpr int kLast = Buckets::kCount - 1, kOwn = Buckets::kCount / 4;  // buckets of a thread
  constexpr int kFew = 32;     // values: a stretch of fewer grows, since the mass of few values is not known well
  constexpr int kMostMore = 8;  // buckets on either side
  constexpr int kMostStrong = 128;
  constexpr float kMany = 128.f;  // values of one bucket: of more, those about the interpolated place are taken
  constexpr float kDeviation = 1.5f, kBend = 0.06f;  // of the root of their number, of the bucket: by so much the place may be wrong
  constexpr float kMargin = 0.15f;                   // of a bucket
  int const thread = threadIdx.x % 4;
  auto const count = [&](int bucket) {
    return bucket < 0 || bucket > kLast ? 0 : int(counts[bucket]) - (bucket == 0 ? hidden : 0);
  };
  float const first = buckets.first(), step = buckets.step(), ratio = exp2f(step), start = exp2f(first + float(thread * kOwn) * step);
  auto const each = [&](auto const& f) {  // this thread's buckets but for the last of all, upwards
    float value = start;
    #pragma unroll 4
    for (int i = thread * kOwn; i < (thread + 1) * kOwn && i < kLast; ++i, value *= ratio) {
      int const values = count(i);
      f(i, values > 0 ? float(values) * value : 0.f);
    }
  };
  float own = 0.f;
  each([&](int, float part) { own += part; });
  float below = own;  // mass under this thread's buckets
  float const from_one = __shfl_up_sync(kFullWarp, below, 1, 4);
  if (thread >= 1) below += from_one;
  float const from_two = __shfl_up_sync(kFullWarp, below, 2, 4);
  if (thread >= 2) below += from_two;
  float const all = __shfl_sync(kFullWarp, below, 3, 4);
  below -= own;
  // The values below the cut-off add up to what is not kept, so it is at least their mean. Few strong values: all from there on.
  float const least = __log2f((1.f - threshold) * mass / float(columns));
  int const least_bucket = int(fminf(fmaxf((least - first) / step, 0.f), float(kLast))), counted_from = max(least_bucket, thread * kOwn);
  int strong = 0;
  for (int i = counted_from; i < (thread + 1) * kOwn; ++i) strong += count(i);
  bool const all_strong = quad_sum(strong) <= kMostStrong && least_bucket > 0;
  // The bucket in which the mass from below passes what is not kept; the last one has the rest.
  float const left = (1.f - threshold) * mass;
  float part = mass - all, under = all;
  int bucket = kLast;
  each([&](int i, float x) {
    if (bucket == kLast && below + x > left) bucket = i, part = x, under = below;
    below += x;
  });
  CUTE_UNROLL
  for (int offset = 1; offset < 4; offset *= 2) {
    int const other = __shfl_xor_sync(kFullWarp, bucket, offset);
    float const other_part = __shfl_xor_sync(kFullWarp, part, offset), other_under = __shfl_xor_sync(kFullWarp, under, offset);
    if (other < bucket) bucket = other, part = other_part, under = other_under;
  }
  int values = count(bucket), more = 0;
  float const place = (left - under) / fmaxf(part, 1e-30f), here = float(values);
  while (values < kFew && more < kMostMore) {
    ++more;
    values += count(bucket - more) + count(bucket + more);
  }
  float const margin = kDeviation * rsqrtf(here) + kBend;
  bool const inside = more == 0 && here > kMany;
  float const down = inside ? place - margin : fminf(place - kMargin, -float(more) - (more > 0 ? kMargin : 0.f));
  float const up = inside ? place + margin : fmaxf(place + kMargin, 1.f + float(more) + (more > 0 ? kMargin : 0.f));
  if (all_strong) return {least - 0.01f, INFINITY};
  float const origin = first + (float(bucket) - 0.5f) * step;
  return {bucket - more <= 0 ? -INFINITY : fmaf(down, step, origin), bucket + more >= kLast ? INFINITY : fmaf(up, step, origin)};
}

}  // namespace prism
