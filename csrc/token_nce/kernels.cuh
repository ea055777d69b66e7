// token_nce on the GPU: the kernels, and the order in which they run.
//
// Legend: N tokens, E embedding width, K negatives; candidates are the negatives and, if they serve too, the other tokens'
// teacher rows; C tokens and J candidates of a chunk. With s the student's row, t the teacher's, q_k the candidates, a = s.t,
// b_k = s.q_k:
//   x = log sum_k exp((b_k - a)/tau),  loss = log(1 + e^x),  p_k = exp((b_k - a)/tau) / (1 + e^x),
//   dL/ds = (sum_k p_k q_k - sum_k p_k t)/tau,  dL/dtau = -sum_k p_k (b_k - a)/tau^2.
// One product makes all b of a tile; its epilogue turns them into weights 2^(l_k - r), l_k = log2(e) (b_k - a)/tau, where the
// tile's reference r is the row's largest l rounded up to an integer. So a weight is in [0, 1], whatever the temperature, and
// fits either half-precision type (over the length of q_k, where that has not gone into the row); and bringing all tiles to
// one reference is a product with a power of two, which rounds nothing: the second product does it to its fragments.
// 4 N K E operations in all, none repeated.
// Weights are held for C tokens and J candidates at a time. From one J to the next a token's reference may move up; its sums,
// its gradient so far among them, follow by a power of two. No atomics; the order of every sum is fixed.
#pragma once

#include "../common/tile_product.cuh"
#include "problem.h"

#include <cmath>
#include <cstdint>

namespace vlkd {

constexpr float kEps = 1e-12f; // the smallest norm that a row is divided by
constexpr int kRowThreads = 256, kRowWarps = kRowThreads / kWarp;

// Chunk [begin, begin + J) of the candidates.
__host__ __device__ inline int64_t tiles_from(const NceProblem& p, int64_t begin) {
  const int64_t left = p.columns - begin < p.candidate_chunk ? p.columns - begin : p.candidate_chunk;
  return (left + kTile - 1) / kTile;
}

__device__ inline float reference_of(float largest, float positive, float scale) {
  return ceilf((largest - positive) * scale);
}

__device__ inline float element(const RowsInput& x, int64_t row, int64_t column) {
  return element(x.data, x.type, row * x.row + column * x.column);
}

// How many of the negatives are filled.
__device__ inline int64_t filled_rows(const NceProblem& p) {
  return p.fill == nullptr ? p.rows : within(*p.fill, p.rows);
}

// What a row is divided by; a NaN stays one.
__device__ inline float divisor_of(float norm) {
  return norm < kEps ? kEps : norm;
}

__device__ inline float temperature_of(const NceProblem& p) {
  const float tau = p.temperature_tensor == nullptr ? p.temperature : element(p.temperature_tensor, p.temperature_type, 0);
  return tau > 0.0f && tau < INFINITY ? tau : NAN; // others have no meaning, and all results say so
}

// Rows [0, count) as T; 0 from E on, and in rows that are masked or not filled, whose weights are 0 and might meet a NaN. With
// `normalize` a row is multiplied by the power of two that brings its length next to 1, which rounds nothing, and the rest of
// the length goes to `divisors`. Without `to`, all of it goes there. A warp a row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) nce_copy_rows(
    T* to, float* divisors, int64_t stride, RowsInput from, int64_t count, int64_t width, bool normalize, const bool* mask,
    const int64_t* fill) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  if (row >= count) return;
  const bool used = (mask == nullptr || mask[row]) && (fill == nullptr || row < *fill);
  float factor = 1.0f, divisor = 1.0f;
  if (normalize && used) {
    float squares = 0.0f;
    for (int64_t e = lane; e < width; e += kWarp) squares += element(from, row, e) * element(from, row, e);
    const float norm = divisor_of(exact(sqrtf(warp_sum(squares)))); // NaN where the squares overflow
    factor = to == nullptr ? 1.0f : exp2f(-rintf(log2f(norm)));
    divisor = norm * factor;
  }
  if (divisors != nullptr && lane == 0) divisors[row] = divisor;
  if (to == nullptr) return;
#pragma unroll 1
  for (int64_t e = lane; e < stride; e += kWarp) {
    to[row * stride + e] = static_cast<T>(used && e < width ? element(from, row, e) * factor : 0.0f);
  }
}

