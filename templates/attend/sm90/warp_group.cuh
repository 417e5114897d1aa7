// What a consumer warp group does beside its products and the softmax: it follows the rings, and masks, computes again and writes out its
// 64 rows. Must not decide which products run beside which softmax (consumer.cuh does).
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>
#include <cutlass/numeric_conversion.h>

#include <climits>

#include "attend/params.h"
#include "attend/sm90/products.cuh"
#include "attend/sm90/traits.cuh"
#include "shared/mbarrier.cuh"
#include "shared/online_softmax.cuh"
#include "shared/ring.cuh"

namespace prism::attend {

template <class Traits>
class WarpGroup {
 protected:
  using Element = typename Traits::Element;
  using Storage = typename Traits::SharedStorage;
  using Tile = typename Traits::Tile;
  using Step = attend::Step<Traits::kEntriesPerStep>;
  using Slot = Ring<Traits::kLoads>;  // of a load, with its phase; but for pairs, of its K or V tile too
  using FragmentO = typename Products<Traits>::FragmentO;
  using FragmentS = typename Products<Traits>::FragmentS;
  using FragmentP = typename Products<Traits>::FragmentP;
  using FragmentQ = typename Products<Traits>::FragmentQ;
  static constexpr int kRows = Traits::kRowsPerWarpGroup;
  static constexpr int kThreads = 128;  // of this warp group
  static constexpr int kNoSlot = -1;
  static constexpr int kSpareSlot = Traits::kLoads;  // in the place of V before a tile's first: to give it back changes nothing
  static constexpr int kPvSteps = Products<Traits>::kPvSteps;

  // Where the K of a step lies, and what is given back when it was read; the same but for pairs.
  struct Keys {
    int slot, load;
  };

  // The first step of a tile, whose Q K^T is issued.
  struct Opened {
    Step step;
    Keys k;
  };

  // Named barriers of a team: one a warp group for its turn, one a warp group for its output tile.
  static constexpr int kTurnBarrier = 0;  // even, as what a team begins with: the other's is one bit away
  static constexpr int kOutputBarrier = kTurnBarrier + Traits::kWarpGroups;
  static constexpr int kTeamBarriers = kOutputBarrier + Traits::kWarpGroups;
  static_assert(Traits::kTeams * kTeamBarriers <= 8, "CUTLASS keeps eight of the sixteen for itself");

  __device__ __forceinline__ WarpGroup(Params const& params, Storage& smem, int rank, int team, int warp_group, int thread)
      : params_(params),
        smem_(smem),
        products_(smem, warp_group, thread),
        rank_(rank),
        team_(team),
        warp_group_(warp_group),
        thread_(thread),
        turn_(first_barrier() + kTurnBarrier + warp_group) {}

  __device__ __forceinline__ Tile await_tile() const {
    wait_at(smem_.q_full[q_ring_.slot], q_ring_.phase);
    return smem_.tiles[q_ring_.slot];
  }

  // S once more, on plain fp32 arithmetic and from K in global memory: its place may hold only infinities by now, K is given back, and
  // a single warp cannot issue wgmma. For rows whose logits leap by more than 83 (softmax's units) in one step; slow, and hardly ever
  // run. Keys that the mask hides are left at 0.
  __device__ __forceinline__ void recompute(Step const& step, int half, FragmentS& tSrS) const {
    using cute::_;
    Tile const& tile = smem_.tiles[q_ring_.slot];
    auto const sQ = products_.q_tiles()(_, _, q_ring_.slot);
    auto const* const head = static_cast<Element const*>(params_.keys.ptr) + tile.batch * params_.keys.batch_stride +
                             params_.lists_divmod.divide(tile.list) * params_.keys.head_stride;
    #pragma unroll 1
    for (int j = 0; j < int(cute::size(tSrS)); ++j) {
      int const row = row_in_tile() + 8 * ((j / 2) % 2), column = half * Traits::kHalfN + 8 * (j / 4) + 2 * (thread_ % 4) + j % 2;
      int packed = step.entries[0].packed;  // one after the other: an array indexed at run time would lie in local memory
      CUTE_UNROLL
      for (int e = 1; e < Traits::kEntriesPerStep; ++e) packed = column < e * Traits::kEntryTokens ? packed : step.entries[e].packed;
      Entry const entry{packed};
      int const key = entry.index() * Traits::kEntryTokens + column % Traits::kEntryTokens;
      float sum = 0.0f;
      if (entry.exists() && key < params_.seqlen_q + params_.prefix) {
        Element const* const from = head + key * params_.keys.row_stride;
        #pragma unroll 1
        for (int d = 0; d < Traits::kHeadDim; ++d) sum += float(Element(sQ(row, d))) * float(from[d]);
      }
      CUTE_UNROLL
      for (int i = 0; i < cute::size(tSrS); ++i) tSrS(i) = i == j ? sum : tSrS(i);
    }
  }

