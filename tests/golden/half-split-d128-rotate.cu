
#include "rotate/sm90/kernel.cuh"
#include "rotate/export.h"

namespace {

struct Config {
  using Element = cutlass::bfloat16_t;
  using HighBand = prism::ChunkList<0, 1, 2, 3, 8, 9, 10, 11>;
  using LowBand = prism::ChunkList<2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15>;
  static constexpr int kHeadDim = 128;
  static constexpr int kRotaryDim = 128;
  static constexpr bool kInterleaved = false;
  static constexpr int kThreads = 256;
  static constexpr int kInFlight = 1;  // tokens per thread
  static constexpr int kMinCtas = 3;  // resident on an SM: bounds the registers
};

constexpr char kSpec[] = R"spec({"arch":"sm90","family":"rotate","problem":{"dtype":"bf16","head_dim":128,"high_dims":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,64,65,66,67,68,69,70,71,72,73,74,75,76,77,78,79,80,81,82,83,84,85,86,87,88,89,90,91,92,93,94,95],"interleaved":false,"low_dims":[16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63,80,81,82,83,84,85,86,87,88,89,90,91,92,93,94,95,96,97,98,99,100,101,102,103,104,105,106,107,108,109,110,111,112,113,114,115,116,117,118,119,120,121,122,123,124,125,126,127],"rotary_dim":128},"schedule":{"in_flight":1,"min_ctas":3,"threads":256}})spec";

}  // namespace

PRISM_EXPORT_ROTATE(Config, kSpec)
