// The loader warps of the kernel for long rows, one for each item of a work: each has its item's rows copied, the first also what the CTA
// works on, and slabs of the keys that its items see for every pass. Works are taken as CTAs come to them, the longest first but for one
// (LongWork).
#pragma once

#include "select/sm90/long/queries.cuh"
#include "select/sm90/long/ring.cuh"
#include "select/sm90/long/traits.cuh"
#include "shared/dependents.cuh"
#include "shared/mbarrier.cuh"
#include "shared/named_barrier.cuh"
#include "shared/ring.cuh"

#include <cute/arch/copy_sm90_tma.hpp>

namespace prism {

template <class Traits>
class LongLoader {
  using Work = LongWork<Traits>;

 public:
  CUTE_DEVICE LongLoader(LongParams const& params, typename Traits::SharedStorage& smem, int warp, int lane)
      : params_(params), smem_(smem), warp_(warp), lane_(lane) {}

  // What is to be known of the items, lane by lane. The first work is made out while the kernel before goes on. Little code: a launch's
  // first instructions come from memory, and consumers wait for these.
  CUTE_DEVICE void run() {
    SelectParams const& p = params_.select;
    int const count = Work::count(params_);
    uint32_t verdicts = 0;
    Work work = Work::at(params_, index_);
    #pragma unroll 1
    for (; index_ < count; index_ = next(), work = Work::at(params_, index_)) {
      int const item = min(lane_, work.num_items - 1), q_row = work.q_row(params_, item), row_tile = work.row_tile(params_, item);
      int const first_sees = work.first_sees(params_, row_tile), last_sees = work.last_sees(params_, row_tile);
      if (index_ == int(blockIdx.x)) {
        await_previous_kernels();
        launch_dependents();  // behind the wait: emit.cuh looks at counters that prepare has cleared by then, and waits for them alone
      }
      // A sample is the last tile that all rows see whole: what is near is often unlike what is far.
      int const num_tiles = (int(__reduce_max_sync(kFullWarp, uint32_t(last_sees))) + kLongColumns - 1) / kLongColumns;
      int const sample = max(int(__reduce_min_sync(kFullWarp, uint32_t(first_sees))) / kLongColumns - 1, 0);
      bool const first = warp_ == 0 && lane_ == 0;
      if (Traits::kTileFits && first) load_tile(work, sample);
      wait_at(smem_.job_empty, job_ring_.phase ^ 1);
      if (warp_ < work.num_items) {
        unsigned char* const slabs = reinterpret_cast<unsigned char*>(smem_.q) + warp_ * Traits::kMostSlabs * kQuerySlabBytes;
        QueryRows<Traits>::load(p, __shfl_sync(kFullWarp, q_row, warp_), __shfl_sync(kFullWarp, row_tile, warp_) * kLongRows, work.band,
                                slabs, smem_.energies[warp_]);
      }
      auto& job = smem_.job;
      if (warp_ == 0 && lane_ < Traits::kWarpGroups) {
        bool const some = lane_ < work.num_items;
        auto& item = job.items[lane_];
        item.q_row = q_row;
        item.first_row = row_tile * kLongRows;
        item.first_sees = some ? first_sees : 0;
        item.last_sees = some ? last_sees : 0;
        load_facts(work, q_row, item.facts);
      }
      if (first) {
        job.band = work.band;
        job.num_items = work.num_items;
        job.num_tiles = num_tiles;
        job.sample = sample;
        job.verdicts = verdicts;
      }
      tell_job();
      if (first) {
        if (!Traits::kTileFits) load_tile(work, sample);
        verdicts = load_keys(work, num_tiles, sample, verdicts);
        smem_.next_work = int(gridDim.x + atomicAdd(params_.claimed, 1u));  // not before: there may have been one more pass
      }
      __syncwarp();
      job_ring_.advance();
    }
    wait_at(smem_.job_empty, job_ring_.phase ^ 1);
    if (warp_ == 0 && lane_ == 0) smem_.job.num_items = 0;
    tell_job();
  }

