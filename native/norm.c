/* Root-mean-square norms. */
#include <math.h>

#include "hgca.h"
#include "layer.h"

enum { SUMS = 16 };

float hgca_norm_inverse(const hgca_norm *norm, const float *from, int64_t width) {
    float sum[SUMS] = {0}, all = 0.0f; /* so many at once: one after the other waits for the sum, and rounds more */
    int64_t d = 0;
    for (; d + SUMS <= width; d += SUMS)
        for (int i = 0; i < SUMS; i++) sum[i] += from[d + i] * from[d + i];
    for (; d < width; d++) all += from[d] * from[d];
    for (int i = 0; i < SUMS; i++) all += sum[i];
    return 1.0f / sqrtf(all / (float)width + norm->eps);
}

void hgca_norm_by(const hgca_norm *norm, float inverse, const float *from, int64_t first, int64_t count, float *to) {
    const float *by = norm->weight + first;
    for (int64_t d = 0; d < count; d++) to[d] = from[d] * inverse * (by[d] + norm->shift);
}

int hgca_rms_norm(uintptr_t in, uintptr_t weight, int64_t rows, int64_t width, float eps, float shift, uintptr_t out) {
    if (!in || !weight || !out || rows < 0 || width < 1) return HGCA_BAD_ARGUMENT;
    const hgca_norm norm = {(const float *)weight, eps, shift};
    const float *from = (const float *)in;
    float *to = (float *)out;
    for (int64_t r = 0; r < rows; r++, from += width, to += width)
        hgca_norm_by(&norm, hgca_norm_inverse(&norm, from, width), from, 0, width, to);
    return HGCA_OK;
}
