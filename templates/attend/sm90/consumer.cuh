// A consumer warp group: 64 query rows against the tile's list entries. Owns which products run beside which softmax; takes what to do
// from shared memory only.
//
// The next step's S = Q K^T runs on the tensor cores under this step's softmax, and the two warp groups of a list take turns through
// named barriers, so that one's exponentials run under the other's products. (Beside a second team there are no turns: four warps a
// scheduler find their way past each other.) At a tile's end the next tile's first Q K^T is issued behind the last P V, and runs
// while the output is written; what needs neither product is done before the wait for them.
#pragma once

#include "attend/sm90/warp_group.cuh"

namespace prism::attend {

template <class Traits>
class Consumer : WarpGroup<Traits> {
  using Base = WarpGroup<Traits>;
  using typename Base::Storage, typename Base::Tile, typename Base::Step, typename Base::Slot, typename Base::Keys, typename Base::Opened;
  using typename Base::FragmentO, typename Base::FragmentS, typename Base::FragmentP, typename Base::FragmentQ;
  using Base::kThreads, Base::kNoSlot, Base::kSpareSlot, Base::kPvSteps;
  using Base::params_, Base::products_, Base::rank_, Base::warp_group_, Base::thread_, Base::turn_, Base::q_ring_, Base::kv_ring_;
  using Base::pair_slot_, Base::position0_, Base::stored_slot_, Base::v_slot_;
  using Base::await_tile, Base::release_stored, Base::next_slot, Base::next_of_pair, Base::wait, Base::wait_step, Base::release;
  using Base::sync_output, Base::to_element;

  // One list: every warp group computes every step. Two lists: one may compute while the other skips.
  static constexpr bool kOneList = Traits::kLists == 1;
  static constexpr bool kTurns = kOneList && Traits::kWarpGroups == 2 && Traits::kTeams == 1;
  static constexpr bool kOverlapTiles = kOneList && Traits::kQStages == 2;

  static constexpr int kLastHalf = Traits::kHalves - 1;  // of a step's keys
  static constexpr bool kSomeQInRegisters = 0 < Traits::kQStepsInRegisters && Traits::kQStepsInRegisters < Traits::kQSteps;

  // K-steps of P V, and how many of them are issued among the exponentials: the first behind one pair, each other so many pairs later;
  // ptxas spreads them further. Four among them starved the tensor cores. At head_dim 256 registers are short; head_dim 192 and lists that
  // are merged were not measured.
  static constexpr int kPvStepsAmong = kOneList && Traits::kHeadDim <= 128 ? 2 : 0, kPairsBetween = 2;

 public:
  __device__ __forceinline__ Consumer(Params const& params, Storage& smem, int rank, int team, int warp_group, int thread)
      : Base(params, smem, rank, team, warp_group, thread) {}

