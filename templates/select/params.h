// Host/device arguments of select, and the block grid's arithmetic (method.md, Shapes and names). Knows no framework.
#pragma once

#include <cute/config.hpp>

#include <cstdint>

namespace prism {

constexpr int64_t kMaxSmemBytes = 227 * 1024;  // dynamic shared memory of one CTA, sm90
constexpr int kMaxTokens = 1 << 29;  // of a sequence or a block: sums of two stay inside int32

constexpr int kBands = 2;       // high, low
constexpr int kComponents = 3;  // of an energy: high band, low band, all dims
constexpr int kAllDims = 2;

enum class CutKind : int { kTopP = 0, kTopK = 1, kDensity = 2 };  // what a threshold is (method.md step 5)

// What a kernel is compiled for: the paper's rules for lists of one q head, without probs; any rules for them; any for lists of a group.
enum class SelectMode : int { kPlain, kHead, kGroup };

// num_lists: num_q_heads, or num_kv_heads where a group shares its list.
struct SelectParams {
  float const* q_mean;      // [batch, num_q_heads, num_q_blocks, head_dim]
  float const* k_mean;      // [batch, num_kv_heads, k_capacity, head_dim], of which num_k_blocks are used
  float const* q_energy;    // [batch, num_q_heads, num_q_blocks, 3]: high band, low band, all dims
  float const* k_energy;    // [batch, num_kv_heads, k_capacity, 3]
  float const* thresholds;  // [num_lists, 2]: high, low
  int32_t* block_indices;   // [batch, num_lists, num_q_blocks, max_blocks]
  int32_t* block_counts;    // [batch, num_lists, num_q_blocks]
  int32_t* wanted_counts;   // null, or like block_counts: what a row's rule chose, more than max_blocks where it fell back
  int32_t* probs;           // null, or [batch, num_lists, 2, num_q_blocks, num_k_blocks]
  float* scratch;           // null, or the scores of one tile per CTA, or what prepare.cuh makes, or a LongScratch
  float* q_halves;          // null, or [batch, num_q_heads, num_q_blocks, head_dim]: the means as prepare.cuh leaves them
  float* k_halves;          // null, or [batch, num_kv_heads], KeyHalves of each
  float* q_totals;          // null, or [batch, num_q_heads, 3]: sums of q_energy over the blocks
  float* k_totals;          // null, or [batch, num_kv_heads, 3]
  int batch, num_q_heads, num_kv_heads;
  int heads_per_list;       // 1, or num_q_heads / num_kv_heads
  int num_q_blocks, num_k_blocks, k_capacity, max_blocks;
  int block_size_q, block_size_k;  // tokens
  int seqlen_q, prefix;            // tokens; query row r sees keys 0 .. r + prefix
  CutKind cut_kind;
  bool prefix_calibration, force_sink, force_recent;

  CUTE_HOST_DEVICE int num_lists() const { return num_q_heads / heads_per_list; }

  // Whether a row may want more blocks than its list holds.
  CUTE_HOST_DEVICE bool may_overflow() const { return max_blocks < num_k_blocks; }

  // Whether these are the paper's rules, for lists of one q head that hold all.
  CUTE_HOST_DEVICE bool paper_rules() const {
    return heads_per_list == 1 && cut_kind == CutKind::kTopP && !prefix_calibration && !may_overflow();
  }

  // Key blocks that the last valid row of a query block sees.
  CUTE_HOST_DEVICE int num_visible(int q_block) const {
    int const end = (q_block + 1) * block_size_q;
    int const last_row = (end < seqlen_q ? end : seqlen_q) - 1;
    return int(unsigned(last_row + prefix) / unsigned(block_size_k)) + 1;
  }

  // Key block that holds the causal boundary of a query block's first row.
  CUTE_HOST_DEVICE int first_diagonal(int q_block) const {
    return int(unsigned(q_block * block_size_q + prefix) / unsigned(block_size_k));
  }

  // Key blocks that a row's list holds whatever its probabilities.
  CUTE_HOST_DEVICE int num_forced(int q_block) const {
    int const first = first_diagonal(q_block), recent = force_recent ? num_visible(q_block) - first : 0;
    return recent + (force_sink && !(force_recent && first == 0) ? 1 : 0);
  }
};

}  // namespace prism
