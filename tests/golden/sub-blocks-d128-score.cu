
#include "score/export.h"

namespace {

struct Config {
  static constexpr int kHeadDim = 128;
  static constexpr int kRowsPerBlock = 32;  // sub-rows of a query block
  static constexpr int kColumnsPerBlock = 8;  // sub-columns of a key block
  static constexpr int kWarpGroups = 4;  // of 64 sub-rows that read one tile of sub-columns
  static constexpr int kKStages = 5;  // tiles of sub-columns in shared memory
  static constexpr int kSmemBytes = 232448;
};

constexpr char kSpec[] = R"spec({"arch":"sm90","family":"score","problem":{"columns_per_block":8,"head_dim":128,"rows_per_block":32},"schedule":{"k_stages":5,"warp_groups":4}})spec";

}  // namespace

PRISM_EXPORT_SCORE(Config, kSpec)
