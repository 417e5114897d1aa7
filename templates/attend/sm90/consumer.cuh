// A consumer warp group: 64 query rows against the tile's list entries. Owns the matrix products, the mask, the online
// softmax and the output; takes what to do from shared memory only.
//
// The next step's S = Q K^T runs on the tensor cores under this step's softmax, and the two warp groups of a list take turns through
// named barriers, so that one's exponentials run under the other's products. (Beside a second team there are no turns: four warps a
// scheduler find their way past each other.) At a tile's end the next tile's first Q K^T is issued behind the last P V, and runs
// while the output is written; what needs neither product is done before the wait for them.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>
#include <cutlass/numeric_conversion.h>

#include <climits>

#include "attend/params.h"
#include "attend/sm90/traits.cuh"
#include "shared/online_softmax.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"
#include "shared/wgmma.cuh"

namespace prism::attend {

template <class Traits>
class Consumer {
  using Element = typename Traits::Element;
  using Storage = typename Traits::SharedStorage;
  using Tile = typename Traits::Tile;
  using Step = attend::Step<Traits::kEntriesPerStep>;
  using Slot = Ring<Traits::kKvStages>;  // of a K or V tile, with the phase in which it is loaded
  static constexpr int kRows = Traits::kRowsPerWarpGroup;
  static constexpr int kThreads = 128;  // of this warp group
  // One list: every warp group computes every step. Two lists: one may compute while the other skips.
  static constexpr bool kOneList = Traits::kLists == 1;
  static constexpr bool kTurns = kOneList && Traits::kWarpGroups == 2 && Traits::kTeams == 1;
  static constexpr bool kOverlapTiles = kOneList && Traits::kQStages == 2;

  // Rows and dims of Q that registers hold; where they hold none, a fragment that nobody uses.
  using ShapeQInRegisters = cute::Shape<typename Traits::Rows, cute::Int<16 * std::max(1, Traits::kQStepsInRegisters)>>;

  static constexpr bool kSomeQInRegisters = 0 < Traits::kQStepsInRegisters && Traits::kQStepsInRegisters < Traits::kQSteps;

  static constexpr int kNoSlot = -1;

  // K-steps of P V, and how many of them are issued among the exponentials: the first behind one pair, each other so many pairs later;
  // ptxas spreads them further. Four among them starved the tensor cores. At head_dim 256 registers are short; head_dim 192 and lists that
  // are merged were not measured.
  static constexpr int kPvSteps = Traits::kTileN / 16;
  static constexpr int kPvStepsAmong = kOneList && Traits::kHeadDim <= 128 ? 2 : 0, kPairsBetween = 2;

  // The first step of a tile, whose Q K^T is issued, and the slot of its K.
  struct Opened {
    Step step;
    int k_slot;
  };

  // Named barriers of a team: one a warp group for its turn, one a warp group for its output tile.
  static constexpr int kTurnBarrier = 0;
  static constexpr int kOutputBarrier = kTurnBarrier + Traits::kWarpGroups;
  static constexpr int kTeamBarriers = kOutputBarrier + Traits::kWarpGroups;
  static_assert(Traits::kTeams * kTeamBarriers <= 8, "CUTLASS keeps eight of the sixteen for itself");

 public:
  __device__ __forceinline__ Consumer(Params const& params, Storage& smem, int rank, int team, int warp_group, int thread)
      : params_(params), smem_(smem), rank_(rank), team_(team), warp_group_(warp_group), thread_(thread) {}

