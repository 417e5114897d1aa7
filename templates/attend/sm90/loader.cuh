// The loader thread: turns the walker's steps into TMA copies of Q, K and V. The only place that touches the tensor maps of
// the inputs, so another memory layout (varlen, paged) is another loader.
#pragma once

#include "attend/params.h"
#include "attend/sm90/traits.cuh"
#include "shared/ring.cuh"

namespace prism::attend {

// K and V tiles share one ring of slots in the order in which the consumers need them: K0 K1 V0 K2 V1 ... V(n-1).
template <class Traits, class TmaQ, class TmaK, class TmaV>
class Loader {
  using Storage = typename Traits::SharedStorage;

 public:
  __device__ __forceinline__ Loader(Params const& params, TmaQ const& tma_q, TmaK const& tma_k, TmaV const& tma_v, Storage& smem)
      : params_(params), tma_q_(tma_q), tma_k_(tma_k), tma_v_(tma_v), smem_(smem) {}

  __device__ __forceinline__ void run() {
    int kv_head = 0, batch = 0, previous_block = 0;
    bool has_previous = false;
    while (true) {
      smem_.chunk_full[chunk_ring_.slot].wait(chunk_ring_.phase);
      auto const& chunk = smem_.chunks[chunk_ring_.slot];
      if (chunk.first) {
        batch = chunk.batch;
        kv_head = params_.group_divmod.divide(chunk.q_head);
        open_tile(chunk.q_tile, chunk.q_head, batch, chunk.num_steps);
        if (chunk.q_tile < 0) return;
      }
      int const steps = chunk.num_steps;
      for (int n = 0; n < steps; ++n) {
        Step const step{chunk.steps[n]};
        load_k(step, kv_head, batch);
        if (has_previous) load_v(previous_block, kv_head, batch);
        previous_block = step.block();
        has_previous = true;
      }
      if (chunk.last && has_previous) {
        load_v(previous_block, kv_head, batch);
        has_previous = false;
      }
      smem_.chunk_empty[chunk_ring_.slot].arrive();
      chunk_ring_.advance();
    }
  }

 private:
  __device__ __forceinline__ void open_tile(int q_tile, int q_head, int batch, int num_blocks) {
    smem_.q_empty[q_ring_.slot].wait(q_ring_.phase ^ 1);
    smem_.tiles[q_ring_.slot] = {q_tile, q_head, batch, num_blocks};
    auto& full = smem_.q_full[q_ring_.slot];
    if (q_tile < 0 || num_blocks == 0) {
      full.arrive();  // nothing to load, only the tile's coordinates to read
    } else {
      full.arrive_and_expect_tx(Traits::kQBytes);
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

  __device__ __forceinline__ void load_k(Step step, int kv_head, int batch) {
    using namespace cute;
    auto& full = acquire_slot();
    smem_.steps[kv_ring_.slot] = step.packed;
    full.arrive_and_expect_tx(Traits::kKvBytes);
    auto sK = make_tensor(make_smem_ptr(smem_.kv), typename Traits::LayoutK{});
    auto mK = tma_k_.get_tma_tensor(make_shape(params_.seqlen_k, typename Traits::HeadDim{}, params_.kv_head_divmod.divisor, params_.num_batches));
    auto gK = local_tile(mK(_, _, kv_head, batch), Shape<typename Traits::TileN, typename Traits::HeadDim>{},
                         make_coord(step.block(), _0{}));
    copy_tile(tma_k_, gK, sK(_, _, kv_ring_.slot), full, TMA::CacheHintSm90::EVICT_LAST);
    kv_ring_.advance();
  }

  __device__ __forceinline__ void load_v(int block, int kv_head, int batch) {
    using namespace cute;
    auto& full = acquire_slot();
    full.arrive_and_expect_tx(Traits::kKvBytes);
    auto sV = make_tensor(make_smem_ptr(smem_.kv), typename Traits::LayoutV{});
    auto mV = tma_v_.get_tma_tensor(make_shape(typename Traits::HeadDim{}, params_.seqlen_k, params_.kv_head_divmod.divisor, params_.num_batches));
    auto gV = local_tile(mV(_, _, kv_head, batch), Shape<typename Traits::HeadDim, typename Traits::TileN>{},
                         make_coord(_0{}, block));
    copy_tile(tma_v_, gV, sV(_, _, kv_ring_.slot), full, TMA::CacheHintSm90::EVICT_LAST);
    kv_ring_.advance();
  }

  __device__ __forceinline__ typename Traits::TransactionBarrier& acquire_slot() {
    smem_.kv_empty[kv_ring_.slot].wait(kv_ring_.phase ^ 1);
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
