// The steps of token_nce, each over a range of tokens or of columns that one thread takes, compiled per instruction set.
//
// Legend: N counted tokens, E embedding width, C tokens of a chunk, J a block of candidates; the formulas are in cpu.cpp.
#pragma once

#include "../common/gemm.h"
#include "rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace vlkd {
namespace {

constexpr double kEps = 1e-12;       // the smallest norm that a row is divided by
constexpr int64_t kChunk = 64;       // C, at most
constexpr int64_t kCandidates = 512; // J, at most: its two packed copies take 3 MiB at E = 768 in float32
constexpr int64_t kPadding = 16;     // of rows and columns, enough for every instruction set

constexpr int64_t kStrip = 32;       // columns that are packed at a time: whole panels of every instruction set

constexpr int64_t strips(int64_t columns) { return (columns + kStrip - 1) / kStrip; }
constexpr int64_t padded(int64_t size) { return (size + kPadding - 1) / kPadding * kPadding; }

// From row to row of dot products: an odd number of cache lines, for rows a power of two apart would share a few sets of the cache.
template <typename T>
constexpr int64_t dots_row(int64_t candidates) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return (padded(candidates) / kLine | 1) * kLine;
}

// All tokens. Rows are of the type that the products take, `stride` numbers apart.
template <typename T>
struct Tokens {
  const void *h_s, *h_t;    // [N, E]
  const int64_t* ids;       // [N] or null
  int64_t count, width;     // N, E
  T inverse_temperature;
  bool normalize;
  T *inverse_s, *inverse_t; // [N]
  TokenState* states;       // [N]
  T* gradient;              // [padded(N), padded(E)]: sum_k w_k q_k, and dL/dh in the end; or null
};

// A block of rows that the tokens are compared with.
template <typename T>
struct Candidates {
  const void* rows;         // [J, E], contiguous
  const int64_t* ids;       // [J] or null
  int64_t count;            // J
  int64_t first_token;      // row j is the teacher's of token first_token + j; -1 for the queue's
  bool normalize;
  T* inverse_norms;         // [padded(J)]
  T *across, *down;         // the rows packed as [E, J] and as [J, E]
};

template <typename T, typename Number>
VLKD_INLINE T dot(const Number* __restrict a, const Number* __restrict b, int64_t width) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t e = 0; e < width; ++e) sum += static_cast<T>(a[e]) * static_cast<T>(b[e]);
  return sum;
}

// 1 / max(|x|, eps), or 1; NaN where |x|^2 overflows, for 0 would hide it.
template <typename T, typename Number>
VLKD_INLINE T inverse_norm(const Number* x, int64_t width, bool normalize) {
  if (!normalize) return T(1);
  const T norm = std::sqrt(dot<T>(x, x, width));
  return norm <= std::numeric_limits<T>::max() ? T(1) / std::max(norm, static_cast<T>(kEps)) : std::numeric_limits<T>::quiet_NaN();
}

// Norms and positives of tokens [begin, end).
template <typename Entry, typename Isa, typename T>
VLKD_INLINE void begin_tokens(const Tokens<T>& tokens, int64_t begin, int64_t end) {
  using Number = typename EntryTraits<Entry>::Number;
  for (int64_t i = begin; i < end; ++i) {
    const Number* s = static_cast<const Number*>(tokens.h_s) + i * tokens.width;
    const Number* t = static_cast<const Number*>(tokens.h_t) + i * tokens.width;
    tokens.inverse_s[i] = inverse_norm<T>(s, tokens.width, tokens.normalize);
    tokens.inverse_t[i] = inverse_norm<T>(t, tokens.width, tokens.normalize);
    const T positive = dot<T>(s, t, tokens.width) * tokens.inverse_s[i] * tokens.inverse_t[i];
    tokens.states[i].positive = positive + positive * T(0); // NaN where it is infinite
    tokens.states[i].maximum = tokens.states[i].positive;
  }
}

