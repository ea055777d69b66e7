// One thread's share of attention_mse: some tiles of query rows against all keys of one student key head.
//
// Legend: B batch, H heads, L queries, M keys, D head width; R rows of a tile, a size at which the tile's two maps stay in the
// second-level cache from the product that makes them to the products that use their gradient.
#pragma once

#include "../common/gemm.h"
#include "../common/tensors.h"
#include "rows.h"

#include <algorithm>
#include <cstdint>

namespace vlkd {
namespace {

constexpr int64_t kTileRows = 64;         // R, where the tile fits
constexpr int64_t kTileEntries = 1 << 15; // of one map: 128 KiB in float32

// A [B, heads, rows, D] input, read through its strides.
struct Operand {
  const void* data;
  at::ScalarType type;
  int64_t strides[4], width; // in elements
};

// Rows of one head as T with unit stride: where they lie, or a copy of them.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
};

template <typename T, typename Source>
VLKD_INLINE void copy_rows(T* __restrict to, const Source* __restrict from, const int64_t* strides, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i, from += strides[2], to += width) {
    if (strides[3] == 1) {
      for (int64_t d = 0; d < width; ++d) to[d] = static_cast<T>(from[d]);
    } else {
      for (int64_t d = 0; d < width; ++d) to[d] = static_cast<T>(from[d * strides[3]]);
    }
  }
}

// `readable` rows may be read from the result, which is more than `rows` where a product works on several at a time.
template <typename T>
VLKD_INLINE Rows<T> rows_of(const Operand& x, int64_t b, int64_t h, int64_t first, int64_t rows, int64_t readable, T* copy) {
  const int64_t offset = b * x.strides[0] + h * x.strides[1] + first * x.strides[2];
  if (x.type == c10::CppTypeToScalarType<T>::value && x.strides[3] == 1 && readable == rows) {
    return {static_cast<const T*>(x.data) + offset, x.strides[2]};
  }
  switch (x.type) {
    case at::kDouble: copy_rows(copy, static_cast<const double*>(x.data) + offset, x.strides, rows, x.width); break;
    case at::kFloat: copy_rows(copy, static_cast<const float*>(x.data) + offset, x.strides, rows, x.width); break;
    case at::kHalf: copy_rows(copy, static_cast<const at::Half*>(x.data) + offset, x.strides, rows, x.width); break;
    default: copy_rows(copy, static_cast<const at::BFloat16*>(x.data) + offset, x.strides, rows, x.width);
  }
  std::fill(copy + rows * x.width, copy + readable * x.width, T(0));
  return {copy, x.width};
}

template <typename T>
struct Problem {
  Operand q_s, k_s, q_t, k_t;
  int64_t batch, heads, group_s, group_t; // B; H; query heads that share a key head of the student, of the teacher
  int64_t queries, keys;           // L, M
  T scale_s, scale_t;
  Visibility visibility;
  bool kl, with_grad;
  T* grad_q; // [B, H, L, D_s]
  int64_t tile_rows, tiles; // R; tiles of a head

  void cut_tiles() {
    tile_rows = std::clamp<int64_t>(kTileEntries / keys / 8 * 8, 8, kTileRows);
    tiles = (queries + tile_rows - 1) / tile_rows;
  }
};

// Asks for row `row` of one query head's inputs, which are needed soon.
template <typename T>
VLKD_INLINE void prefetch(const Problem<T>& p, int64_t b, int64_t h, int64_t row) {
  const auto ask = [&](const Operand& x, int64_t head) __attribute__((always_inline)) {
    const int64_t size = c10::elementSize(x.type), offset = b * x.strides[0] + head * x.strides[1] + row * x.strides[2];
    const char* data = static_cast<const char*>(x.data) + size * offset;
    for (int64_t byte = 0; byte < size * x.width; byte += 64) __builtin_prefetch(data + byte, 0, 2);
  };
  ask(p.q_s, h);
  ask(p.q_t, h);
  if (row >= p.keys) return;
  ask(p.k_s, h / p.group_s);
  ask(p.k_t, h / p.group_t);
}

