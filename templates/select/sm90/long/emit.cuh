// The lists of long rows from the bit masks of both bands: put together in shared memory, written 16 bytes a lane.
#pragma once

#include "select/long_params.h"
#include "select/sm90/emit.cuh"
#include "shared/dependents.cuh"

namespace prism {

constexpr int kEmitThreads = 256, kEmitCtas = 5;  // of an SM; more were not tried

// A warp's part of a list: the columns of 32 words of its mask, from the 16 bytes of the list in which they begin.
struct ListPart {
  static constexpr int kEntries = 4;  // of 16 bytes
  static constexpr int kColumns = kBatchWords * kWarpSize, kVectors = kColumns / kEntries + 1;

  alignas(16) int32_t entries[kVectors * kEntries];

  // Writes entries first .. end - 1, of which entry 0 belongs to the 16 bytes at `out`. Whole 16 bytes at once; first < 4.
  CUTE_DEVICE void write(int32_t* out, int first, int end, int lane) const {
    int const whole = (first + kEntries - 1) / kEntries, whole_end = end / kEntries;
    #pragma unroll 2
    for (int i = whole + lane; i < whole_end; i += kWarpSize) {
      reinterpret_cast<int4*>(out)[i] = reinterpret_cast<int4 const*>(entries)[i];
    }
    // What is left at both ends, a lane an entry: up to three, and up to three.
    int const behind = max(whole_end, whole) * kEntries, i = lane < kEntries ? lane : behind + lane - kEntries;
    bool const left = lane < kEntries ? lane >= first && lane < min(whole * kEntries, end) : lane < 2 * kEntries && i < end;
    if (left) out[i] = entries[i];
  }
};

constexpr uint32_t kFewBits = 8;  // of a word: up to so many are written one after the other, by a lane

// Writes one list.
template <class KeptWord>
CUTE_DEVICE void emit_long_list(SelectParams const& p, int64_t out_row, int q_block, ListPart& part, KeptWord const& kept_word) {
  int const lane = threadIdx.x % kWarpSize, num_visible = p.num_visible(q_block), num_words = mask_words(num_visible);
  uint32_t const own = 1u << lane, before = own - 1u;
  int32_t* const list = p.block_indices + out_row * p.max_blocks;
  int count = 0;
  uint32_t next = kept_word(lane);
  for (int first = 0; first < num_words; first += kBatchWords) {
    int const word = first + lane;
    uint32_t const now = next;
    next = kept_word(word + kBatchWords);  // under way while this batch is written
    uint32_t const kept = listed_word(p, word, now, q_block, num_visible);
    if (__reduce_max_sync(kFullWarp, uint32_t(__popc(kept))) <= kFewBits) {  // a lane a word
      int const end = warp_prefix_sum(__popc(kept), lane);
      int32_t* out = list + count + end - __popc(kept);
      #pragma unroll 1
      for (uint32_t left = kept; left != 0; left &= left - 1) *out++ = word * kWarpSize + __ffs(int(left)) - 1;
      count += __shfl_sync(kFullWarp, end, kWarpSize - 1);
      continue;
    }
    int const shift = int(reinterpret_cast<uintptr_t>(list + count) / sizeof(int32_t) % ListPart::kEntries);
    int const end = warp_prefix_sum(__popc(kept), lane) + shift, start = end - __popc(kept);
    int const part_end = __shfl_sync(kFullWarp, end, kWarpSize - 1);
    int const words = min(kBatchWords, num_words - first);
    int column = first * kWarpSize + lane;
    #pragma unroll 4
    for (int w = 0; w < words; ++w, column += kWarpSize) {
      uint32_t const bits = __shfl_sync(kFullWarp, kept, w);
      int const place = __shfl_sync(kFullWarp, start, w) + __popc(bits & before);
      if (bits & own) part.entries[place] = column;
    }
    __syncwarp();
    part.write(list + count - shift, shift, part_end, lane);
    __syncwarp();
    count += part_end - shift;
  }
  if (lane == 0) {
    p.block_counts[out_row] = count;
    if (p.wanted_counts != nullptr) p.wanted_counts[out_row] = count;
  }
}

// Until both bands of an item have left their masks. Past the end of the grid before: its CTAs all run, or have run, when this one does.
CUTE_DEVICE void await_masks(uint32_t const* masked) {
  constexpr int kNap = 500;  // ns: a work takes 50 us and more
  if (threadIdx.x % kWarpSize == 0) {
    for (;;) {
      uint32_t warps;
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(warps) : "l"(masked) : "memory");
      if (warps == kMaskWarps) break;
      __nanosleep(kNap);
    }
  }
  __syncwarp();
}

struct EmitItem {
  int q_row, row_tile;
};

// Items as their masks come, roughly: the longest quarter of all heads' rows, then the next. Inside a quarter head by head, since lists of
// 32 heads of 8192 blocks lie in 8 GB: their pages want to be written one after the other (1M tokens: 3 % slower row by row).
CUTE_DEVICE EmitItem item_at(LongParams const& params, int place) {
  constexpr int kParts = 4;
  int const most = (params.num_row_tiles + kParts - 1) / kParts, part_items = params.select.batch * params.select.num_q_heads * most;
  int const part = place / part_items, rest = place % part_items, tiles = min(most, params.num_row_tiles - part * most);
  return {rest / tiles, params.num_row_tiles - 1 - part * most - rest % tiles};
}

constexpr int kEmitRows = kEmitThreads / kWarpSize, kItemCtas = kLongRows / kEmitRows;

// A warp a list. CTAs of an SM that has no more works write the lists of items that are done while other SMs go on.
template <bool kProbs>
__global__ void __launch_bounds__(kEmitThreads, kEmitCtas) emit_long_kernel(__grid_constant__ LongParams const params) {
  __shared__ ListPart parts[kEmitRows];
  SelectParams const& p = params.select;
  launch_dependents();
  int const warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  auto const [q_row, row_tile] = item_at(params, int(blockIdx.x) / kItemCtas);
  int const q_block = row_tile * kLongRows + int(blockIdx.x) % kItemCtas * kEmitRows + warp;
  if (q_block < p.num_q_blocks) {
    await_masks(params.masked_of(q_row, row_tile));
    int const num_visible = p.num_visible(q_block), words = mask_words(num_visible);
    uint32_t const *high = params.kept_row(q_row, 0, q_block), *low = params.kept_row(q_row, 1, q_block);
    int64_t const row = int64_t(q_row) * p.num_q_blocks + q_block;
    emit_long_list(p, row, q_block, parts[warp], [&](int word) { return word < words ? high[word] | low[word] : 0u; });
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
