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
#include <cstring>

namespace vlkd {
namespace {

constexpr int64_t kTileRows = 64;         // R, where the tile fits
constexpr int64_t kRowsTogether = 4;      // that go through rows.h at a time
constexpr int64_t kTileEntries = 1 << 15; // of one map: 128 KiB in float32

// A [B, heads, rows, D] input, read through its strides.
struct Operand {
  const void* data;
  at::ScalarType type;
  int64_t strides[4], width; // in elements
};

// Rows of one head with unit stride: where they lie, or a copy of them. The stride counts entries (gemm.h).
template <typename Entry>
struct Rows {
  const Entry* data;
  int64_t stride;

  const auto* numbers() const { return reinterpret_cast<const typename EntryTraits<Entry>::Number*>(data); }
  int64_t numbers_stride() const { return stride * EntryTraits<Entry>::kNumbers; }
};

template <typename T, typename Source>
VLKD_INLINE void copy_rows(
    T* __restrict to, int64_t to_row, const Source* __restrict from, const int64_t* strides, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i, from += strides[2], to += to_row) {
    if (strides[3] == 1) {
      for (int64_t d = 0; d < width; ++d) to[d] = static_cast<T>(from[d]);
    } else {
      for (int64_t d = 0; d < width; ++d) to[d] = static_cast<T>(from[d * strides[3]]);
    }
    std::fill(to + width, to + to_row, T(0));
  }
}

// `readable` rows may be read from the result, which is more than `rows` where a product works on several at a time.
template <typename Entry>
VLKD_INLINE Rows<Entry> rows_of(
    const Operand& x, int64_t b, int64_t h, int64_t first, int64_t rows, int64_t readable, Entry* copy) {
  using Number = typename EntryTraits<Entry>::Number;
  constexpr int64_t kNumbers = EntryTraits<Entry>::kNumbers;
  const int64_t offset = b * x.strides[0] + h * x.strides[1] + first * x.strides[2], stride = entries<Entry>(x.width);
  const bool whole = x.strides[2] % kNumbers == 0 && x.width % kNumbers == 0;
  if (x.type == c10::CppTypeToScalarType<Number>::value && x.strides[3] == 1 && readable == rows && whole) {
    return {reinterpret_cast<const Entry*>(static_cast<const Number*>(x.data) + offset), x.strides[2] / kNumbers};
  }
  const auto copy_from = [&](const auto* data) __attribute__((always_inline)) {
    copy_rows(reinterpret_cast<Number*>(copy), stride * kNumbers, data + offset, x.strides, rows, x.width);
  };
  switch (x.type) {
    case at::kDouble: copy_from(static_cast<const double*>(x.data)); break;
    case at::kFloat: copy_from(static_cast<const float*>(x.data)); break;
    case at::kHalf: copy_from(static_cast<const at::Half*>(x.data)); break;
    default: copy_from(static_cast<const at::BFloat16*>(x.data));
  }
  std::fill(copy + rows * stride, copy + readable * stride, Entry{});
  return {copy, stride};
}

template <typename T>
struct Problem {
  Operand q_s, k_s, q_t, k_t;
  int64_t batch, heads, group_s, group_t; // B; H; query heads that share a key head of the student, of the teacher
  int64_t queries, keys;           // L, M
  T scale_s, scale_t, weight;      // of the scores, of a counted row's gradient
  Visibility visibility;
  bool kl, with_grad;
  T* grad_q; // [B, H, L, D_s]
  int64_t tile_rows, tiles; // R; tiles of a head

  int64_t counted_rows() const {
    if (visibility.mask == nullptr && visibility.counted == nullptr) return batch * heads * queries;
    int64_t count = 0;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < queries; ++i) count += visibility.counts(b, h, i, last_key(i));
      }
    }
    return count;
  }

  // One more than the last key that row i may see.
  int64_t last_key(int64_t i) const { return visibility.causal ? std::min(keys, i + 1) : keys; }

  void cut_tiles() {
    tile_rows = std::clamp<int64_t>(kTileEntries / keys / 8 * 8, 8, kTileRows);
    tiles = (queries + tile_rows - 1) / tile_rows;
  }
};

