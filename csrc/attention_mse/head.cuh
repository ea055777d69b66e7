// attention_mse on the GPU for heads of at most 256 keys: loss, dQ and dK in one launch, every input read once.
//
// Legend: B batch, H heads, L queries, M keys, D head width.
// A block owns one key head of the student. Its keys and the teacher's lie in shared memory; the queries of the heads that
// share it stream by in chunks of 64 or 32 rows, the next chunk being copied while one is worked on. Of a chunk, a warp owns 16
// rows and at most 64 keys. The rows' two strips of scores stay in its registers from the product
// through the softmax to their gradient: an exponential is taken once (kl: twice). The gradient is rounded into shared
// memory, where all warps take it from: into dQ, which is done, and into dK, which each warp sums for keys of its own.
// No atomics; the order of every sum is fixed. The derivation is in vlkd_kernels/attention_mse/README.md.
#pragma once

#include "plan.h"
#include "strips.cuh"

#include <cstdint>
#include <type_traits>

namespace vlkd {

template <typename T, typename Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1) attention_mse_head(const HeadProblem p) {
  constexpr int kWidth = Plan::kWidth, kPairs = Plan::kPairs, kKeyWarps = Plan::kKeyWarps;
  // In float16 the gradient of a mean is often below the smallest number. It is therefore scaled by a power of two that
  // brings the largest entry of a chunk close to the largest number; dK, a sum over chunks, is kept at their least scale.
  constexpr bool kScaled = std::is_same_v<T, c10::Half>;
  constexpr int kStrip = 2 * kPairs;
  VLKD_SHARED_MEMORY(memory);

  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int strip = warp % Plan::kRowWarps, part = warp / Plan::kRowWarps; // of the rows, of the keys
  const int key_heads = p.heads / p.group_s, key_head = blockIdx.x % key_heads;
  const int64_t b = blockIdx.x / key_heads;
  const int width = p.q_s.width, rows_of_keys = Plan::padded(p.keys);
  const int pairs = rows_of_keys / 16, pairs_of_part = (pairs + kKeyWarps - 1) / kKeyWarps;
  const int first_pair = min(part * pairs_of_part, pairs), own_tiles = 2 * min(pairs_of_part, pairs - first_pair);

  T* const k_s = reinterpret_cast<T*>(memory);
  T* const k_t = k_s + rows_of_keys * Plan::kPitch;
  T* const q_s = k_t + rows_of_keys * Plan::kPitchT;
  T* const q_t = q_s + 2 * Plan::kRows * Plan::kPitch;
  T* const gradient = q_t + 2 * Plan::kRows * Plan::kPitchT;
  float* const stats = reinterpret_cast<float*>(gradient + Plan::kRows * Plan::kGradientPitch); // [part][row][kStats]
  float* const deltas = stats + kKeyWarps * Plan::kRows * Plan::kStats;                         // [part][row]
  float* const of_warps = deltas + kKeyWarps * Plan::kRows;                                     // [warp]
  uint32_t* const seen = reinterpret_cast<uint32_t*>(of_warps + Plan::kWarps); // bits of [row][key], or of [key]

  const bool masked = p.mask != nullptr || p.counted != nullptr || p.causal; // what does not count may be no number
  const int chunks = (p.queries + Plan::kRows - 1) / Plan::kRows, steps = p.group_s * chunks;
  const auto load_chunk = [&](int step) {
    const int h = key_head * p.group_s + step / chunks, first = step % chunks * Plan::kRows, stage = step % 2 * Plan::kRows;
    load_rows<Plan::kPitch>(q_s + stage * Plan::kPitch, p.q_s, b, h, first, p.queries, Plan::kRows, Plan::kThreads);
    load_rows<Plan::kPitchT>(q_t + stage * Plan::kPitchT, p.q_t, b, h, first, p.queries, Plan::kRows, Plan::kThreads);
  };
  const auto load_teacher = [&](int head) {
    load_rows<Plan::kPitchT>(k_t, p.k_t, b, head, 0, p.keys, rows_of_keys, Plan::kThreads);
  };
  int teacher_head = key_head * p.group_s / p.group_t;
  load_rows<Plan::kPitch>(k_s, p.k_s, b, key_head, 0, p.keys, rows_of_keys, Plan::kThreads);
  load_teacher(teacher_head);
  load_chunk(0);
  close_batch();

  float loss = 0.0f, count = 0.0f, scale_of_dk = 0x1p114f;
  float dk[Plan::kTiles][kWidth / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    const int h = key_head * p.group_s + step / chunks, first = step % chunks * Plan::kRows, stage = step % 2 * Plan::kRows;
    const bool busy = first + 16 * strip < p.queries; // the same for all lanes, and for the warps of the other keys
    if (step + 1 < steps) load_chunk(step + 1);
    close_batch();
    if (h / p.group_t != teacher_head) {
      teacher_head = h / p.group_t;
      load_teacher(teacher_head);
      close_batch();
      await_copies<0>();
    } else {
      await_copies<1>();
    }
    // Which keys the mask shows: one row of bits if all queries see the same ones, else one for each of the chunk's.
    const bool* const mask = p.mask == nullptr ? nullptr : p.mask + b * p.mask_strides[0] + h * p.mask_strides[1];
    const int rows_of_bits = mask != nullptr && p.mask_strides[2] != 0 ? min(Plan::kRows, p.queries - first) : 1;
    for (int i = warp; i < rows_of_bits * (Plan::kKeys / 32); i += Plan::kWarps) {
      const int row = first + i / (Plan::kKeys / 32), key = i % (Plan::kKeys / 32) * 32 + lane;
      const bool shown = key < p.keys && (mask == nullptr || mask[row * p.mask_strides[2] + key * p.mask_strides[3]]);
      const uint32_t bits = __ballot_sync(kWholeWarp, shown);
      if (lane == 0) seen[i] = bits;
    }
    __syncthreads();

    float s[kStrip][4], t[kStrip][4];
    float weight[2] = {0.0f, 0.0f}, factor_s[2], factor_t[2];
    bool counts[2] = {false, false};
    Softmax row_s[2], row_t[2];
    int visible[2] = {0, 0};
    if (busy) {
      const T* const rows_s = q_s + (stage + 16 * strip) * Plan::kPitch;
      const T* const rows_t = q_t + (stage + 16 * strip) * Plan::kPitchT;
      strip_of_scores<T, Plan::kPitchT>(t, rows_t, k_t + 16 * first_pair * Plan::kPitchT, p.q_t.width, own_tiles / 2, p.scale_t);
      strip_of_scores<T, Plan::kPitch>(s, rows_s, k_s + 16 * first_pair * Plan::kPitch, width, own_tiles / 2, p.scale_s);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int of_chunk = 16 * strip + lane / 4 + 8 * i, row = first + of_chunk;
        const auto* const bits_of_pairs =
            reinterpret_cast<const uint16_t*>(seen) + (rows_of_bits > 1 ? of_chunk * (Plan::kKeys / 16) : 0) + first_pair;
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
          if (2 * j >= own_tiles) break;
          uint32_t bits = row < p.queries ? bits_of_pairs[j] : 0;
          const int keys_until = row + 1 - 16 * (first_pair + j); // of this pair, that come no later than the row
          if (p.causal && keys_until < 16) bits &= (1u << max(keys_until, 0)) - 1;
          visible[i] += __popc(bits);
          bits >>= 2 * (lane % 4);
#pragma unroll
          for (int n = 0; n < 2; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              if (!(bits >> (8 * n + e) & 1)) s[2 * j + n][2 * i + e] = t[2 * j + n][2 * i + e] = kHidden;
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        row_s[i] = p.kl ? softmax_of_row<false>(s, own_tiles, i) : softmax_of_row<true>(s, own_tiles, i);
        row_t[i] = p.kl ? softmax_of_row<false>(t, own_tiles, i) : softmax_of_row<true>(t, own_tiles, i);
      }
    }
    const float own_largest_s[2] = {row_s[0].largest, row_s[1].largest}, own_largest_t[2] = {row_t[0].largest, row_t[1].largest};
    { // the other keys of the same rows are with other warps
      const auto place = [&](int of_part, int i) {
        return stats + (of_part * Plan::kRows + 16 * strip + lane / 4 + 8 * i) * Plan::kStats;
      };
      if (busy && lane % 4 == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float* const to = place(part, i);
          to[0] = row_s[i].largest;
          to[1] = row_s[i].sum;
          to[2] = row_t[i].largest;
          to[3] = row_t[i].sum;
          to[4] = static_cast<float>(visible[i]);
        }
      }
      __syncthreads();
      if (busy) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float all = 0.0f;
          row_s[i] = row_t[i] = {kHidden, 0.0f};
#pragma unroll
          for (int other = 0; other < kKeyWarps; ++other) {
            const float* const from = place(other, i);
            row_s[i] = joined(row_s[i], {from[0], from[1]});
            row_t[i] = joined(row_t[i], {from[2], from[3]});
            all += from[4];
          }
          visible[i] = static_cast<int>(all);
        }
      }
    }
    float delta[2] = {0.0f, 0.0f};
    if (busy) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = first + 16 * strip + lane / 4 + 8 * i;
        counts[i] = row < p.queries && visible[i] > 0 &&
            (p.counted == nullptr || p.counted[b * p.counted_strides[0] + row * p.counted_strides[1]]);
        if (counts[i] && part == 0 && lane % 4 == 0) count += 1.0f;
        float value = 0.0f;
        if (p.kl) {
          weight[i] = counts[i] ? 1.0f : 0.0f;
          const float lse_s = row_s[i].largest + log2f(row_s[i].sum), lse_t = row_t[i].largest + log2f(row_t[i].sum);
#pragma unroll
          for (int n = 0; n < kStrip; ++n) {
            if (n >= own_tiles) break;
#pragma unroll
            for (int e = 2 * i; e < 2 * i + 2; ++e) {
              const float log_p = s[n][e] - lse_s, log_t = t[n][e] - lse_t;
              const float student = exp2_approximate(log_p), teacher = exp2_approximate(log_t);
              value += kl_term(student, teacher, (log_t - log_p) * 0.693147181f);
              s[n][e] = counts[i] ? student - teacher : 0.0f;
            }
          }
        } else {
          weight[i] = counts[i] ? 1.0f / visible[i] : 0.0f;
          factor_s[i] = counts[i] ? exp2_approximate(own_largest_s[i] - row_s[i].largest) / row_s[i].sum : 0.0f;
          factor_t[i] = counts[i] ? exp2_approximate(own_largest_t[i] - row_t[i].largest) / row_t[i].sum : 0.0f;
#pragma unroll
          for (int n = 0; n < kStrip; ++n) {
            if (n >= own_tiles) break;
#pragma unroll
            for (int e = 2 * i; e < 2 * i + 2; ++e) {
              // Both rounded before they are subtracted: a fused multiply-add would make equal maps differ.
              s[n][e] = __fmul_rn(s[n][e], factor_s[i]);
              t[n][e] = s[n][e] - __fmul_rn(t[n][e], factor_t[i]); // from here on the difference of the maps
              value += t[n][e] * t[n][e];
              delta[i] += s[n][e] * t[n][e];
            }
          }
          delta[i] = quad_sum(delta[i]);
        }
        if (counts[i]) loss += weight[i] * value;
      }
    }
    if (p.with_grad) {
      if (!p.kl) {
        float* const of_row = deltas + 16 * strip + lane / 4;
        if (busy && lane % 4 == 0) {
          of_row[part * Plan::kRows] = delta[0];
          of_row[part * Plan::kRows + 8] = delta[1];
        }
        __syncthreads();
        if (busy) {
          delta[0] = delta[1] = 0.0f;
#pragma unroll
          for (int other = 0; other < kKeyWarps; ++other) {
            delta[0] += of_row[other * Plan::kRows];
            delta[1] += of_row[other * Plan::kRows + 8];
          }
        }
        if (busy) {
#pragma unroll
          for (int n = 0; n < kStrip; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              s[n][e] = counts[e / 2] ? s[n][e] * (2.0f * weight[e / 2] * (t[n][e] - delta[e / 2])) : 0.0f;
            }
          }
        }
      }
      float scale = 1.0f;
      if (kScaled) {
        float largest = 0.0f;
        if (busy) {
#pragma unroll
          for (int n = 0; n < kStrip; ++n) {
            if (n >= own_tiles) break;
#pragma unroll
            for (int e = 0; e < 4; ++e) largest = fmaxf(largest, fabsf(s[n][e]));
          }
        }
        for (int offset = kWarp / 2; offset > 0; offset /= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, offset));
        }
        if (lane == 0) of_warps[warp] = largest;
        __syncthreads();
        for (int w = 0; w < Plan::kWarps; ++w) largest = fmaxf(largest, of_warps[w]);
        scale = fminf(scale_of_dk, ldexpf(1.0f, 14 - max(ilogbf(largest), -100)));
        if (scale != scale_of_dk) {
          const float change = scale / scale_of_dk;
          scale_of_dk = scale;
#pragma unroll
          for (int i = 0; i < Plan::kTiles; ++i) {
#pragma unroll
            for (int n = 0; n < kWidth / 8; ++n) {
#pragma unroll
              for (int e = 0; e < 4; ++e) dk[i][n][e] *= change;
            }
          }
        }
      }
      if (busy) {
#pragma unroll
        for (int n = 0; n < kStrip; ++n) {
          if (n >= own_tiles) break;
          T* const to = gradient + (16 * strip + lane / 4) * Plan::kGradientPitch + 16 * first_pair + 8 * n + 2 * (lane % 4);
          *reinterpret_cast<uint32_t*>(to) = packed<T>(s[n][0] * scale, s[n][1] * scale);
          *reinterpret_cast<uint32_t*>(to + 8 * Plan::kGradientPitch) = packed<T>(s[n][2] * scale, s[n][3] * scale);
        }
      }
      __syncthreads();

      const Place down = down_first(lane), right = right_first(lane);
      constexpr int kColumns = kWidth / kKeyWarps < 16 ? 16 : kWidth / kKeyWarps;
      if (busy && part * kColumns < kWidth) { // dQ of the strip, the columns of this part
        float dq[kColumns / 8][4] = {};
        for (int j = 0; j < pairs; ++j) {
          uint32_t a[4];
          load_tiles(a, gradient + (16 * strip + down.row) * Plan::kGradientPitch + 16 * j + down.column);
#pragma unroll
          for (int n = 0; n < kColumns / 16; ++n) {
            uint32_t c[4];
            load_tiles_transposed(c, k_s + (16 * j + down.row) * Plan::kPitch + part * kColumns + 16 * n + down.column);
            if (masked) keep_finite<T>(c);
            multiply_add<T>(dq[2 * n], a, c[0], c[1]);
            multiply_add<T>(dq[2 * n + 1], a, c[2], c[3]);
          }
        }
        const float factor = p.gradient_scale / scale;
        float* const out = p.grad_q + (b * p.heads + h) * p.queries * static_cast<int64_t>(width);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = first + 16 * strip + lane / 4 + 8 * i;
          if (row >= p.queries) break;
#pragma unroll
          for (int n = 0; n < kColumns / 8; ++n) {
            const int column = part * kColumns + 8 * n + 2 * (lane % 4);
            store_pair(out + static_cast<int64_t>(row) * width, column, width, factor * dq[n][2 * i], factor * dq[n][2 * i + 1]);
          }
        }
      }
      const int strips = min(Plan::kRowWarps, (p.queries - first + 15) / 16);
