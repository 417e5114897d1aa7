// Host side of select for long rows: which rows they are, the scratch they need, and the launch.
#pragma once

#include "select/launch.h"
#include "select/long_params.h"

#include <algorithm>

namespace prism {

// Rows of more than kLeastWords words of 32 key blocks take the kernels for long rows.
template <int kLeastWords_>
struct LongRows {
  static constexpr int kLeastWords = kLeastWords_;

  static constexpr int64_t kMostBlocks = 0xffff;  // of a row: longer ones have not been tried here

  static bool serves(int64_t num_k_blocks) { return num_k_blocks > int64_t(kLeastWords) * 32 && num_k_blocks <= kMostBlocks; }
};

// Parts of the scratch, in bytes from its start.
template <class Traits>
struct LongScratch {
  int64_t const row_tiles, tiles;
  int64_t k_slabs, k_facts, totals, claimed, masked, kept, lists, end = 0;

  LongScratch(int64_t batch, int64_t num_q_heads, int64_t num_kv_heads, int64_t num_q_blocks, int64_t num_k_blocks)
      : row_tiles((num_q_blocks + kLongRows - 1) / kLongRows), tiles((num_k_blocks + kLongColumns - 1) / kLongColumns) {
    constexpr int64_t kTotalsBytes = kComponents * sizeof(float), kMaskRowBytes = kTileWords * sizeof(uint32_t);
    int64_t const q_heads = batch * num_q_heads, kv_heads = batch * num_kv_heads;
    k_slabs = place(kv_heads * tiles * Traits::kSlabs * kKeySlabBytes);
    k_facts = place(kv_heads * int64_t(sizeof(KeyFacts)));
    totals = place((q_heads + kv_heads) * kTotalsBytes);
    claimed = place(sizeof(uint32_t));
    masked = place(q_heads * row_tiles * int64_t(sizeof(uint32_t)));
    kept = place(q_heads * kBands * row_tiles * kLongRows * tiles * kMaskRowBytes);
    lists = place(int64_t(kMostLongCtas) * Traits::kWarpGroups * kLongRows * kListEntries * int64_t(sizeof(uint2)));
  }

  int64_t floats() const { return end / int64_t(sizeof(float)); }

 private:
  int64_t place(int64_t bytes) {
    constexpr int64_t kAlign = 128;
    int64_t const start = end;
    end += (bytes + kAlign - 1) / kAlign * kAlign;
    return start;
  }
};

template <class Traits>
LongScratch<Traits> long_scratch(SelectParams const& p) {
  return {p.batch, p.num_q_heads, p.num_kv_heads, p.num_q_blocks, p.num_k_blocks};
}

template <class Traits, bool kProbs>
void long_launch(SelectParams const& select, DLDevice device) {
  using Storage = typename Traits::SharedStorage;
  if (select.batch == 0) return;
  check_range(int64_t(select.batch) * select.num_q_heads, "batch * q heads", 0, kMaxGrid);
  LongScratch<Traits> const parts = long_scratch<Traits>(select);
  auto* const scratch = reinterpret_cast<unsigned char*>(select.scratch);
  LongParams p{};
  p.select = select;
  p.k_slabs = scratch + parts.k_slabs;
  p.k_facts = reinterpret_cast<KeyFacts*>(scratch + parts.k_facts);
  p.select.q_totals = reinterpret_cast<float*>(scratch + parts.totals);
  p.select.k_totals = p.select.q_totals + int64_t(select.batch) * select.num_q_heads * kComponents;
  p.claimed = reinterpret_cast<uint32_t*>(scratch + parts.claimed);
  p.masked = reinterpret_cast<uint32_t*>(scratch + parts.masked);
  p.kept = reinterpret_cast<uint32_t*>(scratch + parts.kept);
  p.lists = reinterpret_cast<uint2*>(scratch + parts.lists);
  p.num_row_tiles = int(parts.row_tiles);
  p.num_tiles = int(parts.tiles);
  // Where each CTA of the passes takes two works or more, lists are written beside the passes of other rows, in the order in which these
  // end. Elsewhere they would cost the passes more than they take once SMs have no more works (docs/performance.md, step 31 of long rows):
  // those are in four parts, each head by head, since lists that lie side by side are written faster, by CTAs that ask for more shared
  // memory than a CTA of the passes leaves.
  constexpr int kBesideWorks = 2, kParts = 4;
  constexpr int64_t kApartBytes = Traits::kPassesBytes - int64_t(sizeof(Storage)) + 1, kMostUnasked = 48 * 1024;
  static_assert(kApartBytes <= kMostUnasked, "more is to be asked for as an attribute of the kernel");
  int64_t const works = LongWork<Traits>::count(p);
  bool const beside = works >= kBesideWorks * kMostLongCtas;
  int const most_parts = beside ? int(kMaxGrid) : kParts;
  p.list_tiles = (p.num_row_tiles + most_parts - 1) / most_parts;

  DeviceGuard const guard(device.device_id);
  using Shape = PrepareShape<Traits>;
  p.key_slices = int(std::min<int64_t>(parts.tiles * Shape::kParts, kKeySlices));
  int const heads = select.num_q_heads / select.num_kv_heads;
  dim3 const prepare_grid(unsigned(p.key_slices + 2 + heads), select.batch * select.num_kv_heads);
  // Of shared memory, which prepare does not use: its CTAs begin while those of the kernel before leave, and would all lie on the SMs that
  // these leave first, where the passes' could not begin beside them.
  constexpr int64_t kSpreadBytes = 40 * 1024;
  start_early(prepare_long_kernel<Traits>, p, prepare_grid, kPrepareThreads, kSpreadBytes, device);
  auto const kernel = select_long_kernel<Traits, kProbs>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Storage))), "select shared memory size");
  int64_t const ctas = std::min<int64_t>(works, kMostLongCtas);
  start_early(kernel, p, dim3(unsigned(ctas)), Traits::kThreads, sizeof(Storage), device);
  // As the kernel before has it: an SM cannot change its carve-out while it has work.
  auto const emit = emit_long_kernel<kProbs>;
  check_cuda(cudaFuncSetAttribute(emit, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
             "select shared memory carve-out");
  dim3 const emit_grid(unsigned(p.list_tiles * kItemCtas), unsigned(select.batch * select.num_q_heads),
                       unsigned((p.num_row_tiles + p.list_tiles - 1) / p.list_tiles));
  start_early(emit, p, emit_grid, kEmitThreads, beside ? 0 : kApartBytes, device);
}

}  // namespace prism