// The norms of each token's two rows and their similarity. A warp a token.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) nce_positives(NceProblem p) {
  const int lane = threadIdx.x % kWarp;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  if (token >= p.tokens) return;
  float squares_s = 0.0f, squares_t = 0.0f, product = 0.0f;
#pragma unroll 1
  for (int64_t e = lane; e < p.width; e += kWarp) {
    const float s = static_cast<T>(element(p.h_s, token, e)), t = static_cast<T>(element(p.h_t, token, e));
    squares_s += s * s;
    squares_t += t * t;
    product += s * t;
  }
  const float norm_s = p.normalize ? exact(sqrtf(warp_sum(squares_s))) : 1.0f;
  const float norm_t = p.normalize ? exact(sqrtf(warp_sum(squares_t))) : 1.0f;
  product = warp_sum(product);
  if (lane == 0) {
    p.norm_s[token] = norm_s;
    p.norm_t[token] = norm_t;
    p.positives[token] = exact(product / divisor_of(norm_s) / divisor_of(norm_t));
  }
}

// What the epilogue of a tile knows of its rows and columns, and what its warps tell each other of the rows.
struct TileShared {
  float inverse_norms[kTile], inverse_divisors[kTile], positives[kTile];
  int64_t row_ids[kTile], column_ids[kTile];
  bool counted[kTile], serves[kTile];
  float of_warps[kSums][4][kTile];
};

