// The order of tiles: which one is the n-th to be claimed, and from which end its list is walked. What a tile computes depends on
// its place and its lists alone, never on who claims it or when. Knows nothing of claims, Q, K or V.
//
// Sections of kv heads whose K and V fit in L2 together, one after the other; inside a section the longest rows (last query tiles)
// first, and the lists of one kv head side by side. As many tiles as run at the same time are a *sweep*: they walk over the keys in
// one direction, the next sweep walks back and finds what the last one read last still in L2. That needs tiles that start together,
// but lists of a sweep differ in length, and CTAs would drift apart over the length of K and V. So where K and V of a head are
// larger than the part of L2 that one may count on (launch.h) a sweep is claimed longest list first: who is ahead
// takes the longest, who is behind the shortest.
#pragma once

#include "attend/params.h"
#include "attend/sm90/traits.cuh"

namespace prism::attend {

struct TileCoord {
  int q_tile, list, batch;
  bool rising;  // the direction in which its list is walked; merged lists are always walked down
};

// Used by a whole warp.
template <class Traits>
class TileOrder {
  static constexpr int kLanes = Traits::kLanes;
  static constexpr int kKeys = Traits::kMostSweepTiles / kLanes;  // tiles of a sweep, in each lane

 public:
  __device__ __forceinline__ TileOrder(Params const& params, int lane) : params_(params), lane_(lane) {}

  // The n-th tile.
  __device__ __forceinline__ TileCoord tile(int n) const {
    Section const section = section_of(n);
    int const sweep = section.place / params_.sweep_tiles;
    int const place = params_.sort_sweeps ? nth_longest(section, sweep * params_.sweep_tiles) : section.place;
    return coord(section, place, sweep & 1);
  }

 private:
  struct Section {
    int first_slot, lists;  // lists: of all its kv slots
    int place;              // of the tile in question
  };

  __device__ __forceinline__ Section section_of(int n) const {
    int section, place;
    params_.section_tiles_divmod(section, place, n);
    int const first_slot = section * params_.section_slots;
    int const slots = min(params_.section_slots, params_.num_kv_slots - first_slot);
    return {first_slot, slots * params_.lists_divmod.divisor, place};
  }

  __device__ __forceinline__ TileCoord coord(Section const& section, int place, bool rising) const {
    int const row = place / section.lists;
    int const list = place - row * section.lists;
    int slot, list_of_head, batch, kv_head;
    params_.lists_divmod(slot, list_of_head, list);
    params_.kv_head_divmod(batch, kv_head, section.first_slot + slot);
    return {params_.num_q_tiles - 1 - row, kv_head * params_.lists_divmod.divisor + list_of_head, batch, rising};
  }

  // Of the sweep that starts at place `first`, the tile that comes at section.place once its lists are sorted, the longest first
  // and equal ones as they lie.
  __device__ __forceinline__ int nth_longest(Section const& section, int first) const {
    int const tiles = min(params_.sweep_tiles, section.lists * params_.num_q_tiles - first);
    int lengths[kKeys];  // of the tiles i * kLanes + lane; -1 beyond the last
    CUTE_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      int const tile = i * kLanes + lane_;
      lengths[i] = tile < tiles ? length(coord(section, first + tile, false)) : -1;
    }
    int longest = 0;
    CUTE_UNROLL
    for (int i = 0; i < kKeys; ++i) longest = max(longest, lengths[i]);
    longest = __reduce_max_sync(~0u, longest);
    int rank = section.place - first;
    // The largest length that more than `rank` tiles have or exceed, bit by bit from the top.
    int wanted = 0;
    for (int bit = longest == 0 ? 0 : 1 << (31 - __clz(longest)); bit > 0; bit >>= 1) {
      if (count(lengths, wanted | bit) > rank) wanted |= bit;
    }
    rank -= count(lengths, wanted + 1);
    int found = 0;
    CUTE_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      uint32_t const equal = __ballot_sync(~0u, lengths[i] == wanted);
      int const before = __popc(equal & ((1u << lane_) - 1));
      uint32_t const hit = __ballot_sync(~0u, lengths[i] == wanted && before == rank);
      if (hit != 0) found = i * kLanes + __ffs(int(hit)) - 1;
      rank -= __popc(equal);
    }
    return first + found;
  }

  // How many of a sweep's tiles are at least this long.
  static __device__ __forceinline__ int count(int const (&lengths)[kKeys], int length) {
    int own = 0;
    CUTE_UNROLL
    for (int i = 0; i < kKeys; ++i) own += lengths[i] >= length;
    return __reduce_add_sync(~0u, own);
  }

  // Blocks in the lists of a tile.
  __device__ __forceinline__ int length(TileCoord const& tile) const {
    int const list = tile.batch * params_.num_lists + tile.list;  // of all sequences; there are fewer than 2^31 rows of lists
    int const row = tile.q_tile * Traits::kLists / Traits::kTilesPerList;
    int result = 0;
    CUTE_UNROLL
    for (int i = 0; i < Traits::kLists; ++i) {
      if (row + i < params_.num_q_blocks) result += min(params_.block_counts[list * params_.num_q_blocks + row + i], params_.max_blocks);
    }
    return result;
  }

  Params const& params_;
  int const lane_;
};

}  // namespace prism::attend
