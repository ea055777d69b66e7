// What attention_mse does to a row of the two maps, between the products that made it and those that use its gradient.
//
// Legend: B batch, H heads, L queries, M keys; a chunk holds R rows of each of G heads.
#pragma once

#include "../common/simd.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace vlkd {
namespace {

// Which of the heads that a tensor holds serves query head `index` of the flattened [B * H].
struct HeadOf {
  int64_t heads, groups; // query heads in a batch; query heads that share a key head
  int64_t batch(int64_t index) const { return index / heads; }
  int64_t head(int64_t index) const { return index % heads / groups; }
};

// Who may see whom, read through strides: a mask that broadcasts is never written out.
struct Visibility {
  const bool* mask = nullptr; // [B, H, L, M] by strides
  int64_t strides[4] = {0, 0, 0, 0};
  const bool* counted = nullptr; // [B, L] by strides
  int64_t counted_strides[2] = {0, 0};
  bool causal = false;

  bool row_counts(int64_t b, int64_t i) const {
    return counted == nullptr || counted[b * counted_strides[0] + i * counted_strides[1]];
  }

  // The row's mask with unit stride (in `scratch` if need be), or null if the row sees every key.
  const bool* row_mask(int64_t b, int64_t h, int64_t i, int64_t keys, bool* scratch) const {
    if (mask == nullptr) return nullptr;
    const bool* row = mask + b * strides[0] + h * strides[1] + i * strides[2];
    if (strides[3] == 1) return row;
    for (int64_t j = 0; j < keys; ++j) scratch[j] = row[j * strides[3]];
    return scratch;
  }
};

template <typename T>
struct Largest {
  T s, t;          // the largest logits of the row
  int64_t visible; // how many keys it sees
};

// Scales the logits of a row in place and puts -infinity where the mask hides.
template <typename T>
VLKD_INLINE Largest<T> scale_and_hide(
    T* __restrict s, T* __restrict t, T scale_s, T scale_t, const bool* mask, int64_t keys) {
  T max_s = kMinusInfinity<T>, max_t = kMinusInfinity<T>;
  int64_t visible = keys;
  if (mask == nullptr) {
#pragma omp simd reduction(max : max_s, max_t)
    for (int64_t j = 0; j < keys; ++j) {
      s[j] *= scale_s;
      t[j] *= scale_t;
      max_s = s[j] > max_s ? s[j] : max_s;
      max_t = t[j] > max_t ? t[j] : max_t;
    }
  } else {
    int32_t seen = 0;
#pragma omp simd reduction(max : max_s, max_t) reduction(+ : seen)
    for (int64_t j = 0; j < keys; ++j) {
      s[j] = mask[j] ? s[j] * scale_s : kMinusInfinity<T>;
      t[j] = mask[j] ? t[j] * scale_t : kMinusInfinity<T>;
      seen += mask[j];
      max_s = s[j] > max_s ? s[j] : max_s;
      max_t = t[j] > max_t ? t[j] : max_t;
    }
    visible = seen;
  }
  return {max_s, max_t, visible};
}

// s and t hold scaled logits; leaves their gradient times `factor` in s and returns the row's value.
template <typename T>
VLKD_INLINE T mse_row(T* __restrict s, T* __restrict t, Largest<T> largest, int64_t keys, T factor, bool with_grad) {
  T sum_s = 0, sum_t = 0;
#pragma omp simd reduction(+ : sum_s, sum_t)
  for (int64_t j = 0; j < keys; ++j) {
    s[j] = exp(s[j] - largest.s);
    t[j] = exp(t[j] - largest.t);
    sum_s += s[j];
    sum_t += t[j];
  }
  const T inverse_s = T(1) / sum_s, inverse_t = T(1) / sum_t;
  T squares = 0, delta = 0;
#pragma omp simd reduction(+ : squares, delta)
  for (int64_t j = 0; j < keys; ++j) {
    s[j] *= inverse_s;
    t[j] = s[j] - t[j] * inverse_t; // d: the direct difference, for sum p^2 - 2 sum p t + sum t^2 would cancel
    squares += t[j] * t[j];
    delta += s[j] * t[j];
  }
  const T per_key = T(1) / static_cast<T>(largest.visible);
  if (with_grad) {
    const T scale = 2 * per_key * factor;
#pragma omp simd
    for (int64_t j = 0; j < keys; ++j) s[j] = scale * s[j] * (t[j] - delta);
  }
  return squares * per_key;
}

template <typename T>
VLKD_INLINE T kl_row(T* __restrict s, const T* __restrict t, Largest<T> largest, int64_t keys, T factor) {
  T sum_s = 0, sum_t = 0;
#pragma omp simd reduction(+ : sum_s, sum_t)
  for (int64_t j = 0; j < keys; ++j) {
    sum_s += exp(s[j] - largest.s);
    sum_t += exp(t[j] - largest.t);
  }
  const T lse_s = largest.s + std::log(sum_s), lse_t = largest.t + std::log(sum_t);
  T value = 0;
#pragma omp simd reduction(+ : value)
  for (int64_t j = 0; j < keys; ++j) {
    const T log_p = s[j] - lse_s, log_t = t[j] - lse_t;
    const T p = exp(log_p), q = exp(log_t);
    // t (log t - log p) + p - t summed over the row is the divergence, and no term of it is negative: with x the log
    // ratio it is t (e^x - 1 - x), from the series where x is small.
    const T x = s[j] == kMinusInfinity<T> ? T(0) : log_p - log_t;
    const bool small = x > T(-0.5) && x < T(0.5);
    value += small ? q * expm1_minus_x(small ? x : T(0)) : p - q - q * x;
    s[j] = factor * (p - q);
  }
  return value;
}

template <typename T>
struct Rows {
  T *s, *t;       // [G, R, M]
  double* values; // [G, R]
  bool* counts;   // [G, R]
  HeadOf of;
  int64_t first_head, first_row, rows, keys; // rows: R
  T scale_s, scale_t;
  Visibility visibility;
  bool kl, with_grad;
};

template <typename T>
VLKD_INLINE void work_on_rows(const Rows<T>& work, int64_t begin, int64_t end) {
  std::vector<char> scratch(work.visibility.mask == nullptr ? 0 : work.keys);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t index = work.first_head + r / work.rows, i = work.first_row + r % work.rows;
    const int64_t b = work.of.batch(index), h = index % work.of.heads;
    const int64_t keys = work.visibility.causal ? std::min(work.keys, i + 1) : work.keys;
    T *s = work.s + r * work.keys, *t = work.t + r * work.keys;
    work.values[r] = 0;
    work.counts[r] = false;
    if (work.visibility.row_counts(b, i)) {
      const bool* mask = work.visibility.row_mask(b, h, i, keys, reinterpret_cast<bool*>(scratch.data()));
      const Largest<T> largest = scale_and_hide(s, t, work.scale_s, work.scale_t, mask, keys);
      if (largest.visible > 0) {
        work.counts[r] = true;
        work.values[r] = work.kl ? kl_row(s, t, largest, keys, work.scale_s)
                                 : mse_row(s, t, largest, keys, work.scale_s, work.with_grad);
      }
    }
    if (work.with_grad) std::fill(work.counts[r] ? s + keys : s, s + work.keys, T(0));
  }
}

VLKD_CLONES void work_on_rows_of(const Rows<float>& work, int64_t begin, int64_t end) {
  work_on_rows(work, begin, end);
}

VLKD_CLONES void work_on_rows_of(const Rows<double>& work, int64_t begin, int64_t end) {
  work_on_rows(work, begin, end);
}

} // namespace
} // namespace vlkd
