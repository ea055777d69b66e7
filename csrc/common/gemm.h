// Matrix products of tiles that stay in the cache, for kernels that work on a product before it leaves there.
//
//   C [m, n] (+)= factor A [m, k] B [k, n]      A by strides, B packed into panels, C row-major
//
// A panel holds two vectors' width of columns of B, row after row; the last one may be one vector wide. One step multiplies
// kRows broadcast entries of A with a row of a panel, so that kRows x 2 vectors of C stay in registers over all of k.
//
// An entry is what one lane of the processor's multiply-add takes: a number, or two bfloat16 that follow each other along k,
// whose products both go into the float32 sum. Entries are as wide as sums; strides and k count entries.
//
// With a matrix unit (amx.h) pairs are multiplied by tiles: 16 rows of A or of a panel's columns, 16 entries along k. What is
// over along k goes the other way.
#pragma once

#include "amx.h"
#include "simd.h"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace vlkd {

struct Bf16Pair {
  c10::BFloat16 first, second;
};

template <typename Entry>
struct EntryTraits {
  using Number = Entry;
  using Sum = Entry;
  static constexpr int64_t kNumbers = 1;
};

template <>
struct EntryTraits<Bf16Pair> {
  using Number = c10::BFloat16;
  using Sum = float;
  static constexpr int64_t kNumbers = 2;
};

// The bits of a number that are all set where it is infinite or NaN.
template <typename Number>
struct Exponent;
template <>
struct Exponent<c10::BFloat16> {
  using Bits = uint16_t;
  static constexpr Bits kAll = 0x7f80;
};
template <>
struct Exponent<float> {
  using Bits = uint32_t;
  static constexpr Bits kAll = 0x7f800000;
};
template <>
struct Exponent<double> {
  using Bits = uint64_t;
  static constexpr Bits kAll = 0x7ff0000000000000;
};

// Whether `count` numbers are all finite.
template <typename Number>
VLKD_INLINE bool all_finite(const Number* data, int64_t count) {
  using Bits = typename Exponent<Number>::Bits;
  Bits found = 0;
#pragma omp simd reduction(| : found)
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i, sizeof bits);
    found |= (bits & Exponent<Number>::kAll) == Exponent<Number>::kAll ? Bits(1) : Bits(0);
  }
  return found == 0;
}

// Makes 0 of what is not finite, in an operand of weights that are NaN where it counts and 0 where it does not.
template <typename Number>
VLKD_INLINE void keep_finite(Number* data, int64_t count) {
  using Bits = typename Exponent<Number>::Bits;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i, sizeof bits);
    bits = (bits & Exponent<Number>::kAll) == Exponent<Number>::kAll ? Bits(0) : bits;
    std::memcpy(data + i, &bits, sizeof bits);
  }
}

// How many entries hold `numbers` numbers along k.
template <typename Entry>
constexpr int64_t entries(int64_t numbers) {
  return (numbers + EntryTraits<Entry>::kNumbers - 1) / EntryTraits<Entry>::kNumbers;
}

template <typename Entry, typename Isa>
struct Gemm {
  using Number = typename EntryTraits<Entry>::Number;
  using T = typename EntryTraits<Entry>::Sum;
  using V = Simd<T, Isa>;
  using Vector = typename V::Vector;
  static_assert(sizeof(Entry) == sizeof(T), "a vector of entries has as many lanes as a vector of sums");
  static constexpr int64_t kLanes = V::kLanes, kPanel = 2 * kLanes, kRows = Isa::kRows;
  static constexpr int64_t kPadding = kLanes > kRows ? kLanes : kRows;

  // Rows and columns are padded to this, so that no step has a remainder.
  static constexpr int64_t padded(int64_t size) { return (size + kPadding - 1) / kPadding * kPadding; }

  // From row to row of a matrix of n columns that is read along its columns too: an odd number of cache lines, for rows a
  // power of two apart would share a few sets of the cache.
  static constexpr int64_t row_stride(int64_t n) {
    constexpr int64_t kLine = 64 / sizeof(T);
    return ((padded(n) + kLine - 1) / kLine | 1) * kLine;
  }

