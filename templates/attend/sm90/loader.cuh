// The loader thread: turns the walker's steps into TMA copies of Q, K and V. The only place that touches the tensor maps of
// the inputs, so another memory layout (varlen, paged) is another loader, and another way to K in WarpGroup::recompute.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

#include "attend/params.h"
#include "attend/sm90/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

namespace prism::attend {

// K and V tiles share one ring of slots in the order in which the consumers need them: K0 K1 V0 K2 V1 ... V(n-1), or, in pairs,
// K0 V0 K1 V1 ...
template <class Traits>
class Loader {
  using Storage = typename Traits::SharedStorage;
  using Tile = typename Traits::Tile;
  static constexpr int kCluster = Traits::kCluster;
  static constexpr int kStepEntries = Traits::kEntriesPerStep;
  using Step = attend::Step<kStepEntries>;
  using Full = typename Traits::TransactionBarrier;

 public:
  __device__ __forceinline__ Loader(Params const& params, Storage& smem, int rank) : params_(params), smem_(smem), rank_(rank) {}

  __device__ __forceinline__ void run() {
    bool has_previous = false;
    Step previous{};
    while (true) {
      wait_at(smem_.chunk_full[chunk_ring_.slot], chunk_ring_.phase);
      fence_cluster<kCluster>();
      auto const& chunk = smem_.chunks[chunk_ring_.slot];
      if (chunk.first) {
        open_tile(chunk.tile);
        if (chunk.tile.q_tile < 0) return;
      }
      for (int n = 0; n < chunk.tile.num_entries; n += kStepEntries) {
        Step step;
        CUTE_UNROLL
        for (int i = 0; i < kStepEntries; ++i) step.entries[i] = {chunk.entries[n + i]};
        wait_for_slot();
        smem_.steps[kv_ring_.slot] = step;
        auto& full = expect(Traits::kPairs ? 2 : 1);
        load(params_.k, step, full);
        if constexpr (Traits::kPairs) {
          load(params_.v, step, full);
          kv_ring_.advance();
        } else {
          kv_ring_.advance();
          if (has_previous) load_v(previous);
          previous = step;
          has_previous = true;
        }
      }
      if (chunk.last && has_previous) {
        load_v(previous);
        has_previous = false;
      }
      fence_cluster<kCluster>();
      arrive_at_peer<kCluster>(smem_.chunk_empty[chunk_ring_.slot], kWalkerRank);
      chunk_ring_.advance();
    }
  }

 private:
  __device__ __forceinline__ void open_tile(Tile const& tile) {
    wait_at(smem_.q_empty[q_ring_.slot], q_ring_.phase ^ 1);
    smem_.tiles[q_ring_.slot] = tile;
    auto& full = smem_.q_full[q_ring_.slot];
    if (tile.q_tile < 0 || tile.num_entries == 0) {
      arrive_at(full);  // nothing to load, only the tile's coordinates to read
    } else {
      kv_head_ = params_.lists_divmod.divide(tile.list);
      batch_ = tile.batch;
      arrive_and_expect_at(full, Traits::kQBytes);
      CUTE_UNROLL
      for (int wg = 0; wg < Traits::kWarpGroups; ++wg) {
        int const position = Traits::first_position(tile.q_tile, rank_, wg);
        CUTE_UNROLL
        for (int slab = 0; slab < Traits::kSlabs; ++slab) {
          cute::SM90_TMA_LOAD_5D::copy(&params_.q, reinterpret_cast<uint64_t*>(&full), hint(TMA::CacheHintSm90::EVICT_FIRST),
                                       smem_.q + Traits::q_box_offset(q_ring_.slot, wg, slab), slab * Traits::kSlabDims, 0, position,
                                       tile.list, tile.batch);
        }
      }
    }
    q_ring_.advance();
  }

  __device__ __forceinline__ void load_v(Step const& step) {
    wait_for_slot();
    load(params_.v, step, expect(1));
    kv_ring_.advance();
  }

  // The barrier at hand, which now waits for so many K or V tiles.
  __device__ __forceinline__ Full& expect(int tiles) const {
    auto& full = smem_.kv_full[kv_ring_.slot];
    arrive_and_expect_at(full, tiles * Traits::kKvBytes);
    return full;
  }

  // One K or V tile into the slot at hand, which for pairs moves on. In a cluster each CTA expects all of it and copies every
  // kCluster-th box, to all of them.
  __device__ __forceinline__ void load(CUtensorMap const& map, Step const& step, Full& full) {
    int const slot = Traits::kPairs ? slot_ : kv_ring_.slot;
    CUTE_UNROLL
    for (int i = 0; i < kStepEntries; ++i) {
      // A missing entry is masked by the consumers, but its V must be finite: load the step's first entry again.
      int const own = step.entries[i].index(), first = step.entries[0].index();
      int const token = (step.entries[i].exists() ? own : first) * Traits::kEntryTokens;
      CUTE_UNROLL
      for (int slab = 0; slab < Traits::kSlabs; ++slab) {
        auto* const box = smem_.kv + Traits::kv_box_offset(slot, slab, i);
        auto* const barrier = reinterpret_cast<uint64_t*>(&full);
        uint64_t const keep = hint(TMA::CacheHintSm90::EVICT_LAST);
        if constexpr (kCluster == 1) {
          cute::SM90_TMA_LOAD_4D::copy(&map, barrier, keep, box, slab * Traits::kSlabDims, token, kv_head_, batch_);
        } else if ((i * Traits::kSlabs + slab) % kCluster == rank_) {
          constexpr uint16_t kAll = (1 << kCluster) - 1;
          cute::SM90_TMA_LOAD_MULTICAST_4D::copy(&map, barrier, kAll, keep, box, slab * Traits::kSlabDims, token, kv_head_, batch_);
        }
      }
    }
    if constexpr (Traits::kPairs) slot_ = Traits::next_slot(slot_);
  }

  __device__ __forceinline__ void wait_for_slot() const { wait_at(smem_.kv_empty[kv_ring_.slot], kv_ring_.phase ^ 1); }

  static __device__ __forceinline__ uint64_t hint(TMA::CacheHintSm90 value) { return static_cast<uint64_t>(value); }

  static constexpr int kWalkerRank = 0;

  Params const& params_;
  Storage& smem_;
  int const rank_;  // of this CTA in its cluster
  int kv_head_ = 0, batch_ = 0;  // of the tile that is open
  Ring<Traits::kChunks> chunk_ring_;
  Ring<Traits::kQStages> q_ring_;
  Ring<Traits::kLoads> kv_ring_;
  int slot_ = 0;  // of pairs: where the next tile goes
};

}  // namespace prism::attend
