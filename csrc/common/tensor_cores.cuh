// The instructions of sm_80 and later that products of half-precision tiles are made of, one function each.
//
// A warp holds tiles in fragments. Lane l of a 16 x 16 operand A has {A[l/4][2(l%4)..+1], the same 8 rows below, the same 8
// columns to the right, both}; of a 16 x 8 operand B {B[2(l%4)..+1][l/4], the same 8 rows below}; of a 16 x 8 result C
// {C[l/4][2(l%4)..+1], the same 8 rows below}. (PTX ISA, "Matrix Fragments for mma.m16n8k16".)
// tests/kernels/emulation has these functions for a processor, so that kernels made of them can be tested without a GPU.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace vlkd {

// Copies 16 bytes to shared memory without waiting, or zeros if `filled` is false; both addresses are multiples of 16.
__device__ inline void copy_async(void* shared, const void* global, bool filled) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(filled ? 16 : 0));
}

// Closes a batch of copies; `await_copies<n>` waits until at most the n newest batches are under way.
__device__ inline void close_batch() {
  asm volatile("cp.async.commit_group;");
}

template <int kUnderWay>
__device__ inline void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kUnderWay) : "memory");
}

// Four 8 x 8 tiles of 16-bit elements; lanes 8i to 8i + 7 give the addresses of tile i's rows. Lane l gets elements
// [l/4][2(l%4)..+1] of each.
__device__ inline void load_tiles(uint32_t (&to)[4], const void* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// The same, each tile transposed.
__device__ inline void load_tiles_transposed(uint32_t (&to)[4], const void* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// c += A B, A 16 x 16, B 16 x 8 (b0, b1), of c10::BFloat16 or c10::Half, summed in float32.
template <typename T>
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<T, c10::Half>);
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two values rounded to T, the first in the low half.
template <typename T>
__device__ inline uint32_t packed(float low, float high) {
  uint32_t result;
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}

// Two pairs of T multiplied one by one.
template <typename T>
__device__ inline uint32_t product_of_pairs(uint32_t a, uint32_t b) {
  uint32_t result;
  if constexpr (std::is_same_v<T, c10::BFloat16>) { // sm_80 has no product alone; adding -0 changes nothing
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(0x80008000u));
  } else {
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
}

// 2^x within two units in the last place; 0 below 2^-126.
__device__ inline float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

} // namespace vlkd
