// {"arch":"sm90","family":"attend","problem":{"block_size_k":64,"block_size_q":64,"dtype":"fp16","head_dim":64,"heads_per_list":1},"schedule":{"cluster":1,"kv_stages":5,"q_stages":2,"teams":2,"tile_m":64,"tile_n":128}}
#include "attend/sm90/launch.h"
#include "attend/attend.h"

struct Config {
  using Element = cutlass::half_t;
  static constexpr int kHeadDim = 64;
  static constexpr int kBlockSizeQ = 64;  // tokens
  static constexpr int kBlockSizeK = 64;  // tokens
  static constexpr int kHeadsPerList = 1;  // q heads that share a list, packed into a tile; 1: a list per q head
  static constexpr int kTileM = 64;  // query rows of one team
  static constexpr int kTileN = 128;  // keys of one step
  static constexpr int kCluster = 1;  // CTAs whose teams walk one list together and share its K and V
  static constexpr int kKvStages = 5;  // shared-memory slots, one K or V tile each
  static constexpr int kQStages = 2;  // Q tiles; with two, a tile's end overlaps the next one's start
  static constexpr int kTeams = 2;  // of a CTA: each a loader, consumers, Q, K and V slots, and tiles of its own
  static constexpr int kSmemBytes = 198656;
};

constexpr char kSpec[] = R"spec({"arch":"sm90","family":"attend","problem":{"block_size_k":64,"block_size_q":64,"dtype":"fp16","head_dim":64,"heads_per_list":1},"schedule":{"cluster":1,"kv_stages":5,"q_stages":2,"teams":2,"tile_m":64,"tile_n":128}})spec";
PRISM_EXPORT_ATTEND(Config, kSpec)
