// A consumer warp group: 64 query rows against the tile's key blocks. Owns the matrix products, the mask, the online
// softmax and the output; takes what to do from shared memory only.
//
// The next block's S = Q K^T runs on the tensor cores under this block's softmax, and the two warp groups take turns through
// named barriers, so that one's exponentials run under the other's products.
#pragma once

#include <cutlass/numeric_conversion.h>

#include <climits>

#include "attend/params.h"
#include "attend/sm90/traits.cuh"
#include "shared/online_softmax.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"
#include "shared/wgmma.cuh"

namespace prism::attend {

template <class Traits, class TmaO>
class Consumer {
  using Element = typename Traits::Element;
  using Storage = typename Traits::SharedStorage;
  using Tile = typename Traits::Tile;
  using Step = attend::Step<Traits::kBlocksPerTile>;
  static constexpr int kRows = Traits::kRowsPerWarpGroup;
  static constexpr int kThreads = 128;  // of this warp group
  // One list: both warp groups compute every block and take turns. Two lists: one may compute while the other skips.
  static constexpr bool kOneList = Traits::kLists == 1;

  static constexpr int kNoSlot = -1;

  // Named barriers: one a warp group for its turn, one a warp group for its output tile.
  static constexpr int kTurnBarrier = 0;
  static constexpr int kOutputBarrier = kTurnBarrier + Traits::kWarpGroups;

 public:
  __device__ __forceinline__ Consumer(Params const& params, TmaO const& tma_o, Storage& smem, int warp_group, int thread)
      : params_(params), tma_o_(tma_o), smem_(smem), warp_group_(warp_group), thread_(thread) {}

  __device__ __forceinline__ void run() {
    using namespace cute;
    auto tOrO = partition_fragment_C(mma_pv_, Shape<typename Traits::Rows, typename Traits::HeadDim>{});
    auto tSrS = partition_fragment_C(mma_qk_, Shape<typename Traits::Rows, typename Traits::TileN>{});
    auto tOrP = make_tensor<Element>(partition_shape_A(mma_pv_, Shape<typename Traits::Rows, typename Traits::TileN>{}));
    auto tSrQ = make_q_fragment();
    OnlineSoftmax softmax(params_.softmax_scale_log2);

    if (kOneList && warp_group_ == 1) pass_turn(0);  // warp group 0 goes first

    while (true) {
      wait_at(smem_.q_full[q_ring_.slot], q_ring_.phase);
      Tile const tile = smem_.tiles[q_ring_.slot];
      if (tile.q_tile < 0) break;
      row0_ = tile.q_tile * Traits::kTileM + warp_group_ * kRows;
      softmax.reset();
      clear(tOrO);
      if (tile.num_blocks > 0) {
        fetch_q(tSrQ);
        if constexpr (kOneList) walk_one(softmax, tSrQ, tSrS, tOrP, tOrO);
        else walk_union(softmax, tSrQ, tSrS, tOrP, tOrO);
      }
      store(tile, softmax, tOrO);
      q_ring_.advance();
    }
    if (thread_ == 0) tma_store_wait<0>();
  }

 private:
  template <class Softmax, class Q, class S, class P, class O>
  __device__ __forceinline__ void walk_one(Softmax& softmax, Q& tSrQ, S& tSrS, P& tOrP, O& tOrO) {
    int k_slot = next_slot(), v_slot = kNoSlot;
    Step step = wait_step(k_slot);
    start(k_slot, step, softmax, tSrQ, tSrS);
    bool rescale = false;  // O is still zero
    release_stored();
    while (!step.last()) {
      settle(v_slot, rescale, softmax, tSrS, tOrP, tOrO);
      k_slot = next_slot();
      v_slot = next_slot();
      step = wait_step(k_slot);
      rescale = overlap(k_slot, v_slot, step, softmax, tSrQ, tSrS, tOrP, tOrO);
    }
    settle(v_slot, rescale, softmax, tSrS, tOrP, tOrO);
    finish(next_slot(), tOrP, tOrO);
  }

