// What token_nce does to a row of similarities, between the product that made it and the one that uses its weights.
//
// Legend: J a block of candidates; the formulas are in cpu.cpp.
#pragma once

#include "../common/simd.h"

#include <cmath>
#include <cstdint>

namespace vlkd {
namespace {

// What the sweep over the negatives knows of a token so far.
struct TokenState {
  double positive = 0;     // s.t
  double maximum = 0;      // of the similarities seen, the positive's included
  double weights = 0;      // W
  double differences = 0;  // sum_k w_k (s.q_k - s.t)
  double similarities = 0; // sum of s.q_k over the negatives that weigh
  int64_t negatives = 0;   // how many do
  bool top = true;         // no negative was above the positive
};

// A row of dot products with a block of candidates, on its way to their weights.
template <typename T>
struct Row {
  T* dots;                  // [J], readable and writable to whole vectors
  const T* inverse_norms;   // [J], 0 behind the last candidate up to whole vectors
  int64_t candidates;       // J
  T inverse_norm;           // of the token
  int64_t self;             // the candidate that is the token's own positive, or -1
  const int64_t *id, *ids;  // the token's; the candidates', [J]; either may be null
};

// Marks the candidates that are not this token's negatives; how many are.
template <typename T>
VLKD_INLINE int64_t hide(const Row<T>& row) {
  int64_t hidden = 0;
  if (row.id != nullptr && row.ids != nullptr && *row.id != -1) {
    for (int64_t j = 0; j < row.candidates; ++j) {
      if (row.ids[j] != *row.id) continue;
      row.dots[j] = kHidden<T>;
      ++hidden;
    }
  }
  if (row.self >= 0 && row.dots[row.self] != kHidden<T>) {
    row.dots[row.self] = kHidden<T>;
    ++hidden;
  }
  return row.candidates - hidden;
}

// Replaces the dot products by the weights w_k / |q_k|, whose product with the raw rows sums unit rows. Returns what the sums
// before this block must be multiplied with, since the maximum has moved; the state's own are.
template <typename V, typename T>
VLKD_INLINE double weigh(const Row<T>& row, TokenState& state, T inverse_temperature) {
  using Vector = typename V::Vector;
  const Vector hidden = Vector{} + kHidden<T>;
  const int64_t negatives = hide(row), end = V::padded(row.candidates);
  for (int64_t j = row.candidates; j < end; ++j) row.dots[j] = kHidden<T>;
  Vector highest = hidden, similarities{};
  for (int64_t j = 0; j < end; j += V::kLanes) {
    const Vector dot = V::load(row.dots + j);
    const Vector x = dot != hidden ? V::exact(dot * row.inverse_norm * V::load(row.inverse_norms + j)) : dot;
    V::store(row.dots + j, x);
    highest = V::larger(x, highest);
    similarities += x != hidden ? x : Vector{};
  }
  const T largest = V::largest(highest);
  double shrink = 1;
  if (static_cast<double>(largest) > state.maximum) {
    shrink = std::exp((state.maximum - static_cast<double>(largest)) * static_cast<double>(inverse_temperature));
    state.maximum = static_cast<double>(largest);
    state.weights *= shrink;
    state.differences *= shrink;
  }
  const T maximum = static_cast<T>(state.maximum), positive = static_cast<T>(state.positive);
  const T factor = inverse_temperature * T(1.4426950408889634);
  Vector weights{}, differences{};
  for (int64_t j = 0; j < end; j += V::kLanes) {
    const Vector x = V::load(row.dots + j);
    const Vector weight = x != hidden ? V::exp2((x - maximum) * factor) : Vector{}; // NaN if x is
    weights += weight;
    differences += x != hidden ? weight * (x - positive) : Vector{};
    V::store(row.dots + j, x != hidden ? weight * V::load(row.inverse_norms + j) : Vector{}); // whose norm may be NaN
  }
  state.weights += static_cast<double>(V::sum(weights));
  state.differences += static_cast<double>(V::sum(differences));
  state.similarities += static_cast<double>(V::sum(similarities));
  state.negatives += negatives;
  state.top = state.top && !(static_cast<double>(largest) > state.positive);
  return shrink;
}

} // namespace
} // namespace vlkd
