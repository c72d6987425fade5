// What lies between the matrix products of an MLP: biases, activations, dropout, normalisations, and their gradients.
// Matrices are [n_rows, width] without gaps; with many heads, width is the sum of theirs.
#include "common.cuh"

enum Activation { NONE = 0, RELU = 1, GELU = 2 };

__device__ __forceinline__ float activate(float z, int activation) {
    if (activation == RELU) return fmaxf(z, 0.0f);
    if (activation == GELU) return 0.5f * z * (1.0f + erff(z * 0.7071067811865476f));
    return z;
}
__device__ __forceinline__ float slope(float z, int activation) {
    if (activation == RELU) return z > 0.0f ? 1.0f : 0.0f;
    if (activation == GELU) {
        float cumulative = 0.5f * (1.0f + erff(z * 0.7071067811865476f));
        return cumulative + z * 0.3989422804014327f * expf(-0.5f * z * z);
    }
    return 1.0f;
}
// 0 where the number is dropped, else 1 / (1 - p); `number` counts along the row of the batch.
__device__ __forceinline__ float kept(float p, u64 key, const Cursor *cursor, u32 step0, u32 row, u32 number) {
    if (p <= 0.0f) return 1.0f;
    return uniform(philox(key, cursor->start + cursor->step + step0, row, number)) < p ? 0.0f : 1.0f / (1.0f - p);
}

// z += bias (kept for the gradient), out = dropout(activation(z)); `bias` and `out` may be null. The random number of a
// column is `number0` + column, so that layers draw different ones.
template <typename T>
__device__ __forceinline__ void activation(T *out, T *z, const float *bias, u32 n_rows, u32 width, int kind, float p,
                                           u64 key, const Cursor *cursor, u32 step0, u32 number0) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)n_rows * width) return;
    float value = to_float(z[at]);
    if (bias) {
        T biased = from_float<T>(value + bias[at % width]);
        z[at] = biased;
        value = to_float(biased);
    }
    if (out) out[at] = from_float<T>(activate(value, kind) * kept(p, key, cursor, step0, (u32)(at / width), number0 + (u32)(at % width)));
}

// gradient *= d out / d z, in place.
template <typename T>
__device__ __forceinline__ void activation_backward(T *gradient, const T *z, u32 n_rows, u32 width, int kind, float p,
                                                    u64 key, const Cursor *cursor, u32 step0, u32 number0) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)n_rows * width) return;
    float factor = slope(to_float(z[at]), kind) * kept(p, key, cursor, step0, (u32)(at / width), number0 + (u32)(at % width));
    gradient[at] = from_float<T>(to_float(gradient[at]) * factor);
}
#define ACTIVATION(NAME, T)                                                                                            \
    extern "C" __global__ void activation_##NAME(T *out, T *z, const float *bias, u32 n_rows, u32 width, int kind,     \
                                                 float p, u64 key, const Cursor *cursor, u32 step0, u32 number0) {      \
        activation<T>(out, z, bias, n_rows, width, kind, p, key, cursor, step0, number0);                               \
    }                                                                                                                  \
    extern "C" __global__ void activation_backward_##NAME(T *gradient, const T *z, u32 n_rows, u32 width, int kind,    \
                                                          float p, u64 key, const Cursor *cursor, u32 step0,           \
                                                          u32 number0) {                                                 \
        activation_backward<T>(gradient, z, n_rows, width, kind, p, key, cursor, step0, number0);                       \
    }
FOR_EACH_TYPE(ACTIVATION)