  // The union of two lists: a block that this warp group did not select is waited for, so that phases stay in step, and skipped.
  // V of a selected block is consumed before the next unselected one is passed: a held slot would stall the ring.
  template <class Softmax, class Q, class S, class P, class O>
  __device__ __forceinline__ void walk_union(Softmax& softmax, Q& tSrQ, S& tSrS, P& tOrP, O& tOrO) {
    bool pending = false;  // S of the previous block waits for its V
    bool rescale = false;
    int held_slot = kNoSlot;  // V slot of a product that may still run
    Step step{};
    bool first = true;
    clear(tSrS);
    do {
      int const k_slot = next_slot();
      int const v_slot = first ? kNoSlot : next_slot();
      step = wait_step(k_slot);
      bool const selected = step.selected_by(warp_group_);
      settle(held_slot, rescale, softmax, tSrS, tOrP, tOrO);  // also with nothing pending: ptxas wants one wait on every path
      held_slot = kNoSlot;
      rescale = false;
      if (selected && pending) {
        rescale = overlap(k_slot, v_slot, step, softmax, tSrQ, tSrS, tOrP, tOrO);
        held_slot = v_slot;
      } else {
        if (pending) finish(v_slot, tOrP, tOrO);
        else if (!first) skip(v_slot);
        if (selected) rescale = start(k_slot, step, softmax, tSrQ, tSrS);
        else release(k_slot);
      }
      pending = selected;
      first = false;
      release_stored();
    } while (!step.last());
    settle(held_slot, rescale, softmax, tSrS, tOrP, tOrO);
    if (pending) finish(next_slot(), tOrP, tOrO);
    else skip(next_slot());
  }

  // S = softmax numerators of one block, alone. Returns whether O must be rescaled.
  template <class Softmax, class Q, class S>
  __device__ __forceinline__ bool start(int k_slot, Step const& step, Softmax& softmax, Q& tSrQ, S& tSrS) {
    issue_qk(k_slot, tSrQ, tSrS);
    cute::warpgroup_wait<0>();
    release(k_slot);
    mask(tSrS, step);
    return softmax.step(tSrS);
  }

  // Q K^T of this block, and behind it O += P V of the previous one; the softmax of this block runs under that second product,
  // which is waited for by settle() at the head of the next step. (Waited for in the same basic block, ptxas moves the wait
  // above the exponentials that it should hide.) Returns whether O must be rescaled.
  template <class Softmax, class Q, class S, class P, class O>
  __device__ __forceinline__ bool overlap(int k_slot, int v_slot, Step const& step, Softmax& softmax, Q& tSrQ, S& tSrS, P& tOrP, O& tOrO) {
    if constexpr (kOneList) await_turn();
    issue_qk(k_slot, tSrQ, tSrS);
    wait(v_slot);
    issue_pv(v_slot, tOrP, tOrO);
    if constexpr (kOneList) pass_turn(warp_group_ ^ 1);
    cute::warpgroup_wait<1>();
    release(k_slot);
    mask(tSrS, step);
    return softmax.step(tSrS);
  }

  // Waits for the product that overlap() left running, gives its V back, and makes P and O ready for the next one.
  template <class Softmax, class S, class P, class O>
  __device__ __forceinline__ void settle(int v_slot, bool rescale, Softmax& softmax, S& tSrS, P& tOrP, O& tOrO) {
    cute::warpgroup_wait<0>();
    if (v_slot != kNoSlot) release(v_slot);
    to_element(tSrS, tOrP);
    if (rescale) softmax.rescale(tOrO);
  }

  // O += P V of the last block.
  template <class P, class O>
  __device__ __forceinline__ void finish(int v_slot, P& tOrP, O& tOrO) {
    wait(v_slot);
    issue_pv(v_slot, tOrP, tOrO);
    cute::warpgroup_wait<0>();
    release(v_slot);
  }

  __device__ __forceinline__ auto q_tile() const {
    using namespace cute;
    return make_tensor(make_smem_ptr(smem_.q), typename Traits::LayoutQ{})(_, _, warp_group_, q_ring_.slot);
  }

  // Registers for the whole Q tile, or nothing: descriptors are made where they are used.
  __device__ __forceinline__ auto make_q_fragment() const {
    using namespace cute;
    if constexpr (Traits::kQInRegisters)
      return make_tensor<Element>(partition_shape_A(mma_qk_, Shape<typename Traits::Rows, typename Traits::HeadDim>{}));
    else return 0;
  }

