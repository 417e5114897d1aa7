// What one warp makes of a list's row of key-block masses: the sum of its heads' and parts' rows or their maximum, integers of them,
// the cut-off, the list (method.md step 5 on a single distribution). Uses select's rows, cut-offs and lists.
#pragma once

#include "score/params.h"
#include "select/sm90/cut.cuh"
#include "select/sm90/emit.cuh"
#include "shared/dependents.cuh"

#include <cutlass/cutlass.h>

namespace prism::score {

static_assert(kMassColumns == kGroupCols, "rows are read in groups of columns");

struct ChooseParams {
  SelectParams select;  // the grid, the rules, where lists go; its means and energies are null
  MassLayout masses;    // as the score kernel left them; long rows are reordered
  int num_parts;        // of a head
  int first_block, end_block;  // the query blocks that a launch takes: those whose rows fit its kernel
  bool mean, exclude_forced;

  CUTE_HOST_DEVICE int64_t num_lists() const { return int64_t(select.batch) * select.num_lists(); }
  CUTE_HOST_DEVICE int64_t num_rows() const { return num_lists() * (end_block - first_block); }
};

// kWords: of the longest row that registers hold; 0 for rows that stay in memory.
template <int kWords>
struct ChooseKernel {
  static constexpr bool kInMemory = kWords == 0;
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kCtasPerSm = kWords == 16 ? 4 : kWords == 32 ? 3 : 2;  // as many as registers allow
  static constexpr int kGroupsInFlight = 8;  // 128 columns each: 16-byte loads of a lane
  static constexpr int kRowFloats = kWords * kWarpSize;
  using Row = std::conditional_t<kInMemory, MemoryRow, RegisterRow<kInMemory ? kStepWords : kWords>>;

  // Of one warp: the row, then its bit mask.
  CUTE_HOST_DEVICE static int64_t warp_bytes(SelectParams const& p) {
    return (kRowFloats + mask_words(p.num_k_blocks)) * int64_t(sizeof(float));
  }
  CUTE_HOST_DEVICE static int64_t smem_bytes(SelectParams const& p) { return kWarps * ((warp_bytes(p) + 15) / 16 * 16); }

  // Combines the rows of a list's heads and parts, and leaves the result in the order in which row.cuh reads it.
  CUTE_DEVICE static void gather(ChooseParams const& c, int64_t list_row, int q_block, int num_visible, float* to, int lane) {
    SelectParams const& p = c.select;
    int const columns = c.masses.columns(q_block), parts_per_block = c.masses.parts_per_block;
    int const parts = min(parts_per_block, c.num_parts - q_block * parts_per_block);
    float const* from = c.masses.mass + c.masses.row(list_row * p.heads_per_list, q_block, 0) + lane * 4;
    #pragma unroll 1
    for (int first_group = 0; first_group * kGroupCols < num_visible; first_group += kGroupsInFlight) {
      float4 sums[kGroupsInFlight];
      CUTE_UNROLL
      for (int i = 0; i < kGroupsInFlight; ++i) sums[i] = make_float4(0.f, 0.f, 0.f, 0.f);
      #pragma unroll 1
      for (int source = 0; source < p.heads_per_list * parts; ++source) {
        float const* row = from + source / parts * c.masses.head_floats + source % parts * columns;
        float4 loaded[kGroupsInFlight];
        CUTE_UNROLL
        for (int i = 0; i < kGroupsInFlight; ++i) {
          loaded[i] = make_float4(0.f, 0.f, 0.f, 0.f);
          int const group = first_group + i;
          if (group * kGroupCols < num_visible) loaded[i] = __ldcg(reinterpret_cast<float4 const*>(row + group * kGroupCols));
        }
        CUTE_UNROLL
        for (int i = 0; i < kGroupsInFlight; ++i) {
          float4 const x = sums[i], y = loaded[i];
          sums[i] = c.mean ? make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w)
                           : make_float4(fmaxf(x.x, y.x), fmaxf(x.y, y.y), fmaxf(x.z, y.z), fmaxf(x.w, y.w));
        }
      }
      if constexpr (kInMemory) __syncwarp();  // `to` is the first of these rows
      CUTE_UNROLL
      for (int i = 0; i < kGroupsInFlight; ++i) {
        if ((first_group + i) * kGroupCols >= num_visible) break;
        float const four[] = {sums[i].x, sums[i].y, sums[i].z, sums[i].w};
        int const word = (first_group + i) * kGroupWords + lane / 8;
        CUTE_UNROLL
        for (int j = 0; j < 4; ++j) row_value(to, word, lane % 8 * 4 + j) = __float_as_uint(four[j]);
      }
    }
    __syncwarp();
  }

  CUTE_DEVICE static int first_forced(SelectParams const& p, bool exclude, int q_block, int num_visible) {
    return exclude && p.force_recent ? p.first_diagonal(q_block) : num_visible;
  }

  // Whether the blocks that are not forced hold more than rounds to nothing.
  CUTE_DEVICE static bool leaves_rest(SelectParams const& p, Row const& row, int q_block, int num_visible, int lane) {
    int const diagonal = first_forced(p, true, q_block, num_visible), sink_end = p.force_sink ? 1 : 0;
    float free = 0.f, all = 0.f;
    row.visit([&](int word, uint32_t bits, int) {
      int const column = word * kWarpSize + lane;
      float const x = column < num_visible ? __uint_as_float(bits) : 0.f;
      all += x;
      if (column >= sink_end && column < diagonal) free += x;
    });
    return warp_sum(free) * float(kFixedOne) >= warp_sum(all);
  }

