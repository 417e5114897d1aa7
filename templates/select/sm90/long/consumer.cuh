// A consumer warp group of the kernel for long rows: 64 rows of one band of a q head. The first pass over the row's keys adds up its
// exponentials, the second tries a bracket for its cut-off; where that missed in some row of the CTA, one more pass tries another.
#pragma once

#include "select/sm90/calibrate.cuh"
#include "select/sm90/long/finish.cuh"
#include "select/sm90/long/passes.cuh"
#include "select/sm90/long/products.cuh"
#include "select/sm90/long/traits.cuh"
#include "select/sm90/scores.cuh"
#include "shared/mbarrier.cuh"
#include "shared/ring.cuh"

namespace prism {

// kProbs: also writes the fixed-point probabilities.
template <class Traits, bool kProbs>
class LongConsumer {
  using Storage = typename Traits::SharedStorage;
  using Work = LongWork<Traits>;

 public:
  CUTE_DEVICE LongConsumer(LongParams const& params, Storage& smem, int warp_group, int thread)
      : params_(params), smem_(smem), warp_group_(warp_group), thread_(thread), lane_(thread % kWarpSize),
        products_(smem, warp_group, thread) {}

  CUTE_DEVICE void run() {
    auto acc = LongProducts<Traits>::accumulator();
    for (LongWalk walk; walk.index < Work::count(params_); walk.advance()) {
      work_ = Work::at(params_, walk.index);
      take(acc);
    }
  }

 private:
  template <class Acc>
  CUTE_DEVICE void take(Acc& acc) {
    SelectParams const& p = params_.select;
    bool const idle = warp_group_ >= work_.num_items;
    int const item = idle ? 0 : warp_group_;
    q_row_ = work_.q_row(params_, item);
    first_row_ = work_.row_tile(params_, item) * kLongRows;
    num_tiles_ = work_.num_tiles(params_);
    first_sees_ = idle ? 0 : work_.first_sees(params_, item);
    last_sees_ = idle ? 0 : work_.last_sees(params_, item);
    down_ = params_.k_down + int64_t(work_.k_row) * params_.num_tiles * kLongColumns + thread_ % 4 * 4;
    CutRule const rule(CutKind::kTopP, __ldg(p.thresholds + q_row_ % p.num_q_heads * kBands + work_.band));

    wait_at(smem_.q_full, q_ring_.phase);
    RowBracket bracket[kThreadRows];
    RowBits bits;
    first_pass(acc, rule, bracket, bits);
    #pragma unroll 1
    for (int turn = 1;; ++turn) {
      bits_pass(acc, bracket, bits);
      bool again = false;
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        bits.sum_high[r] = quad_sum(bits.sum_high[r]);
        bits.sum_between[r] = quad_sum(bits.sum_between[r]);
        int const dropped = quad_sum(bits.dropped[r]), found = quad_sum(RowBits::count(bits.list[r])) + dropped;
        uint32_t const sum_low = bits.sum_high[r] + bits.sum_between[r];
        RowBracket::Known& shared_known = smem_.known[warp_group_][row_of(r) - first_row_];  // registers are short
        RowBracket::Known known;
        if (turn > 1) known = shared_known;
        __syncwarp();
        again |= !bracket[r].learn(known, rule.threshold, sum_low, bits.sum_high[r], found, dropped == 0, turn);
        if (thread_ % 4 == 0) shared_known = known;
        __syncwarp();
      }
      if (!tell_verdict(again && !idle)) break;
    }
    release(smem_.q_empty);
    q_ring_.advance();
    if (!idle) finish(rule, bracket, bits);
  }