// Mean and 1 / sqrt(biased variance + eps) of each row of `width` numbers; a warp has a row.
template <typename T>
__device__ __forceinline__ void row_moments(float *mean, float *inverse, const T *z, u32 n_rows, u32 width, float eps) {
    u32 row = (u32)(((u64)blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
    bool is_row = row < n_rows;
    const T *values = z + (u64)(is_row ? row : n_rows - 1) * width;
    float sum = 0.0f, squares = 0.0f;
    for (u32 c = lane; c < width; c += 32) sum += to_float(values[c]);
    float centre = group_sum(sum, 32) / width;
    for (u32 c = lane; c < width; c += 32) squares += (to_float(values[c]) - centre) * (to_float(values[c]) - centre);
    squares = group_sum(squares, 32) / width;
    if (is_row && lane == 0) {
        mean[row] = centre;
        inverse[row] = 1.0f / sqrtf(squares + eps);
    }
}

// The same of each column, and the running figures of torch.nn.BatchNorm1d (the unbiased variance, momentum 0.1), which
// stay as they are where the running mean is null. The block is 32 x 32, 32 columns each.
template <typename T>
__device__ __forceinline__ void column_moments(float *mean, float *inverse, float *running_mean, float *running_var,
                                               const T *z, u32 n_rows, u32 width, float eps, float momentum) {
    __shared__ float partial[32][33];
    __shared__ float centres[32];
    u32 column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (column < width)
        for (u32 row = threadIdx.y; row < n_rows; row += 32) sum += to_float(z[(u64)row * width + column]);
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0) {
        sum = 0.0f;
        for (int part = 0; part < 32; part++) sum += partial[part][threadIdx.x];
        centres[threadIdx.x] = sum / n_rows;
    }
    __syncthreads();
    float centre = centres[threadIdx.x], squares = 0.0f;
    if (column < width)
        for (u32 row = threadIdx.y; row < n_rows; row += 32) {
            float distance = to_float(z[(u64)row * width + column]) - centre;
            squares += distance * distance;
        }
    partial[threadIdx.y][threadIdx.x] = squares;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        squares = 0.0f;
        for (int part = 0; part < 32; part++) squares += partial[part][threadIdx.x];
        mean[column] = centre;
        inverse[column] = 1.0f / sqrtf(squares / n_rows + eps);
        if (running_mean) {
            float unbiased = squares / (n_rows - 1);
            running_mean[column] = (1.0f - momentum) * running_mean[column] + momentum * centre;
            running_var[column] = (1.0f - momentum) * running_var[column] + momentum * unbiased;
        }
    }
}

// out[i] = 1 / sqrt(variance[i] + eps), of the running variances in an evaluation.
extern "C" __global__ void inverse_roots(float *out, const float *variance, u32 n, float eps) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n) out[at] = 1.0f / sqrtf(variance[at] + eps);
}

// out = (z - mean)·inverse·weight + bias. By rows: mean and inverse are [n_rows], and row r has the weights
// r % n_heads; by columns (`by_row` 0): they are [width] as weight and bias.
template <typename T>
__device__ __forceinline__ void normalise(T *out, const T *z, const float *mean, const float *inverse,
                                          const float *weight, const float *bias, u32 n_rows, u32 width, int by_row,
                                          u32 n_heads) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)n_rows * width) return;
    u32 row = (u32)(at / width), column = (u32)(at % width), of = by_row ? row : column;
    u32 parameter = by_row ? row % n_heads * width + column : column;
    float scaled = (to_float(z[at]) - mean[of]) * inverse[of];
    out[at] = from_float<T>(scaled * weight[parameter] + bias[parameter]);
}

// Gradients of weight and bias: sums over rows of gradient·normalised and of gradient. Block 32 x 32, 32 columns each;
// the grid's second dimension is the head of a normalisation by rows.
template <typename T>
__device__ __forceinline__ void normalise_sums(float *of_weight, float *of_bias, const T *gradient, const T *z,
                                               const float *mean, const float *inverse, u32 n_rows, u32 width,
                                               int by_row, u32 n_heads) {
    __shared__ float weights[32][33];
    __shared__ float biases[32][33];
    u32 column = blockIdx.x * 32 + threadIdx.x, head = blockIdx.y;
    float of_w = 0.0f, of_b = 0.0f;
    if (column < width)
        for (u32 row = threadIdx.y * n_heads + head; row < n_rows; row += 32 * n_heads) {
            u64 at = (u64)row * width + column;
            u32 of = by_row ? row : column;
            of_w += to_float(gradient[at]) * ((to_float(z[at]) - mean[of]) * inverse[of]);
            of_b += to_float(gradient[at]);
        }
    weights[threadIdx.y][threadIdx.x] = of_w;
    biases[threadIdx.y][threadIdx.x] = of_b;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        of_w = 0.0f;
        of_b = 0.0f;
        for (int part = 0; part < 32; part++) {
            of_w += weights[part][threadIdx.x];
            of_b += biases[part][threadIdx.x];
        }
        of_weight[head * width + column] = of_w;
        of_bias[head * width + column] = of_b;
    }
}

