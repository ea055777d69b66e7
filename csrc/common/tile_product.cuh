// A 128 x 128 tile of a product of two half-precision matrices, by one block on the tensor cores of sm_80 and later.
//
// Eight warps, two below each other and four side by side, own 64 x 32 of the tile each, in registers. Slices of 32 along the
// depth pass through three stages of shared memory, two being copied while one is multiplied.
#pragma once

#include "fragments.cuh"
#include "tile.h"

#include <cstdint>

namespace vlkd {

// Row-major, of an even number of 16-byte vectors: `data` is aligned to 16 bytes, `stride` and `columns` are multiples of 8.
template <typename T>
struct Matrix {
  const T* data;
  int64_t stride, rows, columns;
};

constexpr int kSlice = 32, kStages = 3, kTileThreads = 256;
// Rows in shared memory are 8 elements longer than what they hold, so that eight rows of a tile never meet in one bank.
constexpr int kSlicePitch = kSlice + 8, kTilePitch = kTile + 8;
constexpr int kStage = 2 * kTile * kSlicePitch; // elements: a slice of A, and one of B, which is no larger
constexpr int kTileShared = kStages * kStage * 2; // bytes

// Lane l has element [m][n][2i + e] of its warp's 64 x 32 results at row_of(m, i), column_of(n, e) of the tile.
using TileSums = float[4][4][4];

__device__ inline int row_of(int m, int i) {
  const int thread = threadIdx.x;
  return 64 * (thread / kWarp / 4) + 16 * m + thread % kWarp / 4 + 8 * i;
}
__device__ inline int column_of(int n, int e) {
  const int thread = threadIdx.x;
  return 32 * (thread / kWarp % 4) + 8 * n + 2 * (thread % 4) + e;
}

template <int kRows, int kColumns, typename T>
__device__ inline void copy_slice(T* to, const Matrix<T>& from, int64_t first_row, int64_t first_column) {
  constexpr int kVector = 16 / sizeof(T), kVectors = kColumns / kVector;
  for (int i = threadIdx.x; i < kRows * kVectors; i += kTileThreads) {
    const int row = i / kVectors, column = i % kVectors * kVector;
    const bool inside = first_row + row < from.rows && first_column + column < from.columns;
    const int64_t at = inside ? (first_row + row) * from.stride + first_column + column : 0;
    copy_async(to + row * (kColumns + 8) + column, from.data + at, inside);
  }
}

// Leaves the entries of A and B as they are.
struct AsTheyAre {
  __device__ void begin(int64_t) {}
  __device__ void apply(uint32_t (&)[4], int) const {}
  __device__ void apply_to_b(uint32_t (&)[4]) const {}
};

// sums = A B at (first_row, first_column), with B [depth, n], or B^T [n, depth] if `kTransposed`. `change` may change the
// fragments: begin(slice's first column), apply_to_b(fragment) for B, then apply(fragment, m) for A. `shared` holds kTileShared bytes, which are free
// again when this returns.
template <bool kTransposed, typename T, typename Change>
__device__ inline void multiply_tile(
    TileSums& sums, T* shared, const Matrix<T>& a, int64_t first_row, const Matrix<T>& b, int64_t first_column, Change change) {
  const auto copy_stage = [&](int64_t slice) {
    T* const stage = shared + slice % kStages * kStage;
    copy_slice<kTile, kSlice>(stage, a, first_row, slice * kSlice);
    if constexpr (kTransposed) {
      copy_slice<kTile, kSlice>(stage + kTile * kSlicePitch, b, first_column, slice * kSlice);
    } else {
      copy_slice<kSlice, kTile>(stage + kTile * kSlicePitch, b, slice * kSlice, first_column);
    }
  };
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[m][n][e] = 0.0f;
    }
  }
  const int64_t slices = (a.columns + kSlice - 1) / kSlice;
  for (int64_t slice = 0; slice < kStages - 1; ++slice) {
    if (slice < slices) copy_stage(slice);
    close_batch();
  }
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Place down = down_first(lane), right = right_first(lane);
  for (int64_t slice = 0; slice < slices; ++slice) {
    await_copies<kStages - 2>();
    __syncthreads(); // this slice is there for all, and the stage of the one before is free
    if (slice + kStages - 1 < slices) copy_stage(slice + kStages - 1);
    close_batch();
    const T* const of_a = shared + slice % kStages * kStage + 64 * (warp / 4) * kSlicePitch;
    const T* const of_b = shared + slice % kStages * kStage + kTile * kSlicePitch;
    change.begin(slice * kSlice);
#pragma unroll
    for (int d = 0; d < kSlice; d += 16) {
      uint32_t columns[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int n = 32 * (warp % 4) + 16 * j;
        if constexpr (kTransposed) {
          load_tiles(columns[j], of_b + (n + right.row) * kSlicePitch + d + right.column);
        } else {
          load_tiles_transposed(columns[j], of_b + (d + down.row) * kTilePitch + n + down.column);
        }
        change.apply_to_b(columns[j]);
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        uint32_t rows[4];
        load_tiles(rows, of_a + (16 * m + down.row) * kSlicePitch + d + down.column);
        change.apply(rows, m);
#pragma unroll
        for (int n = 0; n < 4; ++n) multiply_add<T>(sums[m][n], rows, columns[n / 2][n % 2 * 2], columns[n / 2][n % 2 * 2 + 1]);
      }
    }
  }
  await_copies<0>();
  __syncthreads();
}

} // namespace vlkd