  // B = src transposed, src [n, k] with rows `stride` apart; columns from n to padded(n) are 0. Takes k * padded(n) entries.
  static VLKD_INLINE void pack_transposed(
      Entry* __restrict to, const Entry* __restrict src, int64_t stride, int64_t n, int64_t k) {
    for (int64_t first = 0; first < padded(n); first += kPanel) {
      const int64_t width = std::min(kPanel, padded(n) - first), filled = std::clamp<int64_t>(n - first, 0, width);
      Entry* panel = to + first * k;
      const Entry* from = src + first * stride;
      if (filled < width) std::fill(panel, panel + width * k, Entry{});
      int64_t j = 0;
      for (; j + kLanes <= filled; j += kLanes) {
        int64_t i = 0;
        for (; i + kLanes <= k; i += kLanes) transpose(panel + i * width + j, width, from + j * stride + i, stride);
        for (; i < k; ++i) {
          for (int64_t l = j; l < j + kLanes; ++l) panel[i * width + l] = from[l * stride + i];
        }
      }
      for (; j < filled; ++j) {
        for (int64_t i = 0; i < k; ++i) panel[i * width + j] = from[j * stride + i];
      }
    }
  }

  // Whether rows of numbers that are `stride` apart already lie as a panel.
  static constexpr bool packed(int64_t stride, int64_t n) {
    return EntryTraits<Entry>::kNumbers == 1 && n == stride && (n == kLanes || n == kPanel) && n == padded(n);
  }

  // B = src, [rows, n] numbers with rows `stride` apart; columns from n to padded(n) are 0. Takes entries(rows) * padded(n).
  static VLKD_INLINE void pack(Entry* __restrict to, const Number* __restrict src, int64_t stride, int64_t rows, int64_t n) {
    for (int64_t first = 0; first < padded(n); first += kPanel) {
      const int64_t width = std::min(kPanel, padded(n) - first), filled = std::clamp<int64_t>(n - first, 0, width);
      Entry* panel = to + first * entries<Entry>(rows);
      for (int64_t i = 0; i < rows; i += EntryTraits<Entry>::kNumbers, panel += width) {
        const Number* from = src + i * stride + first;
        if constexpr (EntryTraits<Entry>::kNumbers == 1) {
          std::copy_n(from, filled, panel);
        } else if (i + 1 < rows) {
          for (int64_t j = 0; j < filled; ++j) panel[j] = {from[j], from[stride + j]};
        } else {
          for (int64_t j = 0; j < filled; ++j) panel[j] = {from[j], Number(0)};
        }
        std::fill_n(panel + filled, width - filled, Entry{});
      }
    }
  }

  // A packed B: the k and n that it was packed with.
  struct Panels {
    const Entry* data;
    int64_t k, n;
  };

  // A[i, l] = a[i * a_row + l * a_column] for i < padded(m), l < k <= b.k. Columns of C are written up to the end of the
  // panel that holds column n - 1, so at most up to padded(b.n).
  static VLKD_INLINE void multiply(
      T* __restrict c, int64_t c_row, const Entry* __restrict a, int64_t a_row, int64_t a_column, const Panels& b,
      int64_t m, int64_t n, int64_t k, T factor, bool add) {
#ifdef VLKD_AMX
    if constexpr (kHasTiles) {
      if (a_column == 1) return multiply_tiles(c, c_row, a, a_row, a, a_row, a_column, b, m, n, k, factor, add);
      if (a_row == 1 && k <= kMostTransposed) {
        alignas(64) Entry rows[2 * kLanes * kMostTransposed];
        for (int64_t i = 0; i < m; i += 2 * kLanes) {
          const int64_t count = std::min(2 * kLanes, m - i);
          for (int64_t r = 0; r < count; r += kLanes) {
            for (int64_t l = 0; l + kLanes <= k; l += kLanes) {
              transpose(rows + r * kMostTransposed + l, kMostTransposed, a + i + r + l * a_column, a_column);
            }
          }
          multiply_tiles(c + i * c_row, c_row, rows, kMostTransposed, a + i, a_row, a_column, b, count, n, k, factor, add);
        }
        return;
      }
    }
#endif
    for (int64_t first = 0; first < n; first += kPanel) {
      const Entry* panel = b.data + first * b.k;
      const bool whole = padded(b.n) - first > kLanes;
      for (int64_t i = 0; i < m; i += kRows) {
        if (whole) {
          step<2>(c + i * c_row + first, c_row, a + i * a_row, a_row, a_column, panel, k, factor, add);
        } else {
          step<1>(c + i * c_row + first, c_row, a + i * a_row, a_row, a_column, panel, k, factor, add);
        }
      }
    }
  }

