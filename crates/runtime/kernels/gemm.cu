// Matrix products with nothing but the driver: tensor cores for half-width numbers, plain float32 else. cuBLASLt is
// faster for large shapes and used where it is found; these serve machines without it, and small heads.
//
//   out[m, n] = alpha · sum over k of a(m, k)·b(n, k) + beta · out[m, n]
//
// a(m, k) = a[m·a_row + k·a_step], where one of the two strides is 1, and b likewise, so that all products of a head's
// training are one kernel: X·W^T, R^T·X, R·W. The grid's third dimension takes segments of k of `segment` each and
// puts them `m·ldo` apart, for sum_segments to add in order; the result does not depend on how blocks are scheduled.
#include "common.cuh"

enum { TILE = 64, DEPTH = 32, PITCH = DEPTH + 8, THREADS = 128 };

#ifndef EMULATED
// Four 8x4 quarters of A (16x16), two of B (16x8), float32 sums (PTX ISA, mma.m16n8k16).
__device__ __forceinline__ void multiply(float *sums, const u32 *a, const u32 *b, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply(float *sums, const u32 *a, const u32 *b, bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
inline void multiply(float *sums, const u32 *a, const u32 *b, f16) { emulator::tensor_core(sums, a, b, f16_to_f32); }
inline void multiply(float *sums, const u32 *a, const u32 *b, bf16) { emulator::tensor_core(sums, a, b, bf16_to_f32); }
#endif

// Eight neighbours along the operand's contiguous direction.
struct Eight {
    u16 bits[8];
};

// The eight numbers of a tile's operand that begin at (row, k), zero beyond `n_rows` and `end`.
__device__ __forceinline__ Eight fetch(const u16 *source, u64 row_stride, u64 k_stride, u32 row, u32 k, u32 n_rows,
                                       u32 end) {
    Eight eight;
    bool along_k = k_stride == 1;
    u32 room = along_k ? (row < n_rows && k < end ? end - k : 0) : (k < end && row < n_rows ? n_rows - row : 0);
    const u16 *from = source + (u64)row * row_stride + (u64)k * k_stride;
    if (room >= 8 && ((u64)from & 15) == 0) {
        uint4 words = *(const uint4 *)from;
        *(uint4 *)&eight = words;
    } else {
        for (u32 i = 0; i < 8; i++) eight.bits[i] = i < room ? from[i] : (u16)0;
    }
    return eight;
}

// Puts a tile of TILE x DEPTH into shared memory as tile[row][k], `k` neighbours.
__device__ __forceinline__ void place(u16 (*tile)[PITCH], const Eight &eight, u32 row, u32 k, bool along_k) {
    if (along_k)
        *(uint4 *)&tile[row][k] = *(const uint4 *)&eight;
    else
        for (int i = 0; i < 8; i++) tile[row + i][k] = eight.bits[i];
}

template <typename T, typename O>
__device__ __forceinline__ void gemm_half(O *out, const u16 *a, const u16 *b, u32 m, u32 n, u32 k,
                                          u64 a_row, u64 a_step, u64 b_row, u64 b_step, u64 ldo, u32 segment,
                                          float alpha, float beta) {
    __shared__ __align__(16) u16 a_tile[2][TILE][PITCH];
    __shared__ __align__(16) u16 b_tile[2][TILE][PITCH];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    u32 first = blockIdx.z * segment, end = first + segment < k ? first + segment : k;
    bool a_along = a_step == 1, b_along = b_step == 1;
    // 256 pieces of eight a tile and 128 threads: two each.
    u32 row_of[2][2], k_of[2][2];
    for (int piece = 0; piece < 2; piece++) {
        u32 at = threadIdx.x + piece * THREADS;
        row_of[0][piece] = a_along ? at / 4 : at % 8 * 8;
        k_of[0][piece] = a_along ? at % 4 * 8 : at / 8;
        row_of[1][piece] = b_along ? at / 4 : at % 8 * 8;
        k_of[1][piece] = b_along ? at % 4 * 8 : at / 8;
    }
    float sums[2][4][4];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int c = 0; c < 4; c++) sums[i][j][c] = 0.0f;
    u32 warp_m = warp / 2 * 32, warp_n = warp % 2 * 32, group = lane / 4, pair = lane % 4 * 2;

    Eight next_a[2], next_b[2];
    for (int piece = 0; piece < 2; piece++) {
        next_a[piece] = fetch(a, a_row, a_step, m0 + row_of[0][piece], first + k_of[0][piece], m, end);
        next_b[piece] = fetch(b, b_row, b_step, n0 + row_of[1][piece], first + k_of[1][piece], n, end);
    }
    int half = 0;
    for (u32 k0 = first; k0 < end; k0 += DEPTH) {
        for (int piece = 0; piece < 2; piece++) {
            place(a_tile[half], next_a[piece], row_of[0][piece], k_of[0][piece], a_along);
            place(b_tile[half], next_b[piece], row_of[1][piece], k_of[1][piece], b_along);
        }
        // One barrier a turn: whoever passes it has read the other half, which the next turn writes.
        __syncthreads();
        if (k0 + DEPTH < end)
            for (int piece = 0; piece < 2; piece++) {
                u32 k1 = k0 + DEPTH;
                next_a[piece] = fetch(a, a_row, a_step, m0 + row_of[0][piece], k1 + k_of[0][piece], m, end);
                next_b[piece] = fetch(b, b_row, b_step, n0 + row_of[1][piece], k1 + k_of[1][piece], n, end);
            }
        for (int depth = 0; depth < DEPTH; depth += 16) {
            u32 left[2][4], right[4][2];
            for (int i = 0; i < 2; i++) {
                const u16(*rows)[PITCH] = &a_tile[half][warp_m + i * 16 + group];
                left[i][0] = *(const u32 *)&rows[0][depth + pair];
                left[i][1] = *(const u32 *)&rows[8][depth + pair];
                left[i][2] = *(const u32 *)&rows[0][depth + pair + 8];
                left[i][3] = *(const u32 *)&rows[8][depth + pair + 8];
            }
            for (int j = 0; j < 4; j++) {
                const u16 *row = b_tile[half][warp_n + j * 8 + group];
                right[j][0] = *(const u32 *)&row[depth + pair];
                right[j][1] = *(const u32 *)&row[depth + pair + 8];
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) multiply(sums[i][j], left[i], right[j], T());
        }
        half ^= 1;
    }
    out += (u64)blockIdx.z * m * ldo;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int c = 0; c < 4; c++) {
                u32 row = m0 + warp_m + i * 16 + group + c / 2 * 8, column = n0 + warp_n + j * 8 + pair + c % 2;
                if (row >= m || column >= n) continue;
                float value = alpha * sums[i][j][c];
                if (beta != 0.0f) value += beta * to_float(out[row * ldo + column]);
                    out[row * ldo + column] = from_float<O>(value);
            }
}
#define GEMM_HALF(NAME, T, O)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        NAME(O *out, const u16 *a, const u16 *b, u32 m, u32 n, u32 k, u64 a_row, u64 a_step,        \
             u64 b_row, u64 b_step, u64 ldo, u32 segment, float alpha, float beta) {                                   \
        gemm_half<T, O>(out, a, b, m, n, k, a_row, a_step, b_row, b_step, ldo, segment, alpha, beta);            \
    }
