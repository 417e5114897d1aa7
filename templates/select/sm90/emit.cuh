// Bit masks of key blocks to rising lists, and probabilities for tests. One warp a list.
#pragma once

#include "select/params.h"
#include "select/sm90/cut.cuh"

namespace prism {

CUTE_HOST_DEVICE int mask_words(int num_k_blocks) { return (num_k_blocks + 31) / 32; }

// The forced blocks of a word of a list.
CUTE_DEVICE uint32_t forced_word(SelectParams const& p, int word, int q_block, int num_visible) {
  int const first = (p.force_recent ? p.first_diagonal(q_block) : num_visible) - word * kWarpSize;
  return bit_range(first, num_visible - word * kWarpSize) | (p.force_sink && word == 0 ? 1u : 0u);
}

// What a list takes of a word of its mask: what the cut-offs kept and what is forced, as far as it is visible.
CUTE_DEVICE uint32_t listed_word(SelectParams const& p, int word, uint32_t kept, int q_block, int num_visible) {
  return (kept | forced_word(p, word, q_block, num_visible)) & bit_range(0, num_visible - word * kWarpSize);
}

// Of a list in full, forced blocks and all.
CUTE_DEVICE int list_length(SelectParams const& p, uint32_t const* mask, int q_block) {
  int const num_visible = p.num_visible(q_block);
  int count = 0;
  for (int word = threadIdx.x % kWarpSize; word < mask_words(num_visible); word += kWarpSize) {
    count += __popc(mask[word] | forced_word(p, word, q_block, num_visible));
  }
  return __reduce_add_sync(kFullWarp, count);
}

// Without a branch.
CUTE_DEVICE void store_if(bool yes, int32_t* to, int32_t value) {
  asm volatile("{ .reg .pred yes; setp.ne.u32 yes, %0, 0; @yes st.global.b32 [%1], %2; }"
               ::"r"(uint32_t(yes)), "l"(to), "r"(value) : "memory");
}

// One lane's. wanted: the list's length before it fell back, where lists may overflow.
CUTE_DEVICE void write_counts(SelectParams const& p, int64_t out_row, int count, int wanted) {
  p.block_counts[out_row] = count;
  if (p.wanted_counts != nullptr) p.wanted_counts[out_row] = p.may_overflow() ? wanted : count;
}

// Writes one list. wanted: of write_counts. kept_word(word): what the cut-offs kept; every lane asks, past the row's end too. Each word is
// written by the whole warp, a lane a column. (A lane a word, put together in shared memory, took 490 instructions for a dense row of 16
// words instead of 180, and its stores collided in one bank.)
template <class KeptWord>
CUTE_DEVICE void emit_list(SelectParams const& p, int64_t out_row, int q_block, int num_visible, int wanted, KeptWord const& kept_word) {
  int const lane = threadIdx.x % kWarpSize, num_words = mask_words(num_visible);
  uint32_t const own = 1u << lane, before = own - 1u;
  int32_t* out = p.block_indices + out_row * p.max_blocks;
  asm("" : "+l"(out));  // one address, which the compiler would make anew for every store
  int count = 0;
  for (int first = 0; first < num_words; first += kBatchWords) {
    int const word = first + lane;
    uint32_t const kept = listed_word(p, word, kept_word(word), q_block, num_visible);
    int const end = warp_prefix_sum(__popc(kept), lane), start = count + end - __popc(kept);
    count += __shfl_sync(kFullWarp, end, kWarpSize - 1);
    int const words = min(kBatchWords, num_words - first);
    int column = first * kWarpSize + lane;
    for (int four = 0; four < words; four += kGroupWords) {  // words past the row's end keep nothing
      CUTE_UNROLL
      for (int w = four; w < four + kGroupWords; ++w, column += kWarpSize) {
        uint32_t const bits = __shfl_sync(kFullWarp, kept, w);
        int const place = __shfl_sync(kFullWarp, start, w) + __popc(bits & before);
        store_if(bits & own, out + place, column);
      }
    }
  }
  if (lane == 0) write_counts(p, out_row, count, wanted);
}

// A row's masses, 0 where not visible.
template <class Row>
CUTE_DEVICE void write_probs(Row const& row, int32_t* probs, int num_visible, int num_k_blocks, int lane) {
  for (int column = num_visible + lane; column < num_k_blocks; column += kWarpSize) probs[column] = 0;
  row.visit([&](int word, uint32_t value, int) {
    int const column = word * kWarpSize + lane;
    if (column < num_visible) probs[column] = int32_t(value);
  });
}

}  // namespace prism