// Asks for rows [first, first + count) of one query head's inputs, which are needed soon.
template <typename T>
VLKD_INLINE void prefetch(const Problem<T>& p, int64_t b, int64_t h, int64_t first, int64_t count) {
  const auto ask = [&](const Operand& x, int64_t head, int64_t end) __attribute__((always_inline)) {
    const int64_t size = c10::elementSize(x.type), offset = b * x.strides[0] + head * x.strides[1];
    for (int64_t row = first; row < end; ++row) {
      const char* data = static_cast<const char*>(x.data) + size * (offset + row * x.strides[2]);
      for (int64_t byte = 0; byte < size * x.width; byte += 64) __builtin_prefetch(data + byte, 0, 2);
    }
  };
  ask(p.q_s, h, first + count);
  ask(p.q_t, h, first + count);
  ask(p.k_s, h / p.group_s, std::min(first + count, p.keys));
  ask(p.k_t, h / p.group_t, std::min(first + count, p.keys));
}

// Tiles [begin, end) of a key head's group_s * tiles ones, head after head, and what came of them.
template <typename T>
struct Slab {
  int64_t key_head, begin, end; // key_head of the flattened [B * H_k]
  T* grad_k;                    // [M, D_s], the sum over these tiles
  double loss;
};

// A thread's working memory, one allocation cut to pieces of whole cache lines. Entries (gemm.h) are as wide as sums and
// use the same pieces.
template <typename T>
class Workspace {
 public:
  template <typename Entry, typename Isa>
  static int64_t size(const Problem<T>& p) {
    return Workspace().cut<Entry, Isa>(p, nullptr);
  }

  // Returns how many elements the pieces take.
  template <typename Entry, typename Isa>
  int64_t cut(const Problem<T>& p, T* memory) {
    using G = Gemm<Entry, Isa>;
    const int64_t rows = G::padded(p.tile_rows), keys = G::padded(p.keys), width = G::padded(p.q_s.width);
    const int64_t map_row = G::row_stride(p.keys);
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      constexpr int64_t kLine = 64 / sizeof(T);
      T* piece = memory + used;
      used += (count + kLine - 1) / kLine * kLine;
      return piece;
    };
    const int64_t width_s = entries<Entry>(p.q_s.width), width_t = entries<Entry>(p.q_t.width);
    k_s = take(p.keys * width_s);
    k_t = take(p.keys * width_t);
    q_s = take(rows * width_s);
    q_t = take(rows * width_t);
    across_s = take(width_s * keys);
    across_t = take(width_t * keys);
    s = take(rows * map_row);
    t = take(rows * map_row);
    if (p.with_grad) {
      down_k = take(entries<Entry>(p.keys) * width);
      down_q = take(entries<Entry>(rows) * width);
      grad_q = take(rows * width);
      grad_k = take(keys * width);
    }
    mask = reinterpret_cast<bool*>(take(p.keys * kRowsTogether / sizeof(T) + 1));
    return used;
  }

  T *k_s = nullptr, *k_t = nullptr, *q_s = nullptr, *q_t = nullptr; // copies of rows that cannot be read as they are
  T *across_s = nullptr, *across_t = nullptr;                       // the keys transposed, panels of [D, M]
  T *down_k = nullptr, *down_q = nullptr;                           // the student's keys and queries, panels of [M or R, D_s]
  T *s = nullptr, *t = nullptr;                                     // the maps, [R, M]
  T *grad_q = nullptr, *grad_k = nullptr;                           // [R, D_s], [M, D_s]
  bool* mask = nullptr;                                             // [kRowsTogether, M]
};

// Rows [first, first + count) of one head, which lie at `s` and `t`, `stride` apart: from logits to their gradient.
template <typename T, typename Isa>
VLKD_INLINE void work_on_rows(
    const Problem<T>& p, Slab<T>& slab, bool* scratch, T* s, T* t, int64_t stride, int64_t b, int64_t h, int64_t first,
    int64_t count, int64_t padded_keys) {
  using V = Simd<T, Isa>;
  Row<T> rows[kRowsTogether];
  int64_t counted = 0;
  for (int64_t r = 0; r < count; ++r, s += stride, t += stride) {
    const int64_t i = first + r, keys = p.last_key(i);
    const bool* mask = p.visibility.row_mask(b, h, i, keys, scratch + r * p.keys);
    if (p.visibility.counts(b, h, i, keys)) {
      const int64_t visible = mask == nullptr ? keys : hide(s, t, mask, keys);
      std::fill(s + keys, s + V::padded(keys), kHidden<T>);
      std::fill(t + keys, t + V::padded(keys), kHidden<T>);
      rows[counted++] = {s, t, mask, keys, visible};
    } else if (p.with_grad) {
      std::fill_n(s, padded_keys, T(0));
    }
  }
  const T factor = p.scale_s * p.weight;
  slab.loss += p.kl ? kl_rows<V>(rows, counted, factor) : mse_rows<V>(rows, counted, factor, p.with_grad);
  if (!p.with_grad) return;
  for (const Row<T>* row = rows; row < rows + counted; ++row) {
    if (row->mask != nullptr) clear(row->s, row->mask, row->keys);
    std::fill(row->s + row->keys, row->s + padded_keys, T(0));
  }
}