  __device__ __forceinline__ void run() {
    using namespace cute;
    auto tOrO = partition_fragment_C(mma_pv_, Shape<typename Traits::Rows, typename Traits::HeadDim>{});
    auto tSrS = partition_fragment_C(mma_qk_, Shape<typename Traits::Rows, typename Traits::TileN>{});
    auto tOrP = make_tensor<Element>(partition_shape_A(mma_pv_, Shape<typename Traits::Rows, typename Traits::TileN>{}));
    auto tOrQ = make_tensor<Element>(partition_shape_A(mma_qk_in_registers_, ShapeQInRegisters{}));
    OnlineSoftmax softmax(params_.softmax_scale_log2);

    clear_unused_rows();
    if (kTurns && warp_group_ == 1) pass_turn(0);  // warp group 0 goes first

    Opened opened{};
    Tile tile = await_tile();
    if constexpr (kOverlapTiles) open(tile, opened, tOrQ, tSrS);
    while (tile.q_tile >= 0) {
      position0_ = Traits::first_position(tile.q_tile, rank_, warp_group_);
      softmax.reset();
      clear(tOrO);
      if constexpr (!kOverlapTiles) open(tile, opened, tOrQ, tSrS);
      warpgroup_wait<0>();
      if (tile.num_entries > 0) {
        if constexpr (kOneList) walk_one(opened, softmax, tOrQ, tSrS, tOrP, tOrO);
        else walk_union(softmax, tOrQ, tSrS, tOrP, tOrO);
      }
      int const q_slot = q_ring_.slot;
      if constexpr (kOverlapTiles) {
        release_stored();  // or the tile after the next could not be loaded
        q_ring_.advance();
        Tile const next = await_tile();
        open(next, opened, tOrQ, tSrS);
        close(tile, softmax);
        warpgroup_wait<1>();  // for the last P V, not for the next Q K^T
        if (tile.num_entries > 0) release(v_slot_);
        store(tile, q_slot, softmax, tOrO);
        tile = next;
      } else {
        close(tile, softmax);
        store(tile, q_slot, softmax, tOrO);
        q_ring_.advance();
        if constexpr (Traits::kQStages == 1) release_stored();
        tile = await_tile();
      }
    }
    warpgroup_wait<0>();
    if (thread_ == 0) tma_store_wait<0>();
  }

 private:
  __device__ __forceinline__ Tile await_tile() const {
    wait_at(smem_.q_full[q_ring_.slot], q_ring_.phase);
    return smem_.tiles[q_ring_.slot];
  }

  // Issues the first Q K^T of a tile that walks one list, and reads its Q. Where nothing was loaded both take what
  // happens to lie in shared memory, and nobody reads it: one path for every tile lets ptxas keep products in flight across tiles.
  template <class Q, class S>
  __device__ __forceinline__ void open(Tile const& tile, Opened& opened, Q& tOrQ, S& tSrS) {
    if constexpr (kOneList) {
      Slot const k = kv_ring_;
      if (tile.q_tile >= 0 && tile.num_entries > 0) {
        kv_ring_.advance();
        opened.step = wait_step(k);
      }
      issue_qk(k.slot, tSrS);
      opened.k_slot = k.slot;
      if constexpr (Traits::kQStepsInRegisters > 0) read_q(tOrQ);
    }
  }

  // The steps of an opened tile, whose first S is there; leaves its last P V running, on V of v_slot_.
  template <class Softmax, class Q, class S, class P, class O>
  __device__ __forceinline__ void walk_one(Opened const& opened, Softmax& softmax, Q& tOrQ, S& tSrS, P& tOrP, O& tOrO) {
    Step step = opened.step;
    soften(opened.k_slot, step, softmax, tOrQ, tSrS, OnlineSoftmax::Nothing{});
    bool rescale = false;  // O is still zero
    release_stored();
    int v_slot = kNoSlot;
    while (!step.last()) {
      settle(v_slot, rescale, softmax, tSrS, tOrP, tOrO);
      Slot const k = next_slot(), v = next_slot();
      step = wait_step(k);
      rescale = overlap(k.slot, v, step, softmax, tOrQ, tSrS, tOrP, tOrO);
      v_slot = v.slot;
    }
    settle(v_slot, rescale, softmax, tSrS, tOrP, tOrO);
    Slot const v = next_slot();
    issue_pv(v, tOrP, tOrO);
    v_slot_ = v.slot;
    if constexpr (!kOverlapTiles) drain(v_slot_);
  }

