// The loader thread: copies the means of a tile's sub-rows, and of the sub-columns they see, into shared memory.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

#include "score/sm90/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

namespace prism::score {

template <class Traits>
class Loader {
  using Storage = typename Traits::SharedStorage;

 public:
  __device__ __forceinline__ Loader(Params const& params, Storage& smem) : params_(params), smem_(smem) {}

  __device__ __forceinline__ void run() {
    for (TileWalk walk; !walk.done(params_); walk.advance()) {
      Tile const tile = Tile::at<Traits>(params_, walk.index);
      load_q(tile);
      int const kv_head = tile.head / params_.group_size;
      for (int n = 0; n < tile.num_k_tiles; ++n) load_k(n, kv_head);
    }
  }

 private:
  __device__ __forceinline__ void load_q(Tile const& tile) {
    CUTE_UNROLL
    for (int wg = 0; wg < Traits::kWarpGroups; ++wg) {
      wait_at(smem_.q_empty[wg], q_ring_.phase ^ 1);
      auto& full = smem_.q_full[wg];
      arrive_and_expect_at(full, Traits::kQBytes);
      int const row = tile.row_of<Traits>(params_, wg), head = tile.head_of<Traits>(params_, wg);
      CUTE_UNROLL
      for (int slab = 0; slab < Traits::kSlabs; ++slab) {
        copy(params_.q, full, TMA::CacheHintSm90::EVICT_FIRST,
             smem_.q + (wg * Traits::kSlabs + slab) * Traits::kRows * Traits::kSlabDims, slab, row, head);
      }
    }
    q_ring_.advance();
  }

  __device__ __forceinline__ void load_k(int tile, int kv_head) {
    wait_at(smem_.k_empty[k_ring_.slot], k_ring_.phase ^ 1);
    auto& full = smem_.k_full[k_ring_.slot];
    arrive_and_expect_at(full, Traits::kKBytes);
    CUTE_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      copy(params_.k, full, TMA::CacheHintSm90::EVICT_LAST,
           smem_.k + (k_ring_.slot * Traits::kSlabs + slab) * kTileColumns * Traits::kSlabDims, slab, tile * kTileColumns, kv_head);
    }
    k_ring_.advance();
  }

  template <class Full>
  static __device__ __forceinline__ void copy(CUtensorMap const& map, Full& full, TMA::CacheHintSm90 hint, void* box, int slab,
                                              int row, int head) {
    cute::SM90_TMA_LOAD_3D::copy(&map, reinterpret_cast<uint64_t*>(&full), static_cast<uint64_t>(hint), box,
                                 slab * Traits::kSlabDims, row, head);
  }

  Params const& params_;
  Storage& smem_;
  Ring<1> q_ring_;
  Ring<Traits::kKStages> k_ring_;
};

}  // namespace prism::score
