// The cut-off of rows among the few values of their brackets, exactly, and the bits that it keeps of them. A quad does its two rows in
// step, so that one's loads run under the other's; what a thread reads here it wrote itself.
#pragma once

#include "select/sm90/long/passes.cuh"

namespace prism {

// A thread's part of its rows: their lists, and their words of the bit masks, a word a tile.
struct ListedRows {
  static constexpr int kEntryWords = RowBits::kEntryBytes / 4;
  static constexpr int kOpenWords = kLongRows * kTileWords;  // from tile to tile

  uint32_t target;
  uint32_t const* list[kThreadRows];
  int count[kThreadRows];
  uint32_t* kept[kThreadRows];
  uint32_t* open[kThreadRows];

  // sum_high, sum_between: of all values from the bracket's upper end on, and of those in it.
  CUTE_DEVICE void find(RowBracket const (&bracket)[kThreadRows], uint32_t const (&sum_high)[kThreadRows],
                        uint32_t const (&sum_between)[kThreadRows], Cutoff (&cutoff)[kThreadRows]) const {
    CutoffSearch search[kThreadRows] = {begin(bracket[0], sum_high[0], sum_between[0]), begin(bracket[1], sum_high[1], sum_between[1])};
    bool settled[kThreadRows];
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) cutoff[r] = kKeepAll, settled[r] = bracket[r].decided();
    #pragma unroll 1
    for (int turn = 1;; ++turn) {
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) settled[r] = settled[r] || search[r].settled(cutoff[r]);
      if (__all_sync(kFullWarp, settled[0] && settled[1])) return;
      uint32_t probe[kThreadRows], sum[kThreadRows] = {};
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) probe[r] = settled[r] ? ~0u : search[r].next_probe(turn);
      int const most = max(settled[0] ? 0 : count[0], settled[1] ? 0 : count[1]);
      #pragma unroll 4
      for (int i = 0; i < most; ++i) {
        CUTE_UNROLL
        for (int r = 0; r < kThreadRows; ++r) {
          uint32_t const value = list[r][i * kEntryWords];  // behind the list's end: not of this pass
          sum[r] += i < count[r] && value >= probe[r] ? value : 0u;
        }
      }
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) sum[r] = sum_high[r] + quad_sum(sum[r]);
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        if (!settled[r]) search[r].learn(probe[r], sum[r]);
      }
    }
  }

  // Adds to the masks what the cut-offs keep of the brackets, tile by tile as the passes went; leaves the tied columns open where not all
  // of them are kept. Returns whether there are such.
  CUTE_DEVICE bool keep(RowBracket const (&bracket)[kThreadRows], Cutoff const (&cutoff)[kThreadRows], int num_tiles) const {
    constexpr int kAhead = 4;  // tiles whose words are loaded at once
    bool any_tied = false;
    int next[kThreadRows] = {};
    #pragma unroll 1
    for (int first = 0; first < num_tiles; first += kAhead) {
      uint32_t words[kAhead][kThreadRows];
      CUTE_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        CUTE_UNROLL
        for (int r = 0; r < kThreadRows; ++r) words[i][r] = first + i < num_tiles ? open[r][(first + i) * kOpenWords] : 0u;
      }
      CUTE_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        CUTE_UNROLL
        for (int r = 0; r < kThreadRows; ++r) {
          if (words[i][r] != 0) any_tied |= keep_word(bracket[r], cutoff[r], words[i][r], first + i, r, next[r]);
        }
      }
    }
    return any_tied;
  }

  // The first ties of a row, in the order of the columns.
  CUTE_DEVICE void keep_ties(RowBracket const& bracket, Cutoff const& cutoff, int r, int num_tiles) const {
    int before = 0;
    #pragma unroll 1
    for (int tile = 0; tile < num_tiles; ++tile) {
      uint32_t const tied = cutoff.ties == kAllTies || bracket.decided() ? 0u : open[r][tile * kOpenWords];
      int end = __popc(tied);  // of the quad's ties up to this thread's
      CUTE_UNROLL
      for (int offset = 1; offset < 4; offset *= 2) {
        int const other = __shfl_up_sync(kFullWarp, end, offset, 4);
        if (int(threadIdx.x % 4) >= offset) end += other;
      }
      int64_t const room = int64_t(cutoff.ties) - before - (end - __popc(tied));
      if (tied != 0 && room > 0) add(r, tile, room < kWarpSize ? lowest_bits(tied, min(int(room), __popc(tied))) : tied);
      before += __shfl_sync(kFullWarp, end, 3, 4);
    }
  }

 private:
  CUTE_DEVICE CutoffSearch begin(RowBracket const& bracket, uint32_t sum_high, uint32_t sum_between) const {
    CutoffSearch search(target, CutoffStart{bracket.high, 0.f, 0.f, 1.f});
    search.low = bracket.low;
    search.sum_low = sum_high + sum_between;
    search.sum_high = sum_high;
    return search;
  }

  // rest: the open columns of a tile. next: of the list. Returns whether some are left open.
  CUTE_DEVICE bool keep_word(RowBracket const& bracket, Cutoff const& cutoff, uint32_t rest, int tile, int r, int& next) const {
    bool const all_ties = cutoff.ties == kAllTies;
    uint32_t more = 0, tied = 0;
    if (bracket.high - bracket.low == 1) {
      (all_ties ? more : tied) = rest;
    } else {
      for (; rest != 0; rest &= rest - 1) {
        uint32_t const x = list[r][next++ * kEntryWords], bit = rest & (0u - rest);
        if (x > cutoff.value || (x == cutoff.value && all_ties)) more |= bit;
        else if (x == cutoff.value) tied |= bit;
      }
    }
    if (more != 0) add(r, tile, more);
    if (!all_ties) open[r][tile * kOpenWords] = tied;
    return tied != 0;
  }

  // No load to wait for.
  CUTE_DEVICE void add(int r, int tile, uint32_t bits) const { atomicOr(kept[r] + tile * kTileWords, bits); }
};

}  // namespace prism
