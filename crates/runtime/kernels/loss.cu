// Losses of many heads at once: the loss of each row, and in place of the logits their gradient.
//
// Gradients are not divided by the number of rows: in half-width numbers (p - y) / 16384 would vanish. `batch_stats`
// leaves the divisor for the update in `scale`.
#include "common.cuh"

// What one row says for one head; `batch_stats` adds them up.
struct RowStat {
    float loss;   // weighted
    float weight; // of the row in the mean
    float top1;   // 1 where no other class is ahead of the row's own
    float top5;   // 1 where fewer than five are
};

// Softmax and cross-entropy with label smoothing and class weights, as torch.nn.CrossEntropyLoss defines them:
//   loss = (1 - s)·w[y]·(-log p[y]) + s/C · sum over c of w[c]·(-log p[c]),   the batch's mean divides by the sum of w[y].
// With `partner`, the labels of the row and of its partner count with shares `share` and 1 - `share` (mixup).
//
// logits and gradient: [n_rows, stride], head h at columns h·C .. (h+1)·C, the logits without their `bias` [heads, C];
// `gradient` may be null (evaluation) and may be `logits`. A group of `width` lanes (4, 8, 16 or 32) has one row of one head. Ties go to the lowest class.
template <typename S, typename T>
__device__ __forceinline__ void softmax_ce(T *gradient, const S *logits, const float *bias, RowStat *stats, const u32 *labels,
                                           const u32 *order, const Cursor *cursor, u32 row0, u32 n_rows, u32 n_heads,
                                           u32 n_classes, u32 stride, int width, const float *class_weight,
                                           float smoothing, const float *share, const u32 *partner) {
    u64 group = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / width;
    u32 lane = threadIdx.x % width;
    // Every lane takes part in the exchanges, so the groups beyond the end follow the last row and write nothing.
    bool is_row = group < (u64)n_rows * n_heads;
    u64 item = is_row ? group : (u64)n_rows * n_heads - 1;
    u32 row = (u32)(item / n_heads), head = (u32)(item % n_heads);
    const S *z = logits + (u64)row * stride + (u64)head * n_classes;
    const float *b = bias + (u64)head * n_classes;
    u64 at = (u64)cursor->row + row0;
    u32 label = labels[order[at + row]];
    u32 second = partner ? labels[order[at + partner[at + row]]] : label;
    float part = partner ? share[at + row] : 1.0f;

    float highest = -INFINITY;
    for (u32 c = lane; c < n_classes; c += width) highest = fmaxf(highest, to_float(z[c]) + b[c]);
    highest = group_max(highest, width);
    float own = to_float(z[label]) + b[label];
    float sum = 0.0f, weights = 0.0f, weighted = 0.0f;
    int ahead = 0;
    for (u32 c = lane; c < n_classes; c += width) {
        float value = to_float(z[c]) + b[c], weight = class_weight ? class_weight[c] : 1.0f;
        sum += expf(value - highest);
        weights += weight;
        weighted += weight * value;
        ahead += value > own || (value == own && c < label);
    }
    sum = group_sum(sum, width);
    weights = group_sum(weights, width);
    weighted = group_sum(weighted, width);
    ahead = group_sum_int(ahead, width);
    float log_sum = highest + logf(sum);
    // Of -log p = log_sum - z.
    float w1 = part * (class_weight ? class_weight[label] : 1.0f);
    float w2 = (1.0f - part) * (class_weight ? class_weight[second] : 1.0f);
    float spread = smoothing / n_classes, certain = 1.0f - smoothing;
    float loss = certain * (w1 * (log_sum - own) + w2 * (log_sum - (to_float(z[second]) + b[second])));
    if (smoothing > 0.0f) loss += spread * (weights * log_sum - weighted);
    // All lanes have read what they need of the row's label before any of them writes.
    __syncwarp();
    if (gradient && is_row) {
        T *r = gradient + (u64)row * stride + (u64)head * n_classes;
        float of_p = certain * (w1 + w2) + spread * weights, inverse = 1.0f / sum;
        for (u32 c = lane; c < n_classes; c += width) {
            float value = of_p * (expf(to_float(z[c]) + b[c] - highest) * inverse);
            if (smoothing > 0.0f) value -= spread * (class_weight ? class_weight[c] : 1.0f);
            if (c == label) value -= certain * w1;
            if (c == second) value -= certain * w2;
            r[c] = from_float<T>(value);
        }
    }
    if (is_row && lane == 0) {
        RowStat stat;
        stat.loss = loss;
        stat.weight = w1 + w2;
        // A logit that is no number is ahead of nothing: such a row is wrong.
        stat.top1 = ahead == 0 && own == own;
        stat.top5 = ahead < 5 && own == own;
        stats[item] = stat;
    }
}
#define SOFTMAX(NAME, S, T)                                                                                            \
    extern "C" __global__ void NAME(T *gradient, const S *logits, const float *bias, RowStat *stats, const u32 *labels, const u32 *order, \
                                    const Cursor *cursor, u32 row0, u32 n_rows, u32 n_heads, u32 n_classes,            \
                                    u32 stride, int width, const float *class_weight, float smoothing,                 \
                                    const float *share, const u32 *partner) {                                          \
        softmax_ce<S, T>(gradient, logits, bias, stats, labels, order, cursor, row0, n_rows, n_heads, n_classes, stride,     \
                         width, class_weight, smoothing, share, partner);                                              \
    }
