// What the kernels on tensor cores share beside the instructions themselves: who holds what of a tile, and sums of the lanes
// that hold one row.
#pragma once

#include "device.cuh"

#ifdef __CUDACC__ // else whoever includes this brings the same functions for a processor (tests/kernels/emulation)
#include "tensor_cores.cuh"
#endif

#include <cstdint>

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