// A tile of the weights of tokens [first, first + count) and candidates from `begin` on, and its sums.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, 2) nce_weights(NceProblem p, int64_t first, int64_t count, int64_t begin) {
  VLKD_SHARED_MEMORY(memory);
  const int64_t tiles_down = (count + kTile - 1) / kTile, tile = blockIdx.x / tiles_down;
  const int64_t first_row = blockIdx.x % tiles_down * kTile, first_column = begin + tile * kTile;
  const int64_t width = padded_width(p.width);
  const Matrix<T> students{static_cast<const T*>(p.students) + first * p.student_stride, p.student_stride, count, width};
  const Matrix<T> candidates{static_cast<const T*>(p.candidates), p.candidate_stride, p.columns, width};
  TileSums sums;
  multiply_tile<true>(sums, reinterpret_cast<T*>(memory), students, first_row, candidates, first_column, AsTheyAre{});

  TileShared& shared = *reinterpret_cast<TileShared*>(memory);
  const bool with_ids = p.token_ids != nullptr;
  for (int i = threadIdx.x; i < kTile; i += kTileThreads) {
    const int64_t token = first + first_row + i, column = first_column + i, other = column - p.rows;
    const bool inside = first_row + i < count, in_batch = other >= 0 && column < p.columns;
    shared.inverse_norms[i] = inside ? 1.0f / divisor_of(p.norm_s[token]) : 1.0f;
    shared.inverse_divisors[i] = p.divisors != nullptr && column < p.columns ? 1.0f / p.divisors[column] : 1.0f;
    shared.positives[i] = inside ? p.positives[token] : 0.0f;
    shared.counted[i] = inside && (p.token_mask == nullptr || p.token_mask[token]);
    shared.row_ids[i] = inside && with_ids ? p.token_ids[token] : -1;
    shared.serves[i] = in_batch ? p.token_mask == nullptr || p.token_mask[other] : column < filled_rows(p);
    shared.column_ids[i] = -1;
    if (with_ids && in_batch) shared.column_ids[i] = p.token_ids[other];
    if (p.negative_ids != nullptr && column < p.rows) shared.column_ids[i] = p.negative_ids[column];
  }
  __syncthreads();

  const int lane = threadIdx.x % kWarp, part = threadIdx.x / kWarp % 4;
  const float scale = 1.44269504f / temperature_of(p);
  const auto valid = [&](int row, int column) {
    const bool itself = first_column + column - p.rows == first + first_row + row;
    const bool known = shared.column_ids[column] == shared.row_ids[row] && shared.column_ids[column] != -1;
    return shared.counted[row] && shared.serves[column] && !itself && !known;
  };
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_of(m, i);
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& b = sums[m][n][2 * i + e];
          b = exact(b * (shared.inverse_norms[row] * shared.inverse_divisors[column_of(n, e)]));
          if (!valid(row, column_of(n, e))) b = -INFINITY;
          largest = fmaxf(largest, b);
        }
      }
      largest = quad_max(largest);
      if (lane % 4 == 0) shared.of_warps[kLargest][part][row] = largest;
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_of(m, i);
      const float positive = shared.positives[row];
      float largest = -INFINITY;
      for (int w = 0; w < 4; ++w) largest = fmaxf(largest, shared.of_warps[kLargest][w][row]);
      const float reference = reference_of(largest, positive, scale);
      float total = 0.0f, differences = 0.0f, similarities = 0.0f, seen = 0.0f;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float b = sums[m][n][2 * i + e];
          const bool is_valid = b != -INFINITY; // also a NaN
          const float weight = is_valid ? exp2_approximate((b - positive) * scale - reference) : 0.0f;
          sums[m][n][2 * i + e] = is_valid ? weight * shared.inverse_divisors[column_of(n, e)] : 0.0f;
          total += weight;
          differences += weight * (is_valid ? b - positive : 0.0f);
          similarities += is_valid ? b : 0.0f;
          seen += is_valid ? 1.0f : 0.0f;
        }
      }
      total = quad_sum(total);
      differences = quad_sum(differences);
      similarities = quad_sum(similarities);
      seen = quad_sum(seen);
      if (p.with_grad && first_row + row < count) {
        T* const to = static_cast<T*>(p.weights) + (first_row + row) * p.candidate_chunk + tile * kTile;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          *reinterpret_cast<uint32_t*>(to + column_of(n, 0)) = packed<T>(sums[m][n][2 * i], sums[m][n][2 * i + 1]);
        }
      }
      if (lane % 4 == 0) {
        shared.of_warps[kWeights][part][row] = total;
        shared.of_warps[kDifferences][part][row] = differences;
        shared.of_warps[kSimilarities][part][row] = similarities;
        shared.of_warps[kSeen][part][row] = seen;
      }
    }
  }
  __syncthreads();
  for (int row = threadIdx.x; row < kTile && first_row + row < count; row += kTileThreads) {
    float* const out = p.partial + tile * p.chunk + first_row + row;
    const int64_t next = p.candidate_chunk / kTile * p.chunk;
    float largest = -INFINITY;
    for (int w = 0; w < 4; ++w) largest = fmaxf(largest, shared.of_warps[kLargest][w][row]);
    out[kLargest * next] = largest;
    for (int sum = kWeights; sum < kSums; ++sum) {
      float total = 0.0f;
      for (int w = 0; w < 4; ++w) total += shared.of_warps[sum][w][row];
      out[sum * next] = total;
    }
  }
}

