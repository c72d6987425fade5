// A libcublasLt.so.12 over the emulated driver: products as its documentation defines them, by three plain loops. What
// Graftwork does not use (other orders of storage, epilogues, batches) is refused.
#include "threads.h"

#include "common.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" int emulator_submit(void *stream, const char *name, const std::function<void()> &call);

namespace {
enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum DataType { R_32F = 0, R_16F = 2, R_16BF = 14 };
struct Description {
    int compute, scale;
    int transpose_a = 0, transpose_b = 0;
};
struct Layout {
    int type;
    u64 rows, columns;
    long long leading;
};
struct Algorithm {
    u64 data[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

size_t width(int type) { return type == R_32F ? 4 : 2; }
double at(const void *from, const Layout &layout, u64 row, u64 column) {
    u64 index = column * layout.leading + row;
    if (layout.type == R_32F) return ((const float *)from)[index];
    u16 bits = ((const u16 *)from)[index];
    return layout.type == R_16F ? f16_to_f32(bits) : bf16_to_f32(bits);
}
bool known(int type) { return type == R_32F || type == R_16F || type == R_16BF; }
} // namespace

EXPORT int cublasLtCreate(void **handle) {
    *handle = new int(1);
    return SUCCESS;
}
EXPORT int cublasLtDestroy(void *handle) {
    delete (int *)handle;
    return SUCCESS;
}
EXPORT size_t cublasLtGetVersion() { return 120000; }
EXPORT int cublasLtMatmulDescCreate(void **out, int compute, int scale) {
    // CUBLAS_COMPUTE_32F: float32 sums without TF32.
    if (compute != 68 || scale != R_32F) return NOT_SUPPORTED;
    *out = new Description{compute, scale};
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescDestroy(void *description) {
    delete (Description *)description;
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescSetAttribute(void *in, int attribute, const void *value, size_t n_bytes) {
    Description *description = (Description *)in;
    if (n_bytes != 4) return INVALID_VALUE;
    switch (attribute) {
    case 3: description->transpose_a = *(const int *)value; return SUCCESS;
    case 4: description->transpose_b = *(const int *)value; return SUCCESS;
    default: return NOT_SUPPORTED;
    }
}
EXPORT int cublasLtMatrixLayoutCreate(void **out, int type, u64 rows, u64 columns, long long leading) {
    if (!known(type) || leading < (long long)rows) return INVALID_VALUE;
    *out = new Layout{type, rows, columns, leading};
    return SUCCESS;
}
EXPORT int cublasLtMatrixLayoutDestroy(void *layout) {
    delete (Layout *)layout;
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceCreate(void **out) {
    *out = new int(1);
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void *preference) {
    delete (int *)preference;
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void *, int attribute, const void *, size_t n_bytes) {
    if (attribute == 1) return n_bytes == 8 ? SUCCESS : INVALID_VALUE;
    return n_bytes == 4 ? SUCCESS : INVALID_VALUE;
}
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *a, void *b, void *c, void *d, void *, int, Heuristic *out,
                                          int *count) {
    *count = 0;
    for (void *layout : {a, b, c, d}) {
        const Layout &of = *(Layout *)layout;
        // Half-width products take tensor cores, which want 16 bytes; without them there is often no algorithm.
        if (of.type != R_32F && of.leading * width(of.type) % 16 != 0) return SUCCESS;
    }
    *count = 1;
    *out = Heuristic();
    return SUCCESS;
}
EXPORT int cublasLtMatmul(void *, void *in, const float *alpha, const void *a, void *a_layout, const void *b,
                          void *b_layout, const float *beta, const void *c, void *c_layout, void *d, void *d_layout,
                          const Algorithm *algorithm, void *workspace, size_t n_workspace, void *stream) {
    Description of = *(Description *)in;
    Layout la = *(Layout *)a_layout, lb = *(Layout *)b_layout, lc = *(Layout *)c_layout, ld = *(Layout *)d_layout;
    u64 m = of.transpose_a ? la.columns : la.rows, k = of.transpose_a ? la.rows : la.columns;
    u64 k_of_b = of.transpose_b ? lb.columns : lb.rows, n = of.transpose_b ? lb.rows : lb.columns;
    if (k != k_of_b || ld.rows != m || ld.columns != n || lc.rows != m || lc.columns != n || la.type != lb.type)
        return INVALID_VALUE;
    if (!algorithm || (n_workspace && !workspace)) return INVALID_VALUE;
    float by = *alpha, of_c = *beta;
    return emulator_submit(stream, "cublasLtMatmul", [=] {
        for (u64 column = 0; column < n; column++)
            for (u64 row = 0; row < m; row++) {
                double sum = 0.0;
                for (u64 i = 0; i < k; i++)
                    sum += (of.transpose_a ? at(a, la, i, row) : at(a, la, row, i)) *
                           (of.transpose_b ? at(b, lb, column, i) : at(b, lb, i, column));
                float value = (float)(by * sum);
                if (of_c != 0.0f) value += of_c * (float)at(c, lc, row, column);
                u64 index = column * ld.leading + row;
                if (ld.type == R_32F)
                    ((float *)d)[index] = value;
                else
                    ((u16 *)d)[index] = ld.type == R_16F ? f32_to_f16(value) : f32_to_bf16(value);
            }
    });
}
