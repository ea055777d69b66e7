// One block of a CUDA kernel on a processor: enough of a GPU to test what a kernel computes, not how fast.
//
// Every thread of the block is a fiber with its own stack. They run one at a time, in a chosen order, each until it needs the
// others: at a barrier, a shuffle or a product of the warp. Asynchronous copies land when they are waited for, or (`backwards`) at
// once; shared memory begins as NaNs. So a missing barrier, wait or initialisation shows in the numbers, one way or the other. What the
// hardware might reorder between two barriers is not tried, and a divergent warp is an error.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)
#define VLKD_SHARED_MEMORY(name) unsigned char* const name = emulation::block->shared.data()

namespace emulation {

constexpr int kWarp = 32;

struct Index {
  int x = 0;
};

struct Copy {
  void* to;
  const void* from; // null: zeros
};

inline void land(const Copy& copy) {
  if (copy.from != nullptr) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

// Where threads wait for each other: all have to come with the same `reason`, then the last of them acts for all.
struct Meeting {
  int size = 0, arrived = 0;
  int64_t held = 0;
  std::string reason;
  std::vector<void*> arguments;
};

struct Thread {
  ucontext_t context; // where it begins; from then on it is left and taken up by jumps, which ask nothing of the system
  jmp_buf place;
  bool begun = false;
  Index index;
  bool done = false;
  std::vector<std::vector<Copy>> batches{1}; // of copies that have not landed, the open one last
};

struct Block {
  std::vector<unsigned char> shared;
  std::vector<Thread> threads;
  std::vector<Meeting> warps;
  Meeting all;
  Index index;
  bool backwards = false; // threads from the last to the first, and copies as early as can be rather than as late
  Thread* running = nullptr;
  jmp_buf scheduler;
  int64_t progress = 0; // meetings held and threads ended
  std::function<void()> kernel;
  std::string error;
};

inline Block* block = nullptr;

inline void yield() {
  if (_setjmp(block->running->place) == 0) _longjmp(block->scheduler, 1);
}

inline void take_up(Thread& thread) {
  block->running = &thread;
  if (_setjmp(block->scheduler) != 0) return;
  if (thread.begun) _longjmp(thread.place, 1);
  thread.begun = true;
  setcontext(&thread.context);
}

inline void fail(const std::string& reason) {
  if (block->error.empty()) block->error = reason;
  while (true) yield(); // the scheduler ends the block
}

inline void meet(Meeting& meeting, int place, const char* reason, void* argument, void (*act)(void* const*)) {
  if (meeting.arrived == 0) meeting.reason = reason;
  if (meeting.reason != reason) fail(std::string("some threads are at ") + reason + ", others at " + meeting.reason);
  meeting.arguments[place] = argument;
  if (++meeting.arrived < meeting.size) {
    const int64_t held = meeting.held;
    while (meeting.held == held) yield();
    return;
  }
  if (act != nullptr) act(meeting.arguments.data());
  meeting.arrived = 0;
  ++meeting.held;
  ++block->progress;
}

inline void meet_warp(const char* reason, void* argument, void (*act)(void* const*)) {
  const int thread = block->running->index.x;
  meet(block->warps[thread / kWarp], thread % kWarp, reason, argument, act);
}

inline void thread_main() {
  block->kernel();
  block->running->done = true;
  ++block->progress;
  while (true) yield();
}

// Runs one block; throws what went wrong.
inline void run_block(int index, int threads, int shared_bytes, bool backwards, const std::function<void()>& kernel) {
  constexpr size_t kStack = 1 << 18;
  static std::vector<std::unique_ptr<char[]>> stacks; // for every block again: new memory costs more than the work
  while (static_cast<int>(stacks.size()) < threads) stacks.emplace_back(new char[kStack]);
  Block own;
  block = &own;
  own.index.x = index;
  own.backwards = backwards;
  own.kernel = kernel;
  own.shared.assign(shared_bytes, 0xff);
  own.warps.resize(threads / kWarp);
  for (Meeting& warp : own.warps) warp.size = kWarp;
  own.all.size = threads;
  for (Meeting& warp : own.warps) warp.arguments.resize(kWarp);
  own.all.arguments.resize(threads);
  own.threads.resize(threads);
  for (int i = 0; i < threads; ++i) {
    Thread& thread = own.threads[i];
    thread.index.x = i;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stacks[i].get();
    thread.context.uc_stack.ss_size = kStack - 1088 * (i % 61); // for equal ends would share a few sets of the cache
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, thread_main, 0);
  }
  bool working = true;
  while (working && own.error.empty()) {
    working = false;
    const int64_t before = own.progress;
    for (int i = 0; i < threads && own.error.empty(); ++i) {
      Thread& thread = own.threads[backwards ? threads - 1 - i : i];
      if (thread.done) continue;
      working = true;
      take_up(thread);
    }
    if (working && own.progress == before && own.error.empty()) own.error = "threads wait for each other at different places";
  }
  block = nullptr;
  if (!own.error.empty()) throw std::runtime_error(own.error);
}

} // namespace emulation

#define threadIdx (emulation::block->running->index)
#define blockIdx (emulation::block->index)