  // The union of two lists: a block that this warp group did not select is waited for, so that phases stay in step, and skipped.
  // V of a selected block is consumed before the next unselected one is passed: a held slot would stall the ring.
  template <class Softmax, class Q, class S, class P, class O>
  __device__ __forceinline__ void walk_union(Softmax& softmax, Q& tOrQ, S& tSrS, P& tOrP, O& tOrO) {
    bool pending = false;  // S of the previous block waits for its V
    bool rescale = false;
    int held_slot = kNoSlot;  // V slot of a product that may still run
    Step step{};
    bool first = true;
    clear(tSrS);
    if constexpr (Traits::kQStepsInRegisters > 0) read_q(tOrQ);  // for overlap(); start() waits for its product anyway
    do {
      Slot const k = next_slot();
      Slot const v = first ? Slot{kNoSlot} : next_slot();
      step = wait_step(k);
      bool const selected = step.selected_by(warp_group_);
      settle(held_slot, rescale, softmax, tSrS, tOrP, tOrO);  // also with nothing pending: ptxas wants one wait on every path
      held_slot = kNoSlot;
      rescale = false;
      if (selected && pending) {
        rescale = overlap(k.slot, v, step, softmax, tOrQ, tSrS, tOrP, tOrO);
        held_slot = v.slot;
      } else {
        if (pending) finish(v, tOrP, tOrO);
        else if (!first) skip(v);
        if (selected) rescale = start(k.slot, step, softmax, tOrQ, tSrS);
        else release(k.slot);
      }
      pending = selected;
      first = false;
      release_stored();
    } while (!step.last());
    settle(held_slot, rescale, softmax, tSrS, tOrP, tOrO);
    if (pending) finish(next_slot(), tOrP, tOrO);
    else skip(next_slot());
  }

  // S = softmax numerators of one step, alone. Returns whether O must be rescaled.
  template <class Softmax, class Q, class S>
  __device__ __forceinline__ bool start(int k_slot, Step const& step, Softmax& softmax, Q& tOrQ, S& tSrS) {
    issue_qk(k_slot, tSrS);
    cute::warpgroup_wait<0>();
    return soften(k_slot, step, softmax, tOrQ, tSrS, OnlineSoftmax::Nothing{});
  }

  // Q K^T of this step, and behind it O += P V of the previous one; the softmax of this step runs under that second product,
  // which is waited for by settle() at the head of the next step. (Waited for in the same basic block, ptxas moves the wait
  // above the exponentials that it should hide.) Issuing a product holds a warp up until the one before is done, so the last ones of
  // P V are issued among the exponentials. Returns whether O must be rescaled.
  template <class Softmax, class Q, class S, class P, class O>
  __device__ __forceinline__ bool overlap(int k_slot, Slot const& v, Step const& step, Softmax& softmax, Q& tOrQ, S& tSrS, P& tOrP,
                                          O& tOrO) {
    if constexpr (kTurns) await_turn();
    if constexpr (Traits::kQStepsInRegisters > 0) issue_qk(k_slot, tOrQ, tSrS);
    else issue_qk(k_slot, tSrS);
    if constexpr (kPvStepsAmong == 0) {
      issue_pv(v, tOrP, tOrO);
    } else {
      wait(v);
      issue_pv<kPvSteps - kPvStepsAmong>(v.slot, 0, tOrP, tOrO);
    }
    if constexpr (kTurns) pass_turn(warp_group_ ^ 1);
    cute::warpgroup_wait<1>();
    // Two calls, since at head_dim 256 ptxas spills for a function that is there and issues nothing.
    if constexpr (kPvStepsAmong == 0) {
      return soften(k_slot, step, softmax, tOrQ, tSrS, OnlineSoftmax::Nothing{});
    } else {
      return soften(k_slot, step, softmax, tOrQ, tSrS, [&](int pair) {
        int const among = pair / kPairsBetween;
        if (pair % kPairsBetween == 0 && among < kPvStepsAmong) issue_pv<1>(v.slot, kPvSteps - kPvStepsAmong + among, tOrP, tOrO);
      });
    }
  }