// A tile's gradient as the operand of two products, A of dQ = scale g K and A of dK = scale g^T Q.
template <typename Entry>
struct Gradient {
  const Entry *rows, *columns;
  int64_t row, column; // strides: of `rows` from row to row, of `columns` from an entry to the next along the tile's rows
};

// Rounds g [rows, stride] to bfloat16, paired along the keys in the place of t, and along the rows in its own. An odd last
// row pairs with zeros.
template <typename Isa>
VLKD_INLINE Gradient<Bf16Pair> paired(float* g, float* t, int64_t rows, int64_t stride, int64_t keys) {
  using V = Simd<float, Isa>;
  typedef uint32_t Bits __attribute__((vector_size(Isa::kBytes)));
  for (int64_t i = 0; i < rows; i += 2) {
    float *first = g + i * stride, *second = first + stride;
    auto *to_first = reinterpret_cast<uint16_t*>(t + i * stride), *to_second = to_first + 2 * stride;
    for (int64_t j = 0; j < keys; j += V::kLanes) {
      const auto a = Isa::to_bf16(V::load(first + j));
      const auto b = i + 1 < rows ? Isa::to_bf16(V::load(second + j)) : decltype(a){};
      std::memcpy(to_first + j, &a, sizeof a);
      std::memcpy(to_second + j, &b, sizeof b);
      const Bits pairs = __builtin_convertvector(a, Bits) | __builtin_convertvector(b, Bits) << 16;
      V::store(first + j, (typename V::Vector)pairs);
    }
  }
  return {reinterpret_cast<Bf16Pair*>(t), reinterpret_cast<Bf16Pair*>(g), stride, 2 * stride};
}

// The rare case, out of line: inlined, it would cost the common one registers.
template <typename Number>
[[gnu::noinline, gnu::cold]] void clear_not_finite(Number* panels, int64_t count) {
  keep_finite(panels, count);
}

// Rows as the right operand of a product with their gradient, packed into `memory` unless they can be read where they lie. What
// is not finite becomes 0: where it counts the gradient is NaN, and elsewhere it is 0, which would make a NaN of it.
template <typename Entry, typename Isa>
VLKD_INLINE typename Gemm<Entry, Isa>::Panels downward(const Rows<Entry>& from, Entry* memory, int64_t rows, int64_t width) {
  using G = Gemm<Entry, Isa>;
  using Number = typename EntryTraits<Entry>::Number;
  bool is_finite = true;
  for (int64_t i = 0; i < rows; ++i) is_finite &= all_finite(from.numbers() + i * from.numbers_stride(), width);
  if (is_finite && G::packed(from.stride, width)) return {from.data, entries<Entry>(rows), width};
  G::pack(memory, from.numbers(), from.numbers_stride(), rows, width);
  if (!is_finite) {
    const int64_t size = entries<Entry>(rows) * G::padded(width) * EntryTraits<Entry>::kNumbers;
    clear_not_finite(reinterpret_cast<Number*>(memory), size);
  }
  return {memory, entries<Entry>(rows), width};
}

