// The arguments that select and score share: thresholds, and the lists of blocks that they write. Owns the errors about them.
#pragma once

#include "shared/ffi.h"

#include <initializer_list>
#include <limits>

namespace prism {

// num_bands: distributions that a row is cut from.
struct ListArguments {
  TensorView thresholds, block_indices, block_counts;
  Optional<TensorView> wanted_counts, probs;
  int64_t num_bands;
};

template <class T>
void check_list_tensor(TensorView const& t, char const* name, std::initializer_list<int64_t> shape, DLDevice device) {
  check_tensor<T>(t, name, int(shape.size()), device);
  int dim = 0;
  for (int64_t size : shape) check_size(t, name, dim++, size);
  check_contiguous(t, name);
}

// Throws unless each is a contiguous tensor of its type and shape on `device`.
inline void check_lists(ListArguments const& lists, int64_t batch, int64_t num_lists, int64_t num_q_blocks, int64_t num_k_blocks,
                        DLDevice device) {
  check_list_tensor<float>(lists.thresholds, "thresholds", {num_lists, lists.num_bands}, device);
  check_tensor<int32_t>(lists.block_indices, "block_indices", 4, device);
  int64_t const max_blocks = lists.block_indices.size(3);
  check_list_tensor<int32_t>(lists.block_indices, "block_indices", {batch, num_lists, num_q_blocks, max_blocks}, device);
  if (max_blocks < 1 || max_blocks > std::numeric_limits<int>::max()) {
    TVM_FFI_THROW(ValueError) << "block_indices.shape[3] (max_blocks) is " << max_blocks << ", expected 1 to "
                              << std::numeric_limits<int>::max();
  }
  check_list_tensor<int32_t>(lists.block_counts, "block_counts", {batch, num_lists, num_q_blocks}, device);
  if (auto const& wanted = lists.wanted_counts; wanted.has_value()) {
    check_list_tensor<int32_t>(wanted.value(), "wanted_counts", {batch, num_lists, num_q_blocks}, device);
  }
  if (auto const& probs = lists.probs; probs.has_value()) {
    check_list_tensor<int32_t>(probs.value(), "probs", {batch, num_lists, lists.num_bands, num_q_blocks, num_k_blocks}, device);
  }
}

}  // namespace prism