  // Mask and softmax of the S at hand, whose K is given back: at once where there are no turns, so that other warps' products start, and
  // where warp groups take turns after the exponentials, which all wait for. among: as OnlineSoftmax::step() takes it.
  template <class Softmax, class Q, class S, class Among>
  __device__ __forceinline__ bool soften(int k_slot, Step const& step, Softmax& softmax, Q& tOrQ, S& tSrS, Among const& among) {
    if constexpr (!kTurns) release(k_slot);
    mask(tSrS, step);
    auto const restore = [&] {
      recompute(step, tSrS);
      mask(tSrS, step);
      if constexpr (kSomeQInRegisters) read_q(tOrQ);  // so that recompute() has its registers
    };
    bool const rescale = softmax.step(tSrS, restore, among);
    if constexpr (kTurns) release(k_slot);
    return rescale;
  }

  // Waits for the product that overlap() left running, gives its V back, and makes P and O ready for the next one.
  template <class Softmax, class S, class P, class O>
  __device__ __forceinline__ void settle(int v_slot, bool rescale, Softmax& softmax, S& tSrS, P& tOrP, O& tOrO) {
    cute::warpgroup_wait<0>();
    if (v_slot != kNoSlot) release(v_slot);
    to_element(tSrS, tOrP);
    if (rescale) softmax.rescale(tOrO);
  }

  // O += P V of the last step.
  template <class P, class O>
  __device__ __forceinline__ void finish(Slot const& v, P& tOrP, O& tOrO) {
    issue_pv(v, tOrP, tOrO);
    drain(v.slot);
  }

  __device__ __forceinline__ void drain(int v_slot) const {
    cute::warpgroup_wait<0>();
    release(v_slot);
  }

  // Every Q, K and V slot: descriptors of whole rings are made once, and a slot is then an addition.
  __device__ __forceinline__ auto q_tiles() const {
    using namespace cute;
    return make_tensor(make_smem_ptr(smem_.q), typename Traits::LayoutQ{})(_, _, warp_group_, _);
  }

  __device__ __forceinline__ auto k_tiles() const {
    return cute::make_tensor(cute::make_smem_ptr(smem_.kv), typename Traits::LayoutK{});
  }

  __device__ __forceinline__ auto v_tiles() const {
    return cute::make_tensor(cute::make_smem_ptr(smem_.kv), typename Traits::LayoutV{});
  }

  template <class S>
  __device__ __forceinline__ void issue_qk(int k_slot, S& tSrS) {
    using namespace cute;
    auto thr_mma = mma_qk_.get_slice(thread_);
    auto tSdQ = thr_mma.partition_fragment_A(q_tiles())(_, _, _, q_ring_.slot);
    auto tSdK = thr_mma.partition_fragment_B(k_tiles())(_, _, _, k_slot);
    issue_gemm<false>(mma_qk_, tSdQ, tSdK, tSrS);
  }

  // The same with the first dims of Q in registers.
  template <class Q, class S>
  __device__ __forceinline__ void issue_qk(int k_slot, Q& tOrQ, S& tSrS) {
    using namespace cute;
    auto tSdK = mma_qk_in_registers_.get_slice(thread_).partition_fragment_B(k_tiles())(_, _, _, k_slot);
    constexpr int kFirst = Traits::kQStepsInRegisters, kOthers = Traits::kQSteps - kFirst;
    if constexpr (kOthers == 0) {
      issue_gemm<false>(mma_qk_in_registers_, tOrQ, tSdK, tSrS);
    } else {
      auto const tSdQ = mma_qk_.get_slice(thread_).partition_fragment_A(q_tiles())(_, _, _, q_ring_.slot);
      issue_gemm<false>(mma_qk_in_registers_, tOrQ, k_steps<kFirst>(tSdK, 0), tSrS);
      auto tSdQOthers = k_steps<kOthers>(tSdQ, kFirst);
      issue_gemm<true>(mma_qk_, tSdQOthers, k_steps<kOthers>(tSdK, kFirst), tSrS);
    }
  }

