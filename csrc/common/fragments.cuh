// What the kernels on tensor cores share beside the instructions themselves: who holds what of a tile, sums of the lanes that
// hold one row, and inputs of any dtype.
#pragma once

#ifdef __CUDACC__ // else whoever includes this brings the same functions for a processor (tests/kernels/emulation)
#include "tensor_cores.cuh"
#endif

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

namespace vlkd {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

enum class Element { kHalf, kBFloat16, kFloat, kDouble };

inline Element element_of(c10::ScalarType type) {
  switch (type) {
    case c10::ScalarType::Half: return Element::kHalf;
    case c10::ScalarType::BFloat16: return Element::kBFloat16;
    case c10::ScalarType::Float: return Element::kFloat;
    default: return Element::kDouble;
  }
}

__device__ inline float element(const void* data, Element type, int64_t at) {
  switch (type) {
    case Element::kHalf: return static_cast<const c10::Half*>(data)[at];
    case Element::kBFloat16: return static_cast<const c10::BFloat16*>(data)[at];
    case Element::kFloat: return static_cast<const float*>(data)[at];
    default: return static_cast<float>(static_cast<const double*>(data)[at]);
  }
}

__device__ inline float warp_sum(float x) { // the same bits in every lane
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kWholeWarp, x, offset);
  return x;
}

__device__ inline float quad_sum(float x) { // over the four lanes that share a row, the same bits in each
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}

// Two neighbours of a row of `width` float32.
__device__ inline void store_pair(float* row, int64_t column, int64_t width, float first, float second) {
  if (width % 2 == 0 && column < width) {
    *reinterpret_cast<float2*>(row + column) = {first, second};
  } else {
    if (column < width) row[column] = first;
    if (column + 1 < width) row[column + 1] = second;
  }
}

// Where a lane finds its row of the four 8 x 8 tiles of a 16 x 16 block: tiles down, then right; or right, then down.
struct Place {
  int row, column;
};
__device__ inline Place down_first(int lane) {
  return {lane % 16, lane / 16 * 8};
}
__device__ inline Place right_first(int lane) {
  return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8};
}

} // namespace vlkd