 private:
#ifdef VLKD_AMX
  static constexpr bool kHasTiles = std::is_same_v<Isa, Amx> && std::is_same_v<Entry, Bf16Pair>;
  static constexpr int64_t kMostTransposed = 64; // entries along k that are transposed at a time

  // As `multiply`; `rows` is A up to the last whole tile along k, by rows of `row` entries.
  static VLKD_INLINE void multiply_tiles(
      T* __restrict c, int64_t c_row, const Entry* rows, int64_t row, const Entry* a, int64_t a_row, int64_t a_column,
      const Panels& b, int64_t m, int64_t n, int64_t k, T factor, bool add) {
    const int64_t whole = k / kLanes * kLanes;
    for (int64_t first = 0; first < n; first += kPanel) {
      const Entry* panel = b.data + first * b.k;
      const int64_t width = std::min(kPanel, padded(b.n) - first);
      for (int64_t i = 0; i < m && whole > 0; i += 2 * kLanes) {
        T* to = c + i * c_row + first;
        const Entry* from = rows + i * row;
        const bool tall = m - i > kLanes;
        if (tall && width > kLanes) {
          block<2, 2>(to, c_row, from, row, panel, whole, factor, add);
        } else if (tall) {
          block<2, 1>(to, c_row, from, row, panel, whole, factor, add);
        } else if (width > kLanes) {
          block<1, 2>(to, c_row, from, row, panel, whole, factor, add);
        } else {
          block<1, 1>(to, c_row, from, row, panel, whole, factor, add);
        }
      }
      if (whole == k) continue;
      const Entry *left = a + whole * a_column, *below = panel + whole * width;
      for (int64_t i = 0; i < m; i += kRows) {
        T* to = c + i * c_row + first;
        if (width > kLanes) {
          step<2>(to, c_row, left + i * a_row, a_row, a_column, below, k - whole, factor, add || whole > 0);
        } else {
          step<1>(to, c_row, left + i * a_row, a_row, a_column, below, k - whole, factor, add || whole > 0);
        }
      }
    }
  }

