// The matrix unit of newer Intel processors (AMX): eight tile registers of 16 rows of 64 bytes, and their product.
//
// A process asks the kernel for it once (instruction_set.h), a thread configures it before it computes. The instructions are
// written out, for a function that used intrinsics would have to carry their instruction set.
#pragma once

#include "simd.h"

#ifdef VLKD_AMX

#include <cstdint>

namespace vlkd {

constexpr int64_t kTileRows16 = 16; // of a tile; a row has as many pairs of bfloat16 or float32 sums

// What ldtilecfg reads.
struct alignas(64) TileConfiguration {
  uint8_t palette = 0, first_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfiguration) == 64);

// Whole tiles in all eight registers of this thread, for as long as this lives. Afterwards they are as they were configured
// before: torch's own products use them too.
class WholeTiles {
 public:
  VLKD_INLINE WholeTiles() {
    TileConfiguration whole;
    whole.palette = 1;
    for (int i = 0; i < 8; ++i) {
      whole.row_bytes[i] = 64;
      whole.rows[i] = kTileRows16;
    }
    __asm__ volatile("sttilecfg %0" : "=m"(before_));
    __asm__ volatile("ldtilecfg %0" ::"m"(whole));
  }
  VLKD_INLINE ~WholeTiles() { __asm__ volatile("ldtilecfg %0" ::"m"(before_)); }

  WholeTiles(const WholeTiles&) = delete;
  WholeTiles& operator=(const WholeTiles&) = delete;

 private:
  TileConfiguration before_;
};

// A register is named when the code is compiled. Rows in memory are `stride` bytes apart.
template <int kTile>
VLKD_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

template <int kTile>
VLKD_INLINE void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
}

template <int kTile>
VLKD_INLINE void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(stride) : "memory");
}

// sums [16, 16] += a [16, 16 pairs] b [16 pairs, 16]
template <int kSums, int kA, int kB>
VLKD_INLINE void tile_dot_pairs() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}

} // namespace vlkd

#endif
