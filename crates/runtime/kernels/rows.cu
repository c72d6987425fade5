// Rows: the batch gathered out of the resident features, conversions, sums of columns.
#include "common.cuh"

// One step onwards, the last kernel of a step.
extern "C" __global__ void advance(Cursor *cursor, u32 n_rows, u32 n_steps) {
    cursor->row += n_rows;
    cursor->step += n_steps;
}

// out[r, :] = source[order[cursor.row + row0 + r], :] for r in 0..n_rows. Rows are `n_words` 16-byte words long in both:
// the padded row length in bytes is a multiple of 16. A thread copies one word, so that a row's words are neighbours.
extern "C" __global__ void gather_rows(uint4 *out, const uint4 *source, const u32 *order, const Cursor *cursor,
                                       u32 row0, u32 n_rows, u32 n_words) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)n_rows * n_words) return;
    u32 row = (u32)(at / n_words), word = (u32)(at % n_words);
    u64 from = order[cursor->row + row0 + row];
    out[at] = source[from * n_words + word];
}

// As gather_rows for rows of `width` numbers of which `padded` are kept, and mixed:
// out = share·x[row] + (1 - share)·x[partner] + sigma·normal(step, row, column).
// `share` and `partner` (positions in the batch) are [rows of the epoch] in its order and may both be null.
template <typename S, typename T>
__device__ __forceinline__ void gather_mix(T *out, const S *source, const u32 *order, const Cursor *cursor, u32 row0,
                                           u32 step0, u32 n_rows, u32 width, u32 padded, const float *share,
                                           const u32 *partner, float sigma, u64 key) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)n_rows * padded) return;
    u32 row = (u32)(at / padded), column = (u32)(at % padded);
    u64 first = (u64)cursor->row + row0;
    float value = 0.0f;
    if (column < width) {
        value = to_float(source[(u64)order[first + row] * padded + column]);
        if (share) {
            float other = to_float(source[(u64)order[first + partner[first + row]] * padded + column]);
            value = share[first + row] * value + (1.0f - share[first + row]) * other;
        }
        if (sigma > 0.0f) value += sigma * normal(key, cursor->start + cursor->step + step0, row, column);
    }
    out[at] = from_float<T>(value);
}
#define GATHER(NAME, S, T)                                                                                             \
    extern "C" __global__ void NAME(T *out, const S *source, const u32 *order, const Cursor *cursor, u32 row0,         \
                                    u32 step0, u32 n_rows, u32 width, u32 padded, const float *share,                  \
                                    const u32 *partner, float sigma, u64 key) {                                       \
        gather_mix<S, T>(out, source, order, cursor, row0, step0, n_rows, width, padded, share, partner, sigma, key); \
    }
GATHER(gather_mix_f32, float, float)
GATHER(gather_mix_f16, f16, f16)
GATHER(gather_mix_bf16, bf16, bf16)

// out[r, c] = (source[r, c] - centre[c]) · scale[c], zero where c >= width; source rows are `width` long, those of out
// `padded`. `centre` and `scale` may be null.
template <typename S, typename T>
__device__ __forceinline__ void convert(T *out, const S *source, u32 n_rows, u32 width, u32 padded, const float *centre,
                                        const float *scale) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)n_rows * padded) return;
    u32 row = (u32)(at / padded), column = (u32)(at % padded);
    float value = 0.0f;
    if (column < width) {
        value = to_float(source[(u64)row * width + column]);
        if (centre) value -= centre[column];
        if (scale) value *= scale[column];
    }
    out[at] = from_float<T>(value);
}
#define CONVERT(NAME, S, T)                                                                                            \
    extern "C" __global__ void NAME(T *out, const S *source, u32 n_rows, u32 width, u32 padded, const float *centre,   \
                                    const float *scale) {                                                              \
        convert<S, T>(out, source, n_rows, width, padded, centre, scale);                                              \
    }
CONVERT(convert_f32_f32, float, float)
CONVERT(convert_f32_f16, float, f16)
CONVERT(convert_f32_bf16, float, bf16)
CONVERT(convert_f16_f32, f16, float)
CONVERT(convert_bf16_f32, bf16, float)

// The nearest float16 or bfloat16 of a value, and 2^12 times what it lacks: value = high + low / 4096, so that two
// products of half-width numbers give the digits of one of float32 ones.
template <typename T> __device__ __forceinline__ void split(T *high, T *low, const float *source, u32 n) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    T first = from_float<T>(source[at]);
    high[at] = first;
    low[at] = from_float<T>((source[at] - to_float(first)) * 4096.0f);
}
extern "C" __global__ void split_f16(f16 *high, f16 *low, const float *source, u32 n) { split(high, low, source, n); }
extern "C" __global__ void split_bf16(bf16 *high, bf16 *low, const float *source, u32 n) {
    split(high, low, source, n);
}

// Sums of columns over segments of rows: out[s, c] = sum over r in segment s of source[r, c]. The grid is
// (columns / 32, segments), the block 32 x 8: eight rows at a time, added in a fixed order.
template <typename S>
__device__ __forceinline__ void column_sums(float *out, const S *source, u32 n_rows, u32 n_columns, u32 stride,
                                            u32 segment) {
    __shared__ float partial[8][33];
    u32 column = blockIdx.x * 32 + threadIdx.x;
    u32 first = blockIdx.y * segment, last = first + segment < n_rows ? first + segment : n_rows;
    float sum = 0.0f;
    if (column < n_columns)
        for (u32 row = first + threadIdx.y; row < last; row += 8) sum += to_float(source[(u64)row * stride + column]);
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < n_columns) {
        sum = 0.0f;
        for (int part = 0; part < 8; part++) sum += partial[part][threadIdx.x];
        out[(u64)blockIdx.y * n_columns + column] = sum;
    }
}
#define COLUMN_SUMS(NAME, T)                                                                                           \
    extern "C" __global__ void column_sums_##NAME(float *out, const T *source, u32 n_rows, u32 n_columns, u32 stride,  \
                                                  u32 segment) {                                                       \
        column_sums<T>(out, source, n_rows, n_columns, stride, segment);                                               \
    }
FOR_EACH_TYPE(COLUMN_SUMS)

// out[i] = the sum over s of partial[s, i], in order. With `faults` [n / per_head], a sum that is not finite marks its
// head: 1 + the step. All writers of one step write the same number, so that the order among them does not matter.
extern "C" __global__ void sum_segments(float *out, const float *partial, u32 n, u32 n_segments, u32 *faults,
                                        const Cursor *cursor, u32 step0, u32 per_head) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    float sum = 0.0f;
    for (u32 segment = 0; segment < n_segments; segment++) sum += partial[(u64)segment * n + at];
    out[at] = sum;
    if (faults && !isfinite(sum) && faults[at / per_head] == 0) faults[at / per_head] = cursor->step + step0 + 1;
}
