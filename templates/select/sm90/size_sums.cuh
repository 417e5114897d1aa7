// The last step of a search for a cut-off: the few masses left in its bracket, added up by size in shared memory. Sums are
// integers, so nothing depends on the order of the atomics. (All values of a row at once collide: flat rows took .39 ms instead of .26.)
#pragma once

#include "select/cutoff.h"
#include "shared/warp.cuh"

#include <cute/arch/util.hpp>

namespace prism {

// One warp's memory.
struct SizeSums {
  static constexpr int kEntries = 256;  // of falling values
  static constexpr int kLaneEntries = kEntries / kWarpSize;

  alignas(16) uint32_t sum[kEntries + kWarpSize];  // behind the entries a place for each lane, where what does not count goes

  // Narrows a bracket to 1/128 of its width, or less.
  template <class Row>
  CUTE_DEVICE void narrow(Row const& row, CutoffSearch& search) {
    int const lane = threadIdx.x % kWarpSize;
    uint32_t const top = search.high - 1, width = search.high - search.low, outside = kEntries + lane;
    int const shift = max(kWarpSize - __clz(int((width - 1) / kEntries)), 0);
    uint32_t const place = cute::cast_smem_ptr_to_uint(sum);
    clear(lane);
    // No branch: half of a row's words have a value that counts. One piece, or registers are short.
    row.visit([&](int, uint32_t p, int) {
      asm volatile(
          "{ .reg .b32 x; sub.u32 x, %1, %0; shr.u32 x, x, %2; min.u32 x, x, %3; mad.lo.u32 x, x, 4, %4;\n\t"
          "red.shared.add.u32 [x], %0; }" ::"r"(p), "r"(top), "r"(shift), "r"(outside), "r"(place));
    });
    __syncwarp();
    find(search, shift, lane);
  }

 private:
  CUTE_DEVICE void clear(int lane) {
    __syncwarp();  // what was in it has been read
    CUTE_UNROLL
    for (int i = 0; i < kLaneEntries / 4; ++i) reinterpret_cast<uint4*>(sum)[i * kWarpSize + lane] = make_uint4(0, 0, 0, 0);
    __syncwarp();
  }

  // The entry in which the sum of the values, from the largest down, reaches the target. Each lane has kLaneEntries of them.
  CUTE_DEVICE void find(CutoffSearch& search, int shift, int lane) const {
    auto const* vectors = reinterpret_cast<uint4 const*>(sum) + lane * (kLaneEntries / 4);
    uint4 const a = vectors[0], b = vectors[1];
    uint32_t const own = ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
    uint32_t const end = search.sum_high + uint32_t(warp_prefix_sum(int(own), lane));
    int const owner = __ffs(int(__ballot_sync(kFullWarp, end >= search.target))) - 1;
    // The same among that lane's entries.
    int const place = lane % kLaneEntries;
    uint32_t const mine = sum[owner * kLaneEntries + place];
    uint32_t reach = mine;
    CUTE_UNROLL
    for (int offset = 1; offset < kLaneEntries; offset *= 2) {
      uint32_t const other = __shfl_up_sync(kFullWarp, reach, offset, kLaneEntries);
      if (place >= offset) reach += other;
    }
    reach += __shfl_sync(kFullWarp, end - own, owner);
    int const step = __ffs(int(__ballot_sync(kFullWarp, reach >= search.target))) - 1;
    uint32_t const sum_low = __shfl_sync(kFullWarp, reach, step), mass = __shfl_sync(kFullWarp, mine, step);
    uint32_t const above = uint32_t(owner * kLaneEntries + step) << shift, through = above + (1u << shift);
    if (through < search.high - search.low) {  // or the entry goes on below the bracket
      search.low = search.high - through;
      search.sum_low = sum_low;
    }
    search.high -= above;
    search.sum_high = sum_low - mass;
  }
};

}  // namespace prism