// Tiles [begin, end) of a key head's group_s * tiles ones, head after head, and what came of them.
template <typename T>
struct Slab {
  int64_t key_head, begin, end; // key_head of the flattened [B * H_k]
  T* grad_k;                    // [M, D_s], the sum over these tiles
  double loss;
  int64_t count;
};

// A thread's working memory, one allocation cut to pieces of whole cache lines.
template <typename T>
class Workspace {
 public:
  template <typename Isa>
  static int64_t size(const Problem<T>& p) {
    return Workspace().cut<Isa>(p, nullptr);
  }

  // Returns how many elements the pieces take.
  template <typename Isa>
  int64_t cut(const Problem<T>& p, T* memory) {
    using G = Gemm<T, Isa>;
    const int64_t rows = G::padded(p.tile_rows), keys = G::padded(p.keys), width = G::padded(p.q_s.width);
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      constexpr int64_t kLine = 64 / sizeof(T);
      T* piece = memory + used;
      used += (count + kLine - 1) / kLine * kLine;
      return piece;
    };
    k_s = take(p.keys * p.k_s.width);
    k_t = take(p.keys * p.k_t.width);
    q_s = take(rows * p.q_s.width);
    q_t = take(rows * p.q_t.width);
    across_s = take(p.k_s.width * keys);
    across_t = take(p.k_t.width * keys);
    s = take(rows * keys);
    t = take(rows * keys);
    if (p.with_grad) {
      down_k = take(p.keys * width);
      down_q = take(rows * width);
      grad_q = take(rows * width);
      grad_k = take(keys * width);
    }
    mask = reinterpret_cast<bool*>(take(p.keys));
    return used;
  }

  T *k_s = nullptr, *k_t = nullptr, *q_s = nullptr, *q_t = nullptr; // copies of rows that cannot be read as they are
  T *across_s = nullptr, *across_t = nullptr;                       // the keys transposed, scaled, panels of [D, M]
  T *down_k = nullptr, *down_q = nullptr;                           // the student's keys and queries, panels of [M or R, D_s]
  T *s = nullptr, *t = nullptr;                                     // the maps, [R, M]
  T *grad_q = nullptr, *grad_k = nullptr;                           // [R, D_s], [M, D_s]
  bool* mask = nullptr;                                             // [M]
};

template <typename T, typename Isa>
VLKD_INLINE void work_on_row(
    const Problem<T>& p, Slab<T>& slab, bool* scratch, T* s, T* t, int64_t b, int64_t h, int64_t i, int64_t padded_keys) {
  using V = Simd<T, Isa>;
  const int64_t keys = p.visibility.causal ? std::min(p.keys, i + 1) : p.keys;
  const bool* mask = p.visibility.row_mask(b, h, i, keys, scratch);
  bool counts = p.visibility.row_counts(b, i);
  int64_t visible = keys;
  if (counts && mask != nullptr) {
    visible = hide(s, t, mask, keys);
    counts = visible > 0;
  }
  if (counts) {
    std::fill(s + keys, s + V::padded(keys), kMinusInfinity<T>);
    std::fill(t + keys, t + V::padded(keys), kMinusInfinity<T>);
    slab.loss += p.kl ? kl_row<V>(s, t, keys, p.scale_s) : mse_row<V>(s, t, keys, visible, p.scale_s, p.with_grad);
    ++slab.count;
  }
  if (!p.with_grad) return;
  if (counts && mask != nullptr) clear(s, mask, keys);
  std::fill(counts ? s + keys : s, s + padded_keys, T(0));
}

