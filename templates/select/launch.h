// What the launches of select's kernels have in common. Owns no kernel.
#pragma once

#include "shared/ffi.h"

namespace prism {

constexpr int64_t kMaxGrid = 65535;   // of blockIdx.y and blockIdx.z
constexpr int kPrepareSlices = 64;    // CTAs that prepare a KV head's means

inline void check_sizes(TensorView const& t, char const* name, std::initializer_list<int64_t> shape) {
  int dim = 0;
  for (int64_t size : shape) check_size(t, name, dim++, size);
}

inline void check_shape(TensorView const& t, char const* name, std::initializer_list<int64_t> shape) {
  check_sizes(t, name, shape);
  check_contiguous(t, name);
}

inline void check_range(int64_t value, char const* name, int64_t low, int64_t high) {
  if (value < low || value > high) {
    TVM_FFI_THROW(ValueError) << name << " is " << value << ", expected " << low << " to " << high;
  }
}

// Starts a kernel that may begin before the one ahead of it in the stream has ended.
template <class Params>
void start_early(void (*kernel)(Params), Params const& p, dim3 grid, int threads, int64_t smem_bytes, DLDevice device) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = size_t(smem_bytes);
  config.stream = current_stream(device);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, p), "select launch");
}

}  // namespace prism
