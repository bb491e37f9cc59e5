// A fused multiply-add over arrays, which NumPy does not have.
#include <math.h>
#include <stdint.h>

extern "C" {

void fma32(const float* a, const float* b, const float* c, float* result, int64_t n) {
    for (int64_t i = 0; i < n; ++i) result[i] = fmaf(a[i], b[i], c[i]);
}

void fma64(const double* a, const double* b, const double* c, double* result, int64_t n) {
    for (int64_t i = 0; i < n; ++i) result[i] = fma(a[i], b[i], c[i]);
}
}