template <typename T, typename Isa>
VLKD_INLINE void work_on_slab(const Problem<T>& p, Slab<T>& slab, const Workspace<T>& memory) {
  using G = Gemm<T, Isa>;
  const int64_t key_heads = p.heads / p.group_s, b = slab.key_head / key_heads, width = p.q_s.width;
  const int64_t all_keys = G::padded(p.keys), all_width = G::padded(width); // rows of the maps, of the gradients
  const typename G::Panels across_s{memory.across_s, width, p.keys}, across_t{memory.across_t, p.q_t.width, p.keys};

  const Rows<T> k_s = rows_of(p.k_s, b, slab.key_head % key_heads, 0, p.keys, p.keys, memory.k_s);
  G::pack_transposed(memory.across_s, k_s.data, k_s.stride, p.keys, width, p.scale_s);
  // Where no padding is needed keys, queries and gradients are used where they lie.
  typename G::Panels down_k{k_s.data, p.keys, width};
  T* grad_k = all_keys == p.keys && all_width == width ? slab.grad_k : memory.grad_k;
  if (p.with_grad) {
    if (!G::packed(k_s.stride, width)) {
      G::pack(memory.down_k, k_s.data, k_s.stride, p.keys, width);
      down_k.data = memory.down_k;
    }
    std::fill_n(grad_k, all_keys * all_width, T(0));
  }
  int64_t packed_head = -1; // of the teacher
  for (int64_t tile = slab.begin; tile < slab.end; ++tile) {
    const int64_t h = slab.key_head % key_heads * p.group_s + tile / p.tiles;
    const int64_t first = tile % p.tiles * p.tile_rows, rows = std::min(p.tile_rows, p.queries - first);
    const int64_t all_rows = G::padded(rows);
    const int64_t keys = p.visibility.causal ? std::min(p.keys, first + rows) : p.keys;
    if (h / p.group_t != packed_head) {
      packed_head = h / p.group_t;
      const Rows<T> k_t = rows_of(p.k_t, b, packed_head, 0, p.keys, p.keys, memory.k_t);
      G::pack_transposed(memory.across_t, k_t.data, k_t.stride, p.keys, p.q_t.width, p.scale_t);
    }
    const Rows<T> q_s = rows_of(p.q_s, b, h, first, rows, all_rows, memory.q_s);
    const Rows<T> q_t = rows_of(p.q_t, b, h, first, rows, all_rows, memory.q_t);
    G::multiply(memory.s, all_keys, q_s.data, q_s.stride, 1, across_s, rows, keys, width, false);
    G::multiply(memory.t, all_keys, q_t.data, q_t.stride, 1, across_t, rows, keys, p.q_t.width, false);
    const int64_t next = b * p.heads + h + 1; // its inputs come while this head's rows are worked on
    for (int64_t r = 0; r < rows; ++r) {
      if (next < p.batch * p.heads) prefetch(p, next / p.heads, next % p.heads, first + r);
      work_on_row<T, Isa>(
          p, slab, memory.mask, memory.s + r * all_keys, memory.t + r * all_keys, b, h, first + r, G::padded(keys));
    }
    if (!p.with_grad) continue;
    T* const out = p.grad_q + ((b * p.heads + h) * p.queries + first) * width;
    T* const grad_q = all_rows == rows && all_width == width ? out : memory.grad_q;
    G::multiply(grad_q, all_width, memory.s, all_keys, 1, down_k, rows, width, keys, false);
    if (grad_q != out) {
      for (int64_t r = 0; r < rows; ++r) std::copy_n(grad_q + r * all_width, width, out + r * width);
    }
    typename G::Panels down_q{q_s.data, rows, width};
    if (!G::packed(q_s.stride, width)) {
      G::pack(memory.down_q, q_s.data, q_s.stride, rows, width);
      down_q.data = memory.down_q;
    }
    G::multiply(grad_k, all_width, memory.s, 1, all_keys, down_q, keys, width, rows, true);
  }
  if (p.with_grad && grad_k != slab.grad_k) {
    for (int64_t j = 0; j < p.keys; ++j) std::copy_n(grad_k + j * all_width, width, slab.grad_k + j * width);
  }
}

} // namespace
} // namespace vlkd