  // Bottom-right causal, only where a step reaches past what the tile's first row sees; a missing entry is hidden whole. The length of
  // K needs no mask of its own: no valid row sees past it.
  __device__ __forceinline__ void mask(FragmentS& tSrS, Step const& step, int half) const {
    constexpr int kTokens = std::min(Traits::kEntryTokens, Traits::kHalfN);  // of an entry, in this half
    constexpr int kGroups = kTokens / 8;                                     // of eight columns, of which a thread has two
    static_assert(kTokens % 8 == 0);
    if (!step.masked()) return;
    CUTE_UNROLL
    for (int e = 0; e < Traits::kHalfN / kTokens; ++e) {
      int const column = half * Traits::kHalfN + e * kTokens, nth = column / Traits::kEntryTokens;
      Entry const entry = step.entries[nth];
      auto const hide = [&](int n, int r, int c, bool hidden) {
        if (0 <= n && n < kGroups && hidden) tSrS(4 * (e * kGroups + n) + 2 * r + c) = -INFINITY;
      };
      auto const last_visible = [&](int row) {  // in the entry, from this thread's first column
        int const sees = position0_ + params_.prefix + row / Traits::kHeadsPerList - 2 * (thread_ % 4);
        return nth == 0 || entry.exists() ? sees - entry.index() * Traits::kEntryTokens - column % Traits::kEntryTokens : INT_MIN / 2;
      };
      // A thread's second row lies 8 below its first. Where that is 8 positions it sees one group more, and one comparison serves both.
      constexpr bool kShared = Traits::kHeadsPerList == 1;
      int const first = last_visible(row_in_tile()), second = kShared ? first : last_visible(row_in_tile() + 8);
      CUTE_UNROLL
      for (int n = kShared ? -1 : 0; n < kGroups; ++n) {
        CUTE_UNROLL
        for (int c = 0; c < 2; ++c) {
          bool const hidden = 8 * n + c > first;
          hide(n, 0, c, hidden);
          hide(kShared ? n + 1 : n, 1, c, kShared ? hidden : 8 * n + c > second);
        }
      }
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

  // The row sums and the LSE of a tile.
  __device__ __forceinline__ void finish_rows(Tile const& tile, OnlineSoftmax& softmax) const {
    float lse[OnlineSoftmax::kRows];
    softmax.finalize(lse);
    if (params_.lse != nullptr && thread_ % 4 == 0) store_lse(tile, lse);
  }

  // O of a tile whose row sums are known, as it is written.
  __device__ __forceinline__ auto rounded_output(OnlineSoftmax const& softmax, FragmentO& tOrO) const {
    softmax.rescale(tOrO);
    auto tOrOut = cute::make_tensor<Element>(tOrO.layout());
    to_element(tOrO, tOrOut);
    clear_unused_rows(tOrOut);
    return tOrOut;
  }

  // By one thread, when all have written.
  __device__ __forceinline__ void send_output(Tile const& tile, int q_slot) const {
    CUTE_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      cute::SM90_TMA_STORE_5D::copy(&params_.out, smem_.q + Traits::q_box_offset(q_slot, warp_group_, slab), slab * Traits::kSlabDims, 0,
                                    position0_, tile.list, tile.batch);
    }
  }

  __device__ __forceinline__ void store_lse(Tile const& tile, float const (&lse)[OnlineSoftmax::kRows]) const {
    constexpr int kHeads = Traits::kHeadsPerList;
    CUTE_UNROLL
    for (int r = 0; r < OnlineSoftmax::kRows; ++r) {
      int const row = row_in_tile() + 8 * r, position = position0_ + row / kHeads;
      int64_t const head = (int64_t(tile.batch) * params_.num_lists + tile.list) * kHeads + row % kHeads;
      if (row < Traits::kUsedRows && position < params_.seqlen_q) params_.lse[head * params_.seqlen_q + position] = lse[r];
    }
  }

  // Gives the last tile's Q slot back once its output has left shared memory. Called a step later, when that is long done.
  __device__ __forceinline__ void release_stored() {
    if (stored_slot_ == kNoSlot) return;
    if (thread_ == 0) cute::tma_store_wait<0>();
    if (thread_ < Traits::kQReleases) arrive_at(smem_.q_empty[stored_slot_]);
    stored_slot_ = kNoSlot;
  }

  // Rows that no head fills are never loaded. They are zero from the start, and O leaves zeros there for the tile after the next: a
  // warp that holds such rows beside others rescales both together, so what it does must not depend on the tile before.
  template <class O>
  __device__ __forceinline__ void clear_unused_rows(O& tOrOut) const {
    if constexpr (Traits::kUsedRows < kRows) {
      CUTE_UNROLL
      for (int i = 0; i < cute::size(tOrOut); ++i) {
        if (row_in_tile() + 8 * ((i / 2) % 2) >= Traits::kUsedRows) tOrOut(i) = Element(0.0f);
      }
    }
  }
  __device__ __forceinline__ void clear_unused_rows() const {
    if constexpr (Traits::kUsedRows < kRows) {
      CUTE_UNROLL
      for (int stage = 0; stage < Traits::kQStages; ++stage) {
        auto sQ = products_.q_tiles()(cute::_, cute::_, stage);
        for (int i = thread_; i < (kRows - Traits::kUsedRows) * Traits::kHeadDim; i += kThreads) {
          sQ(Traits::kUsedRows + i / Traits::kHeadDim, i % Traits::kHeadDim) = Element(0.0f);
        }
      }
      cutlass::arch::fence_view_async_shared();
      sync_output();
    }
  }

  __device__ __forceinline__ Slot next_slot() {
    Slot const slot = kv_ring_;
    kv_ring_.advance();
    return slot;
  }
  __device__ __forceinline__ int next_of_pair() {
    int const slot = pair_slot_;
    pair_slot_ = Traits::next_slot(slot);
    return slot;
  }
  __device__ __forceinline__ void wait(Slot const& at) const { wait_at(smem_.kv_full[at.slot], at.phase); }
  __device__ __forceinline__ Step wait_step(Slot const& k) const {
    wait(k);
    return smem_.steps[k.slot];
  }
  __device__ __forceinline__ void release(int slot) const {
    __syncwarp();
    if constexpr (Traits::kTeams == 1 || Traits::kCluster > 1) {
      if (thread_ % 32 < Traits::kCluster) arrive_at_peer<Traits::kCluster>(smem_.kv_empty[slot], thread_ % 32);
    } else {  // by a predicate and no branch, which saves 5 instructions of a step; with one team it was slower
      uint32_t const empty = cute::cast_smem_ptr_to_uint(&smem_.kv_empty[slot]);
      asm volatile("{ .reg .pred first; setp.eq.u32 first, %1, 0; @first mbarrier.arrive.shared::cta.b64 _, [%0]; }"
                   ::"r"(empty), "r"(thread_ % 32) : "memory");
    }
  }
  __device__ __forceinline__ void sync_output() const {
    cutlass::arch::NamedBarrier::sync(kThreads, first_barrier() + kOutputBarrier + warp_group_);
  }
  __device__ __forceinline__ int first_barrier() const { return team_ * kTeamBarriers; }
  __device__ __forceinline__ int row_in_tile() const { return 16 * (thread_ / 32) + (thread_ % 32) / 4; }  // of r = 0

  Params const& params_;
  Storage& smem_;
  Products<Traits> products_;
  int const rank_;        // of this CTA in its cluster
  int const team_;        // of its CTA
  int const warp_group_;  // of its team
  int const thread_;      // 0..127 in the warp group
  int const turn_;        // the barrier of this warp group's turn
  int position0_ = 0;          // of this warp group's first query row
  int stored_slot_ = kNoSlot;  // Q slot whose output is on its way out
  int v_slot_ = kNoSlot;       // of the tile's last P V
  Ring<Traits::kQStages> q_ring_;
  Slot kv_ring_;
  int pair_slot_ = 0;  // of the next K or V of a pair
};

}  // namespace prism::attend
