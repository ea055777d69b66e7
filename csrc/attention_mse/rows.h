// What attention_mse does to a row of the two maps, between the products that made it and those that use its gradient.
//
// A row arrives as logits and leaves as the gradient of its value with respect to them, times a factor.
// Legend: B batch, H heads, L queries, M keys.
#pragma once

#include "../common/simd.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace vlkd {
namespace {

// Who may see whom, read through strides: a mask that broadcasts is never written out.
struct Visibility {
  const bool* mask = nullptr; // [B, H, L, M] by strides
  int64_t strides[4] = {0, 0, 0, 0};
  const bool* counted = nullptr; // [B, L] by strides
  int64_t counted_strides[2] = {0, 0};
  bool causal = false;

  // Whether row i counts that may see the first `keys` keys: it is not left out, and the mask leaves one of them.
  bool counts(int64_t b, int64_t h, int64_t i, int64_t keys) const {
    if (counted != nullptr && !counted[b * counted_strides[0] + i * counted_strides[1]]) return false;
    if (mask == nullptr) return true;
    const bool* row = mask + b * strides[0] + h * strides[1] + i * strides[2];
    if (strides[3] == 1) return std::memchr(row, 1, keys) != nullptr;
    for (int64_t j = 0; j < keys; ++j) {
      if (row[j * strides[3]]) return true;
    }
    return false;
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

// Marks what the mask hides; how many keys it leaves.
template <typename T>
VLKD_INLINE int64_t hide(T* __restrict s, T* __restrict t, const bool* __restrict mask, int64_t keys) {
  int32_t visible = 0;
#pragma omp simd reduction(+ : visible)
  for (int64_t j = 0; j < keys; ++j) {
    s[j] = mask[j] ? s[j] : kHidden<T>;
    t[j] = mask[j] ? t[j] : kHidden<T>;
    visible += mask[j];
  }
  return visible;
}

template <typename T>
VLKD_INLINE void clear(T* __restrict s, const bool* __restrict mask, int64_t keys) {
#pragma omp simd
  for (int64_t j = 0; j < keys; ++j) s[j] = mask[j] ? s[j] : T(0);
}

// A row of both maps that counts.
template <typename T>
struct Row {
  T *s, *t;
  const bool* mask;      // or null
  int64_t keys, visible; // the last key that it may see and one; those that it sees
  T largest_s, largest_t, sum_s, sum_t, product; // the sums begin as 0, or NaN where a logit is not finite
};

// A few rows go through a pass together before the next pass: what a row must wait for, its sums above all, the others' work
// fills. The loops run over whole vectors. Hidden keys and those behind the last one hold kHidden; exp2 makes of it 2^-100,
// which no sum notices beside its largest term, 1. A logit that is not finite makes a NaN of its row's sums, and of all that
// is computed of them.
template <typename V, typename T>
VLKD_INLINE void find_largest(Row<T>* rows, int64_t count) {
  for (Row<T>* row = rows; row < rows + count; ++row) {
    typename V::Vector max_s = V::load(row->s), max_t = V::load(row->t);
    typename V::Vector none_s = max_s * T(0), none_t = max_t * T(0);
    for (int64_t j = V::kLanes; j < row->keys; j += V::kLanes) {
      const typename V::Vector s = V::load(row->s + j), t = V::load(row->t + j);
      max_s = V::larger(s, max_s);
      max_t = V::larger(t, max_t);
      none_s += s * T(0);
      none_t += t * T(0);
    }
    row->sum_s = V::sum(none_s);
    row->sum_t = V::sum(none_t);
    row->largest_s = V::largest(max_s);
    row->largest_t = V::largest(max_t);
  }
}

template <typename T>
constexpr T kLog2e = T(1.4426950408889634);

// Of a difference to the largest logit: scaling the logits themselves would round that, and cost digits near the teacher.
template <typename V, typename T>
VLKD_INLINE typename V::Vector exp(typename V::Vector x) {
  return V::exp2_of_finite(x * kLog2e<T>);
}

// Value (1/m) sum_j (p_j - t_j)^2, gradient (2/m) p_j (d_j - sum_k p_k d_k). The difference is taken between
// exponentials over one denominator: d = (e_s - e_t (sum_s / sum_t)) / sum_s. It does not cancel as sum p^2 - 2 sum p t +
// sum t^2 would, and equal rows give exactly 0, with or without a fused multiply-add. Returns the sum of the values.
template <typename V, typename T>
VLKD_INLINE double mse_rows(Row<T>* rows, int64_t count, T factor, bool with_grad) {
  using Vector = typename V::Vector;
  find_largest<V>(rows, count);
  for (Row<T>* row = rows; row < rows + count; ++row) {
    Vector sums_s{}, sums_t{};
    for (int64_t j = 0; j < row->keys; j += V::kLanes) {
      const Vector e_s = exp<V, T>(V::load(row->s + j) - row->largest_s);
      const Vector e_t = exp<V, T>(V::load(row->t + j) - row->largest_t);
      V::store(row->s + j, e_s);
      V::store(row->t + j, e_t);
      sums_s += e_s;
      sums_t += e_t;
    }
    row->sum_s += V::sum(sums_s);
    row->sum_t += V::sum(sums_t);
  }
  double value = 0;
  for (Row<T>* row = rows; row < rows + count; ++row) {
    const T ratio = row->sum_s / row->sum_t;
    Vector squares{}, products{};
    for (int64_t j = 0; j < row->keys; j += V::kLanes) {
      const Vector e_s = V::load(row->s + j), d = e_s - ratio * V::load(row->t + j);
      V::store(row->t + j, d);
      squares += d * d;
      products += e_s * d;
    }
    value += V::sum(squares) / (row->sum_s * row->sum_s * static_cast<T>(row->visible));
    row->product = V::sum(products);
  }
  if (!with_grad) return value;
  for (Row<T>* row = rows; row < rows + count; ++row) {
    const T inverse = T(1) / row->sum_s, delta = row->product * inverse;
    const T scale = 2 * factor * inverse * inverse / static_cast<T>(row->visible);
    for (int64_t j = 0; j < row->keys; j += V::kLanes) {
      V::store(row->s + j, scale * V::load(row->s + j) * (V::load(row->t + j) - delta));
    }
  }
  return value;
}

// Value sum_j t_j (log t_j - log p_j), gradient p_j - t_j. Adding p_j - t_j, which sums to 0, leaves no term negative:
// with x = log p - log t a term is t (e^x - 1 - x), from the series where x is small. Returns the sum of the values.
template <typename V, typename T>
VLKD_INLINE double kl_rows(Row<T>* rows, int64_t count, T factor) {
  using Vector = typename V::Vector;
  find_largest<V>(rows, count);
  for (Row<T>* row = rows; row < rows + count; ++row) {
    Vector sums_s{}, sums_t{};
    for (int64_t j = 0; j < row->keys; j += V::kLanes) {
      sums_s += exp<V, T>(V::load(row->s + j) - row->largest_s);
      sums_t += exp<V, T>(V::load(row->t + j) - row->largest_t);
    }
    row->sum_s += V::sum(sums_s);
    row->sum_t += V::sum(sums_t);
  }
  const Vector half = Vector{} + T(0.5), lowest = Vector{} + T(-1e30);
  double value = 0;
  for (Row<T>* row = rows; row < rows + count; ++row) {
    const T log_sum_s = std::log(row->sum_s), log_sum_t = std::log(row->sum_t);
    Vector values{};
    for (int64_t j = 0; j < row->keys; j += V::kLanes) {
      // The largest logit goes first, for the sum would round beside it. A hidden key's logits become equal, and finite, on
      // both sides: its terms are 0 and its x is no NaN. A NaN stays one.
      const Vector log_p = V::larger(lowest, V::load(row->s + j) - row->largest_s - log_sum_s);
      const Vector log_t = V::larger(lowest, V::load(row->t + j) - row->largest_t - log_sum_t);
      const Vector p = V::exp2(log_p * kLog2e<T>), q = V::exp2(log_t * kLog2e<T>), x = log_p - log_t; // NaN for NaN
      const auto small = (x > -half) & (x < half);
      values += small ? q * expm1_minus_x<Vector, T>(small ? x : Vector{}) : p - q - q * x;
      V::store(row->s + j, factor * (p - q));
    }
    value += V::sum(values);
  }
  return value;
}

} // namespace
} // namespace vlkd
