// A consumer warp group of the kernel for long rows: 64 rows of one band of a q head. The first pass over the row's keys tells
// about where its cut-off lies, the second tries a bracket for it; where that missed in some row of the CTA, one more pass tries another.
#pragma once

#include "select/sm90/calibrate.cuh"
#include "select/sm90/long/finish.cuh"
#include "select/sm90/long/passes.cuh"
#include "select/sm90/long/products.cuh"
#include "select/sm90/long/queries.cuh"
#include "select/sm90/long/traits.cuh"
#include "select/sm90/scores.cuh"
#include "shared/mbarrier.cuh"
#include "shared/named_barrier.cuh"

namespace prism {

// kProbs: also writes the fixed-point probabilities.
template <class Traits, bool kProbs>
class LongConsumer {
  using Storage = typename Traits::SharedStorage;

 public:
  CUTE_DEVICE LongConsumer(LongParams const& params, Storage& smem, int warp_group, int thread)
      : params_(params), smem_(smem), warp_group_(warp_group), thread_(thread),
        products_(smem, warp_group) {}

  CUTE_DEVICE void run() {
    if (warp_group_ == Traits::kWarpGroups - 1) products_.pass_turn();  // the first may begin
    #pragma unroll 1
    for (;;) {
      uint32_t& next = smem_.job_phase[warp_group_ * 4 + thread_ / kWarpSize];
      uint32_t const phase = next;
      __syncwarp();
      if (lane() == 0) next = phase ^ 1;
      wait_at(smem_.job_full, phase);
      if (of_warp(smem_.job.num_items) == 0) break;
      take();
    }
  }

 private:
  CUTE_DEVICE void take() {
    SelectParams const& p = params_.select;
    auto const& job = smem_.job;
    if (!idle()) split_queries();
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) sees_[r] = is_row(r) ? p.num_visible(row_of(r)) : 0;

