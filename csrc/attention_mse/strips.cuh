// What a warp of attention_mse's GPU kernel does with a strip of 16 query rows: loads it, multiplies it with keys, turns scores
// into softmaxes. Who owns which strip, and what becomes of them, is in head.cuh.
//
// Legend: B batch, H heads, L queries, M keys, D head width.
#pragma once

#include "../common/fragments.cuh"
#include "plan.h"

#include <cstdint>
#include <type_traits>

namespace vlkd {

constexpr float kHidden = -1e30f; // a hidden key's score: its exponential is 0, and the difference of two is 0

// Rows [first, first + rows) of one head as T into shared memory, zeros from row `limit` on and beside the head's width.
template <int kPitch, typename T>
__device__ inline void load_rows(
    T* to, const HeadInput& x, int64_t b, int head, int first, int limit, int rows, int threads) {
  constexpr int kVector = 16 / sizeof(T);
  constexpr int kColumns = kPitch - kRowPad;
  const int64_t offset = b * x.strides[0] + head * x.strides[1];
  if (x.vectors) {
    constexpr int kVectors = kColumns / kVector;
    for (int i = threadIdx.x; i < rows * kVectors; i += threads) {
      const int row = i / kVectors, column = i % kVectors * kVector;
      const bool inside = first + row < limit && column < x.width;
      const int64_t at = inside ? offset + (first + row) * x.strides[2] + column : 0;
      copy_async(to + row * kPitch + column, static_cast<const T*>(x.data) + at, inside);
    }
  } else {
    for (int i = threadIdx.x; i < rows * kColumns; i += threads) {
      const int row = i / kColumns, column = i % kColumns;
      const bool inside = first + row < limit && column < x.width;
      const int64_t at = offset + (first + row) * x.strides[2] + column * x.strides[3];
      to[row * kPitch + column] = static_cast<T>(inside ? element(x.data, x.type, at) : 0.0f);
    }
  }
}

// t (Δ + exp(-Δ) - 1), Δ = log t - log p: a series where Δ is small, since the sum of its parts would cancel.
__device__ inline float kl_term(float p, float t, float x) {
  float series = 1.0f / 40320;
  series = series * x - 1.0f / 5040;
  series = series * x + 1.0f / 720;
  series = series * x - 1.0f / 120;
  series = series * x + 1.0f / 24;
  series = series * x - 1.0f / 6;
  series = series * x + 0.5f;
  return fabsf(x) < 0.5f ? t * x * x * series : t * x + p - t;
}

// A strip of scores: 16 rows q against `pairs` pairs of 8 keys, times scale, NaN where infinite. Lane l has of pair j's tile n, element 2i + e,
// row l/4 + 8i and key 16j + 8n + 2(l%4) + e, at [2j + n][2i + e].
template <typename T, int kPitch, int kTiles>
__device__ inline void strip_of_scores(
    float (&strip)[kTiles][4], const T* q, const T* k, int width, int pairs, float scale) {
  const int lane = threadIdx.x % kWarp;
  const Place of_q = down_first(lane), of_k = right_first(lane);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) strip[n][e] = 0.0f;
  }
  for (int d = 0; d < width; d += 16) {
    uint32_t a[4];
    load_tiles(a, q + of_q.row * kPitch + d + of_q.column);
#pragma unroll
    for (int j = 0; j < kTiles / 2; ++j) {
      if (j >= pairs) break;
      uint32_t b[4];
      load_tiles(b, k + (16 * j + of_k.row) * kPitch + d + of_k.column);
      multiply_add<T>(strip[2 * j], a, b[0], b[1]);
      multiply_add<T>(strip[2 * j + 1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) strip[n][e] = exact(__fmul_rn(strip[n][e], scale));
  }
}

// A row's largest score and its sum of 2^(score - largest) over some of the keys; `kKept` leaves those powers in the strip.
struct Softmax {
  float largest, sum;
};
template <bool kKept, int kTiles>
__device__ inline Softmax softmax_of_row(float (&strip)[kTiles][4], int tiles, int i) {
  Softmax row{kHidden, 0.0f};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (n < tiles) row.largest = fmaxf(row.largest, fmaxf(strip[n][2 * i], strip[n][2 * i + 1]));
  }
  row.largest = quad_max(row.largest);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (n >= tiles) break;
#pragma unroll
    for (int e = 2 * i; e < 2 * i + 2; ++e) {
      const float power = exp2_approximate(strip[n][e] - row.largest);
      row.sum += power;
      if (kKept) strip[n][e] = power;
    }
  }
  row.sum = quad_sum(row.sum);
  return row;
}

__device__ inline Softmax joined(Softmax a, Softmax b) {
  const float largest = fmaxf(a.largest, b.largest);
  return {largest, a.sum * exp2_approximate(a.largest - largest) + b.sum * exp2_approximate(b.largest - largest)};
}

} // namespace vlkd
