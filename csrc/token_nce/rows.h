// What token_nce does to a row of similarities, between the product that made it and the one that uses its weights.
//
// Legend: C a block of tokens, J a block of candidates, E embedding width; the formulas are in cpu.cpp.
#pragma once

#include "../common/simd.h"

#include <cmath>
#include <cstdint>

namespace vlkd {
namespace {

template <typename T>
VLKD_INLINE T dot(const T* __restrict a, const T* __restrict b, int64_t width) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t e = 0; e < width; ++e) sum += a[e] * b[e];
  return sum;
}

// What the sweep over the negatives knows of a token so far.
struct TokenState {
  double positive = 0;     // s.t
  double maximum = 0;      // of the logits seen, the positive's included
  double weights = 0;      // W
  double differences = 0;  // sum_k w_k (s.q_k - s.t)
  double similarities = 0; // sum of s.q_k over the negatives that weigh
  int64_t negatives = 0;   // how many do
  bool top = true;         // no negative was above the positive
};

// A block of candidates, [J, E], that the tokens are compared with.
template <typename T>
struct Candidates {
  const T* inverse_norms; // [J]
  const int64_t* ids;     // [J] or null
  int64_t count;          // J
  int64_t first_token;    // candidate j is the teacher's row of token first_token + j; -1 for the queue
};

template <typename T>
struct Block {
  T* similarities;            // [C, J] dot products; becomes the candidates' weights
  T* gradient;                // [C, E] sum_k w_k q_k so far, or null
  const T* inverse_norms;     // [C]
  const int64_t* ids;         // [C] or null
  TokenState* states;         // [C]
  int64_t first_token, width; // width: E
  double inverse_temperature;
  Candidates<T> candidates;
};

// Turns a row's dot products into similarities, -infinity where the candidate is not this token's negative.
template <typename T>
VLKD_INLINE void compare(
    T* __restrict row, T inverse_norm, const int64_t* own_id, int64_t token, const Candidates<T>& candidates) {
  const T* norms = candidates.inverse_norms;
  if (own_id == nullptr || candidates.ids == nullptr || *own_id == -1) {
#pragma omp simd
    for (int64_t j = 0; j < candidates.count; ++j) row[j] *= inverse_norm * norms[j];
  } else {
    const int64_t* ids = candidates.ids;
#pragma omp simd
    for (int64_t j = 0; j < candidates.count; ++j) {
      row[j] = ids[j] == *own_id ? kMinusInfinity<T> : row[j] * (inverse_norm * norms[j]);
    }
  }
  const int64_t self = token - candidates.first_token;
  if (candidates.first_token >= 0 && self >= 0 && self < candidates.count) row[self] = kMinusInfinity<T>;
}

template <typename T>
VLKD_INLINE void weigh_row(const Block<T>& block, int64_t c) {
  const Candidates<T>& candidates = block.candidates;
  T* __restrict row = block.similarities + c * candidates.count;
  TokenState& state = block.states[c];
  compare(
      row, block.inverse_norms[c], block.ids == nullptr ? nullptr : block.ids + c, block.first_token + c, candidates);

  const T inverse_temperature = static_cast<T>(block.inverse_temperature), positive = static_cast<T>(state.positive);
  T largest = kMinusInfinity<T>, highest = kMinusInfinity<T>, similarities = 0;
  int32_t negatives = 0;
#pragma omp simd reduction(max : largest, highest) reduction(+ : similarities, negatives)
  for (int64_t j = 0; j < candidates.count; ++j) {
    const bool weighs = row[j] != kMinusInfinity<T>;
    const T logit = weighs ? row[j] * inverse_temperature : kMinusInfinity<T>;
    largest = logit > largest ? logit : largest;
    highest = row[j] > highest ? row[j] : highest;
    similarities += weighs ? row[j] : T(0);
    negatives += weighs;
  }
  if (static_cast<double>(largest) > state.maximum) {
    const double shrink = std::exp(state.maximum - static_cast<double>(largest));
    state.maximum = static_cast<double>(largest);
    state.weights *= shrink;
    state.differences *= shrink;
    if (block.gradient != nullptr) {
      T* __restrict gradient = block.gradient + c * block.width;
#pragma omp simd
      for (int64_t e = 0; e < block.width; ++e) gradient[e] *= static_cast<T>(shrink);
    }
  }
  const T maximum = static_cast<T>(state.maximum);
  T weights = 0, differences = 0;
#pragma omp simd reduction(+ : weights, differences)
  for (int64_t j = 0; j < candidates.count; ++j) {
    const bool weighs = row[j] != kMinusInfinity<T>;
    const T similarity = weighs ? row[j] : T(0);
    const T weight = weighs ? exp(similarity * inverse_temperature - maximum) : T(0);
    weights += weight;
    differences += weight * (similarity - positive);
    row[j] = weight * candidates.inverse_norms[j]; // the product with the raw rows then sums unit rows
  }
  state.weights += weights;
  state.differences += differences;
  state.similarities += similarities;
  state.negatives += negatives;
  state.top = state.top && !(highest > positive);
}

VLKD_CLONES void weigh_rows(const Block<float>& block, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) weigh_row(block, c);
}

VLKD_CLONES void weigh_rows(const Block<double>& block, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) weigh_row(block, c);
}

} // namespace
} // namespace vlkd
