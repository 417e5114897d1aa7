// The rotation of 16 dims of one token, with the rounding of a model that runs in 16 bits: both products and their sum are
// rounded to the element, as q * cos + rotate_half(q) * sin is in torch. Owns no memory access.
#pragma once

#include "shared/bands.cuh"

#include <cute/config.hpp>
#include <cute/util/type_traits.hpp>
#include <cutlass/bfloat16.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace prism {

template <class Element>
using Packed = cute::conditional_t<cute::is_same_v<Element, cutlass::bfloat16_t>, __nv_bfloat162, __half2>;

template <class Element>
CUTE_DEVICE Packed<Element> packed(uint32_t bits) {
  return reinterpret_cast<Packed<Element> const&>(bits);
}
template <class P>
CUTE_DEVICE uint32_t bits(P pair) {
  return reinterpret_cast<uint32_t const&>(pair);
}

constexpr uint32_t kSwapHalves = 0x1032;  // __byte_perm: the two 16-bit halves change places
constexpr uint32_t kTwiceLow = 0x1010, kTwiceHigh = 0x3232;  // one half, twice

// x * c - y * s and x * s + y * c of two pairs of dims; _rn: never fused into one rounding.
template <class Element>
CUTE_DEVICE uint32_t rotated_first(uint32_t x, uint32_t y, uint32_t c, uint32_t s) {
  using P = Packed<Element>;
  P const xc = __hmul2_rn(packed<Element>(x), packed<Element>(c)), ys = __hmul2_rn(packed<Element>(y), packed<Element>(s));
  return bits(__hsub2_rn(xc, ys));
}
template <class Element>
CUTE_DEVICE uint32_t rotated_second(uint32_t x, uint32_t y, uint32_t c, uint32_t s) {
  using P = Packed<Element>;
  P const yc = __hmul2_rn(packed<Element>(y), packed<Element>(c)), xs = __hmul2_rn(packed<Element>(x), packed<Element>(s));
  return bits(__hadd2_rn(yc, xs));
}

// Half-split layout: `first` and `second` are the dims p and p + rotary_dim / 2 of 8 pairs; cos, sin: of those pairs.
template <class Element>
CUTE_DEVICE void rotate_halves(uint4& first, uint4& second, uint4 const& cos, uint4 const& sin) {
  uint32_t* x = &first.x;
  uint32_t* y = &second.x;
  uint32_t const *c = &cos.x, *s = &sin.x;
  CUTE_UNROLL
  for (int i = 0; i < 4; ++i) {
    uint32_t const a = x[i], b = y[i];
    x[i] = rotated_first<Element>(a, b, c[i], s[i]);
    y[i] = rotated_second<Element>(a, b, c[i], s[i]);
  }
}

// Interleaved layout: `chunk` holds the dims 2p, 2p + 1 of 4 pairs; cos, sin: of those pairs.
template <class Element>
CUTE_DEVICE void rotate_interleaved(uint4& chunk, uint2 const& cos, uint2 const& sin) {
  using P = Packed<Element>;
  uint32_t* x = &chunk.x;
  uint32_t const c[] = {cos.x, cos.y}, s[] = {sin.x, sin.y};
  constexpr uint32_t kSignLow = 0x00008000u;
  CUTE_UNROLL
  for (int i = 0; i < 4; ++i) {
    uint32_t const twice = i % 2 ? kTwiceHigh : kTwiceLow;
    uint32_t const crossed = __byte_perm(x[i], 0, kSwapHalves) ^ kSignLow;  // (-odd, even)
    P const straight = __hmul2_rn(packed<Element>(x[i]), packed<Element>(__byte_perm(c[i / 2], 0, twice)));
    P const turned = __hmul2_rn(packed<Element>(crossed), packed<Element>(__byte_perm(s[i / 2], 0, twice)));
    x[i] = bits(__hadd2_rn(straight, turned));
  }
}

}  // namespace prism
