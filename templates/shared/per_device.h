// Host side: an answer about a device that never changes, asked for once.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

namespace prism {

// Every question has a PerDevice of its own: asking the runtime costs a microsecond, a launch may take ten. Threads that race ask
// twice and keep the same answer.
class PerDevice {
 public:
  // ask: int& -> cudaError_t, gives an answer that is not 0; called where `device` has none yet.
  template <class Ask>
  cudaError_t get(int& answer, int device, Ask const& ask) {
    bool const kept = device < kMaxDevices;
    answer = kept ? answers_[device].load(std::memory_order_relaxed) : 0;
    if (answer != 0) return cudaSuccess;
    cudaError_t const status = ask(answer);
    if (kept && status == cudaSuccess) answers_[device].store(answer, std::memory_order_relaxed);
    return status;
  }

 private:
  static constexpr int kMaxDevices = 64;  // those beyond are asked every time
  std::atomic<int> answers_[kMaxDevices] = {};
};

}  // namespace prism
