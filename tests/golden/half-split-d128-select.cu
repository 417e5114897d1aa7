
#include "select/sm90/kernel.cuh"
#include "select/sm90/long/kernel.cuh"
#include "select/export.h"

namespace {

struct Bands {
  using HighBand = prism::ChunkList<0, 1, 2, 3, 8, 9, 10, 11>;
  using LowBand = prism::ChunkList<2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15>;
  static constexpr int kHeadDim = 128;
};

using PlainShapes = prism::SelectShapes<prism::SelectShape<4, 16, 256, 2, 2, false>, prism::SelectShape<16, 16, 256, 1, 4, false>>;
using Long = prism::LongRows<16>;
using HeadShapes = prism::SelectShapes<prism::SelectShape<4, 16, 256, 2, 2, false>, prism::SelectShape<16, 16, 256, 1, 2, false>, prism::SelectShape<32, 16, 256, 2, 2, true>, prism::SelectShape<64, 16, 256, 2, 2, true>, prism::SelectShape<256, 16, 256, 4, 1, true>>;
using GroupShapes = prism::SelectShapes<prism::SelectShape<16, 16, 256, 1, 2, false>, prism::SelectShape<32, 64, 256, 4, 1, true>, prism::SelectShape<64, 64, 256, 4, 1, true>>;
using ScratchShape = prism::SelectShape<64, 16, 256, 1, 2, false>;
using GroupScratchShape = prism::SelectShape<64, 64, 256, 1, 1, false>;

constexpr char kSpec[] = R"spec({"arch":"sm90","family":"select","problem":{"head_dim":128,"high_dims":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,64,65,66,67,68,69,70,71,72,73,74,75,76,77,78,79,80,81,82,83,84,85,86,87,88,89,90,91,92,93,94,95],"low_dims":[16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63,80,81,82,83,84,85,86,87,88,89,90,91,92,93,94,95,96,97,98,99,100,101,102,103,104,105,106,107,108,109,110,111,112,113,114,115,116,117,118,119,120,121,122,123,124,125,126,127]},"schedule":{"group":[{"cluster":1,"ctas_per_sm":2,"prepared":false,"threads":256,"tile_rows":16,"words":16},{"cluster":4,"ctas_per_sm":1,"prepared":true,"threads":256,"tile_rows":64,"words":32},{"cluster":4,"ctas_per_sm":1,"prepared":true,"threads":256,"tile_rows":64,"words":64}],"group_scratch":{"cluster":1,"ctas_per_sm":1,"prepared":false,"threads":256,"tile_rows":64,"words":64},"head":[{"cluster":2,"ctas_per_sm":2,"prepared":false,"threads":256,"tile_rows":16,"words":4},{"cluster":1,"ctas_per_sm":2,"prepared":false,"threads":256,"tile_rows":16,"words":16},{"cluster":2,"ctas_per_sm":2,"prepared":true,"threads":256,"tile_rows":16,"words":32},{"cluster":2,"ctas_per_sm":2,"prepared":true,"threads":256,"tile_rows":16,"words":64},{"cluster":4,"ctas_per_sm":1,"prepared":true,"threads":256,"tile_rows":16,"words":256}],"plain":[{"cluster":2,"ctas_per_sm":2,"prepared":false,"threads":256,"tile_rows":16,"words":4},{"cluster":1,"ctas_per_sm":4,"prepared":false,"threads":256,"tile_rows":16,"words":16}],"scratch":{"cluster":1,"ctas_per_sm":2,"prepared":false,"threads":256,"tile_rows":16,"words":64}}})spec";

}  // namespace

PRISM_EXPORT_SELECT(Bands, PlainShapes, Long, HeadShapes, GroupShapes, ScratchShape, GroupScratchShape, kSpec)
