// Host side of TMA: a tensor map from sizes, strides and the box that one copy moves. Must not know any kernel.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace prism {

// Innermost dim first, as the driver wants it; the stride of that dim is one element. Sizes and boxes in elements.
template <int kRank>
struct MapShape {
  uint64_t size[kRank];
  uint64_t stride_bytes[kRank - 1];  // of dims 1 and up; multiples of 16, also where the size is 1 and nobody reads it
  uint32_t box[kRank];
};

// The driver's encoder, looked up once: libcuda is not linked, so that libraries load on machines without a driver.
using TensorMapEncoder = decltype(&cuTensorMapEncodeTiled);

inline TensorMapEncoder tensor_map_encoder() {
  static TensorMapEncoder const encoder = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    cudaError_t const status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    bool const usable = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return usable ? reinterpret_cast<TensorMapEncoder>(found) : nullptr;
  }();
  return encoder;
}

// Out-of-range elements are read as zero and not written. The swizzle is as wide as the box: 64 or 128 bytes.
template <int kRank>
cudaError_t make_tensor_map(CUtensorMap& map, CUtensorMapDataType type, int element_bytes, void* address,
                            MapShape<kRank> const& shape) {
  auto const encode = tensor_map_encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  uint32_t steps[kRank];
  for (int d = 0; d < kRank; ++d) steps[d] = 1;
  auto const swizzle = shape.box[0] * element_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  CUresult const result = encode(&map, type, kRank, address, shape.size, shape.stride_bytes, shape.box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace prism