  // The row to integers, proportional to its probabilities. Forced blocks count for nothing where they are excluded.
  CUTE_DEVICE static MassStart probabilities(ChooseParams const& c, Row& row, int q_block, int num_visible, int lane) {
    constexpr float kFar = -1000.f;  // octaves, of a mass of 0
    SelectParams const& p = c.select;
    bool const exclude = c.exclude_forced && leaves_rest(p, row, q_block, num_visible, lane);
    int const diagonal = first_forced(p, exclude, q_block, num_visible), sink_end = exclude && p.force_sink ? 1 : 0;
    float sums[kParts] = {}, tops[kParts] = {}, first = 0.f, second = 0.f;
    row.update([&](int word, uint32_t bits, int part) {
      int const column = word * kWarpSize + lane;
      float const x = column >= sink_end && column < diagonal ? __uint_as_float(bits) : 0.f;
      sums[part] += x;
      tops[part] = fmaxf(tops[part], x);
      if (part == 0) {
        float const octaves = fmaxf(__log2f(x), kFar), moment = x * octaves;
        first += moment;
        second += moment * octaves;
      }
      return __float_as_uint(x);
    });
    float const sum = warp_sum((sums[0] + sums[1]) + (sums[2] + sums[3])), sample = warp_sum(sums[0]);
    float const top = warp_max(fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3])));
    float const centre = warp_sum(first) / sample, variance = warp_sum(second) / sample - centre * centre;
    float const unit = __frcp_rn(sum) * float(kFixedOne);  // a power of two: p rounds once
    return fix(row, unit, top, centre + __log2f(unit), sqrtf(fmaxf(variance, 0.f)));
  }

  CUTE_DEVICE static void choose(ChooseParams const& c, int64_t index, float* memory, int lane) {
    SelectParams const& p = c.select;
    int const q_block = c.end_block - 1 - int(index / c.num_lists());  // longest rows first
    int const list_row = int(index % c.num_lists()), num_visible = p.num_visible(q_block);
    float* row_memory = memory;
    if constexpr (kInMemory) {
      row_memory = c.masses.mass + c.masses.row(int64_t(list_row) * p.heads_per_list, q_block, 0);
    }
    gather(c, list_row, q_block, num_visible, row_memory, lane);
    Row row(row_memory, num_visible, lane);
    MassStart const start = probabilities(c, row, q_block, num_visible, lane);
    CutRule const rule(p.cut_kind, __ldg(p.thresholds + list_row % p.num_lists()));
    int64_t const out_row = int64_t(list_row) * p.num_q_blocks + q_block;
    if (p.probs != nullptr) write_probs(row, p.probs + out_row * p.num_k_blocks, num_visible, p.num_k_blocks, lane);
    auto* mask = reinterpret_cast<uint32_t*>(memory + kRowFloats);
    int const wanted = keep(p, row, start, rule, num_visible, q_block, mask, lane);
    __syncwarp();  // lanes read words that others wrote, and the row is in registers
    int const words = mask_words(num_visible);
    emit_list(p, out_row, q_block, num_visible, wanted, [&](int word) { return word < words ? mask[word] : 0u; });
    __syncwarp();
  }

  // Leaves the columns that the cut-off keeps in `mask`, or the strongest that fit. Returns the list's length before it fell back.
  CUTE_DEVICE static int keep(SelectParams const& p, Row const& row, MassStart const& start, CutRule const& rule, int num_visible,
                              int q_block, uint32_t* mask, int lane) {
    auto const put = [&](int word, uint32_t kept) { mask[word] = kept; };
    int const count = kept_words(row, row_cutoff<true>(row, start, rule, num_visible), num_visible, lane, put);
    if (!p.may_overflow()) return 0;
    __syncwarp();
    int const wanted = list_length(p, mask, q_block), room = p.max_blocks - p.num_forced(q_block);
    __syncwarp();
    if (wanted > p.max_blocks && count > room) kept_words(row, rank_cutoff(row, room, start.bound), num_visible, lane, put);
    return wanted;
  }

  CUTE_DEVICE static void run(ChooseParams const& c, unsigned char* smem) {
    int const warp = cutlass::canonical_warp_idx_sync(), lane = threadIdx.x % kWarpSize;
    auto* memory = reinterpret_cast<float*>(smem + warp * (smem_bytes(c.select) / kWarps));
    launch_dependents();
    await_previous_kernels();
    for (int64_t index = int64_t(blockIdx.x) * kWarps + warp; index < c.num_rows(); index += int64_t(gridDim.x) * kWarps) {
      choose(c, index, memory, lane);
    }
  }
};

template <int kWords>
__global__ void __launch_bounds__(ChooseKernel<kWords>::kThreads, ChooseKernel<kWords>::kCtasPerSm)
    choose_kernel(__grid_constant__ ChooseParams const params) {
  extern __shared__ __align__(16) unsigned char smem[];
  ChooseKernel<kWords>::run(params, smem);
}

}  // namespace prism::score