// Adds the tiles' sums of a chunk of candidates to each token's; after the last one, its loss and values, and what its gradient
// is made of. A thread a token.
static __global__ void __launch_bounds__(kRowThreads) nce_totals(NceProblem p, int64_t first, int64_t count, int64_t begin) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (row >= count) return;
  const int64_t token = first + row, tiles = tiles_from(p, begin), next = p.candidate_chunk / kTile * p.chunk;
  const float positive = p.positives[token], tau = temperature_of(p), scale = 1.44269504f / tau;
  float* const state = p.state + token;
  float before[kSums] = {-INFINITY, 0.0f, 0.0f, 0.0f, 0.0f};
  if (begin > 0) {
    for (int sum = 0; sum < kSums; ++sum) before[sum] = state[sum * p.tokens];
  }
  float best = before[kLargest], seen = before[kSeen], similarities = before[kSimilarities];
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const float* const of_tile = p.partial + tile * p.chunk + row;
    best = fmaxf(best, of_tile[kLargest * next]);
    similarities += of_tile[kSimilarities * next];
    seen += of_tile[kSeen * next];
  }
  const float reference = reference_of(best, positive, scale);
  const auto factor_of = [&](float largest, float with) {
    return with > 0.0f ? exp2f(reference_of(largest, positive, scale) - reference) : 0.0f;
  };
  const float change = factor_of(before[kLargest], before[kSeen]);
  float total = change * before[kWeights], differences = change * before[kDifferences];
  for (int64_t tile = 0; tile < tiles; ++tile) {
    float* const of_tile = p.partial + tile * p.chunk + row;
    const float factor = factor_of(of_tile[kLargest * next], of_tile[kSeen * next]);
    total += factor * of_tile[kWeights * next];
    differences += factor * of_tile[kDifferences * next];
    of_tile[kLargest * next] = factor;
  }
  p.change[row] = change;
  if (begin + p.candidate_chunk < p.columns) {
    const float sums[kSums] = {best, total, differences, similarities, seen};
    for (int sum = 0; sum < kSums; ++sum) state[sum * p.tokens] = sums[sum];
    return;
  }
  const bool counts = p.token_mask == nullptr || p.token_mask[token], any = seen > 0.0f;
  const float x = (reference + log2f(total)) * 0.693147181f;
  const float nothing = counts ? 0.0f * (tau + positive) : 0.0f; // of a token without negatives: 0, or NaN
  const float loss = any ? (x > 0.0f ? x : 0.0f) + log1pf(expf(-fabsf(x))) : nothing;
  p.values[token] = counts ? loss : 0.0f;
  p.values[p.tokens + token] = counts ? positive : 0.0f;
  p.values[2 * p.tokens + token] = any ? similarities / seen : 0.0f;
  p.values[3 * p.tokens + token] = counts ? (positive >= best ? 1.0f : 0.0f) + 0.0f * loss : 0.0f; // NaN if the loss is
  if (!p.with_grad) return;
  // p_k = weight * factor * share; to this reference the positive's own weight is 2^-reference.
  const float share = any ? 1.0f / (total + exp2f(-reference)) : nothing;
  p.scales[token] = share;
  p.masses[token] = any ? total * share : nothing;
  p.grad_temperature[token] = any ? -differences * share / (tau * tau) : nothing;
}

// Brings the weights of a tile of 128 candidates to their token's reference, and leaves out candidates that are no numbers.
template <typename T>
struct ToOneReference {
  const float* factors; // [tiles, C] at the block's first row
  int64_t chunk, rows;
  uint32_t pairs[4][2];

  __device__ void begin(int64_t column) {
    if (column % kTile != 0) return;
    for (int m = 0; m < 4; ++m) {
      for (int i = 0; i < 2; ++i) {
        const int row = row_of(m, i);
        const float factor = row < rows ? factors[column / kTile * chunk + row] : 0.0f;
        pairs[m][i] = packed<T>(factor, factor);
      }
    }
  }
  __device__ void apply_to_b(uint32_t (&b)[4]) const { keep_finite<T>(b); }
  __device__ void apply(uint32_t (&a)[4], int m) const {
    for (int k = 0; k < 4; ++k) a[k] = product_of_pairs<T>(a[k], pairs[m][k % 2]);
  }
};

// gradient (+)= weights candidates, to one reference a token, for tokens [first, first + count) and candidates from `begin` on.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, 2) nce_gradient(NceProblem p, int64_t first, int64_t count, int64_t begin) {
  VLKD_SHARED_MEMORY(memory);
  const int64_t tiles_down = (count + kTile - 1) / kTile;
  const int64_t first_row = blockIdx.x % tiles_down * kTile, first_column = blockIdx.x / tiles_down * kTile;
  const Matrix<T> weights{static_cast<const T*>(p.weights), p.candidate_chunk, count, tiles_from(p, begin) * kTile};
  const int64_t filled = p.copy_candidates ? p.columns : filled_rows(p); // what lies behind may be anything
  const T* const rows = static_cast<const T*>(p.candidates) + begin * p.candidate_stride;
  const Matrix<T> candidates{rows, p.candidate_stride, filled - begin, padded_width(p.width)};
  TileSums sums;
  const ToOneReference<T> change{p.partial + first_row, p.chunk, count - first_row, {}};
  multiply_tile<false>(sums, reinterpret_cast<T*>(memory), weights, first_row, candidates, first_column, change);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = first_row + row_of(m, i);
      if (row >= count) continue;
      float* const to = p.gradient + (first + row) * p.width;
      const float change = begin > 0 ? p.change[row] : 0.0f;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int64_t column = first_column + column_of(n, 0);
        float pair[2] = {sums[m][n][2 * i], sums[m][n][2 * i + 1]};
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (begin > 0 && column + e < p.width) pair[e] += change * to[column + e];
        }
        store_pair(to, column, p.width, pair[0], pair[1]);
      }
    }
  }
}

