// The ring queue's write on a GPU, one launch that asks the host nothing: shapes are fixed by the arguments, and the number of
// rows that the mask lets through stays on the device.
//
// Legend: K queue rows, E embedding width, N new rows.
// A block takes neighbouring new rows. It counts the mask before them and in all, so that it knows the place of each of its rows
// among those that are written and from it the slot; then each warp converts, normalises and stores whole rows. Slots are
// distinct, so the order of blocks does not matter. Every block needs the old head, so the last one to have read it moves head
// and fill. The word in which the blocks are counted is the launch's own: one that two launches shared, if they overlap on two
// streams against the rules, might never be 0 again.
#pragma once

#include "../common/device.cuh"

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace vlkd {

struct RingWrite {
  // The queue: [K, E]; float [K] or null; int64 [K]; int64 each.
  void* rows;
  float* scales;
  int64_t *ids, *head, *fill;
  unsigned* arrivals; // blocks that have read the head, 0 when the launch begins
  int64_t size, width; // K, E
  // What is written: [N, E] by strides; [N] each by a stride, or null.
  const void* new_rows;
  int64_t row_stride, column_stride;
  const float* new_scales;
  int64_t scale_stride;
  const bool* mask;
  int64_t mask_stride;
  const int64_t* new_ids;
  int64_t id_stride;
  int64_t count; // N
  bool normalize;
  double eps; // the smallest norm that a row is divided by
  int64_t blocks, rows_of_block; // of the launch, by `cut_blocks`
  bool packed;                   // whether all rows are made of whole, aligned packs of 16 bytes, by `ring_enqueue`
};

constexpr int kRingThreads = 256, kRingWarps = kRingThreads / kWarp;
constexpr int64_t kNoSlot = -1;
constexpr int kRingShared = kRingThreads * sizeof(int64_t) + 2 * kRingWarps * sizeof(int64_t);

// A warp a row, and no more blocks than run at a time, for each reads the whole mask. A block's first row is a multiple of 8.
inline void cut_blocks(RingWrite& p) {
  constexpr int64_t kMostBlocks = 1024;
  const auto parts = [](int64_t size, int64_t part) { return (size + part - 1) / part; };
  p.rows_of_block = kRingWarps * parts(parts(p.count, kRingWarps), kMostBlocks);
  p.blocks = parts(p.count, p.rows_of_block);
}

// This thread's share of how many of rows [begin, end) are written; begin is a multiple of 8. Eight bools at once are eight
// bytes, 0 or 1 each, whose bits are counted.
__device__ inline int64_t count_share(const RingWrite& p, int64_t begin, int64_t end) {
  int64_t found = 0, rest = begin;
  if (p.mask_stride == 1 && reinterpret_cast<uintptr_t>(p.mask) % 8 == 0) {
    const auto* const words = reinterpret_cast<const unsigned long long*>(p.mask);
    for (int64_t i = begin / 8 + threadIdx.x; i < end / 8; i += kRingThreads) found += __popcll(words[i]);
    rest = end / 8 * 8;
  }
  for (int64_t i = rest + threadIdx.x; i < end; i += kRingThreads) found += p.mask[i * p.mask_stride];
  return found;
}

template <typename T, int kPack>
struct alignas(sizeof(T) * kPack) Packed {
  T values[kPack];
};

// One row into its slot; with `normalize` divided by max(norm, eps), in float32 or wider. The whole warp calls it.
template <typename To, typename From, int kPack>
__device__ void write_row(To* to, const From* from, const RingWrite& p) {
  using Sum = std::conditional_t<std::is_same_v<From, double>, double, float>;
  const int64_t first = threadIdx.x % kWarp * kPack, step = kWarp * kPack;
  const auto load = [&](int64_t e) {
    if constexpr (kPack == 1) return Packed<From, 1>{from[e * p.column_stride]};
    else return *reinterpret_cast<const Packed<From, kPack>*>(from + e);
  };
  const auto store = [&](int64_t e, const Packed<To, kPack>& pack) { *reinterpret_cast<Packed<To, kPack>*>(to + e) = pack; };
  if constexpr (!std::is_same_v<To, uint8_t>) { // else they are bits of float8, finished
    if (p.normalize) {
      Sum squares = 0;
      for (int64_t e = first; e < p.width; e += step) {
        for (const From x : load(e).values) squares += static_cast<Sum>(x) * static_cast<Sum>(x);
      }
      const Sum root = std::sqrt(warp_sum(squares)), eps = static_cast<Sum>(p.eps);
      const Sum norm = root < eps ? eps : root + root * Sum(0); // NaN where the squares overflow: rows of 0 would hide it
      for (int64_t e = first; e < p.width; e += step) {
        const auto pack = load(e);
        Packed<To, kPack> unit;
        for (int i = 0; i < kPack; ++i) unit.values[i] = static_cast<To>(static_cast<Sum>(pack.values[i]) / norm);
        store(e, unit);
      }
      return;
    }
  }
  for (int64_t e = first; e < p.width; e += step) {
    const auto pack = load(e);
    Packed<To, kPack> same;
    for (int i = 0; i < kPack; ++i) same.values[i] = static_cast<To>(pack.values[i]);
    store(e, same);
  }
}

template <typename To, typename From>
constexpr int kPackOf = 16 / (sizeof(To) > sizeof(From) ? sizeof(To) : sizeof(From)); // elements that travel together

template <typename To, typename From>
__global__ void __launch_bounds__(kRingThreads, 1) ring_write(const RingWrite p) {
  VLKD_SHARED_MEMORY(memory);
  auto* const slots = reinterpret_cast<int64_t*>(memory); // [kRingThreads]
  int64_t *const sums = slots + kRingThreads, *const all_sums = sums + kRingWarps; // [kRingWarps] each
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int64_t begin = blockIdx.x * p.rows_of_block, end = min(begin + p.rows_of_block, p.count), head = *p.head;

  int64_t place = begin, total = p.count; // of the block's next written row; rows that are written in all
  if (p.mask != nullptr) {
    const int64_t before = count_share(p, 0, begin), after = count_share(p, begin, p.count);
    const int64_t warp_before = warp_sum(before), warp_all = warp_sum(before + after);
    if (lane == 0) {
      sums[warp] = warp_before;
      all_sums[warp] = warp_all;
    }
    __syncthreads();
    place = total = 0;
    for (int w = 0; w < kRingWarps; ++w) {
      place += sums[w];
      total += all_sums[w];
    }
    __syncthreads(); // `sums` serves again
  }

  for (int64_t base = begin; base < end; base += kRingThreads) {
    const int64_t mine = base + thread;
    const bool written = mine < end && (p.mask == nullptr || p.mask[mine * p.mask_stride]);
    const unsigned bits = __ballot_sync(kWholeWarp, written);
    if (lane == 0) sums[warp] = __popc(bits);
    __syncthreads();
    int64_t place_of_mine = place + __popc(bits & ((1u << lane) - 1));
    for (int w = 0; w < kRingWarps; ++w) {
      if (w < warp) place_of_mine += sums[w];
      place += sums[w];
    }
    slots[thread] = written && place_of_mine >= total - p.size ? (head + place_of_mine) % p.size : kNoSlot;
    __syncthreads();
    for (int row = warp; row < min(static_cast<int64_t>(kRingThreads), end - base); row += kRingWarps) {
      const int64_t slot = slots[row], i = base + row;
      if (slot == kNoSlot) continue; // the whole warp, for the slot is the row's
      const auto* const from = static_cast<const From*>(p.new_rows) + i * p.row_stride;
      auto* const to = static_cast<To*>(p.rows) + slot * p.width;
      p.packed ? write_row<To, From, kPackOf<To, From>>(to, from, p) : write_row<To, From, 1>(to, from, p);
      if (lane == 0) {
        p.ids[slot] = p.new_ids == nullptr ? -1 : p.new_ids[i * p.id_stride];
        if (p.scales != nullptr) p.scales[slot] = p.new_scales[i * p.scale_stride];
      }
    }
  }

  if (thread == 0) { // behind a barrier that every thread passed with the head in hand
    __threadfence();
    if (static_cast<int64_t>(atomicAdd(p.arrivals, 1u)) == p.blocks - 1) {
      *p.head = (head + total) % p.size;
      *p.fill = min(p.size, within(*p.fill, p.size) + total);
    }
  }
}

// `launch(kernel, blocks, threads, shared bytes, arguments...)` runs it. N and K are not 0, and `cut_blocks` has been called.
template <typename Launch>
void ring_enqueue(RingWrite p, Element to, Element from, Launch&& launch) {
  const auto of_types = [&](auto to_zero, auto from_zero) {
    using To = decltype(to_zero);
    using From = decltype(from_zero);
    constexpr int kPack = kPackOf<To, From>;
    const auto aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
    p.packed = p.column_stride == 1 && p.width % kPack == 0 && p.row_stride % kPack == 0 && aligned(p.rows) &&
        aligned(p.new_rows);
    launch(ring_write<To, From>, p.blocks, kRingThreads, kRingShared, p);
  };
  const auto visit = [](Element type, auto&& then) {
    switch (type) {
      case Element::kHalf: return then(c10::Half());
      case Element::kBFloat16: return then(c10::BFloat16());
      case Element::kFloat: return then(0.0f);
      default: return then(0.0);
    }
  };
  if (to == Element::kByte) return of_types(uint8_t(0), uint8_t(0));
  visit(to, [&](auto to_zero) { visit(from, [&](auto from_zero) { of_types(to_zero, from_zero); }); });
}

} // namespace vlkd