  template <class Q>
  __device__ __forceinline__ void fetch_q(Q& tSrQ) const {
    using namespace cute;
    if constexpr (Traits::kQInRegisters) {
      auto tiled_copy = make_tiled_copy_A(Copy_Atom<SM75_U32x4_LDSM_N, Element>{}, mma_qk_);
      auto thr_copy = tiled_copy.get_slice(thread_);
      copy(tiled_copy, thr_copy.partition_S(as_position_independent_swizzle_tensor(q_tile())), thr_copy.retile_D(tSrQ));
    }
  }

  template <class Q, class S>
  __device__ __forceinline__ void issue_qk(int k_slot, Q& tSrQ, S& tSrS) {
    using namespace cute;
    auto sK = make_tensor(make_smem_ptr(smem_.kv), typename Traits::LayoutK{});
    auto thr_mma = mma_qk_.get_slice(thread_);
    auto tSrK = thr_mma.partition_fragment_B(sK(_, _, k_slot));
    if constexpr (Traits::kQInRegisters) {
      issue_gemm<false>(mma_qk_, tSrQ, tSrK, tSrS);
    } else {
      auto tSdQ = thr_mma.partition_fragment_A(q_tile());
      issue_gemm<false>(mma_qk_, tSdQ, tSrK, tSrS);
    }
  }

  template <class P, class O>
  __device__ __forceinline__ void issue_pv(int v_slot, P& tOrP, O& tOrO) {
    using namespace cute;
    auto sV = make_tensor(make_smem_ptr(smem_.kv), typename Traits::LayoutV{});
    auto tOrV = mma_pv_.get_slice(thread_).partition_fragment_B(sV(_, _, v_slot));
    issue_gemm<true>(mma_pv_, tOrP, tOrV, tOrO);
  }

  // Bottom-right causal, only where a block reaches past what this warp group's first row sees; a missing block is hidden
  // whole. The length of K needs no mask of its own: no valid row sees past it.
  template <class S>
  __device__ __forceinline__ void mask(S& tSrS, Step const& step) const {
    constexpr int kBlockK = Traits::kBlockK, kLast = Traits::kBlocksPerTile - 1;
    int const first_row_sees = row0_ + params_.prefix;  // lists fall: if the first block needs no mask, no later one does
    if (step.blocks[kLast].exists() && (step.blocks[0].index() + 1) * kBlockK - 1 <= first_row_sees) return;
    int last_visible[Traits::kBlocksPerTile];  // in the block, of this thread's row r = 0 and column c = 0
    CUTE_UNROLL
    for (int b = 0; b <= kLast; ++b) {
      Block const block = step.blocks[b];
      last_visible[b] = block.exists() ? first_row_sees + row_in_tile() - block.index() * kBlockK - 2 * (thread_ % 4) : INT_MIN / 2;
    }
    CUTE_UNROLL
    for (int i = 0; i < cute::size(tSrS); ++i) {
      int const column = 8 * (i / 4) + i % 2, row = 8 * ((i / 2) % 2);
      if (column % kBlockK > last_visible[column / kBlockK] + row) tSrS(i) = -INFINITY;
    }
  }

  // wgmma's accumulator and its 16-bit A operand hold the same elements in the same order.
  template <class S, class P>
  static __device__ __forceinline__ void to_element(S const& tSrS, P& tOrP) {
    constexpr int kSize = decltype(cute::size(tSrS))::value;
    static_assert(kSize == decltype(cute::size(tOrP))::value);
    cutlass::NumericArrayConverter<Element, float, kSize> convert;
    auto const& from = *reinterpret_cast<cutlass::Array<float, kSize> const*>(tSrS.data());
    *reinterpret_cast<cutlass::Array<Element, kSize>*>(tOrP.data()) = convert(from);
  }

