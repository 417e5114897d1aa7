// The boundary: tensors and numbers in, validated, out on the caller's stream. The kernels behind it know no framework.
#pragma once

#include <cuda_runtime.h>

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <cstdint>
#include <type_traits>

namespace prism {

using tvm::ffi::Optional;
using tvm::ffi::TensorView;

template <class Element>
constexpr DLDataType dtype_of() {
  if constexpr (std::is_same_v<Element, cutlass::bfloat16_t>) return {kDLBfloat, 16, 1};
  else if constexpr (std::is_same_v<Element, cutlass::half_t>) return {kDLFloat, 16, 1};
  else if constexpr (std::is_same_v<Element, float>) return {kDLFloat, 32, 1};
  else if constexpr (std::is_same_v<Element, int32_t>) return {kDLInt, 32, 1};
  else static_assert(!sizeof(Element), "no DLPack dtype is known for this element");
}

inline bool same_dtype(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

// Throws unless `t` is a CUDA tensor of Element with `ndim` dims on the device of the first argument.
template <class Element>
void check_tensor(TensorView const& t, char const* name, int ndim, DLDevice device) {
  if (t.device().device_type != kDLCUDA || t.device().device_id != device.device_id) {
    TVM_FFI_THROW(ValueError) << name << " is on device (" << t.device().device_type << ", " << t.device().device_id
                              << "), expected CUDA device " << device.device_id;
  }
  if (!same_dtype(t.dtype(), dtype_of<Element>())) {
    TVM_FFI_THROW(TypeError) << name << " has DLPack dtype (code " << int(t.dtype().code) << ", bits "
                             << int(t.dtype().bits) << "), this kernel was compiled for (code "
                             << int(dtype_of<Element>().code) << ", bits " << int(dtype_of<Element>().bits) << ")";
  }
  if (t.ndim() != ndim) {
    TVM_FFI_THROW(ValueError) << name << " has " << t.ndim() << " dims, expected " << ndim;
  }
}

inline void check_size(TensorView const& t, char const* name, int dim, int64_t expected) {
  if (t.size(dim) != expected) {
    TVM_FFI_THROW(ValueError) << name << ".shape[" << dim << "] is " << t.size(dim) << ", expected " << expected;
  }
}

inline void check_contiguous(TensorView const& t, char const* name) {
  if (!t.IsContiguous()) TVM_FFI_THROW(ValueError) << name << " must be contiguous";
}

// TMA and 16-byte vector loads: contiguous last dim, every other stride and the base address a multiple of 16 bytes.
// The stride of a dim of size 1 is never used and may be anything.
inline void check_strides(TensorView const& t, char const* name) {
  constexpr int kAlignBytes = 16;
  int const elem_bytes = t.dtype().bits / 8;
  if (t.size(-1) > 1 && t.stride(-1) != 1) {
    TVM_FFI_THROW(ValueError) << name << " must have a contiguous last dim, its stride is " << t.stride(-1);
  }
  for (int d = 0; d + 1 < t.ndim(); ++d) {
    if (t.size(d) > 1 && t.stride(d) == 0) {
      TVM_FFI_THROW(ValueError) << name << ".stride(" << d << ") is 0: expanded tensors are not taken; call .contiguous()";
    }
    if (t.size(d) > 1 && (t.stride(d) * elem_bytes) % kAlignBytes != 0) {
      TVM_FFI_THROW(ValueError) << name << ".stride(" << d << ") is " << t.stride(d) << " elements, expected a multiple of "
                                << kAlignBytes / elem_bytes << "; call .contiguous()";
    }
  }
  if (reinterpret_cast<uintptr_t>(t.data_ptr()) % kAlignBytes != 0) {
    TVM_FFI_THROW(ValueError) << name << " must start at a 16-byte aligned address; call .clone()";
  }
}

inline void check_cuda(cudaError_t status, char const* what) {
  if (status != cudaSuccess) {
    TVM_FFI_THROW(RuntimeError) << what << " failed: " << cudaGetErrorString(status);
  }
}

// Makes `device` current for one call and restores the caller's.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ != device_) check_cuda(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (previous_ != device_) cudaSetDevice(previous_);
  }
  DeviceGuard(DeviceGuard const&) = delete;
  DeviceGuard& operator=(DeviceGuard const&) = delete;

 private:
  int device_ = 0;
  int previous_ = 0;
};

inline cudaStream_t current_stream(DLDevice device) {
  return static_cast<cudaStream_t>(TVMFFIEnvGetStream(device.device_type, device.device_id));
}

template <class T>
T* data(TensorView const& t) {
  return static_cast<T*>(t.data_ptr());
}

template <class T>
T* data_or_null(Optional<TensorView> const& t) {
  return t.has_value() ? static_cast<T*>(t.value().data_ptr()) : nullptr;
}

}  // namespace prism

// `kSpec` is the canonical KernelSpec JSON this library was built from; the loader compares it with the manifest.
#define PRISM_EXPORT_SPEC(kSpec)                                   \
  static tvm::ffi::String prism_spec() { return tvm::ffi::String(kSpec); } \
  TVM_FFI_DLL_EXPORT_TYPED_FUNC(spec, prism_spec)
