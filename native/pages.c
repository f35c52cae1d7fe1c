/* What is known of pages of 16 rows: bounds or means of their keys, 16 pages side by side (hgca_pages in hgca.h). */
#include <stddef.h>
#include <string.h>

#include "codes.h"
#include "pool.h"

enum { MOST_WIDTH = 1024, ALONE = 64, NAN_BF16 = 0x7fc0 }; /* widest row; pages the caller writes by itself */

int64_t hgca_page_bytes(int32_t dim, int32_t kind) {
    return dim < 1 ? 0 : (int64_t)dim * (kind == HGCA_PAGE_BOX ? 2 : 1) * HGCA_LANES * (int64_t)sizeof(uint16_t);
}

static void write_page(const hgca_pages *job, int64_t head, int64_t page) {
    const hgca_source rows = {
        .rows = (const char *)job->rows + head * job->head_stride,
        .scale = job->scale ? (const char *)job->scale + head * job->scale_head_stride : NULL,
        .row_stride = job->row_stride,
        .scale_row_stride = job->scale_row_stride,
        .dim = job->dim,
        .dtype = job->dtype,
    };
    const int64_t first = page * HGCA_LANES, end = job->first + job->count;
    const int64_t count = end - first < HGCA_LANES ? end - first : HGCA_LANES;
    float low[MOST_WIDTH], high[MOST_WIDTH], sum[MOST_WIDTH] = {0}, row[MOST_WIDTH];
    hgca_load_row(&rows, first, low);
    memcpy(high, low, sizeof(float) * (size_t)job->dim);
    for (int64_t r = first; r < first + count; r++) {
        hgca_load_row(&rows, r, row);
        for (int32_t d = 0; d < job->dim; d++) {
            low[d] = row[d] < low[d] ? row[d] : low[d];
            high[d] = row[d] > high[d] ? row[d] : high[d];
            sum[d] += row[d];
        }
    }
    const int sides = job->kind == HGCA_PAGE_BOX ? 2 : 1;
    uint16_t *to = (uint16_t *)((char *)job->pages + head * job->pages_head_stride +
                                page / HGCA_LANES * hgca_page_bytes(job->dim, job->kind)) + page % HGCA_LANES;
    for (int32_t d = 0; d < job->dim; d++, to += sides * HGCA_LANES) {
        if (sum[d] - sum[d] != 0.0f) to[0] = to[(sides - 1) * HGCA_LANES] = NAN_BF16; /* NaN or infinite, or too large a sum */
        else if (job->kind == HGCA_PAGE_BOX) to[0] = hgca_bf16_below(low[d]), to[HGCA_LANES] = hgca_bf16_above(high[d]);
        else to[0] = hgca_to_bf16(job->kind == HGCA_PAGE_MEAN ? sum[d] / (float)count : 0.5f * low[d] + 0.5f * high[d]);
    }
}

typedef struct {
    hgca_batch batch; /* first: the pool hands this back */
    const hgca_pages *job;
    int64_t pages; /* per head */
} paging;

static void run_page(hgca_batch *batch, int32_t piece) {
    const paging *p = (const paging *)(const void *)batch;
    write_page(p->job, piece / p->pages, p->job->first / HGCA_LANES + piece % p->pages);
}

int hgca_page(const hgca_pages *job) {
    if (job == NULL || job->heads < 1 || job->dim < 1 || job->dim > MOST_WIDTH || job->first < 0 || job->count < 0 ||
        job->first % HGCA_LANES || job->dtype < HGCA_F32 || job->dtype > HGCA_I8 || job->kind < HGCA_PAGE_BOX ||
        job->kind > HGCA_PAGE_MEAN)
        return HGCA_BAD_ARGUMENT;
    if (job->count == 0) return HGCA_OK;
    if (job->rows == NULL || job->pages == NULL || (job->dtype == HGCA_I8 && job->scale == NULL)) return HGCA_BAD_ARGUMENT;
    paging p = {{0}, job, (job->count + HGCA_LANES - 1) / HGCA_LANES};
    if (p.pages > INT32_MAX / job->heads) return HGCA_BAD_ARGUMENT;
    p.batch.run = run_page;
    p.batch.pieces = (int32_t)(p.pages * job->heads);
    if (p.batch.pieces <= ALONE) {
        for (int32_t i = 0; i < p.batch.pieces; i++) run_page(&p.batch, i);
        return HGCA_OK;
    }
    hgca_pool_submit(&p.batch);
    hgca_pool_wait(&p.batch);
    return HGCA_OK;
}