SOFTMAX(softmax_ce_f32, float, float)
SOFTMAX(softmax_ce_f32_f16, float, f16)
SOFTMAX(softmax_ce_f32_bf16, float, bf16)
SOFTMAX(softmax_ce_f16, f16, f16)
SOFTMAX(softmax_ce_bf16, bf16, bf16)

// Losses of several numbers a row. SIGMOID: binary cross-entropy with logits, targets in 0..1 (smoothed to t·(1 - s) + s/2);
// `weight` [2, outputs], which may be null, is what a label's presence and what its absence counts. Else the squared error,
// whose gradient is 2·(z - t).
// A row's loss is the sum over its outputs and its weight their number, so that the mean is over all numbers as
// torch.nn.BCEWithLogitsLoss and MSELoss take it. top1 and
// top5 count the outputs that are on their target's side of zero.
template <bool SIGMOID, typename S, typename T>
__device__ __forceinline__ void dense_loss(T *gradient, const S *outputs, const float *bias, RowStat *stats, const float *targets,
                                           const u32 *order, const Cursor *cursor, u32 row0, u32 n_rows, u32 n_heads,
                                           u32 n_outputs, u32 stride, int width, const float *weight, float smoothing,
                                           const float *share, const u32 *partner) {
    u64 group = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / width;
    u32 lane = threadIdx.x % width;
    bool is_row = group < (u64)n_rows * n_heads;
    u64 item = is_row ? group : (u64)n_rows * n_heads - 1;
    u32 row = (u32)(item / n_heads), head = (u32)(item % n_heads);
    u64 base = (u64)row * stride + (u64)head * n_outputs, at = (u64)cursor->row + row0;
    const float *target = targets + (u64)order[at + row] * n_outputs;
    const float *other = partner ? targets + (u64)order[at + partner[at + row]] * n_outputs : target;
    float part = partner ? share[at + row] : 1.0f, loss = 0.0f;
    int wrong = 0;
    for (u32 c = lane; c < n_outputs; c += width) {
        float z = to_float(outputs[base + c]) + bias[head * n_outputs + c], t = part * target[c] + (1.0f - part) * other[c], slope;
        wrong += (z > 0.0f) != (t > 0.5f);
        if (SIGMOID) {
            t = t * (1.0f - smoothing) + 0.5f * smoothing;
            float present = (weight ? weight[c] : 1.0f) * t;
            float absent = (weight ? weight[n_outputs + c] : 1.0f) * (1.0f - t);
            // -log p = log(1 + e^-z) and -log(1 - p) = log(1 + e^z), without overflow.
            float small = expf(-fabsf(z)), log = log1pf(small), whole = 1.0f / (1.0f + small);
            float p = z >= 0.0f ? whole : small * whole, rest = z >= 0.0f ? small * whole : whole;
            loss += present * (fmaxf(-z, 0.0f) + log) + absent * (fmaxf(z, 0.0f) + log);
            slope = absent * p - present * rest;
        } else {
            loss += (z - t) * (z - t);
            slope = 2.0f * (z - t);
        }
        if (gradient && is_row) gradient[base + c] = from_float<T>(slope);
    }
    loss = group_sum(loss, width);
    wrong = group_sum_int(wrong, width);
    if (is_row && lane == 0) {
        RowStat stat;
        stat.loss = loss;
        stat.weight = n_outputs;
        stat.top1 = n_outputs - wrong;
        stat.top5 = stat.top1;
        stats[item] = stat;
    }
}
#define DENSE(NAME, SIGMOID, S, T)                                                                                     \
    extern "C" __global__ void NAME(T *gradient, const S *outputs, const float *bias, RowStat *stats, const float *targets,               \
                                    const u32 *order, const Cursor *cursor, u32 row0, u32 n_rows, u32 n_heads,         \
                                    u32 n_outputs, u32 stride, int width, const float *weight, float smoothing,        \
                                    const float *share, const u32 *partner) {                                          \
        dense_loss<SIGMOID, S, T>(gradient, outputs, bias, stats, targets, order, cursor, row0, n_rows, n_heads, n_outputs,  \
                                  stride, width, weight, smoothing, share, partner);                                   \
    }