// The gradient of z through a normalisation by rows, in place; a warp has a row.
template <typename T>
__device__ __forceinline__ void row_norm_backward(T *gradient, const T *z, const float *mean, const float *inverse,
                                                  const float *weight, u32 n_rows, u32 width, u32 n_heads) {
    u32 item = (u32)(((u64)blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
    bool is_row = item < n_rows;
    u32 row = is_row ? item : n_rows - 1;
    T *g = gradient + (u64)row * width;
    const T *values = z + (u64)row * width;
    const float *w = weight + (u64)(row % n_heads) * width;
    float sum = 0.0f, product = 0.0f;
    for (u32 c = lane; c < width; c += 32) {
        float part = to_float(g[c]) * w[c];
        sum += part;
        product += part * ((to_float(values[c]) - mean[row]) * inverse[row]);
    }
    sum = group_sum(sum, 32) / width;
    product = group_sum(product, 32) / width;
    if (!is_row) return;
    for (u32 c = lane; c < width; c += 32) {
        float scaled = (to_float(values[c]) - mean[row]) * inverse[row];
        g[c] = from_float<T>(inverse[row] * (to_float(g[c]) * w[c] - sum - scaled * product));
    }
}

// The same by columns, out of the sums that normalise_sums made.
template <typename T>
__device__ __forceinline__ void column_norm_backward(T *gradient, const T *z, const float *mean, const float *inverse,
                                                     const float *weight, const float *of_weight, const float *of_bias,
                                                     u32 n_rows, u32 width) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)n_rows * width) return;
    u32 column = (u32)(at % width);
    float scaled = (to_float(z[at]) - mean[column]) * inverse[column];
    float centred = to_float(gradient[at]) - (of_bias[column] + scaled * of_weight[column]) / n_rows;
    gradient[at] = from_float<T>(inverse[column] * weight[column] * centred);
}

#define NORMS(NAME, T)                                                                                                 \
    extern "C" __global__ void row_moments_##NAME(float *mean, float *inverse, const T *z, u32 n_rows, u32 width,      \
                                                  float eps) {                                                         \
        row_moments<T>(mean, inverse, z, n_rows, width, eps);                                                          \
    }                                                                                                                  \
    extern "C" __global__ void column_moments_##NAME(float *mean, float *inverse, float *running_mean,                 \
                                                     float *running_var, const T *z, u32 n_rows, u32 width, float eps, \
                                                     float momentum) {                                                 \
        column_moments<T>(mean, inverse, running_mean, running_var, z, n_rows, width, eps, momentum);                  \
    }                                                                                                                  \
    extern "C" __global__ void normalise_##NAME(T *out, const T *z, const float *mean, const float *inverse,           \
                                                const float *weight, const float *bias, u32 n_rows, u32 width,         \
                                                int by_row, u32 n_heads) {                                             \
        normalise<T>(out, z, mean, inverse, weight, bias, n_rows, width, by_row, n_heads);                             \
    }                                                                                                                  \
    extern "C" __global__ void normalise_sums_##NAME(float *of_weight, float *of_bias, const T *gradient, const T *z,  \
                                                     const float *mean, const float *inverse, u32 n_rows, u32 width,   \
                                                     int by_row, u32 n_heads) {                                        \
        normalise_sums<T>(of_weight, of_bias, gradient, z, mean, inverse, n_rows, width, by_row, n_heads);             \
    }                                                                                                                  \
    extern "C" __global__ void row_norm_backward_##NAME(T *gradient, const T *z, const float *mean,                    \
                                                        const float *inverse, const float *weight, u32 n_rows,         \
                                                        u32 width, u32 n_heads) {                                      \
        row_norm_backward<T>(gradient, z, mean, inverse, weight, n_rows, width, n_heads);                              \
    }                                                                                                                  \
    extern "C" __global__ void column_norm_backward_##NAME(T *gradient, const T *z, const float *mean,                 \
                                                           const float *inverse, const float *weight,                  \
                                                           const float *of_weight, const float *of_bias, u32 n_rows,   \
                                                           u32 width) {                                                \
        column_norm_backward<T>(gradient, z, mean, inverse, weight, of_weight, of_bias, n_rows, width);                \
    }
FOR_EACH_TYPE(NORMS)
