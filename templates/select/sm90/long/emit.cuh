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
CUTE_DEVICE void emit_long_list(SelectParams const& p, int64_t out_row, int q_block, KeptWord const& kept_word) {
  constexpr int kGroup = 8;  // words between two looks whether there are more
  int const lane = threadIdx.x % kWarpSize, num_visible = p.num_visible(q_block), num_words = mask_words(num_visible);
  uint32_t const own = 1u << lane, before = own - 1u;
  int32_t* const list = p.block_indices + out_row * p.max_blocks;
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
        CUTE_UNROLL
        for (int w = group; w < group + kGroup; ++w) {
          uint32_t const columns = __shfl_sync(kFullWarp, kept, w);
          int const place = __shfl_sync(kFullWarp, start, w) + __popc(columns & before);
          if (columns & own) list[place] = column + w * kWarpSize;
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

struct EmitItem {
  int q_row, row_tile;
};

// Items as their masks come, roughly: those of the longest list_tiles row tiles of all heads, head by head, then the next.
CUTE_DEVICE EmitItem item_at(LongParams const& params, int place) {
  int const part_items = params.select.batch * params.select.num_q_heads * params.list_tiles;
  int const part = place / part_items, rest = place % part_items;
  int const tiles = min(params.list_tiles, params.num_row_tiles - part * params.list_tiles);
  return {rest / tiles, params.num_row_tiles - 1 - part * params.list_tiles - rest % tiles};
}

// CTAs of an SM that has no more works write the lists of items that are done while other SMs go on; one lies beside the passes, if the
// launch leaves it the room.
template <bool kProbs>
__global__ void __launch_bounds__(kEmitThreads, kEmitCtas) emit_long_kernel(__grid_constant__ LongParams const params) {
  SelectParams const& p = params.select;
  launch_dependents();
  int const lane = threadIdx.x % kWarpSize;
  int const warp = __shfl_sync(kFullWarp, int(threadIdx.x) / kWarpSize, 0);  // so that ptxas sees: what follows from it is a warp's
  auto const [q_row, row_tile] = item_at(params, int(blockIdx.x) / kItemCtas);
  int const q_block = row_tile * kLongRows + int(blockIdx.x) % kItemCtas * kEmitRows + warp;
  if (q_block < p.num_q_blocks) {
    await_masks(params.masked_of(q_row, row_tile));
    int const num_visible = p.num_visible(q_block), words = mask_words(num_visible);
    uint32_t const *high = params.kept_row(q_row, 0, q_block), *low = params.kept_row(q_row, 1, q_block);
    int64_t const row = int64_t(q_row) * p.num_q_blocks + q_block;
    emit_long_list(p, row, q_block, [&](int word) { return word < words ? high[word] | low[word] : 0u; });
    if constexpr (kProbs) {
      for (int band = 0; band < kBands; ++band) {
        int32_t* probs = p.probs + ((int64_t(q_row) * kBands + band) * p.num_q_blocks + q_block) * p.num_k_blocks;
        for (int column = num_visible + lane; column < p.num_k_blocks; column += kWarpSize) probs[column] = 0;
      }
    }
  }
  if (blockIdx.x + 1 == gridDim.x) await_previous_kernels();  // so that this grid ends behind the one before
}

}  // namespace prism