GEMM_HALF(gemm_f16_f32, f16, float)
GEMM_HALF(gemm_f16, f16, f16)
GEMM_HALF(gemm_bf16_f32, bf16, float)
GEMM_HALF(gemm_bf16, bf16, bf16)

// float32 by float32, 64 x 64 outputs a block of 256 threads, 4 x 4 each, sums in order of k.
extern "C" __global__ void __launch_bounds__(256)
    gemm_f32(float *out, const float *a, const float *b, u32 m, u32 n, u32 k, u64 a_row, u64 a_step,
             u64 b_row, u64 b_step, u64 ldo, u32 segment, float alpha, float beta) {
    __shared__ float a_tile[16][TILE + 4];
    __shared__ float b_tile[16][TILE + 4];
    u32 m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    u32 first = blockIdx.z * segment, end = first + segment < k ? first + segment : k;
    u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
    float sums[4][4];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
    for (u32 k0 = first; k0 < end; k0 += 16) {
        __syncthreads();
        for (u32 piece = threadIdx.x; piece < 16 * TILE; piece += 256) {
            // Neighbouring threads read neighbouring numbers, whichever way the operand lies.
            u32 row = a_step == 1 ? piece / 16 : piece % TILE, depth = a_step == 1 ? piece % 16 : piece / TILE;
            bool inside = m0 + row < m && k0 + depth < end;
            a_tile[depth][row] = inside ? a[(u64)(m0 + row) * a_row + (u64)(k0 + depth) * a_step] : 0.0f;
            row = b_step == 1 ? piece / 16 : piece % TILE;
            depth = b_step == 1 ? piece % 16 : piece / TILE;
            inside = n0 + row < n && k0 + depth < end;
            b_tile[depth][row] = inside ? b[(u64)(n0 + row) * b_row + (u64)(k0 + depth) * b_step] : 0.0f;
        }
        __syncthreads();
        for (int depth = 0; depth < 16; depth++) {
            float left[4], right[4];
            for (int i = 0; i < 4; i++) left[i] = a_tile[depth][y * 4 + i];
            for (int j = 0; j < 4; j++) right[j] = b_tile[depth][x * 4 + j];
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
        }
    }
    out += (u64)blockIdx.z * m * ldo;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            u32 row = m0 + y * 4 + i, column = n0 + x * 4 + j;
            if (row >= m || column >= n) continue;
            float value = alpha * sums[i][j];
            if (beta != 0.0f) value += beta * out[row * ldo + column];
            out[row * ldo + column] = value;
        }
}