// Strips [begin, end) of kStrip columns of the candidates' two packed copies, first those of J, then those of E.
template <typename Entry, typename Isa, typename T>
VLKD_INLINE void pack_strips(const Candidates<T>& candidates, int64_t width, int64_t begin, int64_t end) {
  using G = Gemm<Entry, Isa>;
  using Number = typename EntryTraits<Entry>::Number;
  static_assert(kStrip % G::kPanel == 0);
  const Number* rows = static_cast<const Number*>(candidates.rows);
  const int64_t across = strips(candidates.count), along = width / EntryTraits<Entry>::kNumbers;
  for (int64_t strip = begin; strip < end; ++strip) {
    if (strip < across) {
      const int64_t first = strip * kStrip, count = std::min(kStrip, candidates.count - first);
      const Number* from = rows + first * width;
      Entry* to = reinterpret_cast<Entry*>(candidates.across) + first * along;
      G::pack_transposed(to, reinterpret_cast<const Entry*>(from), along, count, along);
      T* norms = candidates.inverse_norms + first;
      for (int64_t j = 0; j < count; ++j) norms[j] = inverse_norm<T>(from + j * width, width, candidates.normalize);
      std::fill(norms + count, norms + padded(count), T(0));
    } else {
      const int64_t first = (strip - across) * kStrip, count = std::min(kStrip, width - first);
      Entry* to = reinterpret_cast<Entry*>(candidates.down) + first * entries<Entry>(candidates.count);
      G::pack(to, rows + first, width, candidates.count, count);
      const int64_t size = entries<Entry>(candidates.count) * G::padded(count) * EntryTraits<Entry>::kNumbers;
      keep_finite(reinterpret_cast<Number*>(to), size);
    }
  }
}

// A row's weights as the left operand of the second product: as they are, or rounded to bfloat16 in their own place.
template <typename Entry, typename Isa, typename T>
VLKD_INLINE void round_weights(T* row, int64_t count) {
  if constexpr (EntryTraits<Entry>::kNumbers == 2) {
    using V = Simd<T, Isa>;
    auto* to = reinterpret_cast<char*>(row);
    for (int64_t j = 0; j < count; j += V::kLanes) {
      const auto halves = Isa::to_bf16(V::load(row + j));
      std::memcpy(to + j * sizeof(uint16_t), &halves, sizeof halves);
    }
  }
}

// Tokens [first, first + count), at most kChunk, against a block of candidates. Memory: `dots` [C, dots_row(J)], `copy` [C, E].
template <typename Entry, typename Isa, typename T>
VLKD_INLINE void compare_chunk(
    const Tokens<T>& tokens, const Candidates<T>& candidates, int64_t first, int64_t count, T* dots, T* copy) {
  using G = Gemm<Entry, Isa>;
  using Number = typename EntryTraits<Entry>::Number;
  using V = Simd<T, Isa>;
  const int64_t width = tokens.width, along = width / EntryTraits<Entry>::kNumbers;
  const int64_t row = dots_row<T>(candidates.count), gradient_row = padded(width);
  const Entry* h_s = reinterpret_cast<const Entry*>(static_cast<const Number*>(tokens.h_s) + first * width);
  if (G::padded(count) != count) { // rows that a product reads but nobody has
    Entry* to = reinterpret_cast<Entry*>(copy);
    std::fill(std::copy_n(h_s, count * along, to), to + G::padded(count) * along, Entry{});
    h_s = to;
  }
  const typename G::Panels across{reinterpret_cast<const Entry*>(candidates.across), along, candidates.count};
  G::multiply(dots, row, h_s, along, 1, across, count, candidates.count, along, T(1), false);
  for (int64_t c = 0; c < count; ++c) {
    const int64_t i = first + c, self = i - candidates.first_token;
    const bool has_self = candidates.first_token >= 0 && self >= 0 && self < candidates.count;
    const double shrink = weigh<V>(
        Row<T>{dots + c * row, candidates.inverse_norms, candidates.count, tokens.inverse_s[i], has_self ? self : -1,
               tokens.ids == nullptr ? nullptr : tokens.ids + i, candidates.ids},
        tokens.states[i], tokens.inverse_temperature);
    if (tokens.gradient == nullptr) continue;
    round_weights<Entry, Isa>(dots + c * row, padded(candidates.count));
    if (shrink != 1) {
      T* gradient = tokens.gradient + i * gradient_row;
      for (int64_t e = 0; e < gradient_row; e += V::kLanes) V::store(gradient + e, V::load(gradient + e) * static_cast<T>(shrink));
    }
  }
  if (tokens.gradient == nullptr) return;
  const typename G::Panels down{
      reinterpret_cast<const Entry*>(candidates.down), entries<Entry>(candidates.count), width};
  G::multiply(
      tokens.gradient + first * gradient_row, gradient_row, reinterpret_cast<const Entry*>(dots), row, 1, down, count, width,
      entries<Entry>(candidates.count), T(1), true);
}

