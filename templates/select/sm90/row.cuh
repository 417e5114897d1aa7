// A row of scores that one warp holds, in registers or in memory. Column c belongs to lane c % 32 and word c / 32, whatever the row's
// length, so that a row's result depends on its visible columns only.
//
// Callbacks take (word, value, part): part = word % kParts names one of the independent chains of a sum.
#pragma once

#include "select/sm90/scores.cuh"

namespace prism {

constexpr int kBatchWords = kWarpSize;  // words of a row whose bit masks one warp holds, one a lane
constexpr int kParts = 4;               // chains of a lane's sum: an add takes 4 cycles
constexpr int kStepWords = 8;           // words of a row between two looks at its length

// Where a row of scores in memory (scores.cuh) keeps a lane's column of a word.
CUTE_DEVICE uint32_t& row_value(float* scores, int word, int lane) {
  return reinterpret_cast<uint32_t*>(scores)[word / kGroupWords * kGroupCols + lane * kGroupWords + word % kGroupWords];
}

// A row held in registers. Values are raw 32-bit: first scores, then probabilities, then masses.
template <int kWords>
class RegisterRow {
 public:
  static constexpr int kMaxWords = kWords;
  static_assert(kMaxWords % kGroupWords == 0);

  // scores: of the row, in groups of columns (scores.cuh).
  CUTE_DEVICE RegisterRow(float const* scores, int num_visible, int lane) : num_words_((num_visible + 31) / 32) {
    CUTE_UNROLL
    for (int group = 0; group < kMaxWords / kGroupWords; ++group) {
      if (group * kGroupWords / kStepWords * kStepWords >= num_words_) {  // or the registers would be live all through the kernel
        CUTE_UNROLL
        for (int i = 0; i < kGroupWords; ++i) value_[group * kGroupWords + i] = 0;
        continue;
      }
      float4 const v = *reinterpret_cast<float4 const*>(scores + group * kGroupCols + lane * 4);
      float const four[] = {v.x, v.y, v.z, v.w};
      CUTE_UNROLL
      for (int i = 0; i < kGroupWords; ++i) value_[group * kGroupWords + i] = __float_as_uint(four[i]);
      if ((group + 1) * kGroupCols <= num_visible) continue;  // no hidden columns
      CUTE_UNROLL
      for (int i = 0; i < kGroupWords; ++i) {
        int const word = group * kGroupWords + i;
        if (word * kWarpSize + lane >= num_visible) value_[word] = __float_as_uint(-INFINITY);
      }
    }
  }

  template <class F>
  CUTE_DEVICE void update(F const& f) {
    CUTE_UNROLL
    for (int first = 0; first < kMaxWords; first += kStepWords) {
      if (first >= num_words_) break;
      CUTE_UNROLL
      for (int i = 0; i < kStepWords; ++i) value_[first + i] = f(first + i, value_[first + i], i % kParts);
    }
  }

  template <class F>
  CUTE_DEVICE void visit(F const& f) const {
    CUTE_UNROLL
    for (int first = 0; first < kMaxWords; first += kStepWords) {
      if (first >= num_words_) break;
      CUTE_UNROLL
      for (int i = 0; i < kStepWords; ++i) f(first + i, value_[first + i], i % kParts);
    }
  }

  // f(batch, bits_of): for each batch of words; bits_of(test) has bit i set where test(value of word i of the batch).
  template <class F>
  CUTE_DEVICE void each_batch(F const& f) const {
    CUTE_UNROLL
    for (int batch = 0; batch < (kMaxWords + kBatchWords - 1) / kBatchWords; ++batch) {
      if (batch * kBatchWords >= num_words_) break;
      f(batch, [&](auto const& add_bit) {
        uint32_t bits = 0;
        CUTE_UNROLL
        for (int first = 0; first < kBatchWords && batch * kBatchWords + first < kMaxWords; first += kStepWords) {
          if (batch * kBatchWords + first >= num_words_) break;
          CUTE_UNROLL
          for (int i = 0; i < kStepWords; ++i) add_bit(bits, value_[batch * kBatchWords + first + i], first + i);
        }
        return bits;
      });
    }
  }

 private:
  uint32_t value_[kMaxWords];
  int num_words_;
};

// A row left in memory, shared or global: any length. Only its own warp touches it, a group of words at a time.
class MemoryRow {
 public:
  CUTE_DEVICE MemoryRow(float* scores, int num_visible, int lane)
      : groups_(reinterpret_cast<uint4*>(scores) + lane), num_words_((num_visible + 31) / 32) {
    int const partial = num_visible / kGroupCols;
    if (partial == num_groups()) return;  // no hidden columns
    uint4 v = groups_[partial * kWarpSize];
    uint32_t* four = &v.x;
    CUTE_UNROLL
    for (int i = 0; i < kGroupWords; ++i) {
      if ((partial * kGroupWords + i) * kWarpSize + lane >= num_visible) four[i] = __float_as_uint(-INFINITY);
    }
    groups_[partial * kWarpSize] = v;
  }

  template <class F>
  CUTE_DEVICE void update(F const& f) {
    #pragma unroll 2
    for (int group = 0; group < num_groups(); ++group) {
      uint4 v = groups_[group * kWarpSize];
      uint32_t* four = &v.x;
      CUTE_UNROLL
      for (int i = 0; i < kGroupWords; ++i) four[i] = f(group * kGroupWords + i, four[i], i % kParts);
      groups_[group * kWarpSize] = v;
    }
  }

  template <class F>
  CUTE_DEVICE void visit(F const& f) const {
    #pragma unroll 4
    for (int group = 0; group < num_groups(); ++group) {
      uint4 const v = groups_[group * kWarpSize];
      uint32_t const four[] = {v.x, v.y, v.z, v.w};
      CUTE_UNROLL
      for (int i = 0; i < kGroupWords; ++i) f(group * kGroupWords + i, four[i], i % kParts);
    }
  }

  template <class F>
  CUTE_DEVICE void each_batch(F const& f) const {
    constexpr int kBatchGroups = kBatchWords / kGroupWords;
    for (int batch = 0; batch * kBatchWords < num_words_; ++batch) {
      f(batch, [&](auto const& add_bit) {
        uint32_t bits = 0;
        CUTE_UNROLL
        for (int group = 0; group < kBatchGroups; ++group) {
          if (batch * kBatchGroups + group >= num_groups()) break;
          uint4 const v = groups_[(batch * kBatchGroups + group) * kWarpSize];
          uint32_t const four[] = {v.x, v.y, v.z, v.w};
          CUTE_UNROLL
          for (int i = 0; i < kGroupWords; ++i) add_bit(bits, four[i], group * kGroupWords + i);
        }
        return bits;
      });
    }
  }

 private:
  CUTE_DEVICE int num_groups() const { return (num_words_ + kGroupWords - 1) / kGroupWords; }

  uint4* groups_;  // this lane's
  int num_words_;
};

}  // namespace prism
