/* 4-bit codes of keys, block by block. */
#include "codes.h"

#include <stddef.h>
#include <string.h>

enum { MOST_WIDTH = HGCA_MOST_WIDTH, ALONE = 3 }; /* blocks the caller writes by itself */

int64_t hgca_block_bytes(int32_t dim) {
    return dim < 1 ? 0 : hgca_scales_bytes(dim) + HGCA_GROUPS * hgca_lanes_bytes(dim);
}

static void encode_block(const hgca_codes *job, int64_t head, int64_t block) {
    const int64_t width = hgca_code_width(job->of.dim);
    const int32_t *order = job->order ? job->order + head * job->order_head_stride : NULL;
    char *to = (char *)job->codes + head * job->codes_head_stride + block * hgca_block_bytes(job->of.dim);
    const int64_t first = block * HGCA_BLOCK, end = job->of.first + job->of.count;
    const int count = (int)(end - first < HGCA_BLOCK ? end - first : HGCA_BLOCK);
    float low[MOST_WIDTH], high[MOST_WIDTH], row[MOST_WIDTH];
    int strange = 0; /* NaN or infinite numbers: they are hidden nowhere, so nothing of this block is chosen by its codes */
    for (int64_t d = 0; d < width; d++) low[d] = 0x1.fp127f, high[d] = -0x1.fp127f, row[d] = 0.0f;
    for (int p = 0; p < count; p++) {
        hgca_load_row(&job->of, head, order ? order[first + p] : first + p, row);
        for (int64_t d = 0; d < width; d++) low[d] = row[d] < low[d] ? row[d] : low[d];
        for (int64_t d = 0; d < width; d++) high[d] = row[d] > high[d] ? row[d] : high[d];
        for (int64_t d = 0; d < width; d++) strange |= !(row[d] - row[d] == 0.0f);
    }
    uint16_t *scale_at = (uint16_t *)(void *)to, *zero_at = scale_at + width;
    float per_step[MOST_WIDTH];
    for (int64_t d = 0; d < width; d++) {
        if (strange) low[d] = high[d] = 0.0f;
        low[d] = low[d] > -0x1.fp127f ? low[d] : -0x1.fp127f; /* what bf16 can round outwards */
        high[d] = high[d] < 0x1.fp127f ? high[d] : 0x1.fp127f;
        zero_at[d] = hgca_bf16_below(low[d]);
        low[d] = hgca_from_bf16(zero_at[d]);
        scale_at[d] = hgca_bf16_above(high[d] / 15.0f - low[d] / 15.0f);
        float step = hgca_from_bf16(scale_at[d]);
        per_step[d] = step > 0.0f ? 1.0f / step : 0.0f;
    }
    for (int64_t d = 0; strange && d < 2 * width; d++) scale_at[d] = 0x7fc0; /* NaN, the zeros too */
    uint8_t *codes = (uint8_t *)to + hgca_scales_bytes(job->of.dim);
    memset(codes, 0, (size_t)(HGCA_GROUPS * hgca_lanes_bytes(job->of.dim)));
    uint8_t code[MOST_WIDTH];
    for (int p = 0; p < count; p++) {
        hgca_load_row(&job->of, head, order ? order[first + p] : first + p, row);
        for (int64_t d = 0; d < width; d++) {
            float x = (row[d] - low[d]) * per_step[d] + 0.5f;
            x = x > 0.0f ? x : 0.0f; /* NaN too */
            code[d] = (uint8_t)(int32_t)(x < 15.5f ? x : 15.5f);
        }
        uint8_t *at = codes + p / HGCA_LANES * hgca_lanes_bytes(job->of.dim) + p % HGCA_LANES * 4;
        for (int64_t d = 0; d < width; d += 8, at += 4 * HGCA_LANES)
            for (int j = 0; j < 4; j++) at[j] = (uint8_t)(code[d + j] | code[d + 4 + j] << 4);
    }
}

typedef struct {
    hgca_batch batch; /* first: the pool hands this back */
    const hgca_codes *job;
    int64_t first_block;
    int64_t blocks; /* per head */
} encoding;

static void run_block(hgca_batch *batch, int32_t piece) {
    const encoding *e = (const encoding *)(const void *)batch;
    encode_block(e->job, piece / e->blocks, e->first_block + piece % e->blocks);
}

int hgca_encode(const hgca_codes *job) {
    if (job == NULL || hgca_check_span(&job->of, HGCA_BLOCK) || (job->of.count > 0 && !job->codes)) return HGCA_BAD_ARGUMENT;
    encoding e = {{0}, job, job->of.first / HGCA_BLOCK, (job->of.count + HGCA_BLOCK - 1) / HGCA_BLOCK};
    e.batch.run = run_block;
    e.batch.pieces = (int32_t)(e.blocks * job->of.heads);
    hgca_finish_batch(&e.batch, ALONE);
    return HGCA_OK;
}