  template <class Acc>
  CUTE_DEVICE void first_pass(Acc& acc, CutRule const& rule, RowBracket (&bracket)[kThreadRows], RowBits& bits) {
    SelectParams const& p = params_.select;
    RowSums sums;
    sums.start();
    __syncwarp();  // the counts of the item before have been read
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      for (int i = thread_ % 4; i < Buckets::kCount; i += 4) counts(r)[i] = 0;
      sums.place[r] = Buckets::place_of(counts(r));
    }
    __syncwarp();
    PreparedSums const energies(p, q_row_, work_.k_row);
    float const band_scale = logit_scale<Traits::High::kDims, Traits::Low::kDims, Traits::kHeadDim, false>(
        p, energies, work_.band, 0, 1, q_row_, work_.k_row, 0);
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      float const energy = __ldg(p.q_energy + (int64_t(q_row_) * p.num_q_blocks + q_block(r)) * kComponents + kAllDims);
      sums.scale[r] = half_scale(energy).down * band_scale;
    }
    each_tile(acc, [&](int tile, bool first) {
      sums.add(acc, down_ + tile * kLongColumns, first);
    });
    __syncwarp();
    int const counted = (last_sees_ + kLongColumns - 1) / kLongColumns * kLongColumns;
    float mass[kThreadRows];
    Stretch stretch[kThreadRows];
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {  // every lane, before any branch
      mass[r] = quad_sum(sums.total[r]);
      stretch[r] = find_stretch(sums.buckets[r], counts(r), sees(r), counted - sees(r), mass[r], rule.threshold);
    }
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      bits.scale[r] = sums.scale[r];
      bits.reference[r] = sums.reference[r];
      bits.unit[r] = __frcp_rn(mass[r]) * float(kFixedOne);  // a power of two: p rounds once
      // A mass of 1 or more (or NaN) keeps all, and so does a row of NaN.
      if (!is_row(r) || !(rule.threshold > 0.f && rule.threshold < 1.f) || !(mass[r] > 0.f && mass[r] < INFINITY)) {
        bracket[r].decide(!(rule.threshold <= 0.f));
      } else if (sees(r) <= RowBits::kMostEntries) {
        bracket[r].take_whole();
      } else {
        bracket[r].guess(stretch[r], bits.unit[r]);
      }
    }
  }

  template <class Acc>
  CUTE_DEVICE void bits_pass(Acc& acc, RowBracket const (&bracket)[kThreadRows], RowBits& bits) {
    bits.start(warp_list(), lane_);
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) bits.low[r] = bracket[r].low, bits.high[r] = bracket[r].high;
    constexpr int kNextOpen = 8 * kTileWords;
    uint32_t *const kept = kept_words(0), *const open = open_words(0);
    int const next_kept = 8 * params_.num_tiles * kTileWords;  // to the thread's other row
    each_tile(acc, [&](int tile, bool) {
      float const* down = down_ + tile * kLongColumns;
      if constexpr (kProbs) {
        ProbsPlace const place = probs_place(tile);
        bits.add(acc, down, [&](int i, int r, uint32_t x) { place.put(i, r, x); });
      } else {
        bits.add(acc, down, [](int, int, uint32_t) {});
      }
      bool const whole = (tile + 1) * kLongColumns <= first_sees_;
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        uint32_t const visible = whole ? ~0u : bit_range(0, sees(r) - tile * kLongColumns - thread_ % 4 * kThreadColumns);
        kept[r * next_kept + tile * kTileWords] = bits.kept[r] & visible;
        open[r * kNextOpen + tile * ListedRows::kOpenWords] = bits.open[r] & visible;
      }
    });
    asm volatile("" ::: "memory");  // the lists were written behind the compiler's back
  }

  CUTE_DEVICE ProbsPlace probs_place(int tile) const {
    SelectParams const& p = params_.select;
    int const column = tile * kLongColumns + thread_ % 4 * kThreadColumns;
    int64_t const row = (int64_t(q_row_) * kBands + work_.band) * p.num_q_blocks + q_block(0);
    ProbsPlace place{p.probs + row * p.num_k_blocks + column, int64_t(q_block(1) - q_block(0)) * p.num_k_blocks, {}};
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) place.visible[r] = is_row(r) ? sees(r) - column : 0;
    return place;
  }

  CUTE_DEVICE void finish(CutRule const& rule, RowBracket const (&bracket)[kThreadRows], RowBits const& bits) const {
    int const tiles = (last_sees_ + kLongColumns - 1) / kLongColumns;
    ListedRows rows;
    rows.target = fixed_target(rule.threshold);
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      rows.list[r] = warp_list() + r * kWarpSize + lane_;
      rows.count[r] = RowBits::count(bits.list[r]);
      rows.kept[r] = kept_words(r);
      rows.open[r] = open_words(r);
    }
    Cutoff cutoff[kThreadRows];
    rows.find(bracket, bits.sum_high, bits.sum_between, cutoff);
    if (!__any_sync(kFullWarp, rows.keep(bracket, cutoff, tiles))) return;
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) rows.keep_ties(bracket[r], cutoff[r], r, tiles);
  }

  // f(tile, first): for each tile that the warp group sees, with its scores; hidden ones are -inf.
  template <class Acc, class F>
  CUTE_DEVICE void each_tile(Acc& acc, F const& f) {
    #pragma unroll 1
    for (int tile = 0; tile < num_tiles_; ++tile) {
      if (tile * kLongColumns < last_sees_) {
        products_.take(acc, Traits::band_slabs(work_.band));
        if ((tile + 1) * kLongColumns > first_sees_) mask(acc, tile);
        f(tile, tile == 0);
      } else {
        products_.pass_by(Traits::band_slabs(work_.band));
      }
    }
  }

  template <class Acc>
  CUTE_DEVICE void mask(Acc& acc, int tile) const {
    int visible[kThreadRows];  // of this thread's columns
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) visible[r] = sees(r) - tile * kLongColumns - thread_ % 4 * kThreadColumns;
    CUTE_UNROLL
    for (int i = 0; i < cute::size(acc); ++i) {
      if (2 * (i / 4) + i % 2 >= visible[i / 2 % 2]) acc(i) = -INFINITY;
    }
  }

  // Whether any thread of the CTA wants one more pass; tells the loader.
  CUTE_DEVICE bool tell_verdict(bool again) {
    constexpr int kNamedBarrier = 1;
    uint32_t any;
    asm volatile(
        "{ .reg .pred mine, any; setp.ne.u32 mine, %1, 0;\n\t"
        "barrier.cta.red.or.pred any, %2, %3, mine; selp.u32 %0, 1, 0, any; }"
        : "=r"(any) : "r"(uint32_t(again)), "n"(kNamedBarrier), "n"(Traits::kConsumers) : "memory");
    if (warp_group_ == 0 && thread_ == 0) {
      smem_.again = any;
      arrive_at(smem_.verdict);
    }
    __syncwarp();  // products take whole warps
    return any != 0;
  }

  CUTE_DEVICE int row_of(int r) const { return first_row_ + thread_ / kWarpSize * 16 + lane_ / 4 + 8 * r; }
  CUTE_DEVICE bool is_row(int r) const { return row_of(r) < params_.select.num_q_blocks; }
  CUTE_DEVICE int q_block(int r) const { return min(row_of(r), params_.select.num_q_blocks - 1); }  // rows past the end repeat the last
  CUTE_DEVICE int sees(int r) const { return params_.select.num_visible(q_block(r)); }

  CUTE_DEVICE uint32_t* counts(int r) const { return smem_.counts[warp_group_][row_of(r) - first_row_]; }
  CUTE_DEVICE int cta_warp_group() const { return int(blockIdx.x) * Traits::kWarpGroups + warp_group_; }
  CUTE_DEVICE uint32_t* warp_list() const {
    return params_.lists + (int64_t(cta_warp_group()) * 4 + thread_ / kWarpSize) * kWarpListWords;
  }
  CUTE_DEVICE uint32_t* kept_words(int r) const { return params_.kept_row(q_row_, work_.band, row_of(r)) + thread_ % 4; }
  CUTE_DEVICE uint32_t* open_words(int r) const {
    return params_.open + int64_t(cta_warp_group()) * params_.num_tiles * ListedRows::kOpenWords +
           (row_of(r) - first_row_) * kTileWords + thread_ % 4;
  }

  LongParams const& params_;
  Storage& smem_;
  int const warp_group_, thread_, lane_;  // thread: in the warp group
  Work work_{};
  int q_row_ = 0, first_row_ = 0;  // of the item
  int num_tiles_ = 0, first_sees_ = 0, last_sees_ = 0;
  float const* down_ = nullptr;
  LongProducts<Traits> products_;
  Ring<1> q_ring_;
};

}  // namespace prism