  // Q of the tile that is open, as far as it is held.
  template <class Q>
  __device__ __forceinline__ void read_q(Q& tOrQ) const {
    using namespace cute;
    auto tiled_copy = make_tiled_copy_A(Copy_Atom<SM75_U32x4_LDSM_N, Element>{}, mma_qk_in_registers_);
    auto thr_copy = tiled_copy.get_slice(thread_);
    auto const held = local_tile(q_tiles()(_, _, q_ring_.slot), ShapeQInRegisters{}, make_coord(0, 0));
    auto const sQ = as_position_independent_swizzle_tensor(held);
    copy(tiled_copy, thr_copy.partition_S(sQ), thr_copy.retile_D(tOrQ));
  }

  // Behind the load of V.
  template <class P, class O>
  __device__ __forceinline__ void issue_pv(Slot const& v, P& tOrP, O& tOrO) {
    using namespace cute;
    auto tOdV = mma_pv_.get_slice(thread_).partition_fragment_B(v_tiles())(_, _, _, v.slot);
    wait(v);
    issue_gemm<true>(mma_pv_, tOrP, tOdV, tOrO);
  }

  // kSteps of its k-steps, as a batch of their own, of a V that is there.
  template <int kSteps, class P, class O>
  __device__ __forceinline__ void issue_pv(int v_slot, int first, P& tOrP, O& tOrO) {
    using namespace cute;
    auto const tOdV = mma_pv_.get_slice(thread_).partition_fragment_B(v_tiles())(_, _, _, v_slot);
    auto tOrPSteps = k_steps<kSteps>(tOrP, first);
    issue_gemm<true>(mma_pv_, tOrPSteps, k_steps<kSteps>(tOdV, first), tOrO);
  }

  // kSteps of a fragment's k-steps.
  template <int kSteps, class Fragment>
  static __device__ __forceinline__ auto k_steps(Fragment&& fragment, int first) {
    using cute::_;
    auto const from = cute::domain_offset(cute::make_coord(0, 0, first), fragment);
    return cute::make_tensor(from.data(), cute::composition(from.layout(), cute::make_tile(_, _, cute::Int<kSteps>{})));
  }

