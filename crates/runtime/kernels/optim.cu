// Updates of many heads at once, with the numbers of each head of its own.
//
// Parameters of all heads lie one after the other, `per_head` each. `table` holds for each step and head what depends on
// both, made on the processor in float64 (StepScalars). The gradient is `gradient`·scale[head]·clip[head].
// A head that is marked in `faults` is not touched: its weights stay the last good ones.
#include "common.cuh"

// What one head's update does, for all steps.
struct Rule {
    float weight_decay;
    float dampening; // SGD
    float nesterov;  // SGD, 0 or 1
    float beta2;     // Adam
    float eps;       // Adam
    float decoupled; // AdamW: 1
};
struct StepScalars {
    float rate;      // learning rate
    float momentum;  // SGD's momentum or Adam's beta1, which one-cycle moves
    float step_size; // Adam: rate / (1 - beta1^t)
    float root;      // Adam: sqrt(1 - beta2^t)
    float first;     // 1 in the first step of all, where the momentum buffer and the moving average begin
};

// torch.optim.SGD.
__device__ __forceinline__ float sgd_one(float weight, float gradient, float *buffer, const Rule &rule,
                                         const StepScalars &now) {
    gradient += rule.weight_decay * weight;
    if (now.momentum != 0.0f) {
        float kept = now.first != 0.0f ? gradient : now.momentum * *buffer + (1.0f - rule.dampening) * gradient;
        *buffer = kept;
        gradient = rule.nesterov != 0.0f ? gradient + now.momentum * kept : kept;
    }
    return weight - now.rate * gradient;
}

// torch.optim.Adam and AdamW.
__device__ __forceinline__ float adam_one(float weight, float gradient, float *first, float *second, const Rule &rule,
                                          const StepScalars &now) {
    if (rule.decoupled != 0.0f)
        weight *= 1.0f - now.rate * rule.weight_decay;
    else
        gradient += rule.weight_decay * weight;
    float m = *first + (1.0f - now.momentum) * (gradient - *first);
    float v = rule.beta2 * *second + (1.0f - rule.beta2) * gradient * gradient;
    *first = m;
    *second = v;
    return weight - now.step_size * (m / (sqrtf(v) / now.root + rule.eps));
}

// `half_width` is the copy that the matrix products read, null where they read `weights`; ema may be null, else
// ema += (1 - decay)·(weights - ema) after the update, and the weights themselves after the first.
template <int ADAM, typename T>
__device__ __forceinline__ void update(float *weights, T *half_width, float *first, float *second, float *ema,
                                       const float *gradient, const float *scale, const float *clip, const u32 *faults,
                                       const Rule *rules, const StepScalars *table, const Cursor *cursor, u32 step0,
                                       u32 n_heads, u32 per_head, float decay) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)n_heads * per_head) return;
    u32 head = (u32)(at / per_head);
    if (faults[head]) return;
    Rule rule = rules[head];
    StepScalars now = table[(u64)(cursor->step + step0) * n_heads + head];
    float slope = gradient[at] * scale[head];
    if (clip) slope *= clip[head];
    float weight = ADAM ? adam_one(weights[at], slope, first + at, second + at, rule, now)
                        : sgd_one(weights[at], slope, first + at, rule, now);
    weights[at] = weight;
    if (half_width) half_width[at] = from_float<T>(weight);
    if (ema) ema[at] = now.first != 0.0f ? weight : ema[at] + (1.0f - decay) * (weight - ema[at]);
}
#define UPDATE(NAME, ADAM, T)                                                                                          \
    extern "C" __global__ void NAME(float *weights, T *half_width, float *first, float *second, float *ema,            \
                                    const float *gradient, const float *scale, const float *clip, const u32 *faults,   \
                                    const Rule *rules, const StepScalars *table, const Cursor *cursor, u32 step0,      \
                                    u32 n_heads, u32 per_head, float decay) {                                          \
        update<ADAM, T>(weights, half_width, first, second, ema, gradient, scale, clip, faults, rules, table, cursor,  \
                        step0, n_heads, per_head, decay);                                                              \
    }
UPDATE(sgd_f16, 0, f16)
UPDATE(sgd_bf16, 0, bf16)
UPDATE(adam_f16, 1, f16)
UPDATE(adam_bf16, 1, bf16)

// Sums of squares of a tensor's gradient for each head: norms[head] = or += the sum over its `per_head` numbers. One
// block of 1024 threads a head.
extern "C" __global__ void squares(double *norms, const float *gradient, u32 per_head, int add) {
    __shared__ double scratch[32];
    const float *of_head = gradient + (u64)blockIdx.x * per_head;
    double sum = 0.0;
    for (u32 at = threadIdx.x; at < per_head; at += blockDim.x) sum += (double)of_head[at] * of_head[at];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) norms[blockIdx.x] = add ? norms[blockIdx.x] + sum : sum;
}

// torch.nn.utils.clip_grad_norm_: clip[head] = min(1, limit / (norm + 1e-6)), of the gradient after `scale`.
extern "C" __global__ void clip_factor(float *clip, const double *norms, const float *scale, u32 n_heads, float limit) {
    u32 head = blockIdx.x * blockDim.x + threadIdx.x;
    if (head >= n_heads) return;
    float norm = (float)(sqrt(norms[head]) * scale[head]);
    clip[head] = fminf(1.0f, limit / (norm + 1e-6f));
}
