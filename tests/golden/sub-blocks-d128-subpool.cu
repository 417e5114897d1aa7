
#include "subpool/sm90/kernel.cuh"
#include "subpool/export.h"

namespace {

struct Config {
  using Element = cutlass::bfloat16_t;
  static constexpr int kHeadDim = 128;
  static constexpr int kThreads = 256;
};

constexpr char kSpec[] = R"spec({"arch":"sm90","family":"subpool","problem":{"dtype":"bf16","head_dim":128},"schedule":{"threads":256}})spec";

}  // namespace

PRISM_EXPORT_SUBPOOL(Config, kSpec)