    RowBracket bracket;  // of the own row
    RowBits bits;
    first_pass(bracket, bits);
    bool trims = false;
    #pragma unroll 1
    for (int turn = 1;; ++turn) {
      bits_pass(bracket, trims, bits);
      bracket.low = of_own_row(bits.low), bracket.high = of_own_row(bits.high);  // not kept through the pass: registers are short
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        bits.sum_high[r] = quad_sum(bits.sum_high[r]);
        bits.sum_between[r] = quad_sum(bits.sum_between[r]);
        bits.total[r] = quad_sum(bits.total[r]);
      }
      uint32_t const sum_high = of_own_row(bits.sum_high), sum_low = sum_high + of_own_row(bits.sum_between);
      uint32_t const target = share_of(of_own_row(bits.total), item().facts.threshold);
      int const found = int(*found_of(own_row()));
      RowBracket::Known now;
      if (turn > 1) now = known(own_row());
      __syncwarp();
      bool const again = !bracket.learn(now, target, sum_low, sum_high, found, found <= kListEntries, turn);
      if (owner() == 0) known(own_row()) = now;
      __syncwarp();
      trims = __any_sync(kFullWarp, trims || now.ties != kAllTies);
      uint32_t const verdict = job.verdicts + turn;
      tell_verdict(verdict, again && !idle());
      ListedRow row;  // on its way while the other warps come here
      row.load(params_.lists + first_entry(own_row()), again || bracket.decided() || idle() ? 0 : found, warp_counts() + lane());
      if (hear_verdict(verdict)) continue;
      uint32_t* const kept = params_.kept_row(item().q_row, job.band, row_of(own_row()));
      uint32_t* const masked = idle() ? nullptr : params_.masked_of(item().q_row, item().first_row / kLongRows);
      arrive_at(smem_.job_empty);  // every thread for itself: it has read the job
      if (masked != nullptr) finish(target, bracket, bits, row, kept, masked);
      break;
    }
  }

  // Makes halves of the item's rows.
  CUTE_DEVICE void split_queries() {
    float up[kThreadRows];
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) up[r] = half_scale(energy(r).all).up;
    unsigned char* const slabs = reinterpret_cast<unsigned char*>(smem_.q) + warp_group_ * (Traits::kMostSlabs * kQuerySlabBytes);
    int const first = thread_ / kWarpSize * QueryRows<Traits>::kWarpRows;
    QueryRows<Traits>::split(slabs + first * kSlabRowBytes, Traits::band_slabs(of_warp(smem_.job.band)), up);
    meet_at(Traits::kSplitBarrier + warp_group_, 128);
  }

  CUTE_DEVICE void first_pass(RowBracket& bracket, RowBits& bits) {
    RowSums sums;
    auto const start = [&] {
      sums.start();
      sums.threshold = item().facts.threshold;
      __syncwarp();  // the counts of the item before have been read
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        CUTE_UNROLL
        for (int i = 0; i < Buckets::kCount; i += 16) {
          auto& four = reinterpret_cast<uint4&>(counts(r)[i + thread_ % 4 * 4]);
          four = make_uint4(Buckets::kNone, Buckets::kNone, Buckets::kNone, Buckets::kNone);
        }
        sums.place[r] = Buckets::place_of(counts(r));
      }
      __syncwarp();
      // From a product of scaled means to a logit in octaves, but for the scaling of the row's mean; how far the first pass may be off.
      ItemFacts const& facts = item().facts;
      float const per_product = logit_scale<Traits::High::kDims, Traits::Low::kDims, Traits::kHeadDim, false>(
          params_.select, facts, smem_.job.band, 0, 1, 0, 0, 0);
      float const scale = per_product * facts.down, error = per_product * (kHighError * facts.longest);
      constexpr float kLeastScale = 0x1p-120f;  // of means of zeros: times the -inf of a hidden column, 0 would give NaN
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        sums.scale[r] = fmaxf(half_scale(energy(r).all).down * scale, kLeastScale);
        if (thread_ % 4 == 0) notes(r) = {{0.f, 0.f, 0.f}, error * half_length(energy(r).band, energy(r).all)};
      }
      __syncwarp();
    };
    each_tile<false>(smem_.job.sample > 0 ? -1 : 0, start, [&](auto const& acc, int tile) {
      using Step = RowSums::Step;
      RowNotes* const both[] = {&notes(0), &notes(1)};
      sums.add(acc, tile < 0 ? Step::kSample : tile == 0 ? Step::kFirst : Step::kOther, halves(tile), both);
    });
    __syncwarp();
    int const counted = (item().last_sees + kHalfTile - 1) / kHalfTile * kHalfTile;
    float masses[kThreadRows], units[kThreadRows];
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      masses[r] = quad_sum(sums.total[r]);
      // Mass is that of the first pass's scores: so no row's values add up to more than 1.
      units[r] = __log2f(float(kFixedOne)) - __log2f(masses[r]) - notes(r).error;
      bits.scale[r] = sums.scale[r];
      bits.shift[r] = units[r] - sums.reference[r];
    }
    Buckets const buckets = of_own_row(sums.buckets);
    int const sees = of_own_row(sees_);
    float const mass = of_own_row(masses), threshold = item().facts.threshold;
    Stretch const stretch = find_stretch(buckets, counts(own_row()), sees, counted - sees, mass, threshold);  // every lane
    // A threshold of 1 or more (or NaN) keeps all, and so does a row of NaN.
    if (!is_row(own_row()) || !(threshold > 0.f && threshold < 1.f) || !(mass > 0.f && mass < INFINITY)) {
      bracket.decide(!(threshold <= 0.f));
    } else if (sees <= RowBracket::kWholeColumns) {
      bracket.take_whole();
    } else {
      bracket.guess(stretch, of_own_row(units));
    }
  }

  // trims: whether a row of the warp has more ties than fit into its lists.
  CUTE_DEVICE void bits_pass(RowBracket const& bracket, bool trims, RowBits& bits) {
    uint16_t* const kept = kept_columns(0);
    int const next_kept = 8 * params_.num_tiles * kTileParts;  // to the thread's other row
    auto const start = [&] {
      bits.start();
      bits.lists = params_.lists;
      bits.first_entry = first_entry(0);
      bits.stage = cute::cast_smem_ptr_to_uint(warp_counts()) + lane() * 16;
      bits.found = cute::cast_smem_ptr_to_uint(found_of(0)) - RowBits::kStageBytes;
      __syncwarp();  // the counts have been read
      if (thread_ % 4 < kThreadRows) *found_of(thread_ % 4) = 0;
      __syncwarp();
      CUTE_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {  // of the quad's r-th thread, which has that row for its own
        bits.low[r] = __shfl_sync(kFullWarp, bracket.low, r, 4);
        bits.high[r] = __shfl_sync(kFullWarp, bracket.high, r, 4);
      }
    };
    each_tile<true>(0, start, [&](auto const& acc, int tile) {
      bits.add(
          acc, first_column(tile), halves(tile),
          [&](int column, int i, int r, uint32_t x) {
            if constexpr (kProbs) probs_place(column).put(i < sees_[r] - column, i, r, x);
          },
          [&](int column) {
            bool const whole = column + kHalfColumns <= item().first_sees;
            CUTE_UNROLL
            for (int r = 0; r < kThreadRows; ++r) {
              uint32_t word = bits.kept[r] & (whole ? ~0u : bit_range(0, sees_[r] - column));
              uint16_t* const place = kept + r * next_kept + column / kHalfTile * (kTileParts / kTileHalves);
              if (trims) word = trim(word, *place, r);
              *place = uint16_t(word);
            }
          });
    });
    bits.end();
  }

  // Of a row with more ties than fit into its lists: the bits of the last pass, which kept none of them, with the first of those that are
  // new in this one.
  CUTE_DEVICE uint32_t trim(uint32_t word, uint32_t before, int r) const {
    uint32_t& left = known(r).ties;
    uint32_t const ties = left, tied = ties == kAllTies ? 0u : word & ~before;
    int end = __popc(tied);  // of the quad's ties up to this thread's
    CUTE_UNROLL
    for (int offset = 1; offset < 4; offset *= 2) {
      int const other = __shfl_up_sync(kFullWarp, end, offset, 4);
      if (thread_ % 4 >= offset) end += other;
    }
    int const all = __shfl_sync(kFullWarp, end, 3, 4), start = end - __popc(tied);
    __syncwarp();
    if (ties != kAllTies && thread_ % 4 == 0) left = ties - min(ties, uint32_t(all));
    __syncwarp();
    if (ties == kAllTies) return word;
    return before | (ties > uint32_t(start) ? lowest_bits(tied, min(int(ties) - start, __popc(tied))) : 0u);
  }

  // Of this thread, in a tile's first half.
  CUTE_DEVICE int first_column(int tile) const { return tile * kLongColumns + thread_ % 4 * kHalfColumns; }
  // Of a tile, that the item sees.
  CUTE_DEVICE int halves(int tile) const { return tile * kLongColumns + kHalfTile < item().last_sees ? kTileHalves : 1; }

  CUTE_DEVICE ProbsPlace probs_place(int column) const {
    SelectParams const& p = params_.select;
    int64_t const row = (int64_t(item().q_row) * kBands + smem_.job.band) * p.num_q_blocks + q_block(0);
    return {p.probs + row * p.num_k_blocks + column, 8 * p.num_k_blocks};
  }

  // row: loaded; to make its list shared memory of the warp's counts is used.
  CUTE_DEVICE void finish(uint32_t target, RowBracket const& bracket, RowBits const& bits, ListedRow const& row, uint32_t* kept,
                          uint32_t* masked) const {
    CutoffSearch search(target, CutoffStart{bracket.high, 0.f, 0.f, 1.f});
    search.low = bracket.low;
    search.sum_high = of_own_row(bits.sum_high);
    search.sum_low = search.sum_high + of_own_row(bits.sum_between);
    row.narrow(search, bracket.decided());
    Cutoff cutoff = kKeepAll;
    if (!bracket.decided()) search.settled(cutoff);
    row.keep(cutoff, kept);
    tell_masked(masked);
  }

  // Tells the warps that write lists that this one has written its part of an item's masks.
  CUTE_DEVICE void tell_masked(uint32_t* masked) const {
    __syncwarp();
    if (lane() == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(masked) : "memory");
  }

  // f(scores, tile): for each tile that the warp group sees; hidden scores are -inf. start(): before the first one, while its products are
  // made. begin: 0, or -1 if a sample, which all rows see whole, comes first. kWhole: of LongProducts::issue.
  template <bool kWhole, class Start, class F>
  CUTE_DEVICE void each_tile(int begin, Start const& start, F const& f) {
    int const num_tiles = of_warp(smem_.job.num_tiles), seen = of_warp((item().last_sees + kLongColumns - 1) / kLongColumns);
    int const slabs = Traits::band_slabs(of_warp(smem_.job.band));
    int tile = begin;
    if (seen == 0) {
      start();
    } else {
      auto acc = LongProducts<Traits>::accumulator();  // of this pass alone: registers are wanted between the passes
      products_.template issue<kWhole>(acc, slabs);
      start();
      #pragma unroll 1
      for (;;) {
        products_.await(acc);
        if ((tile + 1) * kLongColumns > item().first_sees) mask(acc, tile);
        f(acc, tile);
        if (++tile == seen) break;
        products_.template issue<kWhole>(acc, slabs);
      }
    }
    #pragma unroll 1
    for (; tile < num_tiles; ++tile) products_.pass_by(slabs);
  }

  template <class Acc>
  CUTE_DEVICE void mask(Acc& acc, int tile) const {
    int visible[kThreadRows];  // of this thread's columns
    CUTE_UNROLL
    for (int r = 0; r < kThreadRows; ++r) visible[r] = sees_[r] - first_column(tile);
    CUTE_UNROLL
    for (int i = 0; i < cute::size(acc); ++i) {
      int const column = 2 * (i / 4) + i % 2;
      if (column % kHalfColumns + column / kHalfColumns * kHalfTile >= visible[i / 2 % 2]) acc(i) = -INFINITY;
    }
  }

  // Tells the other warps and the first loader whether this warp wants one more pass. verdict: its number, from 1 on.
  CUTE_DEVICE void tell_verdict(uint32_t verdict, bool again) {
    bool const any = __any_sync(kFullWarp, again);
    if (lane() != 0) return;
    if (any) smem_.again[verdict % 2] = verdict;
    arrive_at(smem_.verdict);
  }
  // Whether any has said so.
  CUTE_DEVICE bool hear_verdict(uint32_t verdict) {
    wait_at(smem_.verdict, (verdict - 1) % 2);
    bool const again = lane() == 0 && smem_.again[verdict % 2] == verdict;
    return __shfl_sync(kFullWarp, again, 0);  // read where it was told of; and products take whole warps
  }

  // Until job_empty. Not kept: registers are short.
  CUTE_DEVICE auto const& item() const { return smem_.job.items[warp_group_]; }
  CUTE_DEVICE bool idle() const { return item().last_sees == 0; }  // without an item
  CUTE_DEVICE int lane() const { return thread_ % kWarpSize; }
  CUTE_DEVICE int place_of(int r) const { return thread_ / kWarpSize * 16 + lane() / 4 + 8 * r; }  // of a row in the item
  CUTE_DEVICE int row_of(int r) const { return item().first_row + place_of(r); }
  CUTE_DEVICE bool is_row(int r) const { return row_of(r) < params_.select.num_q_blocks; }
  CUTE_DEVICE int q_block(int r) const { return min(row_of(r), params_.select.num_q_blocks - 1); }  // rows past the end repeat the last

  // Not loaded without an item.
  CUTE_DEVICE RowEnergy const& energy(int r) const { return smem_.energies[warp_group_][place_of(r)]; }
  CUTE_DEVICE RowBracket::Known& known(int r) const { return smem_.known[warp_group_][place_of(r)]; }  // registers are short
  CUTE_DEVICE uint32_t* counts(int r) const { return smem_.counts[anew(warp_group_)][place_of(r)]; }
  // Behind a row's counts.
  static_assert(sizeof(RowNotes) <= (Buckets::kStride - Buckets::kCount) * sizeof(uint32_t));
  CUTE_DEVICE RowNotes& notes(int r) const { return *reinterpret_cast<RowNotes*>(counts(r) + Buckets::kCount); }
  // How many values of a row lie in its bracket.
  CUTE_DEVICE uint32_t* found_of(int r) const {
    return warp_counts() + RowBits::kStageBytes / sizeof(uint32_t) + lane() / 4 + RowBits::kNextRow * r;
  }
  CUTE_DEVICE uint32_t* warp_counts() const { return smem_.counts[anew(warp_group_)][thread_ / kWarpSize * 16]; }
  // So that what follows from it is computed again where it is wanted: kept through the passes, it would spill.
  CUTE_DEVICE static int anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
  }
  CUTE_DEVICE int cta_warp_group() const { return int(blockIdx.x) * Traits::kWarpGroups + warp_group_; }
  // Where a row's list begins among all CTAs', of kMostLongCtas * 3 * 64 rows at most.
  CUTE_DEVICE int first_entry(int r) const { return (cta_warp_group() * kLongRows + place_of(r)) * kListEntries; }
  // Of the row's bit mask, what a thread has of a tile's halves.
  static constexpr int kTileParts = kLongColumns / kHalfColumns;
  static_assert(kHalfColumns == 8 * sizeof(uint16_t));
  CUTE_DEVICE uint16_t* kept_columns(int r) const {
    return reinterpret_cast<uint16_t*>(params_.kept_row(item().q_row, smem_.job.band, row_of(r))) + thread_ % 4;
  }

  LongParams const& params_;
  Storage& smem_;
  int const warp_group_, thread_;  // thread: in the warp group
  int sees_[kThreadRows] = {};
  LongProducts<Traits> products_;
};

}  // namespace prism