DENSE(sigmoid_bce_f32, true, float, float)
DENSE(sigmoid_bce_f32_f16, true, float, f16)
DENSE(sigmoid_bce_f32_bf16, true, float, bf16)
DENSE(sigmoid_bce_f16, true, f16, f16)
DENSE(sigmoid_bce_bf16, true, bf16, bf16)
DENSE(squared_error_f32, false, float, float)
DENSE(squared_error_f32_f16, false, float, f16)
DENSE(squared_error_f32_bf16, false, float, bf16)
DENSE(squared_error_f16, false, f16, f16)
DENSE(squared_error_bf16, false, bf16, bf16)

// The batch's sums of each head in float64, one block of 256 threads a head: totals[head] += {loss, weight, top1, top5}
// and scale[head] = 1 / (its weight in this batch), which the update multiplies gradients by. `scale` and `faults` may
// be null, as in an evaluation. A loss that is not finite marks the head in `faults`: 1 + the step; its sums stay out.
extern "C" __global__ void batch_stats(double *totals, float *scale, u32 *faults, const RowStat *stats, u32 n_rows,
                                       u32 n_heads, const Cursor *cursor, u32 step0) {
    __shared__ double scratch[32];
    u32 head = blockIdx.x;
    double loss = 0.0, weight = 0.0, top1 = 0.0, top5 = 0.0;
    for (u32 row = threadIdx.x; row < n_rows; row += blockDim.x) {
        RowStat stat = stats[(u64)row * n_heads + head];
        loss += stat.loss;
        weight += stat.weight;
        top1 += stat.top1;
        top5 += stat.top5;
    }
    loss = block_sum(loss, scratch);
    weight = block_sum(weight, scratch);
    top1 = block_sum(top1, scratch);
    top5 = block_sum(top5, scratch);
    if (threadIdx.x == 0) {
        // Without any weight there is no mean, as in torch.
        if (faults && !(isfinite(loss) && weight > 0.0) && faults[head] == 0) faults[head] = cursor->step + step0 + 1;
        if (!faults || faults[head] == 0) {
            totals[head * 4] += loss;
            totals[head * 4 + 1] += weight;
            totals[head * 4 + 2] += top1;
            totals[head * 4 + 3] += top5;
        }
        if (scale) scale[head] = (float)(1.0 / weight);
    }
}
