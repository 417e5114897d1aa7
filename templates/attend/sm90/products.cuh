// The matrix products of a consumer warp group: Q K^T and P V of its 64 rows, on slots of the rings. Owns how fragments lie in
// shared memory and registers. Must not wait for a product.
#pragma once

#include "attend/sm90/traits.cuh"
#include "shared/wgmma.cuh"

namespace prism::attend {

// Products are issued on slots that have been loaded. half: of a step's keys, where they are taken in two.
template <class Traits>
class Products {
  using Element = typename Traits::Element;
  using Rows = typename Traits::Rows;

 public:
  static constexpr int kPvSteps = Traits::kHalfN / 16;  // k-steps of P V, in each half

  // Rows and dims of Q that registers hold; where they hold none, a fragment that nobody uses.
  using ShapeQInRegisters = cute::Shape<Rows, cute::Int<16 * std::max(1, Traits::kQStepsInRegisters)>>;

  using FragmentO = decltype(cute::partition_fragment_C(typename Traits::MmaPV{}, cute::Shape<Rows, typename Traits::HeadDim>{}));
  using FragmentS = decltype(cute::partition_fragment_C(typename Traits::MmaQK{}, cute::Shape<Rows, typename Traits::HalfN>{}));
  using FragmentP = decltype(cute::make_tensor<Element>(
      cute::partition_shape_A(typename Traits::MmaPV{}, cute::Shape<Rows, typename Traits::HalfN>{})));
  using FragmentQ = decltype(cute::make_tensor<Element>(cute::partition_shape_A(typename Traits::MmaQKInRegisters{}, ShapeQInRegisters{})));

  __device__ __forceinline__ Products(typename Traits::SharedStorage& smem, int warp_group, int thread)
      : smem_(smem), warp_group_(warp_group), thread_(thread) {}

  // Every Q, K and V slot: descriptors of whole rings are made once, and a slot is then an addition.
  __device__ __forceinline__ auto q_tiles() const {
    using namespace cute;
    return make_tensor(make_smem_ptr(smem_.q), typename Traits::LayoutQ{})(_, _, warp_group_, _);
  }

  __device__ __forceinline__ auto k_tiles() const {
    return cute::make_tensor(cute::make_smem_ptr(smem_.kv), typename Traits::LayoutK{});
  }

  __device__ __forceinline__ auto v_tiles() const {
    return cute::make_tensor(cute::make_smem_ptr(smem_.kv), typename Traits::LayoutV{});
  }

  __device__ __forceinline__ void issue_qk(int q_slot, int k_slot, int half, FragmentS& tSrS) {
    using namespace cute;
    auto thr_mma = mma_qk_.get_slice(thread_);
    auto tSdQ = descriptors(thr_mma.partition_fragment_A(q_tiles()))(_, _, _, q_slot);
    auto tSdK = half_of_keys(descriptors(thr_mma.partition_fragment_B(k_tiles()))(_, _, _, k_slot), half);
    issue_gemm<false>(mma_qk_, tSdQ, tSdK, tSrS);
  }

  // The same with the first dims of Q in registers.
  __device__ __forceinline__ void issue_qk(int q_slot, int k_slot, int half, FragmentQ& tOrQ, FragmentS& tSrS) {
    using namespace cute;
    auto tSdK = half_of_keys(mma_qk_in_registers_.get_slice(thread_).partition_fragment_B(k_tiles())(_, _, _, k_slot), half);
    constexpr int kFirst = Traits::kQStepsInRegisters, kOthers = Traits::kQSteps - kFirst;
    if constexpr (kOthers == 0) {
      issue_gemm<false>(mma_qk_in_registers_, tOrQ, tSdK, tSrS);
    } else {
      auto const tSdQ = mma_qk_.get_slice(thread_).partition_fragment_A(q_tiles())(_, _, _, q_slot);
      issue_gemm<false>(mma_qk_in_registers_, tOrQ, k_steps<kFirst>(tSdK, 0), tSrS);
      auto tSdQOthers = k_steps<kOthers>(tSdQ, kFirst);
      issue_gemm<true>(mma_qk_, tSdQOthers, k_steps<kOthers>(tSdK, kFirst), tSrS);
    }
  }

