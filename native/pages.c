/* What is known of pages of 16 rows: bounds or means of their keys, 16 pages side by side (hgca_pages in hgca.h). */
#include <stddef.h>
#include <string.h>

#include "codes.h"

enum { MOST_WIDTH = HGCA_MOST_WIDTH, ALONE = 64, NAN_BF16 = 0x7fc0 }; /* pages the caller writes by itself */

int64_t hgca_page_bytes(int32_t dim, int32_t kind) {
    return dim < 1 ? 0 : (int64_t)dim * (kind == HGCA_PAGE_BOX ? 2 : 1) * HGCA_LANES * (int64_t)sizeof(uint16_t);
}

static void write_page(const hgca_pages *job, int64_t head, int64_t page) {
    const int64_t first = page * HGCA_LANES, end = job->of.first + job->of.count;
    const int64_t count = end - first < HGCA_LANES ? end - first : HGCA_LANES;
    float low[MOST_WIDTH], high[MOST_WIDTH], sum[MOST_WIDTH] = {0}, row[MOST_WIDTH];
    hgca_load_row(&job->of, head, first, low);
    memcpy(high, low, sizeof(float) * (size_t)job->of.dim);
    for (int64_t r = first; r < first + count; r++) {
        hgca_load_row(&job->of, head, r, row);
        for (int32_t d = 0; d < job->of.dim; d++) {
            low[d] = row[d] < low[d] ? row[d] : low[d];
            high[d] = row[d] > high[d] ? row[d] : high[d];
            sum[d] += row[d];
        }
    }
    const int sides = job->kind == HGCA_PAGE_BOX ? 2 : 1;
    uint16_t middle[MOST_WIDTH]; /* of the box, or the mean */
    for (int32_t d = 0; d < job->of.dim; d++)
        row[d] = job->kind == HGCA_PAGE_MEAN ? sum[d] / (float)count : 0.5f * low[d] + 0.5f * high[d];
    hgca_store_bf16(row, job->of.dim, middle);
    uint16_t *to = (uint16_t *)((char *)job->pages + head * job->pages_head_stride +
                                page / HGCA_LANES * hgca_page_bytes(job->of.dim, job->kind)) + page % HGCA_LANES;
    for (int32_t d = 0; d < job->of.dim; d++, to += sides * HGCA_LANES) {
        if (sum[d] - sum[d] != 0.0f) to[0] = to[(sides - 1) * HGCA_LANES] = NAN_BF16; /* NaN or infinite, or too large a sum */
        else if (job->kind == HGCA_PAGE_BOX) to[0] = hgca_bf16_below(low[d]), to[HGCA_LANES] = hgca_bf16_above(high[d]);
        else to[0] = middle[d];
    }
}

typedef struct {
    hgca_batch batch; /* first: the pool hands this back */
    const hgca_pages *job;
    int64_t pages; /* per head */
} paging;

static void run_page(hgca_batch *batch, int32_t piece) {
    const paging *p = (const paging *)(const void *)batch;
    write_page(p->job, piece / p->pages, p->job->of.first / HGCA_LANES + piece % p->pages);
}

int hgca_page(const hgca_pages *job) {
    if (job == NULL || hgca_check_span(&job->of, HGCA_LANES) || job->kind < HGCA_PAGE_BOX || job->kind > HGCA_PAGE_MEAN)
        return HGCA_BAD_ARGUMENT;
    if (job->of.count > 0 && !job->pages) return HGCA_BAD_ARGUMENT;
    paging p = {{0}, job, (job->of.count + HGCA_LANES - 1) / HGCA_LANES};
    p.batch.run = run_page;
    p.batch.pieces = (int32_t)(p.pages * job->of.heads);
    hgca_finish_batch(&p.batch, ALONE);
    return HGCA_OK;
}
