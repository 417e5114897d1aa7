// The walker warp: takes tiles in order, reads their block lists ahead of everybody and hands them on in chunks of 32 entries, so
// that no TMA issue ever waits on a global load. One warp serves a whole cluster. Owns the claims and the merge of two lists; knows
// nothing of Q, K or V.
#pragma once

#include "attend/params.h"
#include "attend/sm90/order.cuh"
#include "attend/sm90/traits.cuh"
#include "shared/cluster.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

namespace prism::attend {

// Walks one list from either end. The warp holds 32 entries, one a lane.
template <int kEntriesPerBlock>
struct BlockList {
  int const* indices;
  int total, remaining;  // entries
  bool rising;
  int held;  // this lane's entry of the run of 32 that starts at the current one

  __device__ __forceinline__ BlockList(Params const& params, TileCoord tile, int list_row, bool rising) : rising(rising) {
    bool const exists = list_row < params.num_q_blocks;
    int64_t const row = (int64_t(tile.batch) * params.num_lists + tile.list) * params.num_q_blocks + (exists ? list_row : 0);
    indices = params.block_indices + row * params.max_blocks;
    total = exists ? min(params.block_counts[row], params.max_blocks) * kEntriesPerBlock : 0;
    remaining = total;
  }
  __device__ __forceinline__ void load(int lane) {
    int const place = rising ? total - remaining + lane : remaining - 1 - lane;
    held = lane < remaining ? indices[place / kEntriesPerBlock] * kEntriesPerBlock + place % kEntriesPerBlock : -1;
  }
};

template <class Traits>
class Walker {
  using Storage = typename Traits::SharedStorage;
  using List = BlockList<Traits::kEntriesPerBlock>;
  static constexpr int kChunkEntries = Traits::kChunkEntries;
  static constexpr int kCluster = Traits::kCluster;

 public:
  __device__ __forceinline__ Walker(Params const& params, Storage& smem, int team, int lane)
      : params_(params), smem_(smem), team_(team), lane_(lane) {}

  __device__ __forceinline__ void run() {
    TileOrder<Traits> const order(params_, lane_);
    int tile = blockIdx.x / kCluster * Traits::kTeams + team_;
    while (tile < params_.num_tiles) {
      walk(order.tile(tile));
      if (lane_ == 0) tile = claim();  // late, so that tiles are claimed in the order in which they start
      tile = __shfl_sync(~0u, tile, 0);
    }
    emit({-1, 0, 0, false}, Entry::none(), true, true, 0);
  }

 private:
  // Every tile processed claims exactly one successor, so the claims of a launch number num_tiles; the last one resets the counter.
  __device__ __forceinline__ int claim() {
    int const claimed = atomicAdd(params_.tile_counter, 1);
    if (claimed == params_.num_tiles - 1) *params_.tile_counter = 0;
    return claimed + gridDim.x / kCluster * Traits::kTeams;
  }

  __device__ __forceinline__ void walk(TileCoord tile) {
    if constexpr (Traits::kLists == 1) walk_one(tile);
    else walk_union(tile);
  }

  __device__ __forceinline__ void walk_one(TileCoord tile) {
    constexpr int kAllWarpGroups = (1 << Traits::kWarpGroups) - 1;
    constexpr int kStep = Traits::kEntriesPerStep;
    List list(params_, tile, tile.q_tile / Traits::kTilesPerList, tile.rising);
    bool first = true;
    do {
      list.load(lane_);
      int const entries = min(list.remaining, kChunkEntries);
      list.remaining -= entries;
      bool const last = list.remaining == 0;
      bool const in_last_step = last && lane_ / kStep == (entries - 1) / kStep;
      emit(tile, Entry::make(list.held, masked(tile, list.held), in_last_step, kAllWarpGroups), first, last, entries);
      first = false;
    } while (list.remaining > 0);
  }

  // Two neighbouring query blocks share a tile: their lists are merged, each block marked with who selected it.
  __device__ __forceinline__ void walk_union(TileCoord tile) {
    List a(params_, tile, 2 * tile.q_tile, false), b(params_, tile, 2 * tile.q_tile + 1, false);
    a.load(lane_);
    b.load(lane_);
    int a_taken = 0, b_taken = 0;  // of the 32 entries held
    bool first = true;
    do {
      Entry mine = Entry::none();
      int entries = 0;
      while (entries < kChunkEntries && a.remaining + b.remaining > 0) {
        int const block_a = a.remaining > 0 ? __shfl_sync(~0u, a.held, a_taken) : -1;
        int const block_b = b.remaining > 0 ? __shfl_sync(~0u, b.held, b_taken) : -1;
        bool const take_a = block_a >= block_b, take_b = block_b >= block_a;
        if (take_a) take(a, a_taken);
        if (take_b) take(b, b_taken);
        bool const last = a.remaining + b.remaining == 0;
        int const block = max(block_a, block_b);
        if (lane_ == entries) mine = Entry::make(block, masked(tile, block), last, int(take_a) | (int(take_b) << 1));
        ++entries;
      }
      emit(tile, mine, first, a.remaining + b.remaining == 0, entries);
      first = false;
    } while (a.remaining + b.remaining > 0);
  }

  __device__ __forceinline__ void take(List& list, int& taken) {
    --list.remaining;
    if (++taken == kChunkEntries) {
      list.load(lane_);
      taken = 0;
    }
  }

  // Whether an entry reaches past what the tile's first row sees.
  __device__ __forceinline__ bool masked(TileCoord const& tile, int index) const {
    return (index + 1) * Traits::kEntryTokens - 1 > Traits::first_position(tile.q_tile, 0, 0) + params_.prefix;
  }

  // entry: this lane's entry of the chunk, meaningful in the first `entries` lanes.
  __device__ __forceinline__ void emit(TileCoord tile, Entry entry, bool first, bool last, int entries) {
    wait_at(smem_.chunk_empty[ring_.slot], ring_.phase ^ 1);
    fence_cluster<kCluster>();
    CUTE_UNROLL
    for (int rank = 0; rank < kCluster; ++rank) {
      auto& chunk = kCluster == 1 ? smem_.chunks[ring_.slot] : *cluster_peer(&smem_.chunks[ring_.slot], rank);
      chunk.entries[lane_] = lane_ < entries ? entry.packed : Entry::none().packed;
      if (lane_ == 0) {
        chunk.tile = {tile.q_tile, tile.list, tile.batch, entries};
        chunk.first = first;
        chunk.last = last;
      }
    }
    fence_cluster<kCluster>();
    CUTE_UNROLL
    for (int rank = 0; rank < kCluster; ++rank) arrive_at_peer<kCluster>(smem_.chunk_full[ring_.slot], rank);  // for its own entry
    ring_.advance();
  }

  Params const& params_;
  Storage& smem_;
  int const team_;  // of its CTA
  int const lane_;
  Ring<Traits::kChunks> ring_;
};

}  // namespace prism::attend