// Turns sum_k w_k q_k of tokens [begin, end) into the gradient of their loss for h.
template <typename Entry, typename Isa, typename T>
VLKD_INLINE void finish_gradients(const Tokens<T>& tokens, int64_t begin, int64_t end) {
  using Number = typename EntryTraits<Entry>::Number;
  const int64_t width = tokens.width;
  for (int64_t i = begin; i < end; ++i) {
    const TokenState& state = tokens.states[i];
    T* __restrict g = tokens.gradient + i * padded(width);
    const Number *s = static_cast<const Number*>(tokens.h_s) + i * width, *t = static_cast<const Number*>(tokens.h_t) + i * width;
    const double tau_inverse = static_cast<double>(tokens.inverse_temperature);
    const double total = std::exp((state.positive - state.maximum) * tau_inverse) + state.weights;
    const T scale = static_cast<T>(tau_inverse / total), pull = static_cast<T>(state.weights) * tokens.inverse_t[i];
#pragma omp simd
    for (int64_t e = 0; e < width; ++e) g[e] = (g[e] - pull * static_cast<T>(t[e])) * scale;
    if (!tokens.normalize) continue;
    // through s = h / max(|h|, eps): the part along s vanishes, unless the norm was clamped
    const T inverse = tokens.inverse_s[i];
    T along = 0;
    if (inverse < static_cast<T>(1 / kEps)) {
#pragma omp simd reduction(+ : along)
      for (int64_t e = 0; e < width; ++e) along += g[e] * static_cast<T>(s[e]);
      along *= inverse * inverse;
    }
#pragma omp simd
    for (int64_t e = 0; e < width; ++e) g[e] = (g[e] - along * static_cast<T>(s[e])) * inverse;
  }
}

// One step of the whole, over a range of what it is divided by.
enum class Step { kBegin, kPack, kCompare, kFinish }; // tokens, strips, chunks, tokens

template <typename T>
struct Job {
  Tokens<T> tokens;
  Candidates<T> candidates;
  int64_t chunk; // C
};

// Chunks [begin, end) of tokens against the candidates.
template <typename Entry, typename Isa, typename T>
VLKD_INLINE void compare_with(const Job<T>& job, int64_t begin, int64_t end, T* memory) {
  for (int64_t first = begin * job.chunk; first < std::min(end * job.chunk, job.tokens.count); first += job.chunk) {
    const int64_t count = std::min(job.chunk, job.tokens.count - first);
    compare_chunk<Entry, Isa>(job.tokens, job.candidates, first, count, memory, memory + job.chunk * dots_row<T>(job.candidates.count));
  }
}

template <typename Entry, typename Isa, typename T>
VLKD_INLINE void work_with(Step step, const Job<T>& job, int64_t begin, int64_t end, T* memory) {
  const Tokens<T>& tokens = job.tokens;
  switch (step) {
    case Step::kBegin: return begin_tokens<Entry, Isa>(tokens, begin, end);
    case Step::kPack: return pack_strips<Entry, Isa>(job.candidates, tokens.width, begin, end);
    case Step::kFinish: return finish_gradients<Entry, Isa>(tokens, begin, end);
    case Step::kCompare: return compare_with<Entry, Isa>(job, begin, end, memory);
  }
}

} // namespace
} // namespace vlkd
