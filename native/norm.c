/* Root-mean-square norms of one token. */
#include <math.h>

#include "hgca.h"

enum { SUMS = 16 };

int hgca_rms_norm(uintptr_t in, uintptr_t weight, int64_t rows, int64_t width, float eps, float shift, uintptr_t out) {
    if (!in || !weight || !out || rows < 0 || width < 1) return HGCA_BAD_ARGUMENT;
    const float *from = (const float *)in, *by = (const float *)weight;
    float *to = (float *)out;
    for (int64_t r = 0; r < rows; r++, from += width, to += width) {
        float sum[SUMS] = {0}, all = 0.0f; /* so many at once: one after the other waits for the sum, and rounds more */
        int64_t d = 0;
        for (; d + SUMS <= width; d += SUMS)
            for (int i = 0; i < SUMS; i++) sum[i] += from[d + i] * from[d + i];
        for (; d < width; d++) all += from[d] * from[d];
        for (int i = 0; i < SUMS; i++) all += sum[i];
        const float inverse = 1.0f / sqrtf(all / (float)width + eps);
        for (d = 0; d < width; d++) to[d] = from[d] * inverse * (by[d] + shift);
    }
    return HGCA_OK;
}