// From sum_k p_k q_k / share to the gradient of each student row, in place. A warp a token.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) nce_finish(NceProblem p) {
  const int lane = threadIdx.x % kWarp;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  if (token >= p.tokens) return;
  float* const gradient = p.gradient + token * p.width;
  if (p.token_mask != nullptr && !p.token_mask[token]) {
    for (int64_t e = lane; e < p.width; e += kWarp) gradient[e] = 0.0f;
    return;
  }
  const float tau = temperature_of(p), share = p.scales[token] / tau, mass = p.masses[token] / tau;
  const float norm = p.norm_s[token], norm_s = divisor_of(norm), norm_t = divisor_of(p.norm_t[token]);
  float along = 0.0f;
#pragma unroll 1
  for (int64_t e = lane; e < p.width; e += kWarp) {
    const float s = static_cast<T>(element(p.h_s, token, e)), t = static_cast<T>(element(p.h_t, token, e));
    const float g = share * gradient[e] - mass * (t / norm_t);
    gradient[e] = g;
    along += g * s;
  }
  if (!p.normalize) return;
  along = norm > kEps ? warp_sum(along) / norm_s : 0.0f;
#pragma unroll 1
  for (int64_t e = lane; e < p.width; e += kWarp) {
    const float s = static_cast<T>(element(p.h_s, token, e));
    gradient[e] = (gradient[e] - s / norm_s * along) / norm_s;
  }
}

// Runs the kernels: launch(kernel, blocks, threads, bytes of shared memory, arguments...).
template <typename T, typename Launch>
void token_nce(const NceProblem& p, Launch&& launch) {
  const auto parts = [](int64_t size, int64_t part) { return (size + part - 1) / part; };
  if (p.copy_students) {
    T* const to = static_cast<T*>(const_cast<void*>(p.students));
    launch(
        nce_copy_rows<T>, parts(p.tokens, kRowWarps), kRowThreads, 0, to, static_cast<float*>(nullptr), p.student_stride,
        p.h_s, p.tokens, p.width, false, p.token_mask, static_cast<const int64_t*>(nullptr));
  }
  if (p.divisors != nullptr) {
    T* const to = p.copy_candidates ? static_cast<T*>(const_cast<void*>(p.candidates)) : nullptr;
    const int64_t stride = p.candidate_stride, others = p.columns - p.rows;
    if (p.rows > 0) {
      launch(
          nce_copy_rows<T>, parts(p.rows, kRowWarps), kRowThreads, 0, to, p.divisors, stride, p.negatives, p.rows, p.width,
          p.normalize_negatives, static_cast<const bool*>(nullptr), p.fill);
    }
    if (others > 0) {
      launch(
          nce_copy_rows<T>, parts(others, kRowWarps), kRowThreads, 0, to + p.rows * stride, p.divisors + p.rows, stride,
          p.h_t, others, p.width, p.normalize, p.token_mask, static_cast<const int64_t*>(nullptr));
    }
  }
  launch(nce_positives<T>, parts(p.tokens, kRowWarps), kRowThreads, 0, p);
  for (int64_t first = 0; first < p.tokens; first += p.chunk) {
    const int64_t count = p.tokens - first < p.chunk ? p.tokens - first : p.chunk, tiles_down = parts(count, kTile);
    for (int64_t begin = 0; begin == 0 || begin < p.columns; begin += p.candidate_chunk) {
      const int64_t blocks = tiles_down * tiles_from(p, begin), across = parts(p.width, kTile);
      if (blocks > 0) launch(nce_weights<T>, blocks, kTileThreads, kTileShared, p, first, count, begin);
      launch(nce_totals, parts(count, kRowThreads), kRowThreads, 0, p, first, count, begin);
      if (p.with_grad) launch(nce_gradient<T>, tiles_down * across, kTileThreads, kTileShared, p, first, count, begin);
    }
  }
  if (p.with_grad) launch(nce_finish<T>, parts(p.tokens, kRowWarps), kRowThreads, 0, p);
}

} // namespace vlkd