template <typename Entry, typename Isa, typename T>
VLKD_INLINE void work_on_slab(const Problem<T>& p, Slab<T>& slab, const Workspace<T>& memory) {
  using G = Gemm<Entry, Isa>;
  const int64_t key_heads = p.heads / p.group_s, b = slab.key_head / key_heads, width = p.q_s.width;
  const int64_t all_keys = G::padded(p.keys), all_width = G::padded(width); // of the gradients
  const int64_t map_row = G::row_stride(p.keys);
  const int64_t entries_s = entries<Entry>(width), entries_t = entries<Entry>(p.q_t.width);
  const auto piece = [](T* data) __attribute__((always_inline)) { return reinterpret_cast<Entry*>(data); };
  const typename G::Panels across_s{piece(memory.across_s), entries_s, p.keys};
  const typename G::Panels across_t{piece(memory.across_t), entries_t, p.keys};

  const Rows<Entry> k_s = rows_of(p.k_s, b, slab.key_head % key_heads, 0, p.keys, p.keys, piece(memory.k_s));
  G::pack_transposed(piece(memory.across_s), k_s.data, k_s.stride, p.keys, entries_s);
  // Where no padding is needed keys, queries and gradients are used where they lie.
  typename G::Panels down_k{};
  T* grad_k = all_keys == p.keys && all_width == width ? slab.grad_k : memory.grad_k;
  if (p.with_grad) {
    down_k = downward<Entry, Isa>(k_s, piece(memory.down_k), p.keys, width);
    if (p.visibility.causal) std::fill_n(grad_k, all_keys * all_width, T(0));
  }
  int64_t packed_head = -1; // of the teacher
  for (int64_t tile = slab.begin; tile < slab.end; ++tile) {
    const int64_t h = slab.key_head % key_heads * p.group_s + tile / p.tiles;
    const int64_t first = tile % p.tiles * p.tile_rows, rows = std::min(p.tile_rows, p.queries - first);
    const int64_t all_rows = G::padded(rows);
    const int64_t keys = p.last_key(first + rows - 1);
    if (h / p.group_t != packed_head) {
      packed_head = h / p.group_t;
      const Rows<Entry> k_t = rows_of(p.k_t, b, packed_head, 0, p.keys, p.keys, piece(memory.k_t));
      G::pack_transposed(piece(memory.across_t), k_t.data, k_t.stride, p.keys, entries_t);
    }
    const Rows<Entry> q_s = rows_of(p.q_s, b, h, first, rows, all_rows, piece(memory.q_s));
    const Rows<Entry> q_t = rows_of(p.q_t, b, h, first, rows, all_rows, piece(memory.q_t));
    G::multiply(memory.s, map_row, q_s.data, q_s.stride, 1, across_s, rows, keys, entries_s, p.scale_s, false);
    G::multiply(memory.t, map_row, q_t.data, q_t.stride, 1, across_t, rows, keys, entries_t, p.scale_t, false);
    const int64_t next = b * p.heads + h + 1; // its inputs come while this head's rows are worked on
    for (int64_t r = 0; r < rows; r += kRowsTogether) {
      const int64_t count = std::min(kRowsTogether, rows - r);
      if (next < p.batch * p.heads) prefetch(p, next / p.heads, next % p.heads, first + r, count);
      work_on_rows<T, Isa>(
          p, slab, memory.mask, memory.s + r * map_row, memory.t + r * map_row, map_row, b, h, first + r, count,
          G::padded(keys));
    }
    if (!p.with_grad) continue;
    Gradient<Entry> g;
    if constexpr (EntryTraits<Entry>::kNumbers == 1) {
      g = {memory.s, memory.s, map_row, map_row};
    } else {
      g = paired<Isa>(memory.s, memory.t, rows, map_row, G::padded(keys));
    }
    T* const out = p.grad_q + ((b * p.heads + h) * p.queries + first) * width;
    T* const grad_q = all_rows == rows && all_width == width ? out : memory.grad_q;
    G::multiply(grad_q, all_width, g.rows, g.row, 1, down_k, rows, width, entries<Entry>(keys), T(1), false);
    if (grad_q != out) {
      for (int64_t r = 0; r < rows; ++r) std::copy_n(grad_q + r * all_width, width, out + r * width);
    }
    const auto down_q = downward<Entry, Isa>(q_s, piece(memory.down_q), rows, width);
    const bool add = tile > slab.begin || p.visibility.causal; // whose first tile does not reach the last keys
    G::multiply(grad_k, all_width, g.columns, 1, g.column, down_q, keys, width, entries<Entry>(rows), T(1), add);
  }
  if (p.with_grad && grad_k != slab.grad_k) {
    for (int64_t j = 0; j < p.keys; ++j) std::copy_n(grad_k + j * all_width, width, slab.grad_k + j * width);
  }
}

} // namespace
} // namespace vlkd
