// What host and device know of attention_mse's GPU kernel (head.cuh): its argument, and how its blocks are cut.
//
// Legend: B batch, H heads, L queries, M keys, D head width.
#pragma once

#include "../common/element.h"

#include <cstdint>

namespace vlkd {

// A [B, heads, rows, D] input, read through its strides (in elements).
struct HeadInput {
  const void* data;
  Element type;
  bool vectors; // its rows can be copied 16 bytes at a time, as they are
  int64_t strides[4];
  int width;
};

constexpr int kRowPad = 8; // elements that a row in shared memory is longer than what it holds

struct HeadProblem {
  HeadInput q_s, k_s, q_t, k_t;
  const bool* mask; // [B, H, L, M] by strides, or null
  int64_t mask_strides[4];
  const bool* counted; // [B, L] by strides, or null
  int64_t counted_strides[2];
  int heads, group_s, group_t, queries, keys; // H; query heads that share a key head of the student, of the teacher; L; M
  float scale_s, scale_t;                     // of the scores, times log2(e)
  float gradient_scale;
  bool causal, kl, with_grad;
  float *loss, *count;    // [B * H_k]
  float *grad_q, *grad_k; // [B, H, L, D_s], [B, H_k, M, D_s]
};

// How a block is cut: D_s and D_t, padded; warps side by side, each with 64 of the keys; warps below each other, each with
// 16 of a chunk's rows. A warp's registers hold two strips of scores and the dK of some keys: that is what limits the sizes.
template <int kPaddedWidth, int kPaddedTeacher, int kAcross, int kDown>
struct HeadPlan {
  static constexpr int kWidth = kPaddedWidth, kWidthT = kPaddedTeacher, kKeyWarps = kAcross, kRowWarps = kDown;
  static constexpr int kPairs = 4, kRows = 16 * kRowWarps; // pairs of 8 keys that a warp holds at most
  static constexpr int kWarps = kRowWarps * kKeyWarps, kThreads = 32 * kWarps;
  static constexpr int kKeys = 16 * kPairs * kKeyWarps;
  static constexpr int kTiles = kKeys / 16 / kWarps; // of 16 keys, whose dK a warp sums
  static constexpr int kStats = 5;

  // Rows in shared memory are 8 elements longer than what they hold: an odd number of 16-byte banks, so that eight rows
  // of a tile never meet in one.
  static constexpr int kPad = kRowPad, kPitch = kWidth + kPad, kPitchT = kWidthT + kPad, kGradientPitch = kKeys + kPad;
  static constexpr int padded(int size) { return (size + 15) / 16 * 16; }
  static constexpr int elements(int keys) {
    return (padded(keys) + 2 * kRows) * (kPitch + kPitchT) + kRows * kGradientPitch;
  }
  static constexpr int floats() { return kKeyWarps * kRows * (kStats + 1) + kWarps; }
  static constexpr int shared_bytes(int keys) {
    return 2 * elements(keys) + 4 * floats() + kRows * kKeys / 8;
  }
};

// Calls visit(HeadPlan<...>{}) with the plan for some keys and two head widths; false if there is none.
template <typename Visitor>
bool visit_plan(int keys, int width, int width_t, Visitor&& visit) {
  if (width_t > 128) return false;
  const bool narrow = width_t <= 64;
  if (width <= 32 && keys <= 128) {
    narrow ? visit(HeadPlan<32, 64, 2, 4>{}) : visit(HeadPlan<32, 128, 2, 4>{});
  } else if (width <= 64 && keys <= 128) {
    narrow ? visit(HeadPlan<64, 64, 2, 4>{}) : visit(HeadPlan<64, 128, 2, 4>{});
  } else if (width <= 128 && keys <= 128) {
    visit(HeadPlan<128, 128, 2, 4>{});
  } else if (width <= 32 && keys <= 256) {
    narrow ? visit(HeadPlan<32, 64, 4, 2>{}) : visit(HeadPlan<32, 128, 4, 2>{});
  } else if (width <= 64 && keys <= 256) {
    narrow ? visit(HeadPlan<64, 64, 4, 2>{}) : visit(HeadPlan<64, 128, 4, 2>{});
  } else {
    return false;
  }
  return true;
}

} // namespace vlkd
