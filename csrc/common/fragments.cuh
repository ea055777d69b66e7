// What the kernels on tensor cores share beside the instructions themselves: who holds what of a tile, and sums of the lanes
// that hold one row.
#pragma once

#include "device.cuh"

#ifdef __CUDACC__ // else whoever includes this brings the same functions for a processor (tests/kernels/emulation)
#include "tensor_cores.cuh"
#endif

#include <cstdint>
#include <type_traits>

namespace vlkd {

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

// Two neighbours of an operand, 0 where one is not finite: its weights are NaN where it counts, and 0 where it does not.
template <typename T>
__device__ inline uint32_t finite_pair(uint32_t x) {
  constexpr bool kIsHalf = std::is_same_v<T, c10::Half>;
  constexpr uint32_t kExponents = kIsHalf ? 0x7c007c00u : 0x7f807f80u, kLowest = kIsHalf ? 0x04000400u : 0x00800080u;
  const uint32_t full = ((x & kExponents) + kLowest) & 0x80008000u; // an exponent of ones carries
  return x & ~((full >> 15) * 0xffffu);
}

template <typename T>
__device__ inline void keep_finite(uint32_t (&fragment)[4]) {
#pragma unroll
  for (uint32_t& pair : fragment) pair = finite_pair<T>(pair);
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
