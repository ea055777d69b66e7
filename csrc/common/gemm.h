// Matrix products of tiles that stay in the cache, for kernels that work on a product before it leaves there.
//
//   C [m, n] (+)= A [m, k] B [k, n]      A by strides, B packed into panels, C row-major
//
// A panel holds two vectors' width of columns of B, row after row; the last one may be one vector wide. One step multiplies
// kRows broadcast entries of A with a row of a panel, so that kRows x 2 vectors of C stay in registers over all of k.
#pragma once

#include "simd.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace vlkd {

template <typename T, typename Isa>
struct Gemm {
  using V = Simd<T, Isa>;
  using Vector = typename V::Vector;
  static constexpr int64_t kLanes = V::kLanes, kPanel = 2 * kLanes, kRows = Isa::kRows;
  static constexpr int64_t kPadding = kLanes > kRows ? kLanes : kRows;

  // Rows and columns are padded to this, so that no step has a remainder.
  static constexpr int64_t padded(int64_t size) { return (size + kPadding - 1) / kPadding * kPadding; }

  // B = factor * src transposed, src [n, k] with rows `stride` apart; columns from n to padded(n) are 0. Takes
  // k * padded(n) elements.
  static VLKD_INLINE void pack_transposed(
      T* __restrict to, const T* __restrict src, int64_t stride, int64_t n, int64_t k, T factor) {
    for (int64_t first = 0; first < padded(n); first += kPanel) {
      const int64_t width = std::min(kPanel, padded(n) - first), filled = std::clamp<int64_t>(n - first, 0, width);
      T* panel = to + first * k;
      const T* from = src + first * stride;
      if (filled < width) std::fill(panel, panel + width * k, T(0));
      int64_t j = 0;
      for (; j + kLanes <= filled; j += kLanes) {
        int64_t i = 0;
        for (; i + kLanes <= k; i += kLanes) transpose(panel + i * width + j, width, from + j * stride + i, stride, factor);
        for (; i < k; ++i) {
          for (int64_t l = j; l < j + kLanes; ++l) panel[i * width + l] = factor * from[l * stride + i];
        }
      }
      for (; j < filled; ++j) {
        for (int64_t i = 0; i < k; ++i) panel[i * width + j] = factor * from[j * stride + i];
      }
    }
  }

  // Whether rows that are `stride` apart already lie as a panel.
  static constexpr bool packed(int64_t stride, int64_t n) {
    return n == stride && (n == kLanes || n == kPanel) && n == padded(n);
  }

  // B = src, [k, n] with rows `stride` apart; columns from n to padded(n) are 0. Takes k * padded(n) elements.
  static VLKD_INLINE void pack(T* __restrict to, const T* __restrict src, int64_t stride, int64_t k, int64_t n) {
    for (int64_t first = 0; first < padded(n); first += kPanel) {
      const int64_t width = std::min(kPanel, padded(n) - first), filled = std::clamp<int64_t>(n - first, 0, width);
      T* panel = to + first * k;
      for (int64_t i = 0; i < k; ++i) {
        std::copy_n(src + i * stride + first, filled, panel + i * width);
        std::fill_n(panel + i * width + filled, width - filled, T(0));
      }
    }
  }

  // A packed B: the k and n that it was packed with.
  struct Panels {
    const T* data;
    int64_t k, n;
  };

  // A[i, l] = a[i * a_row + l * a_column] for i < padded(m), l < k <= b.k. Columns of C are written up to the end of the
  // panel that holds column n - 1, so at most up to padded(b.n).
  static VLKD_INLINE void multiply(
      T* __restrict c, int64_t c_row, const T* __restrict a, int64_t a_row, int64_t a_column, const Panels& b,
      int64_t m, int64_t n, int64_t k, bool add) {
    for (int64_t first = 0; first < n; first += kPanel) {
      const T* panel = b.data + first * b.k;
      const bool whole = padded(b.n) - first > kLanes;
      for (int64_t i = 0; i < m; i += kRows) {
        if (whole) {
          step<2>(c + i * c_row + first, c_row, a + i * a_row, a_row, a_column, panel, k, add);
        } else {
          step<1>(c + i * c_row + first, c_row, a + i * a_row, a_row, a_column, panel, k, add);
        }
      }
    }
  }

 private:
  // to = factor * from transposed, kLanes x kLanes: log2(kLanes) rounds in which rows exchange halves, quarters, ...
  static VLKD_INLINE void transpose(T* to, int64_t to_row, const T* from, int64_t from_row, T factor) {
    Vector rows[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = factor * V::load(from + i * from_row);
    exchange<1>(rows);
    exchange<2>(rows);
    exchange<4>(rows);
    exchange<8>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) V::store(to + i * to_row, rows[i]);
  }

  template <int kStep>
  static VLKD_INLINE void exchange(Vector* rows) {
    if constexpr (kStep < kLanes) exchange<kStep>(rows, std::make_integer_sequence<int, kLanes>{});
  }

  template <int kStep, int... kLane>
  static VLKD_INLINE void exchange(Vector* rows, std::integer_sequence<int, kLane...>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & kStep) continue;
      const Vector a = rows[i], b = rows[i + kStep];
      rows[i] = V::template shuffled<(kLane & kStep ? kLane - kStep + kLanes : kLane)...>(a, b);
      rows[i + kStep] = V::template shuffled<(kLane & kStep ? kLane + kLanes : kLane + kStep)...>(a, b);
    }
  }

  template <int kVectors>
  static VLKD_INLINE void step(
      T* __restrict c, int64_t c_row, const T* __restrict a, int64_t a_row, int64_t a_column, const T* __restrict b,
      int64_t k, bool add) {
    Vector sums[kRows][kVectors];
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j) {
        sums[i][j] = add ? V::load(c + i * c_row + j * kLanes) : Vector{};
      }
    }
    for (int64_t l = 0; l < k; ++l) {
      Vector row[kVectors];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) row[j] = V::load(b + (l * kVectors + j) * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const T factor = a[i * a_row + l * a_column];
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) sums[i][j] += factor * row[j];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) V::store(c + i * c_row + j * kLanes, sums[i][j]);
    }
  }
};

} // namespace vlkd
