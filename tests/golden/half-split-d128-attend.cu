// {"arch":"sm90","family":"attend","problem":{"block_size_k":128,"block_size_q":128,"dtype":"bf16","head_dim":128,"heads_per_list":1},"schedule":{"cluster":1,"kv_stages":5,"q_stages":2,"teams":1,"tile_m":128,"tile_n":128}}
#include "attend/sm90/launch.h"
#include "attend/attend.h"

struct Config {
  using Element = cutlass::bfloat16_t;
  static constexpr int kHeadDim = 128;
  static constexpr int kBlockSizeQ = 128;  // tokens
  static constexpr int kBlockSizeK = 128;  // tokens
  static constexpr int kHeadsPerList = 1;  // q heads that share a list, packed into a tile; 1: a list per q head
  static constexpr int kTileM = 128;  // query rows of one team
  static constexpr int kTileN = 128;  // keys of one step
  static constexpr int kCluster = 1;  // CTAs whose teams walk one list together and share its K and V
  static constexpr int kKvStages = 5;  // shared-memory slots, one K or V tile each
  static constexpr int kQStages = 2;  // Q tiles; with two, a tile's end overlaps the next one's start
  static constexpr int kTeams = 1;  // of a CTA: each a loader, consumers, Q, K and V slots, and tiles of its own
  static constexpr int kSmemBytes = 230400;
};

constexpr char kSpec[] = R"spec({"arch":"sm90","family":"attend","problem":{"block_size_k":128,"block_size_q":128,"dtype":"bf16","head_dim":128,"heads_per_list":1},"schedule":{"cluster":1,"kv_stages":5,"q_stages":2,"teams":1,"tile_m":128,"tile_n":128}})spec";
PRISM_EXPORT_ATTEND(Config, kSpec)