inline void __syncthreads() {
  emulation::meet(emulation::block->all, threadIdx.x, "a barrier", nullptr, nullptr);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  struct Argument {
    T given, taken;
    int lanes;
  } mine{value, T(), lanes};
  emulation::meet_warp("a shuffle", &mine, [](void* const* all) {
    for (int lane = 0; lane < emulation::kWarp; ++lane) {
      auto* const one = static_cast<Argument*>(all[lane]);
      one->taken = static_cast<Argument*>(all[lane ^ one->lanes])->given;
    }
  });
  return mine.taken;
}

inline unsigned __ballot_sync(unsigned, bool value) {
  struct Argument {
    bool given;
    unsigned taken;
  } mine{value, 0};
  emulation::meet_warp("a ballot", &mine, [](void* const* all) {
    unsigned bits = 0;
    for (int lane = 0; lane < emulation::kWarp; ++lane) {
      bits |= static_cast<unsigned>(static_cast<Argument*>(all[lane])->given) << lane;
    }
    for (int lane = 0; lane < emulation::kWarp; ++lane) static_cast<Argument*>(all[lane])->taken = bits;
  });
  return mine.taken;
}

inline float __fmul_rn(float a, float b) {
  volatile float product = a * b; // never fused with what follows
  return product;
}

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}

inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}

inline void __threadfence() {}

inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at += value;
  return before;
}

struct float2 {
  float x, y;
};

namespace vlkd {

using std::max;
using std::min;

inline void copy_async(void* shared, const void* global, bool filled) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || (filled && reinterpret_cast<uintptr_t>(global) % 16)) {
    emulation::fail("an asynchronous copy is not aligned to 16 bytes");
  }
  const emulation::Copy copy{shared, filled ? global : nullptr};
  if (emulation::block->backwards) return emulation::land(copy);
  emulation::block->running->batches.back().push_back(copy);
}

inline void close_batch() {
  emulation::block->running->batches.emplace_back();
}

template <int kUnderWay>
void await_copies() {
  auto& batches = emulation::block->running->batches;
  for (; batches.size() > kUnderWay + 1; batches.erase(batches.begin())) {
    for (const emulation::Copy& copy : batches.front()) emulation::land(copy);
  }
}

template <bool kTransposed>
void load_tiles_as(uint32_t (&to)[4], const void* row) {
  struct Argument {
    uint32_t* to;
    const uint16_t* row;
  } mine{to, static_cast<const uint16_t*>(row)};
  if (reinterpret_cast<uintptr_t>(row) % 16) emulation::fail("a tile's row is not aligned to 16 bytes");
  emulation::meet_warp(kTransposed ? "a transposed load" : "a load of tiles", &mine, [](void* const* all) {
    for (int lane = 0; lane < emulation::kWarp; ++lane) {
      for (int tile = 0; tile < 4; ++tile) {
        uint32_t pair = 0;
        for (int e = 0; e < 2; ++e) {
          const int major = lane / 4, minor = 2 * (lane % 4) + e;
          const auto* const from = static_cast<Argument*>(all[8 * tile + (kTransposed ? minor : major)])->row;
          pair |= static_cast<uint32_t>(from[kTransposed ? major : minor]) << 16 * e;
        }
        static_cast<Argument*>(all[lane])->to[tile] = pair;
      }
    }
  });
}

inline void load_tiles(uint32_t (&to)[4], const void* row) {
  load_tiles_as<false>(to, row);
}

inline void load_tiles_transposed(uint32_t (&to)[4], const void* row) {
  load_tiles_as<true>(to, row);
}

template <typename T>
float half_of(uint32_t pair, int which) {
  const auto bits = static_cast<uint16_t>(pair >> 16 * which);
  T value;
  std::memcpy(&value, &bits, sizeof bits);
  return static_cast<float>(value);
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Argument {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } mine{c, a, {b0, b1}};
  emulation::meet_warp("a product", &mine, [](void* const* all) {
    const auto at = [&](int lane) { return static_cast<Argument*>(all[lane]); };
    float a[16][16], b[16][8];
    for (int lane = 0; lane < emulation::kWarp; ++lane) {
      for (int e = 0; e < 2; ++e) {
        for (int part = 0; part < 4; ++part) {
          a[lane / 4 + part % 2 * 8][2 * (lane % 4) + e + part / 2 * 8] = half_of<T>(at(lane)->a[part], e);
        }
        for (int part = 0; part < 2; ++part) b[2 * (lane % 4) + e + 8 * part][lane / 4] = half_of<T>(at(lane)->b[part], e);
      }
    }
    for (int lane = 0; lane < emulation::kWarp; ++lane) {
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, column = 2 * (lane % 4) + e % 2;
        float sum = at(lane)->c[e];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        at(lane)->c[e] = sum;
      }
    }
  });
}

template <typename T>
uint32_t packed(float low, float high) {
  const T values[2] = {static_cast<T>(low), static_cast<T>(high)};
  uint32_t result;
  std::memcpy(&result, values, sizeof result);
  return result;
}

template <typename T>
uint32_t product_of_pairs(uint32_t a, uint32_t b) {
  return packed<T>(half_of<T>(a, 0) * half_of<T>(b, 0), half_of<T>(a, 1) * half_of<T>(b, 1));
}

inline float exp2_approximate(float x) {
  return x < -126.0f ? 0.0f : std::exp2(x);
}

} // namespace vlkd
