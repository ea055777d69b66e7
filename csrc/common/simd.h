// Vector registers of every instruction set that the library is compiled for.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

// A wheel is built for the oldest processor it must run on; functions compiled for newer ones are chosen when it runs
// (instruction_set.h).
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define VLKD_AVX2 __attribute__((target("avx2,fma")))
#define VLKD_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#if !defined(__clang__) // which refuses instructions outside of such a function, even in one that is inlined there
#define VLKD_AVX512_BF16
#if __GNUC__ >= 11 // whose assembler knows the instructions
#define VLKD_AMX
#endif
#endif
#endif

#define VLKD_INLINE inline __attribute__((always_inline))

namespace vlkd {

// Marks what a softmax leaves out. It is not -infinity, which a product may give and must not be left out in silence, and its
// distance to a logit, in powers of 2, is finite.
template <typename T>
constexpr T kHidden = std::numeric_limits<T>::lowest() / 2;

// e^x - 1 - x for |x| <= 1/2 from its series, where the closed form would cancel; V is T or a vector of it.
template <typename V, typename T>
VLKD_INLINE V expm1_minus_x(V x) {
  constexpr int kTerms = sizeof(T) == 8 ? 15 : 8;
  V series = V{} + T(1);
#pragma GCC unroll 16
  for (int k = kTerms; k >= 3; --k) series = T(1) + series * x * (T(1) / T(k));
  return T(0.5) * x * x * series;
}

// Instruction sets: bytes of a vector register, and rows of a product whose sums fit the registers (gemm.h).
struct Avx512 {
  static constexpr int kBytes = 64, kRows = 8;
};
struct Avx2 {
  static constexpr int kBytes = 32, kRows = 4;
};
struct Baseline {
  static constexpr int kBytes = 16, kRows = 4;
};
#ifdef VLKD_AVX512_BF16
struct Avx512Bf16 : Avx512 {
  // sum + the dot products of pairs of bfloat16, lane by lane. Written out, for a function that used an intrinsic
  // would have to carry its instruction set, and so would all that it is inlined into on the way.
  template <typename Vector>
  static VLKD_INLINE Vector dot_pairs(Vector a, Vector b, Vector sum) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }

  // The nearest bfloat16 of every lane.
  template <typename Vector>
  static VLKD_INLINE auto to_bf16(Vector x) {
    typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));
    Halves result;
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(result) : "v"(x));
    return result;
  }
};
#endif
#ifdef VLKD_AMX
struct Amx : Avx512Bf16 {}; // pairs are multiplied by tiles (amx.h), all else is done as without
#endif

// A vector register of T, for loops that are written rather than left to the vectoriser.
template <typename T, typename Isa>
struct Simd {
  static constexpr int kLanes = Isa::kBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(Isa::kBytes)));
  typedef T Unaligned __attribute__((vector_size(Isa::kBytes), aligned(2), may_alias)); // pairs of bfloat16 are loaded too
  typedef std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t> Bits __attribute__((vector_size(Isa::kBytes)));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index __attribute__((vector_size(Isa::kBytes)));

  static constexpr int64_t padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

  static VLKD_INLINE Vector load(const T* from) { return *reinterpret_cast<const Unaligned*>(from); }
  static VLKD_INLINE void store(T* to, Vector x) { *reinterpret_cast<Unaligned*>(to) = x; }
  static VLKD_INLINE Vector exact(Vector x) { return x + x * T(0); } // NaN where x is infinite
  static VLKD_INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; } // b where a is NaN or b is

  // Lanes of a, counted from 0, and of b, counted from kLanes.
  template <int... kLane>
  static VLKD_INLINE Vector shuffled(Vector a, Vector b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, kLane...);
#else
    return __builtin_shuffle(a, b, Index{kLane...}); // the other only came with GCC 12
#endif
  }

  static VLKD_INLINE T sum(Vector x) {
    return fold<kLanes / 2>(x, [](Vector a, Vector b) __attribute__((always_inline)) { return a + b; });
  }
  static VLKD_INLINE T largest(Vector x) {
    return fold<kLanes / 2>(x, [](Vector a, Vector b) __attribute__((always_inline)) { return larger(a, b); });
  }

  // 2^x for x <= 0; below `kLowest` as there; NaN for what is not finite.
  static VLKD_INLINE Vector exp2(Vector x) {
    return exp2_of_finite(x) + x * T(0); // the clamp makes a number of -infinity, and the shift may of a NaN
  }

  // The same where x is known to be finite, or the result is not used. The polynomial is of least maximal error.
  static VLKD_INLINE Vector exp2_of_finite(Vector x) {
    constexpr T kLowest = sizeof(T) == 8 ? -1000 : -100;
    constexpr int kMantissa = sizeof(T) == 8 ? 52 : 23;
    constexpr T kRound = T(3ull << (kMantissa - 1)); // adding it leaves the nearest integer in the low bits
    const Vector clamped = larger(Vector{} + kLowest, x), shifted = clamped + kRound;
    const Vector r = clamped - (shifted - kRound); // exact, in [-1/2, 1/2]
    return (Vector)((Bits)power_of_2(r) + ((Bits)shifted << kMantissa)); // into the exponent
  }

 private:
  template <int kStep, typename Fold>
  static VLKD_INLINE T fold(Vector x, Fold combine) {
    if constexpr (kStep == 0) {
      return x[0];
    } else {
      return fold<kStep / 2>(combine(x, rotated<kStep>(x, std::make_integer_sequence<int, kLanes>{})), combine);
    }
  }

  template <int kStep, int... kLane>
  static VLKD_INLINE Vector rotated(Vector x, std::integer_sequence<int, kLane...>) {
    return shuffled<((kLane + kStep) % kLanes)...>(x, x);
  }

  static VLKD_INLINE Vector power_of_2(Vector r) {
    if constexpr (sizeof(T) == 4) { // Cephes
      Vector p = Vector{} + T(1.535336188319500e-4);
      p = p * r + T(1.339887440266574e-3);
      p = p * r + T(9.618437357674640e-3);
      p = p * r + T(5.550332471162809e-2);
      p = p * r + T(2.402264791363012e-1);
      p = p * r + T(6.931472028550421e-1);
      return p * r + T(1);
    } else { // the Taylor series: its first term left out is below 2^-55 of the sum
      Vector p = Vector{};
#pragma GCC unroll 16
      for (int k = 13; k >= 1; --k) p = (p + T(1)) * r * T(0.6931471805599453 / k);
      return p + T(1);
    }
  }
};

} // namespace vlkd
