// Loads an attend kernel of a bundle from C++ and calls it: no Python, no torch. See README.md beside this file.
//
//   attend BUNDLE [part of a kernel's name]
//
// Without a GPU it loads the kernel, prints its spec() and shows how wrong arguments are refused. With one it also runs
// attention over a few selected blocks and compares every row with double precision on the host.
#include <cuda_runtime.h>

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

namespace {

constexpr DLDataType kBf16{kDLBfloat, 16, 1}, kFloat{kDLFloat, 32, 1}, kInt{kDLInt, 32, 1};
constexpr int kBatch = 1, kSeqlen = 1000, kKvHeads = 2;  // tokens: several blocks and a part of one
constexpr double kMaxError = 2e-2;  // of values below 1: out is rounded to bf16, and so are the weights
constexpr double kMaxLseError = 1e-3;

void check(cudaError_t status, char const* what) {
  if (status != cudaSuccess) TVM_FFI_THROW(RuntimeError) << what << ": " << cudaGetErrorString(status);
}

struct HostMemory {
  void AllocData(DLTensor* tensor) { tensor->data = std::malloc(ffi::GetDataSize(*tensor)); }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

struct DeviceMemory {
  void AllocData(DLTensor* tensor) { check(cudaMalloc(&tensor->data, ffi::GetDataSize(*tensor)), "cudaMalloc"); }
  void FreeData(DLTensor* tensor) { cudaFree(tensor->data); }
};

// A tensor with the host's values, in the GPU's memory, or in the host's where there is no GPU.
template <class T>
ffi::Tensor tensor(std::vector<int64_t> const& shape, DLDataType dtype, std::vector<T> const& values, bool on_gpu) {
  ffi::Shape const dims(shape);
  ffi::Tensor const result = on_gpu ? ffi::Tensor::FromNDAlloc(DeviceMemory(), dims, dtype, DLDevice{kDLCUDA, 0})
                                    : ffi::Tensor::FromNDAlloc(HostMemory(), dims, dtype, DLDevice{kDLCPU, 0});
  size_t const bytes = values.size() * sizeof(T);
  if (on_gpu) check(cudaMemcpy(result.data_ptr(), values.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  else std::memcpy(result.data_ptr(), values.data(), bytes);
  return result;
}

float from_bf16(uint16_t bits) {
  uint32_t const wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t to_bf16(float value) {  // to nearest even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

std::vector<uint16_t> random_values(size_t count, unsigned seed) {
  std::mt19937 draw(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(count);
  for (auto& value : values) value = to_bf16(normal(draw));
  return values;
}

struct Kernel {
  std::string name, file;
  int head_dim, block_q, block_k, heads_per_list;
};

// The first bf16 attend kernel in manifest.json whose name holds `part`.
Kernel find_kernel(std::string const& bundle, std::string const& part) {
  std::ifstream file(bundle + "/manifest.json");
  if (!file) TVM_FFI_THROW(RuntimeError) << "no manifest.json in " << bundle;
  std::stringstream text;
  text << file.rdbuf();
  auto const manifest = json::Parse(text.str()).cast<json::Object>();
  for (json::Value const& value : manifest.at("kernels").cast<json::Array>()) {
    auto const entry = value.cast<json::Object>();
    auto const spec = entry.at("spec").cast<json::Object>();
    std::string const name = entry.at("name").cast<ffi::String>();
    if (spec.at("family").cast<ffi::String>() != "attend" || name.find(part) == std::string::npos) continue;
    auto const problem = spec.at("problem").cast<json::Object>();
    if (problem.at("dtype").cast<ffi::String>() != "bf16") continue;
    auto const number = [&](char const* key) { return int(problem.at(key).cast<int64_t>()); };
    std::string const library = entry.at("file").cast<ffi::String>();
    return {name, bundle + "/" + library, number("head_dim"), number("block_size_q"), number("block_size_k"),
            number("heads_per_list")};
  }
  TVM_FFI_THROW(RuntimeError) << "no bf16 attend kernel called " << part << " in " << bundle;
}

// One call's tensors: q, k, v [batch, tokens, heads, head_dim], and lists that hold the first block and the last two.
struct Call {
  Kernel kernel;
  int q_heads, num_lists, num_q_blocks, max_blocks;
  double scale;
  std::vector<uint16_t> q, k, v;
  std::vector<int> indices, counts;

  explicit Call(Kernel const& chosen) : kernel(chosen) {
    q_heads = kKvHeads * std::max(2, kernel.heads_per_list);
    num_lists = q_heads / kernel.heads_per_list;
    num_q_blocks = (kSeqlen + kernel.block_q - 1) / kernel.block_q;
    max_blocks = (kSeqlen + kernel.block_k - 1) / kernel.block_k;
    scale = 1 / std::sqrt(double(kernel.head_dim));
    q = random_values(size_t(kBatch) * kSeqlen * q_heads * kernel.head_dim, 1);
    k = random_values(size_t(kBatch) * kSeqlen * kKvHeads * kernel.head_dim, 2);
    v = random_values(k.size(), 3);
    indices.assign(size_t(kBatch) * num_lists * num_q_blocks * max_blocks, -1);
    counts.assign(size_t(kBatch) * num_lists * num_q_blocks, 0);
    for (size_t row = 0; row < counts.size(); ++row) {
      int const visible = visible_blocks(int(row) % num_q_blocks);
      for (int block = 0; block < visible; ++block) {
        if (block == 0 || block + 2 >= visible) indices[row * max_blocks + counts[row]++] = block;
      }
    }
  }

  int visible_blocks(int q_block) const {
    return (std::min((q_block + 1) * kernel.block_q, kSeqlen) - 1) / kernel.block_k + 1;
  }

  // Attention of one row in double precision: out [head_dim] and the log-sum-exp.
  double exact(int row, int head, std::vector<double>& out) const {
    int const dim = kernel.head_dim, kv_head = head / (q_heads / kKvHeads);
    size_t const list = (size_t(head) / kernel.heads_per_list) * num_q_blocks + row / kernel.block_q;
    auto const at = [&](std::vector<uint16_t> const& x, int token, int heads, int h, int d) {
      return double(from_bf16(x[(size_t(token) * heads + h) * dim + d]));
    };
    std::vector<double> scores(kSeqlen, -INFINITY);
    for (int i = 0; i < counts[list]; ++i) {
      int const first = indices[list * max_blocks + i] * kernel.block_k;
      for (int key = first; key < std::min(first + kernel.block_k, row + 1); ++key) {
        scores[key] = 0;
        for (int d = 0; d < dim; ++d) scores[key] += at(q, row, q_heads, head, d) * at(k, key, kKvHeads, kv_head, d) * scale;
      }
    }
    double const most = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    out.assign(dim, 0);
    for (int key = 0; key <= row; ++key) {
      double const weight = std::exp(scores[key] - most);
      sum += weight;
      for (int d = 0; d < dim; ++d) out[d] += weight * at(v, key, kKvHeads, kv_head, d);
    }
    for (double& value : out) value /= sum;
    return most + std::log(sum);
  }
};

// Launches attend on tensors in the GPU's memory (or the host's, which it refuses). Fills out and lse on the host.
void launch(ffi::Function const& attend, Call const& call, bool on_gpu, std::vector<uint16_t>& out, std::vector<float>& lse) {
  int64_t const dim = call.kernel.head_dim, lists = call.num_lists, rows = call.num_q_blocks;
  ffi::Tensor const q = tensor({kBatch, kSeqlen, call.q_heads, dim}, kBf16, call.q, on_gpu);
  ffi::Tensor const k = tensor({kBatch, kSeqlen, kKvHeads, dim}, kBf16, call.k, on_gpu);
  ffi::Tensor const v = tensor({kBatch, kSeqlen, kKvHeads, dim}, kBf16, call.v, on_gpu);
  out.assign(call.q.size(), 0);
  lse.assign(size_t(kBatch) * call.q_heads * kSeqlen, 0);
  ffi::Tensor const gpu_out = tensor({kBatch, kSeqlen, call.q_heads, dim}, kBf16, out, on_gpu);
  ffi::Tensor const gpu_lse = tensor({kBatch, call.q_heads, kSeqlen}, kFloat, lse, on_gpu);
  ffi::Tensor const indices = tensor({kBatch, lists, rows, call.max_blocks}, kInt, call.indices, on_gpu);
  ffi::Tensor const counts = tensor({kBatch, lists, rows}, kInt, call.counts, on_gpu);
  ffi::Tensor const tile_counter = tensor({1}, kInt, std::vector<int>{0}, on_gpu);  // zero; the launch leaves it zero
  attend(q, k, v, gpu_out, gpu_lse, indices, counts, call.scale, tile_counter);
  check(cudaMemcpy(out.data(), gpu_out.data_ptr(), out.size() * sizeof(uint16_t), cudaMemcpyDeviceToHost), "attend");
  check(cudaMemcpy(lse.data(), gpu_lse.data_ptr(), lse.size() * sizeof(float), cudaMemcpyDeviceToHost), "attend");
}

bool run(ffi::Function const& attend, Call const& call) {
  std::vector<uint16_t> out;
  std::vector<float> lse;
  launch(attend, call, true, out, lse);
  double error = 0, lse_error = 0;
  std::vector<double> exact;
  for (int head = 0; head < call.q_heads; ++head) {
    for (int row = 0; row < kSeqlen; ++row) {
      double const exact_lse = call.exact(row, head, exact);
      lse_error = std::max(lse_error, std::abs(lse[size_t(head) * kSeqlen + row] - exact_lse));
      for (int d = 0; d < call.kernel.head_dim; ++d) {
        float const ours = from_bf16(out[(size_t(row) * call.q_heads + head) * call.kernel.head_dim + d]);
        error = std::max(error, std::isnan(ours) ? INFINITY : std::abs(ours - exact[d]));
      }
    }
  }
  std::printf("ran on the GPU: largest error %.2e of out, %.2e of lse\n", error, lse_error);
  return error <= kMaxError && lse_error <= kMaxLseError;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::fprintf(stderr, "usage: attend BUNDLE [part of a kernel's name]\n");
    return 2;
  }
  Kernel const kernel = find_kernel(argv[1], argc > 2 ? argv[2] : "");
  ffi::Module const module = ffi::Module::LoadFromFile(kernel.file);
  std::string const spec = module->GetFunction("spec").value()().cast<ffi::String>();
  std::printf("loaded %s\nspec %s\n", kernel.name.c_str(), spec.c_str());
  ffi::Function const attend = module->GetFunction("attend").value();
  Call const call(kernel);
  try {
    std::vector<uint16_t> out;
    std::vector<float> lse;
    launch(attend, call, false, out, lse);
    std::printf("tensors in the host's memory were not refused\n");
    return 1;
  } catch (ffi::Error const& error) {
    std::printf("refused %s: %s\n", error.kind().c_str(), error.message().c_str());
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU: nothing was launched\n");
    return 0;
  }
  return run(attend, call) ? 0 : 1;
} catch (std::exception const& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