  // kTall x kWide tiles of C, in registers 0 to 3; A's are in 4 and 5, B's in 6 and 7.
  template <int kTall, int kWide>
  static VLKD_INLINE void block(
      T* __restrict c, int64_t c_row, const Entry* a, int64_t row, const Entry* b, int64_t k, T factor, bool add) {
    const int64_t line = c_row * static_cast<int64_t>(sizeof(T)), a_line = row * static_cast<int64_t>(sizeof(Entry));
    constexpr int64_t kLine = kWide * kLanes * sizeof(Entry);
    const bool direct = factor == 1;
    if (direct && add) {
      tile_load<0>(c, line);
      if constexpr (kWide == 2) tile_load<1>(c + kLanes, line);
      if constexpr (kTall == 2) tile_load<2>(c + kLanes * c_row, line);
      if constexpr (kTall == 2 && kWide == 2) tile_load<3>(c + kLanes * c_row + kLanes, line);
    } else {
      tile_zero<0>();
      if constexpr (kWide == 2) tile_zero<1>();
      if constexpr (kTall == 2) tile_zero<2>();
      if constexpr (kTall == 2 && kWide == 2) tile_zero<3>();
    }
    for (int64_t l = 0; l < k; l += kLanes, a += kLanes, b += kWide * kLanes * kLanes) {
      tile_load<4>(a, a_line);
      tile_load<6>(b, kLine);
      tile_dot_pairs<0, 4, 6>();
      if constexpr (kWide == 2) {
        tile_load<7>(b + kLanes, kLine);
        tile_dot_pairs<1, 4, 7>();
      }
      if constexpr (kTall == 2) {
        tile_load<5>(a + kLanes * row, a_line);
        tile_dot_pairs<2, 5, 6>();
        if constexpr (kWide == 2) tile_dot_pairs<3, 5, 7>();
      }
    }
    if (direct) {
      tile_store<0>(c, line);
      if constexpr (kWide == 2) tile_store<1>(c + kLanes, line);
      if constexpr (kTall == 2) tile_store<2>(c + kLanes * c_row, line);
      if constexpr (kTall == 2 && kWide == 2) tile_store<3>(c + kLanes * c_row + kLanes, line);
      return;
    }
    constexpr int64_t kWidth = kWide * kLanes, kSumsLine = kWidth * sizeof(T);
    alignas(64) T sums[kTall * kLanes * kWidth];
    tile_store<0>(sums, kSumsLine);
    if constexpr (kWide == 2) tile_store<1>(sums + kLanes, kSumsLine);
    if constexpr (kTall == 2) tile_store<2>(sums + kLanes * kWidth, kSumsLine);
    if constexpr (kTall == 2 && kWide == 2) tile_store<3>(sums + kLanes * kWidth + kLanes, kSumsLine);
    for (int64_t i = 0; i < kTall * kLanes; ++i, c += c_row) {
#pragma GCC unroll 2
      for (int64_t j = 0; j < kWidth; j += kLanes) {
        const Vector scaled = factor * V::load(sums + i * kWidth + j);
        V::store(c + j, add ? V::load(c + j) + scaled : scaled);
      }
    }
  }
#endif

  static VLKD_INLINE Vector load(const Entry* from) { return V::load(reinterpret_cast<const T*>(from)); }
  static VLKD_INLINE void store(Entry* to, Vector x) { V::store(reinterpret_cast<T*>(to), x); }

  static VLKD_INLINE Vector multiply_add(Entry a, Vector b, Vector sum) {
    if constexpr (EntryTraits<Entry>::kNumbers == 1) {
      return sum + a * b;
    } else {
      uint32_t bits;
      std::memcpy(&bits, &a, sizeof bits);
      return Isa::dot_pairs((Vector)(typename V::Bits{} + bits), b, sum);
    }
  }

  // to = from transposed, kLanes x kLanes: log2(kLanes) rounds in which rows exchange halves, quarters, ...
  static VLKD_INLINE void transpose(Entry* to, int64_t to_row, const Entry* from, int64_t from_row) {
    Vector rows[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = load(from + i * from_row);
    exchange<1>(rows);
    exchange<2>(rows);
    exchange<4>(rows);
    exchange<8>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(to + i * to_row, rows[i]);
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
      T* __restrict c, int64_t c_row, const Entry* __restrict a, int64_t a_row, int64_t a_column, const Entry* __restrict b,
      int64_t k, T factor, bool add) {
    Vector sums[kRows][kVectors] = {};
    for (int64_t l = 0; l < k; ++l) {
      Vector row[kVectors];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) row[j] = load(b + (l * kVectors + j) * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Entry entry = a[i * a_row + l * a_column];
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) sums[i][j] = multiply_add(entry, row[j], sums[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        T* to = c + i * c_row + j * kLanes;
        V::store(to, add ? V::load(to) + factor * sums[i][j] : factor * sums[i][j]);
      }
    }
  }
};

} // namespace vlkd
