/* Means of rows, and rows of any dtype as floats. */
#include <stddef.h>
#include <string.h>

#include "codes.h"
#include "pool.h"

enum { MOST_WIDTH = 1024, ALONE = 128 }; /* widest row; means the caller writes by itself */

static float from_f16(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = x >> 10 & 31, fraction = x & 1023, bits;
    float f;
    if (exponent == 0) {
        f = (float)fraction * 0x1p-24f;
        return sign ? -f : f;
    }
    bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    memcpy(&f, &bits, sizeof f);
    return f;
}

void hgca_load_row(const hgca_source *source, int64_t row, float *to) {
    const char *from = source->rows + row * source->row_stride;
    const int32_t dim = source->dim;
    if (source->dtype == HGCA_F32) memcpy(to, from, sizeof(float) * (size_t)dim);
    else if (source->dtype == HGCA_I8) {
        float scale;
        memcpy(&scale, source->scale + row * source->scale_row_stride, sizeof scale);
        for (int32_t d = 0; d < dim; d++) to[d] = scale * (float)((const int8_t *)from)[d];
    } else {
        uint16_t half[MOST_WIDTH]; /* rows may stand at odd addresses */
        memcpy(half, from, sizeof *half * (size_t)dim);
        if (source->dtype == HGCA_BF16)
            for (int32_t d = 0; d < dim; d++) to[d] = hgca_from_bf16(half[d]);
        else
            for (int32_t d = 0; d < dim; d++) to[d] = from_f16(half[d]);
    }
}

typedef struct {
    hgca_batch batch; /* first: the pool hands this back */
    const hgca_means *job;
    int64_t groups; /* per head */
} averaging;

static void run_group(hgca_batch *batch, int32_t piece) {
    const averaging *a = (const averaging *)(const void *)batch;
    const hgca_means *job = a->job;
    const int64_t head = piece / a->groups, group = job->first / job->each + piece % a->groups;
    const int64_t first = group * job->each, end = job->first + job->count;
    const int64_t count = end - first < job->each ? end - first : job->each;
    const int32_t *order = job->order ? job->order + head * job->order_head_stride : NULL;
    const hgca_source rows = {
        .rows = (const char *)job->rows + head * job->head_stride,
        .scale = job->scale ? (const char *)job->scale + head * job->scale_head_stride : NULL,
        .row_stride = job->row_stride,
        .scale_row_stride = job->scale_row_stride,
        .dim = job->dim,
        .dtype = job->dtype,
    };
    float sum[MOST_WIDTH] = {0}, row[MOST_WIDTH];
    for (int64_t p = first; p < first + count; p++) {
        hgca_load_row(&rows, order ? order[p] : p, row);
        for (int32_t d = 0; d < job->dim; d++) sum[d] += row[d];
    }
    for (int32_t d = 0; d < job->dim; d++) sum[d] /= (float)count;
    if (job->spread) {
        float apart[MOST_WIDTH] = {0};
        for (int64_t p = first; p < first + count; p++) {
            hgca_load_row(&rows, order ? order[p] : p, row);
            for (int32_t d = 0; d < job->dim; d++) apart[d] += (row[d] - sum[d]) * (row[d] - sum[d]);
        }
        for (int32_t d = 0; d < job->dim; d++) sum[d] = apart[d] / (float)count;
    }
    char *to = (char *)job->mean + head * job->mean_head_stride + group * job->mean_row_stride;
    for (int32_t d = 0; d < job->dim; d++) ((uint16_t *)(void *)to)[d] = hgca_to_bf16(sum[d]);
}

int hgca_average(const hgca_means *job) {
    if (job == NULL || job->heads < 1 || job->dim < 1 || job->dim > MOST_WIDTH || job->each < 1 || job->first < 0 ||
        job->count < 0 || job->first % job->each || job->dtype < HGCA_F32 || job->dtype > HGCA_I8)
        return HGCA_BAD_ARGUMENT;
    if (job->count == 0) return HGCA_OK;
    if (job->rows == NULL || job->mean == NULL || (job->dtype == HGCA_I8 && job->scale == NULL)) return HGCA_BAD_ARGUMENT;
    averaging a = {{0}, job, (job->count + job->each - 1) / job->each};
    if (a.groups > INT32_MAX / job->heads) return HGCA_BAD_ARGUMENT;
    a.batch.run = run_group;
    a.batch.pieces = (int32_t)(a.groups * job->heads);
    if (a.batch.pieces <= ALONE) {
        for (int32_t i = 0; i < a.batch.pieces; i++) run_group(&a.batch, i);
        return HGCA_OK;
    }
    hgca_pool_submit(&a.batch);
    hgca_pool_wait(&a.batch);
    return HGCA_OK;
}