#pragma unroll
      for (int i = 0; i < Plan::kTiles; ++i) {
        const int tile = warp + Plan::kWarps * i;
        if (tile >= pairs) break;
        for (int r = 0; r < strips; ++r) {
          uint32_t a[4];
          load_tiles_transposed(a, gradient + (16 * r + right.row) * Plan::kGradientPitch + 16 * tile + right.column);
#pragma unroll
          for (int n = 0; n < kWidth / 16; ++n) {
            uint32_t c[4];
            load_tiles_transposed(c, q_s + (stage + 16 * r + down.row) * Plan::kPitch + 16 * n + down.column);
            if (masked) keep_finite<T>(c);
            multiply_add<T>(dk[i][2 * n], a, c[0], c[1]);
            multiply_add<T>(dk[i][2 * n + 1], a, c[2], c[3]);
          }
        }
      }
    }
    __syncthreads(); // the chunk's rows and the gradient may be written again
  }

  if (p.with_grad) {
    const float factor = kScaled ? p.gradient_scale / scale_of_dk : p.gradient_scale;
    float* const out = p.grad_k + static_cast<int64_t>(blockIdx.x) * p.keys * width;
#pragma unroll
    for (int i = 0; i < 2 * Plan::kTiles; ++i) {
      const int key = 16 * (warp + Plan::kWarps * (i / 2)) + lane / 4 + i % 2 * 8;
      if (key >= p.keys) break;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        const float* const values = &dk[i / 2][n][2 * (i % 2)];
        store_pair(out + key * width, 8 * n + 2 * (lane % 4), width, factor * values[0], factor * values[1]);
      }
    }
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    loss += __shfl_xor_sync(kWholeWarp, loss, offset);
    count += __shfl_xor_sync(kWholeWarp, count, offset);
  }
  if (lane == 0) {
    of_warps[warp] = loss;
    deltas[warp] = count;
  }
  __syncthreads();
  if (thread == 0) {
    for (int w = 1; w < Plan::kWarps; ++w) {
      loss += of_warps[w];
      count += deltas[w];
    }
    p.loss[blockIdx.x] = loss;
    p.count[blockIdx.x] = count;
  }
}

} // namespace vlkd
