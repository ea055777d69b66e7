// Loops that the compiler vectorises, compiled once per instruction set and chosen when the library loads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// A wheel is built for the oldest processor it must run on; without clones its loops would stay there too.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define VLKD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VLKD_CLONES
#endif

#define VLKD_INLINE inline __attribute__((always_inline))

namespace vlkd {

template <typename T>
constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();

VLKD_INLINE double exp(double x) {
  return std::exp(x);
}

// e^x for x <= 88, within 1 unit in the last place (0.98 at worst over [-87.3, 0], against float64); 0 below -87.3,
// also for -infinity, and NaN for NaN. The polynomial is Cephes'. Branch-free, because a call stops vectorisation.
VLKD_INLINE float exp(float x) {
  constexpr float kLowest = -87.3f;
  constexpr float kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float clamped = x < kLowest ? kLowest : x;
  const float shifted = clamped * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits) << 23) + 0x3f800000;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < kLowest ? 0.0f : p * power;
}

// e^x - 1 - x for |x| <= 1/2 from its series, where the closed form would cancel.
template <typename T>
VLKD_INLINE T expm1_minus_x(T x) {
  constexpr int kTerms = sizeof(T) == 8 ? 15 : 8;
  T series = 1;
  for (int k = kTerms; k >= 3; --k) {
    series = T(1) + series * x * (T(1) / T(k));
  }
  return T(0.5) * x * x * series;
}

} // namespace vlkd