 private:
  // The next work, for all loaders.
  CUTE_DEVICE int next() {
    meet_at(Traits::kLoadersBarrier, Traits::kWarpGroups * kWarpSize);
    return smem_.next_work;
  }

  // Once what was asked for is there, and what lanes have written.
  CUTE_DEVICE void tell_job() {
    cutlass::arch::cpasync_barrier_arrive_noinc(reinterpret_cast<uint64_t const*>(&smem_.job_full));
    if (warp_ == 0) arrive_warp_at(smem_.job_full);
  }

  // Asks for an item's facts. A lane.
  CUTE_DEVICE void load_facts(Work const& work, int q_row, ItemFacts& facts) {
    SelectParams const& p = params_.select;
    auto const copy = [](float const* from, float& to) { cute::SM80_CP_ASYNC_CACHEALWAYS<float>::copy(*from, to); };
    copy(p.thresholds + q_row % p.num_q_heads * kBands + work.band, facts.threshold);
    copy(&params_.k_facts[work.k_row].down, facts.down);
    copy(&params_.k_facts[work.k_row].longest[work.band], facts.longest);
    float const *q_totals = p.q_totals + q_row * kComponents, *k_totals = p.k_totals + work.k_row * kComponents;
    copy(q_totals + work.band, facts.q_total.band);
    copy(q_totals + kAllDims, facts.q_total.all);
    copy(k_totals + work.band, facts.k_total.band);
    copy(k_totals + kAllDims, facts.k_total.all);
  }

  CUTE_DEVICE void load_tile(Work const& work, int tile) {
    constexpr int kTileBytes = Traits::kSlabs * kKeySlabBytes;
    int const slabs = Traits::band_slabs(work.band);
    unsigned char const* const from = params_.k_slabs + (int64_t(work.k_row) * params_.num_tiles + tile) * kTileBytes;
    #pragma unroll 1
    for (int slab = 0; slab < slabs; slab += Traits::kSlotSlabs) {
      int const bytes = min(slabs - slab, Traits::kSlotSlabs) * kKeySlabBytes;
      wait_at(smem_.k_empty[k_ring_.slot()], k_ring_.phase() ^ 1);
      arrive_and_expect_at(smem_.k_full[k_ring_.slot()], bytes);
      copy(from + (Traits::first_slab(work.band) + slab) * kKeySlabBytes, smem_.k_full[k_ring_.slot()],
           reinterpret_cast<unsigned char*>(smem_.k) + k_ring_.slot() * Traits::kSlotBytes, bytes);
      k_ring_.advance();
    }
  }

  // For all passes of a work: a sample first, if there is one, then all tiles for each; but for the very first, which has been asked for.
  // verdicts: that have been waited for. Returns how many there are then.
  CUTE_DEVICE uint32_t load_keys(Work const& work, int num_tiles, int sample, uint32_t verdicts) {
    #pragma unroll 1
    for (int pass = 1, begin = sample > 0 ? 0 : 1;; ++pass, begin = 0) {
      #pragma unroll 1
      for (int tile = begin; tile < num_tiles; ++tile) load_tile(work, tile);
      if (pass < 2) continue;
      wait_at(smem_.verdict, verdicts % 2);
      ++verdicts;
      if (smem_.again[verdicts % 2] != verdicts) return verdicts;
    }
  }

  template <class Full>
  CUTE_DEVICE static void copy(void const* from, Full& full, void* to, int bytes) {
    cute::SM90_BULK_COPY_G2S::copy(from, reinterpret_cast<uint64_t*>(&full), to, bytes);
  }

  LongParams const& params_;
  typename Traits::SharedStorage& smem_;
  int const warp_, lane_;
  int index_ = int(blockIdx.x);  // of the work
  Ring<1> job_ring_;
  ShortRing<Traits::kSlots> k_ring_;
};

}  // namespace prism