  // S once more, on plain fp32 arithmetic and from K in global memory: its place may hold only infinities by now, K is given back, and
  // a single warp cannot issue wgmma. For rows whose logits leap by more than 83 (softmax's units) in one step; slow, and hardly ever
  // run. Keys that the mask hides are left at 0.
  template <class S>
  __device__ __forceinline__ void recompute(Step const& step, S& tSrS) const {
    using cute::_;
    Tile const& tile = smem_.tiles[q_ring_.slot];
    auto const sQ = q_tiles()(_, _, q_ring_.slot);
    auto const* const head = static_cast<Element const*>(params_.keys.ptr) + tile.batch * params_.keys.batch_stride +
                             params_.lists_divmod.divide(tile.list) * params_.keys.head_stride;
    #pragma unroll 1
    for (int j = 0; j < int(cute::size(tSrS)); ++j) {
      int const row = row_in_tile() + 8 * ((j / 2) % 2), column = 8 * (j / 4) + 2 * (thread_ % 4) + j % 2;
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
  template <class S>
  __device__ __forceinline__ void mask(S& tSrS, Step const& step) const {
    constexpr int kTokens = Traits::kEntryTokens, kGroups = kTokens / 8;  // of eight columns, of which a thread has two
    static_assert(kTokens % 8 == 0);
    if (!step.masked()) return;
    CUTE_UNROLL
    for (int e = 0; e < Traits::kEntriesPerStep; ++e) {
      Entry const entry = step.entries[e];
      auto const hide = [&](int n, int r, int c, bool hidden) {
        if (0 <= n && n < kGroups && hidden) tSrS(4 * (e * kGroups + n) + 2 * r + c) = -INFINITY;
      };
      auto const last_visible = [&](int row) {  // in the entry, from this thread's first column
        int const sees = position0_ + params_.prefix + row / Traits::kHeadsPerList - 2 * (thread_ % 4);
        return e == 0 || entry.exists() ? sees - entry.index() * kTokens : INT_MIN / 2;
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

  // What is left of a tile but its last P V: the row sums, the LSE, and that every warp's last Q K^T has read its part of Q.
  template <class Softmax>
  __device__ __forceinline__ void close(Tile const& tile, Softmax& softmax) const {
    float lse[Softmax::kRows];
    softmax.finalize(lse);
    if (params_.lse != nullptr && thread_ % 4 == 0) store_lse(tile, lse);
    sync_output();
  }

  // Writes O of a closed tile through the tile's own Q slot, which no product reads any more.
  template <class Softmax, class O>
  __device__ __forceinline__ void store(Tile const& tile, int q_slot, Softmax const& softmax, O& tOrO) {
    using namespace cute;
    softmax.rescale(tOrO);
    auto tOrOut = make_tensor<Element>(tOrO.layout());
    to_element(tOrO, tOrOut);
    clear_unused_rows(tOrOut);
    auto tiled_copy = make_tiled_copy_C(Copy_Atom<SM90_U32x4_STSM_N, Element>{}, mma_pv_);
    auto thr_copy = tiled_copy.get_slice(thread_);
    release_stored();
    copy(tiled_copy, thr_copy.retile_S(tOrOut), thr_copy.partition_D(as_position_independent_swizzle_tensor(q_tiles()(_, _, q_slot))));
    tma_store_fence();
    sync_output();
    if (thread_ == 0) {
      CUTE_UNROLL
      for (int slab = 0; slab < Traits::kSlabs; ++slab) {
        SM90_TMA_STORE_5D::copy(&params_.out, smem_.q + Traits::q_box_offset(q_slot, warp_group_, slab), slab * Traits::kSlabDims, 0,
                                position0_, tile.list, tile.batch);
      }
      tma_store_arrive();
    }
    stored_slot_ = q_slot;
  }

  template <int kSoftmaxRows>
  __device__ __forceinline__ void store_lse(Tile const& tile, float const (&lse)[kSoftmaxRows]) const {
    constexpr int kHeads = Traits::kHeadsPerList;
    CUTE_UNROLL
    for (int r = 0; r < kSoftmaxRows; ++r) {
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
        auto sQ = q_tiles()(cute::_, cute::_, stage);
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
  __device__ __forceinline__ void wait(Slot const& at) const { wait_at(smem_.kv_full[at.slot], at.phase); }
  __device__ __forceinline__ Step wait_step(Slot const& k) const {
    wait(k);
    return smem_.steps[k.slot];
  }
  __device__ __forceinline__ void release(int slot) const {
    __syncwarp();
    if (thread_ % 32 < Traits::kCluster) arrive_at_peer<Traits::kCluster>(smem_.kv_empty[slot], thread_ % 32);
  }
  __device__ __forceinline__ void skip(Slot const& at) const {
    wait(at);
    release(at.slot);
  }

  __device__ __forceinline__ void await_turn() const {
    cutlass::arch::NamedBarrier::sync(kThreads * Traits::kWarpGroups, first_barrier() + kTurnBarrier + warp_group_);
  }
  __device__ __forceinline__ void pass_turn(int to) const {
    cutlass::arch::NamedBarrier::arrive(kThreads * Traits::kWarpGroups, first_barrier() + kTurnBarrier + to);
  }
  __device__ __forceinline__ void sync_output() const {
    cutlass::arch::NamedBarrier::sync(kThreads, first_barrier() + kOutputBarrier + warp_group_);
  }
  __device__ __forceinline__ int first_barrier() const { return team_ * kTeamBarriers; }
  __device__ __forceinline__ int row_in_tile() const { return 16 * (thread_ / 32) + (thread_ % 32) / 4; }  // of r = 0

  Params const& params_;
  Storage& smem_;
  int const rank_;        // of this CTA in its cluster
  int const team_;        // of its CTA
  int const warp_group_;  // of its team
  int const thread_;  // 0..127 in the warp group
  typename Traits::MmaQK mma_qk_;
  typename Traits::MmaQKInRegisters mma_qk_in_registers_;
  typename Traits::MmaPV mma_pv_;
  int position0_ = 0;           // of this warp group's first query row
  int stored_slot_ = kNoSlot;   // Q slot whose output is on its way out
  int v_slot_ = kNoSlot;        // of the tile's last P V
  Ring<Traits::kQStages> q_ring_;
  Slot kv_ring_;
};

}  // namespace prism::attend