  // Q of the tile that is open, as far as it is held.
  __device__ __forceinline__ void read_q(int q_slot, FragmentQ& tOrQ) const {
    using namespace cute;
    auto tiled_copy = make_tiled_copy_A(Copy_Atom<SM75_U32x4_LDSM_N, Element>{}, mma_qk_in_registers_);
    auto thr_copy = tiled_copy.get_slice(thread_);
    auto const held = local_tile(q_tiles()(_, _, q_slot), ShapeQInRegisters{}, make_coord(0, 0));
    auto const sQ = as_position_independent_swizzle_tensor(held);
    copy(tiled_copy, thr_copy.partition_S(sQ), thr_copy.retile_D(tOrQ));
  }

  // kSteps of its k-steps, as a batch of their own. kBehindQk: Q K^T was just issued, P and O untouched since.
  template <int kSteps, bool kBehindQk = false>
  __device__ __forceinline__ void issue_pv(int v_slot, int half, int first, FragmentP& tOrP, FragmentO& tOrO) {
    using namespace cute;
    auto const tOdV = descriptors(mma_pv_.get_slice(thread_).partition_fragment_B(v_tiles()))(_, _, _, v_slot);
    auto tOrPSteps = k_steps<kSteps>(tOrP, first);
    issue_gemm<true, !kBehindQk>(mma_pv_, tOrPSteps, k_steps<kSteps>(tOdV, half * kPvSteps + first), tOrO);
  }

  // O, rounded, to where its rows' Q lay.
  template <class O>
  __device__ __forceinline__ void write_output(int q_slot, O const& tOrOut) const {
    using namespace cute;
    auto tiled_copy = make_tiled_copy_C(Copy_Atom<SM90_U32x4_STSM_N, Element>{}, mma_pv_);
    auto thr_copy = tiled_copy.get_slice(thread_);
    auto const sO = as_position_independent_swizzle_tensor(q_tiles()(_, _, q_slot));
    copy(tiled_copy, thr_copy.retile_S(tOrOut), thr_copy.partition_D(sO));
  }

 private:
  // With the additions that take the fewest instructions. Where warp groups take turns products follow each other so closely that a
  // 64-bit one is waited for: 6 % of the time at head_dim 128, 12 % at 96.
  template <class Fragment>
  static __device__ __forceinline__ auto descriptors(Fragment const& fragment) {
    if constexpr (Traits::kPairs) return wide_descriptors(fragment);
    else return fragment;
  }

  // Of K's fragment, the keys of one half.
  template <class Fragment>
  static __device__ __forceinline__ auto half_of_keys(Fragment&& fragment, int half) {
    using cute::_;
    if constexpr (Traits::kHalves == 1) {
      return fragment;
    } else {
      constexpr int kOf = decltype(cute::size<1>(fragment))::value / Traits::kHalves;
      auto const from = cute::domain_offset(cute::make_coord(0, half * kOf, 0), fragment);
      return cute::make_tensor(from.data(), cute::composition(from.layout(), cute::make_tile(_, cute::Int<kOf>{}, _)));
    }
  }

  // kSteps of a fragment's k-steps.
  template <int kSteps, class Fragment>
  static __device__ __forceinline__ auto k_steps(Fragment&& fragment, int first) {
    using cute::_;
    auto const from = cute::domain_offset(cute::make_coord(0, 0, first), fragment);
    return cute::make_tensor(from.data(), cute::composition(from.layout(), cute::make_tile(_, _, cute::Int<kSteps>{})));
  }

  typename Traits::SharedStorage& smem_;
  int const warp_group_;  // of its team
  int const thread_;      // 0..127 in the warp group
  typename Traits::MmaQK mma_qk_;
  typename Traits::MmaQKInRegisters mma_qk_in_registers_;
  typename Traits::MmaPV mma_pv_;
};

}  // namespace prism::attend
