
#include "rotate/sm90/kernel.cuh"
#include "rotate/export.h"

namespace {

struct Config {
  using Element = cutlass::half_t;
  using HighBand = prism::ChunkList<0, 1, 2, 3>;
  using LowBand = prism::ChunkList<2, 3, 4, 5, 6, 7>;
  static constexpr int kHeadDim = 64;
  static constexpr int kRotaryDim = 32;
  static constexpr bool kInterleaved = true;
  static constexpr int kThreads = 256;
  static constexpr int kInFlight = 1;  // tokens per thread
  static constexpr int kMinCtas = 3;  // resident on an SM: bounds the registers
};

constexpr char kSpec[] = R"spec({"arch":"sm90","family":"rotate","problem":{"dtype":"fp16","head_dim":64,"high_dims":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31],"interleaved":true,"low_dims":[16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63],"rotary_dim":32},"schedule":{"in_flight":1,"min_ctas":3,"threads":256}})spec";

}  // namespace

PRISM_EXPORT_ROTATE(Config, kSpec)
