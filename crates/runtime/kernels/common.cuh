// What all kernels share: the three number types, sums over a warp and over a block, and the position in the epoch.
//
// Every sum is made in an order that depends on the sizes alone, so that a run gives the same bits twice; there are no
// atomics on floating-point numbers. No header of CUDA is included: NVRTC alone compiles these files, and g++ does
// where EMULATED is set (tests/cuda_emulator).
#pragma once

#ifdef EMULATED
#include "emulator.h"
#else
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define FULL_WARP 0xffffffffu
#define INFINITY __int_as_float(0x7f800000)
#endif

// float16 and bfloat16 as bits, with the conversions of sm_80 (to nearest, ties to even).
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

#ifndef EMULATED
__device__ __forceinline__ float f16_to_f32(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ __forceinline__ u16 f32_to_f16(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
__device__ __forceinline__ u16 f32_to_bf16(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif
__device__ __forceinline__ float bf16_to_f32(u16 bits) { return __uint_as_float((u32)bits << 16); }

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(f16 value) { return f16_to_f32(value.bits); }
__device__ __forceinline__ float to_float(bf16 value) { return bf16_to_f32(value.bits); }

template <typename T> __device__ __forceinline__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ f16 from_float<f16>(float value) {
    f16 number;
    number.bits = f32_to_f16(value);
    return number;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float value) {
    bf16 number;
    number.bits = f32_to_bf16(value);
    return number;
}

// Where a run is; lies on the device so that a captured graph can be replayed for the next steps.
struct Cursor {
    u32 row;   // first row of the step, in the order of the epoch
    u32 step;  // step of the epoch, the row of the table of learning rates
    u64 start; // steps before this epoch; start + step is what random numbers depend on
};

// Random numbers without state, those of train/counter.rs: Philox4x32-10 (Salmon et al., 2011) with a key for each purpose
// and the counter (number / 4, row of the batch, step), so that an interrupted run draws what an undisturbed one does.
__device__ __forceinline__ u32 philox(u64 key, u64 step, u32 row, u32 number) {
    u32 k0 = (u32)key, k1 = (u32)(key >> 32);
    u32 c0 = number / 4, c1 = row, c2 = (u32)step, c3 = (u32)(step >> 32);
    for (int round = 0; round < 10; round++) {
        u64 p0 = (u64)0xD2511F53u * c0, p1 = (u64)0xCD9E8D57u * c2;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c1 = (u32)p1;
        c3 = (u32)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    u32 word = number % 4;
    return word == 0 ? c0 : word == 1 ? c1 : word == 2 ? c2 : c3;
}
// In [0, 1), 24 bits.
__device__ __forceinline__ float uniform(u32 bits) { return (bits >> 8) * (1.0f / 16777216.0f); }
// Box and Muller: of sixteen numbers the first eight give the radii and the others the angles, of which cosine and sine.
__device__ __forceinline__ float normal(u64 key, u64 step, u32 row, u32 number) {
    u32 pair = number / 16 * 16 + number % 8;
    float radius = sqrtf(fmaxf(-2.0f * logf(1.0f - uniform(philox(key, step, row, pair))), 0.0f));
    float turns = 2.0f * uniform(philox(key, step, row, pair + 8));
    // cospif needs no table for large arguments, as cosf does.
    return radius * (number % 16 < 8 ? cospif(turns) : sinpif(turns));
}

// Sum over groups of `width` neighbouring lanes, a power of two; every lane of the warp must take part.
__device__ __forceinline__ float group_sum(float value, int width) {
    for (int lane = width / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(FULL_WARP, value, lane);
    return value;
}
__device__ __forceinline__ float group_max(float value, int width) {
    for (int lane = width / 2; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, lane));
    return value;
}
__device__ __forceinline__ int group_sum_int(int value, int width) {
    for (int lane = width / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(FULL_WARP, value, lane);
    return value;
}
__device__ __forceinline__ double warp_sum(double value) {
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(FULL_WARP, value, lane);
    return value;
}

// Sum over a block of a multiple of 32 threads; the result is in every thread. `scratch` holds 32 numbers.
__device__ __forceinline__ double block_sum(double value, double *scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    value = warp_sum(value);
    __syncthreads();
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = lane < n_warps ? scratch[lane] : 0.0;
    return warp_sum(value);
}

// The three number types under one name each, for kernels that differ in nothing else.
#define FOR_EACH_TYPE(MACRO) MACRO(f32, float) MACRO(f16, f16) MACRO(bf16, bf16)
