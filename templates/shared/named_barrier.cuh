// Named barriers that order memory for the compiler too: CUTLASS's calls do not, as those of mbarriers (mbarrier.cuh).
#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>

namespace prism {

// Whole warps meet, `threads` threads in all: what each has written to shared memory before, all see behind it.
__device__ __forceinline__ void meet_at(uint32_t named_barrier, uint32_t threads) {
  asm volatile("" ::: "memory");
  cutlass::arch::NamedBarrier::sync(threads, named_barrier);
  asm volatile("" ::: "memory");
}

}  // namespace prism
