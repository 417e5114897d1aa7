// The lists of long rows from the bit masks of both bands, a warp a list. A CTA is small enough to lie beside one of the passes: a warp on
// each of an SM's four schedulers, in the registers that the passes leave.
#pragma once

#include "select/long_params.h"
#include "select/sm90/emit.cuh"
#include "shared/dependents.cuh"

namespace prism {

constexpr int kEmitRows = kEmitThreads / kWarpSize, kItemCtas = kLongRows / kEmitRows;
constexpr int kEmitCtas = kSmRegisters / (kEmitThreads * kEmitRegisters);  // of an SM that has no passes

constexpr uint32_t kFewBits = 8;  // of a word: up to so many are written one after the other, by a lane

// Writes one list. Straight to memory, a lane a column: put together in shared memory and written 16 bytes a lane it took as long alone,
// and longer beside the passes, whose first one keeps shared memory busy.
template <class KeptWord>
CUTE_DEVICE void emit_long_list(SelectParams const& p, int64_t out_row, int q_block, int num_visible, KeptWord const& kept_word) {
  constexpr int kGroup = 8;  // words between two looks whether there are more
  int const lane = threadIdx.x % kWarpSize, num_words = mask_words(num_visible);
  uint32_t const own = 1u << lane, before = own - 1u;
  int32_t* list = p.block_indices + out_row * p.max_blocks;
  asm("" : "+l"(list));  // one address, which the compiler would make anew for every store
  int count = 0;
  uint32_t next = kept_word(lane);
  #pragma unroll 1
  for (int first = 0; first < num_words; first += kBatchWords) {
    int const word = first + lane;
    uint32_t const now = next;
    next = kept_word(word + kBatchWords);  // under way while this batch is written
    uint32_t const kept = listed_word(p, word, now, q_block, num_visible);
    int const bits = __popc(kept), end = count + warp_prefix_sum(bits, lane);
    if (__reduce_max_sync(kFullWarp, uint32_t(bits)) <= kFewBits) {  // a lane a word, the last column first
      int place = end;
      #pragma unroll 1
      for (uint32_t left = kept; left != 0;) {
        int const bit = kWarpSize - 1 - __clz(int(left));
        left ^= 1u << bit;
        list[--place] = word * kWarpSize + bit;
      }
    } else {
      int const start = end - bits;
      int column = first * kWarpSize + lane;
      asm("" : "+r"(column));  // one register, where the compiler would make it anew for every word
      CUTE_UNROLL
      for (int group = 0; group < kBatchWords; group += kGroup) {
        if (group >= num_words - first) break;  // words past the row's end keep nothing
        uint32_t columns[kGroup];
        int place[kGroup];  // of all eight before the first store: their latencies overlap
        CUTE_UNROLL
        for (int w = 0; w < kGroup; ++w) {
          columns[w] = __shfl_sync(kFullWarp, kept, group + w);
          place[w] = __shfl_sync(kFullWarp, start, group + w);
        }
        CUTE_UNROLL
        for (int w = 0; w < kGroup; ++w) place[w] += __popc(columns[w] & before);
        CUTE_UNROLL
        for (int w = 0; w < kGroup; ++w) {
          store_if(columns[w] & own, list + place[w], column + (group + w) * kWarpSize);
        }
      }
    }
    count = __shfl_sync(kFullWarp, end, kWarpSize - 1);
  }
  if (lane == 0) write_counts(p, out_row, count, count);
}

// Until both bands of an item have left their masks. Past the end of the grid before: its CTAs all run, or have run, when this one does.
CUTE_DEVICE void await_masks(uint32_t const* masked) {
  constexpr int kNap = 500;  // ns: a work takes 50 us and more
  if (threadIdx.x % kWarpSize == 0) {
    uint32_t warps;
    for (;;) {  // relaxed: what acquires empties L1, which is that of the passes
      asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(warps) : "l"(masked) : "memory");
      if (warps == kMaskWarps) break;
      __nanosleep(kNap);
    }
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(warps) : "l"(masked) : "memory");
  }
  __syncwarp();
}

// gridDim: (CTAs of list_tiles items, batch * num_q_heads, parts of list_tiles row tiles). So items come as their masks do, roughly: those
// of the longest list_tiles row tiles of all heads, head by head, then the next.
//
// CTAs of an SM that has no more works write the lists of items that are done while other SMs go on; one lies beside the passes, if the
// launch leaves it the room.
template <bool kProbs>
__global__ void __launch_bounds__(kEmitThreads, kEmitCtas) emit_long_kernel(__grid_constant__ LongParams const params) {
  SelectParams const& p = params.select;
  launch_dependents();
  int const lane = threadIdx.x % kWarpSize;
  int const warp = __shfl_sync(kFullWarp, int(threadIdx.x) / kWarpSize, 0);  // so that ptxas sees: what follows from it is a warp's
  int const place = int(blockIdx.z) * params.list_tiles + int(blockIdx.x) / kItemCtas;  // from the longest rows on
  int const q_row = blockIdx.y, row_tile = params.num_row_tiles - 1 - place;
  int const q_block = row_tile * kLongRows + int(blockIdx.x) % kItemCtas * kEmitRows + warp;
  if (row_tile >= 0 && q_block < p.num_q_blocks) {
    int const num_visible = p.num_visible(q_block), words = mask_words(num_visible);
    uint32_t const *high = params.kept_row(q_row, 0, q_block), *low = params.kept_row(q_row, 1, q_block);
    int64_t const row = int64_t(q_row) * p.num_q_blocks + q_block;
    await_masks(params.masked_of(q_row, row_tile));
    emit_long_list(p, row, q_block, num_visible, [&](int word) { return word < words ? high[word] | low[word] : 0u; });
    if constexpr (kProbs) {
      for (int band = 0; band < kBands; ++band) {
        int32_t* probs = p.probs + ((int64_t(q_row) * kBands + band) * p.num_q_blocks + q_block) * p.num_k_blocks;
        for (int column = num_visible + lane; column < p.num_k_blocks; column += kWarpSize) probs[column] = 0;
      }
    }
  }
  bool const last = blockIdx.x + 1 == gridDim.x && blockIdx.y + 1 == gridDim.y && blockIdx.z + 1 == gridDim.z;
  if (last) await_previous_kernels();  // so that this grid ends behind the one before
}

}  // namespace prism
