// The loader thread: turns the walker's steps into TMA copies of Q, K and V. The only place that touches the tensor maps of
// the inputs, so another memory layout (varlen, paged) is another loader.
#pragma once

#include "attend/params.h"
#include "attend/sm90/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

namespace prism::attend {

// K and V tiles share one ring of slots in the order in which the consumers need them: K0 K1 V0 K2 V1 ... V(n-1).
template <class Traits, class TmaQ, class TmaK, class TmaV>
class Loader {
  using Storage = typename Traits::SharedStorage;
  static constexpr int kStepBlocks = Traits::kBlocksPerTile;
  using Step = attend::Step<kStepBlocks>;

 public:
  __device__ __forceinline__ Loader(Params const& params, TmaQ const& tma_q, TmaK const& tma_k, TmaV const& tma_v, Storage& smem)
      : params_(params), tma_q_(tma_q), tma_k_(tma_k), tma_v_(tma_v), smem_(smem) {}

  __device__ __forceinline__ void run() {
    int kv_head = 0, batch = 0;
    bool has_previous = false;
    Step previous{};
    while (true) {
      wait_at(smem_.chunk_full[chunk_ring_.slot], chunk_ring_.phase);
      auto const& chunk = smem_.chunks[chunk_ring_.slot];
      if (chunk.first) {
        batch = chunk.batch;
        kv_head = params_.group_divmod.divide(chunk.q_head);
        open_tile(chunk.q_tile, chunk.q_head, batch, chunk.num_blocks);
        if (chunk.q_tile < 0) return;
      }
      for (int n = 0; n < chunk.num_blocks; n += kStepBlocks) {
        Step step;
        CUTE_UNROLL
        for (int i = 0; i < kStepBlocks; ++i) step.blocks[i] = {chunk.blocks[n + i]};
        load_k(step, kv_head, batch);
        if (has_previous) load_v(previous, kv_head, batch);
        previous = step;
        has_previous = true;
      }
      if (chunk.last && has_previous) {
        load_v(previous, kv_head, batch);
        has_previous = false;
      }
      arrive_at(smem_.chunk_empty[chunk_ring_.slot]);
      chunk_ring_.advance();
    }
  }

 private:
  __device__ __forceinline__ void open_tile(int q_tile, int q_head, int batch, int num_blocks) {
    wait_at(smem_.q_empty[q_ring_.slot], q_ring_.phase ^ 1);
    smem_.tiles[q_ring_.slot] = {q_tile, q_head, batch, num_blocks};
    auto& full = smem_.q_full[q_ring_.slot];
    if (q_tile < 0 || num_blocks == 0) {
      arrive_at(full);  // nothing to load, only the tile's coordinates to read
    } else {
      arrive_and_expect_at(full, Traits::kQBytes);
      load_q(q_tile, q_head, batch, full);
    }
    q_ring_.advance();
  }

  __device__ __forceinline__ void load_q(int q_tile, int q_head, int batch, typename Traits::TransactionBarrier& full) {
    using namespace cute;
    auto sQ = make_tensor(make_smem_ptr(smem_.q), typename Traits::LayoutQ{});
    auto mQ = tma_q_.get_tma_tensor(make_shape(params_.seqlen_q, typename Traits::HeadDim{}, params_.num_q_heads, params_.num_batches));
    CUTE_UNROLL
    for (int wg = 0; wg < Traits::kWarpGroups; ++wg) {
      auto gQ = local_tile(mQ(_, _, q_head, batch), Shape<typename Traits::Rows, typename Traits::HeadDim>{},
                           make_coord(q_tile * Traits::kWarpGroups + wg, _0{}));
      copy_tile(tma_q_, gQ, sQ(_, _, wg, q_ring_.slot), full, TMA::CacheHintSm90::EVICT_FIRST);
    }
  }

  __device__ __forceinline__ void load_k(Step const& step, int kv_head, int batch) {
    using namespace cute;
    auto& full = acquire_slot();
    smem_.steps[kv_ring_.slot] = step;
    arrive_and_expect_at(full, Traits::kKvBytes);
    using Box = Shape<typename Traits::BlockK, typename Traits::SlabDims>;
    auto sK = make_tensor(make_smem_ptr(smem_.kv), typename Traits::LayoutK{})(_, _, kv_ring_.slot);
    auto mK = tma_k_.get_tma_tensor(
        make_shape(params_.seqlen_k, typename Traits::HeadDim{}, params_.kv_head_divmod.divisor, params_.num_batches));
    CUTE_UNROLL
    for (int i = 0; i < kStepBlocks; ++i) {
      CUTE_UNROLL
      for (int slab = 0; slab < Traits::kSlabs; ++slab) {
        copy_tile(tma_k_, local_tile(mK(_, _, kv_head, batch), Box{}, make_coord(block_or_first(step, i), slab)),
                  local_tile(sK, Box{}, make_coord(i, slab)), full, TMA::CacheHintSm90::EVICT_LAST);
      }
    }
    kv_ring_.advance();
  }

  __device__ __forceinline__ void load_v(Step const& step, int kv_head, int batch) {
    using namespace cute;
    auto& full = acquire_slot();
    arrive_and_expect_at(full, Traits::kKvBytes);
    using Box = Shape<typename Traits::SlabDims, typename Traits::BlockK>;
    auto sV = make_tensor(make_smem_ptr(smem_.kv), typename Traits::LayoutV{})(_, _, kv_ring_.slot);
    auto mV = tma_v_.get_tma_tensor(
        make_shape(typename Traits::HeadDim{}, params_.seqlen_k, params_.kv_head_divmod.divisor, params_.num_batches));
    CUTE_UNROLL
    for (int i = 0; i < kStepBlocks; ++i) {
      CUTE_UNROLL
      for (int slab = 0; slab < Traits::kSlabs; ++slab) {
        copy_tile(tma_v_, local_tile(mV(_, _, kv_head, batch), Box{}, make_coord(slab, block_or_first(step, i))),
                  local_tile(sV, Box{}, make_coord(slab, i)), full, TMA::CacheHintSm90::EVICT_LAST);
      }
    }
    kv_ring_.advance();
  }

  // A missing block is masked by the consumers, but its V must be finite: load the tile's first block again.
  static __device__ __forceinline__ int block_or_first(Step const& step, int i) {
    int const index = step.blocks[i].index();
    return index >= 0 ? index : step.blocks[0].index();
  }

  __device__ __forceinline__ typename Traits::TransactionBarrier& acquire_slot() {
    wait_at(smem_.kv_empty[kv_ring_.slot], kv_ring_.phase ^ 1);
    return smem_.kv_full[kv_ring_.slot];
  }

  template <class Tma, class Gmem, class Smem>
  __device__ __forceinline__ void copy_tile(Tma const& tma, Gmem const& gX, Smem&& sX, typename Traits::TransactionBarrier& full,
                                            cute::TMA::CacheHintSm90 hint) {
    using namespace cute;
    auto [tXgX, tXsX] = tma_partition(tma, Int<0>{}, Layout<_1>{}, group_modes<0, 2>(sX), group_modes<0, 2>(gX));
    copy(tma.with(*reinterpret_cast<uint64_t*>(&full), 0 /*no multicast*/, hint), tXgX, tXsX);
  }

  Params const& params_;
  TmaQ const& tma_q_;
  TmaK const& tma_k_;
  TmaV const& tma_v_;
  Storage& smem_;
  Ring<Traits::kChunks> chunk_ring_;
  Ring<Traits::kQStages> q_ring_;
  Ring<Traits::kKvStages> kv_ring_;
};

}  // namespace prism::attend