  __device__ __forceinline__ void run() {
    using namespace cute;
    FragmentO tOrO;
    FragmentS tSrS;
    FragmentP tOrP;
    FragmentQ tOrQ;
    OnlineSoftmax softmax(params_.softmax_scale_log2);

    Base::clear_unused_rows();
    if (kTurns && warp_group_ == 1) pass_turn();  // warp group 0 goes first

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
        if constexpr (Traits::kHalves == 2) walk_halves(opened, softmax, tOrQ, tSrS, tOrP, tOrO);
        else if constexpr (kOneList) walk_one(opened, softmax, tOrQ, tSrS, tOrP, tOrO);
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
        if (!Traits::kPairs && tile.num_entries > 0) release(v_slot_);
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
  // Issues the first Q K^T of a tile that walks one list, and reads its Q. Where nothing was loaded both take what
  // happens to lie in shared memory, and nobody reads it: one path for every tile lets ptxas keep products in flight across tiles.
  __device__ __forceinline__ void open(Tile const& tile, Opened& opened, FragmentQ& tOrQ, FragmentS& tSrS) {
    if constexpr (kOneList) {
      Slot const load = kv_ring_;
      opened.k = {Traits::kPairs ? pair_slot_ : load.slot, load.slot};
      if (tile.q_tile >= 0 && tile.num_entries > 0) {
        kv_ring_.advance();
        if constexpr (Traits::kPairs) next_of_pair();
        opened.step = wait_step(load);
      }
      issue_qk<0>(opened.k.slot, tSrS);
      if constexpr (Traits::kQStepsInRegisters > 0) read_q(tOrQ);
    }
  }

  // The steps of an opened tile, whose first S is there; leaves its last P V running, on V of v_slot_.
  __device__ __forceinline__ void walk_one(Opened const& opened, OnlineSoftmax& softmax, FragmentQ& tOrQ, FragmentS& tSrS,
                                           FragmentP& tOrP, FragmentO& tOrO) {
    Step step = opened.step;
    soften<0>(opened.k, step, softmax, tOrQ, tSrS, OnlineSoftmax::Nothing{});
    bool rescale = false;  // O is still zero
    release_stored();
    int v_slot = kSpareSlot;
    while (!step.last()) {
      settle<true>(v_slot, rescale, softmax, tSrS, tOrP, tOrO);
      Slot const k = next_slot();
      Slot v{};
      step = wait_step(k);
      rescale = overlap<0>({k.slot, k.slot}, v, step, softmax, tOrQ, tSrS, tOrP, tOrO);
      v_slot = v.slot;
    }
    settle<true>(v_slot, rescale, softmax, tSrS, tOrP, tOrO);
    Slot const v = next_slot();
    issue_pv(v, tOrP, tOrO);
    v_slot_ = v.slot;
    if constexpr (!kOverlapTiles) drain(v_slot_);
  }

  // The same with steps in two halves, each an S of its own: what a load of K and V costs is paid once for both. V of the last step is
  // given back with the next tile's first K.
  __device__ __forceinline__ void walk_halves(Opened const& opened, OnlineSoftmax& softmax, FragmentQ& tOrQ, FragmentS& tSrS,
                                              FragmentP& tOrP, FragmentO& tOrO) {
    Step step = opened.step;
    Keys k = opened.k;
    soften<0>(k, step, softmax, tOrQ, tSrS, OnlineSoftmax::Nothing{});
    bool rescale = false;  // O is still zero
    release_stored();
    Slot v{};
    int half = 1;  // of the last P V
    while (true) {
      settle<false>(kNoSlot, rescale, softmax, tSrS, tOrP, tOrO);
      v.slot = next_of_pair();
      if (!step.whole()) {
        release(k.load);
        rescale = false;  // it was, just now
        half = 0;
        break;
      }
      rescale = overlap<1>(k, v, step, softmax, tOrQ, tSrS, tOrP, tOrO);
      if (step.last()) break;
      settle<false>(kNoSlot, rescale, softmax, tSrS, tOrP, tOrO);
      Slot const load = next_slot();
      k = {next_of_pair(), load.slot};
      step = wait_step(load);
      rescale = overlap<0>(k, v, step, softmax, tOrQ, tSrS, tOrP, tOrO);
    }
    settle<false>(kNoSlot, rescale, softmax, tSrS, tOrP, tOrO);
    products_.template issue_pv<kPvSteps>(v.slot, half, 0, tOrP, tOrO);
  }

  // The union of two lists: a block that this warp group did not select is waited for, so that phases stay in step, and skipped.
  // V of a selected block is consumed before the next unselected one is passed: a held slot would stall the ring.
  __device__ __forceinline__ void walk_union(OnlineSoftmax& softmax, FragmentQ& tOrQ, FragmentS& tSrS, FragmentP& tOrP, FragmentO& tOrO) {
    bool pending = false;  // S of the previous block waits for its V
    bool rescale = false;
    int held_slot = kNoSlot;  // V slot of a product that may still run
    Step step{};
    bool first = true;
    clear(tSrS);
    if constexpr (Traits::kQStepsInRegisters > 0) read_q(tOrQ);  // for overlap(); start() waits for its product anyway
    do {
      Slot const k = next_slot();
      Slot v = first ? Slot{kNoSlot} : next_slot();
      step = wait_step(k);
      bool const selected = step.selected_by(warp_group_);
      settle<false>(held_slot, rescale, softmax, tSrS, tOrP, tOrO);  // also with nothing pending: ptxas wants one wait on every path
      held_slot = kNoSlot;
      rescale = false;
      if (selected && pending) {
        rescale = overlap<0>({k.slot, k.slot}, v, step, softmax, tOrQ, tSrS, tOrP, tOrO);
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
    settle<false>(held_slot, rescale, softmax, tSrS, tOrP, tOrO);
    if (pending) finish(next_slot(), tOrP, tOrO);
    else skip(next_slot());
  }

  // S = softmax numerators of one step, alone. Returns whether O must be rescaled.
  __device__ __forceinline__ bool start(int k_slot, Step const& step, OnlineSoftmax& softmax, FragmentQ& tOrQ, FragmentS& tSrS) {
    issue_qk<0>(k_slot, tSrS);
    cute::warpgroup_wait<0>();
    return soften<0>({k_slot, k_slot}, step, softmax, tOrQ, tSrS, OnlineSoftmax::Nothing{});
  }

  // Q K^T of this step, or of a half of it, and behind it O += P V of the one before; the softmax of this step runs under that second
  // product, which is waited for by settle() at the head of the next step. (Waited for in the same basic block, ptxas moves the wait
  // above the exponentials that it should hide.) Issuing a product holds a warp up until the one before is done, so the last ones of
  // P V are issued among the exponentials. Where one list is walked in whole steps v becomes the next slot, as late as that: what comes
  // before the first product every warp waits for. V of a pair has come with its K. Returns whether O must be rescaled.
  template <int kHalf>
  __device__ __forceinline__ bool overlap(Keys const& k, Slot& v, Step const& step, OnlineSoftmax& softmax, FragmentQ& tOrQ,
                                          FragmentS& tSrS, FragmentP& tOrP, FragmentO& tOrO) {
    constexpr int kBefore = kLastHalf - kHalf;  // whose P V it is
    if constexpr (kTurns) await_turn();
    if constexpr (Traits::kQStepsInRegisters > 0) issue_qk<kHalf>(k.slot, tOrQ, tSrS);
    else issue_qk<kHalf>(k.slot, tSrS);
    if constexpr (kOneList && Traits::kHalves == 1) v = next_slot();
    if constexpr (!Traits::kPairs) wait(v);
    products_.template issue_pv<kPvSteps - kPvStepsAmong, Traits::kPairs>(v.slot, kBefore, 0, tOrP, tOrO);
    if constexpr (kTurns) pass_turn();
    cute::warpgroup_wait<1>();
    // Two calls, since at head_dim 256 ptxas spills for a function that is there and issues nothing.
    if constexpr (kPvStepsAmong == 0) {
      return soften<kHalf>(k, step, softmax, tOrQ, tSrS, OnlineSoftmax::Nothing{});
    } else {
      return soften<kHalf>(k, step, softmax, tOrQ, tSrS, [&](int pair) {
        int const among = pair / kPairsBetween, first = kPvSteps - kPvStepsAmong + among;
        if (pair % kPairsBetween == 0 && among < kPvStepsAmong) products_.template issue_pv<1>(v.slot, kBefore, first, tOrP, tOrO);
      });
    }
  }

  // Mask and softmax of the S at hand, whose K is given back, if no half is left. A step that hides nothing, of rows that have all seen
  // a key, takes one branch for both. among: as OnlineSoftmax::step() takes it.
  template <int kHalf, class Among>
  __device__ __forceinline__ bool soften(Keys const& k, Step const& step, OnlineSoftmax& softmax, FragmentQ& tOrQ, FragmentS& tSrS,
                                         Among const& among) {
    if constexpr (kHalf == kLastHalf) release(k.load);
    softmax.set_bound();
    if (step.masked() | softmax.unseen) {
      Base::mask(tSrS, step, kHalf);
      softmax.find_first_references(tSrS);
    }
    auto const restore = [&] {
      Base::recompute(step, kHalf, tSrS);
      Base::mask(tSrS, step, kHalf);
      if constexpr (kSomeQInRegisters) read_q(tOrQ);  // so that recompute() has its registers
    };
    return softmax.step(tSrS, restore, among);
  }

  // Waits for the product that overlap() left running, gives its V back, and makes P and O ready for the next one. kAlways: v_slot is
  // never kNoSlot.
  template <bool kAlways>
  __device__ __forceinline__ void settle(int v_slot, bool rescale, OnlineSoftmax& softmax, FragmentS& tSrS, FragmentP& tOrP,
                                         FragmentO& tOrO) {
    cute::warpgroup_wait<0>();
    if (kAlways || v_slot != kNoSlot) release(v_slot);
    to_element(tSrS, tOrP);
    if (rescale) softmax.rescale(tOrO);
  }

  // O += P V of the last step.
  __device__ __forceinline__ void finish(Slot const& v, FragmentP& tOrP, FragmentO& tOrO) {
    issue_pv(v, tOrP, tOrO);
    drain(v.slot);
  }

  __device__ __forceinline__ void drain(int v_slot) const {
    cute::warpgroup_wait<0>();
    release(v_slot);
  }

  template <int kHalf>
  __device__ __forceinline__ void issue_qk(int k_slot, FragmentS& tSrS) {
    products_.issue_qk(q_ring_.slot, k_slot, kHalf, tSrS);
  }
  template <int kHalf>
  __device__ __forceinline__ void issue_qk(int k_slot, FragmentQ& tOrQ, FragmentS& tSrS) {
    products_.issue_qk(q_ring_.slot, k_slot, kHalf, tOrQ, tSrS);
  }
  __device__ __forceinline__ void read_q(FragmentQ& tOrQ) const { products_.read_q(q_ring_.slot, tOrQ); }

  // Behind the load of V.
  __device__ __forceinline__ void issue_pv(Slot const& v, FragmentP& tOrP, FragmentO& tOrO) {
    wait(v);
    products_.template issue_pv<kPvSteps>(v.slot, 0, 0, tOrP, tOrO);
  }

  // What is left of a tile but its last P V: the row sums, the LSE, and that every warp's last Q K^T has read its part of Q.
  __device__ __forceinline__ void close(Tile const& tile, OnlineSoftmax& softmax) const {
    Base::finish_rows(tile, softmax);
    sync_output();
  }

  // Writes O of a closed tile through the tile's own Q slot, which no product reads any more.
  __device__ __forceinline__ void store(Tile const& tile, int q_slot, OnlineSoftmax const& softmax, FragmentO& tOrO) {
    auto const tOrOut = Base::rounded_output(softmax, tOrO);
    release_stored();
    products_.write_output(q_slot, tOrOut);
    cute::tma_store_fence();
    sync_output();
    if (thread_ == 0) {
      Base::send_output(tile, q_slot);
      cute::tma_store_arrive();
    }
    stored_slot_ = q_slot;
  }

  __device__ __forceinline__ void skip(Slot const& at) const {
    wait(at);
    release(at.slot);
  }

  __device__ __forceinline__ void await_turn() const {
    cutlass::arch::NamedBarrier::sync(kThreads * Traits::kWarpGroups, turn_);
  }
  __device__ __forceinline__ void pass_turn() const {  // to the other
    cutlass::arch::NamedBarrier::arrive(kThreads * Traits::kWarpGroups, turn_ ^ 1);
  }
};

}  // namespace prism::attend