  // Writes O through the tile's own Q slot, which no product reads any more, and the LSE from registers.
  template <class Softmax, class O>
  __device__ __forceinline__ void store(Tile const& tile, Softmax& softmax, O& tOrO) {
    using namespace cute;
    float lse[Softmax::kRows];
    softmax.finalize(tOrO, lse);
    if (params_.lse != nullptr && thread_ % 4 == 0) {
      int64_t const first = (int64_t(tile.batch) * params_.num_q_heads + tile.q_head) * params_.seqlen_q;
      CUTE_UNROLL
      for (int r = 0; r < Softmax::kRows; ++r) {
        int const row = row0_ + row_in_tile() + 8 * r;
        if (row < params_.seqlen_q) params_.lse[first + row] = lse[r];
      }
    }

    auto tOrOut = make_tensor<Element>(tOrO.layout());
    to_element(tOrO, tOrOut);
    auto sO = q_tile();
    auto tiled_copy = make_tiled_copy_C(Copy_Atom<SM90_U32x4_STSM_N, Element>{}, mma_pv_);
    auto thr_copy = tiled_copy.get_slice(thread_);
    release_stored();
    sync_output();  // every warp's last product has read its part of Q
    copy(tiled_copy, thr_copy.retile_S(tOrOut), thr_copy.partition_D(as_position_independent_swizzle_tensor(sO)));
    tma_store_fence();
    sync_output();
    if (thread_ == 0) {
      auto mO = tma_o_.get_tma_tensor(make_shape(params_.seqlen_q, typename Traits::HeadDim{}, params_.num_q_heads, params_.num_batches));
      auto gO = local_tile(mO(_, _, tile.q_head, tile.batch), Shape<typename Traits::Rows, typename Traits::HeadDim>{},
                           make_coord(tile.q_tile * Traits::kWarpGroups + warp_group_, _0{}));
      auto [tOgO, tOsO] = tma_partition(tma_o_, Int<0>{}, Layout<_1>{}, group_modes<0, 2>(sO), group_modes<0, 2>(gO));
      copy(tma_o_, tOsO, tOgO);
      tma_store_arrive();
    }
    stored_slot_ = q_ring_.slot;
  }

  // Gives the last tile's Q slot back once its output has left shared memory. Called a block later, when that is long done.
  __device__ __forceinline__ void release_stored() {
    if (stored_slot_ < 0) return;
    if (thread_ == 0) {
      cute::tma_store_wait<0>();
      arrive_at(smem_.q_empty[stored_slot_]);
    }
    stored_slot_ = -1;
  }

  __device__ __forceinline__ int next_slot() {
    int const slot = kv_ring_.slot;
    slot_phase_ = (slot_phase_ & ~(1u << slot)) | (kv_ring_.phase << slot);
    kv_ring_.advance();
    return slot;
  }
  __device__ __forceinline__ void wait(int slot) const { wait_at(smem_.kv_full[slot], (slot_phase_ >> slot) & 1); }
  __device__ __forceinline__ Step wait_step(int k_slot) const {
    wait(k_slot);
    return smem_.steps[k_slot];
  }
  __device__ __forceinline__ void release(int slot) const {
    __syncwarp();
    if (thread_ % 32 == 0) arrive_at(smem_.kv_empty[slot]);
  }
  __device__ __forceinline__ void skip(int slot) const {
    wait(slot);
    release(slot);
  }

  __device__ __forceinline__ void await_turn() const {
    cutlass::arch::NamedBarrier::sync(kThreads * Traits::kWarpGroups, kTurnBarrier + warp_group_);
  }
  __device__ __forceinline__ void pass_turn(int to) const {
    cutlass::arch::NamedBarrier::arrive(kThreads * Traits::kWarpGroups, kTurnBarrier + to);
  }
  __device__ __forceinline__ void sync_output() const {
    cutlass::arch::NamedBarrier::sync(kThreads, kOutputBarrier + warp_group_);
  }
  __device__ __forceinline__ int row_in_tile() const { return 16 * (thread_ / 32) + (thread_ % 32) / 4; }  // of r = 0

  Params const& params_;
  TmaO const& tma_o_;
  Storage& smem_;
  int const warp_group_;
  int const thread_;  // 0..127 in the warp group
  typename Traits::MmaQK mma_qk_;
  typename Traits::MmaPV mma_pv_;
  int row0_ = 0;          // first query row of this warp group
  int stored_slot_ = -1;  // Q slot whose output is on its way out
  Ring<Traits::kQStages> q_ring_;
  Ring<Traits::kKvStages> kv_ring_;
  uint32_t slot_phase_ = 0;  // bit s: phase of the last use of slot s that this warp group met
};

}  // namespace prism::attend
