// Enough of CUDA C++ to compile the kernels of crates/runtime/kernels with g++ and run them as they run on a GPU: every
// thread of a block is a fiber, barriers and warp exchanges wait for each other, the tensor core's registers lie where
// the PTX ISA says. Blocks run one after the other. What a GPU leaves undefined is an error here: a barrier or an
// exchange that not all threads reach, and (driver.cpp) memory outside an allocation.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define FULL_WARP 0xffffffffu

#define __global__
#define __device__
#define __forceinline__ inline
// Blocks follow each other, so one copy serves.
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct Dim3 {
    u32 x, y, z;
};

namespace emulator {
struct Thread {
    Dim3 index;
    u32 lane, warp;
};
extern Thread *current;
extern Dim3 block_index, block_size, grid_size;
// Waits for all threads of the block, or of the warp.
void block_barrier();
void warp_barrier();
// 8 bytes of each lane of this thread's warp.
u64 *lanes();
} // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() { emulator::warp_barrier(); }

template <typename T> T __shfl_xor_sync(u32 mask, T value, int with) {
    if (mask != FULL_WARP) abort();
    static_assert(sizeof(T) <= 8);
    u64 *lanes = emulator::lanes();
    u32 lane = emulator::current->lane;
    memcpy(&lanes[lane], &value, sizeof(T));
    emulator::warp_barrier();
    memcpy(&value, &lanes[lane ^ with], sizeof(T));
    emulator::warp_barrier();
    return value;
}

inline float __uint_as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline u32 float_bits(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}
// cvt.f32.f16, exact.
inline float f16_to_f32(u16 bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                 : ldexpf((float)fraction, -24);
    return bits & 0x8000 ? -value : value;
}
// cvt.rn.f16.f32: to nearest, ties to even, by the definition: scaled to an integer of its last place and rounded there.
inline u16 f32_to_f16(float value) {
    u16 sign = float_bits(value) >> 31 ? 0x8000 : 0;
    if (std::isnan(value)) return 0x7fff;
    double magnitude = fabs((double)value);
    if (magnitude >= 65520.0) return sign | 0x7c00;
    int exponent = magnitude < 0x1p-14 ? -14 : ilogb(magnitude);
    double units = nearbyint(ldexp(magnitude, 10 - exponent));
    return sign | (u16)((exponent + 14) * 1024 + (int)units);
}
// cvt.rn.bf16.f32.
inline u16 f32_to_bf16(float value) {
    u32 bits = float_bits(value);
    if (std::isnan(value)) return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The device library's functions that differ from the host's in name only, or that C++ overloads.
inline float cospif(float x) { return (float)cos(3.14159265358979323846 * (double)x); }
inline float sinpif(float x) { return (float)sin(3.14159265358979323846 * (double)x); }
using std::isfinite;

namespace emulator {
// mma.sync.m16n8k16: A's and B's numbers of the whole warp gathered by the layout of the PTX ISA (9.7.13.4.8), and the
// products added in float32 as the sums' type asks.
void tensor_core(float *sums, const u32 *a, const u32 *b, float (*to_float)(u16));
} // namespace emulator
