/* Rows an index is made of, and the work on them (codes.h). */
#include <stddef.h>
#include <string.h>

#include "codes.h"
#include "convert.h"

int hgca_check_span(const hgca_span *s, int64_t step) {
    if (s->heads < 1 || s->dim < 1 || s->dim > HGCA_MOST_WIDTH || s->first < 0 || s->count < 0 || s->first % step ||
        s->dtype < HGCA_F32 || s->dtype > HGCA_I8)
        return HGCA_BAD_ARGUMENT;
    if (s->count > 0 && (s->rows == NULL || (s->dtype == HGCA_I8 && s->scale == NULL))) return HGCA_BAD_ARGUMENT;
    return (s->count + step - 1) / step > INT32_MAX / s->heads ? HGCA_BAD_ARGUMENT : HGCA_OK;
}

void hgca_load_row(const hgca_span *s, int64_t head, int64_t row, float *to) {
    const char *from = (const char *)s->rows + head * s->head_stride + row * s->row_stride;
    if (s->dtype != HGCA_I8) {
        hgca_rows one = {.from = from, .to = (char *)to, .rows = 1, .dim = (size_t)s->dim};
        hgca_converters()->rows[s->dtype][HGCA_F32](&one);
        return;
    }
    float scale;
    memcpy(&scale, (const char *)s->scale + head * s->scale_head_stride + row * s->scale_row_stride, sizeof scale);
    for (int32_t d = 0; d < s->dim; d++) to[d] = scale * (float)((const int8_t *)from)[d];
}

void hgca_store_bf16(const float *from, int64_t dim, void *to) {
    hgca_rows one = {.from = (const char *)from, .to = to, .rows = 1, .dim = (size_t)dim};
    hgca_converters()->rows[HGCA_F32][HGCA_BF16](&one);
}

void hgca_finish_batch(hgca_batch *batch, int32_t alone) {
    if (batch->pieces > alone) {
        hgca_pool_run(batch, 0);
        return;
    }
    for (int32_t i = 0; i < batch->pieces; i++) batch->run(batch, i);
}
