/* 4-bit codes of keys, block by block. */
#include "codes.h"

#include <stddef.h>
#include <string.h>

enum { MOST_WIDTH = HGCA_MOST_WIDTH, ALONE = 3 }; /* pieces the caller writes by itself */

int64_t hgca_block_bytes(int32_t dim) {
    return dim < 1 ? 0 : hgca_scales_bytes(dim) + HGCA_GROUPS * hgca_lanes_bytes(dim);
}

/* Scales and zeros that `count` positions from `first` on have in common, as a block begins with them, and what makes codes of numbers. */
static void find_scales(const hgca_codes *job, int64_t head, int64_t first, int64_t count, uint16_t *scale_at, float *low, float *per_step) {
    const int64_t width = hgca_code_width(job->of.dim);
    const int32_t *order = job->order ? job->order + head * job->order_head_stride : NULL;
    uint16_t *zero_at = scale_at + width;
    float high[MOST_WIDTH], row[MOST_WIDTH];
    int strange = 0; /* NaN or infinite numbers: they are hidden nowhere, so nothing here is chosen by its codes */
    for (int64_t d = 0; d < width; d++) low[d] = 0x1.fp127f, high[d] = -0x1.fp127f, row[d] = 0.0f;
    for (int64_t p = first; p < first + count; p++) {
        hgca_load_row(&job->of, head, order ? order[p] : p, row);
        for (int64_t d = 0; d < width; d++) low[d] = row[d] < low[d] ? row[d] : low[d];
        for (int64_t d = 0; d < width; d++) high[d] = row[d] > high[d] ? row[d] : high[d];
        for (int64_t d = 0; d < width; d++) strange |= !(row[d] - row[d] == 0.0f);
    }
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
}

static void encode_block(const hgca_codes *job, int64_t head, int64_t first, int64_t count, const float *low, const float *per_step,
                         uint8_t *codes) {
    const int64_t width = hgca_code_width(job->of.dim);
    const int32_t *order = job->order ? job->order + head * job->order_head_stride : NULL;
    float row[MOST_WIDTH];
    uint8_t code[MOST_WIDTH];
    for (int64_t d = 0; d < width; d++) row[d] = 0.0f;
    memset(codes, 0, (size_t)(HGCA_GROUPS * hgca_lanes_bytes(job->of.dim)));
    for (int64_t p = 0; p < count; p++) {
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

/* Blocks that share their scales, and each begins with them. */
static void encode_blocks(const hgca_codes *job, int64_t head, int64_t block, int64_t blocks) {
    const int64_t first = block * HGCA_BLOCK, end = hgca_smaller(job->of.first + job->of.count, first + blocks * HGCA_BLOCK);
    const int64_t bytes = hgca_block_bytes(job->of.dim), scales = hgca_scales_bytes(job->of.dim);
    char *to = (char *)job->codes + head * job->codes_head_stride + block * bytes;
    float low[MOST_WIDTH], per_step[MOST_WIDTH];
    find_scales(job, head, first, end - first, (uint16_t *)(void *)to, low, per_step);
    for (int64_t i = 0, at = first; at < end; i++, at += HGCA_BLOCK) {
        if (i) memcpy(to + i * bytes, to, (size_t)scales);
        encode_block(job, head, at, hgca_smaller(end - at, HGCA_BLOCK), low, per_step, (uint8_t *)to + i * bytes + scales);
    }
}

typedef struct {
    hgca_batch batch; /* first: the pool hands this back */
    const hgca_codes *job;
    int64_t first_block;
    int64_t blocks; /* per head */
    int64_t shared; /* of these so many have the same scales */
    int64_t pieces; /* per head */
} encoding;

static void run_blocks(hgca_batch *batch, int32_t piece) {
    const encoding *e = (const encoding *)(const void *)batch;
    const int64_t done = piece % e->pieces * e->shared;
    encode_blocks(e->job, piece / e->pieces, e->first_block + done, hgca_smaller(e->blocks - done, e->shared));
}

int hgca_encode(const hgca_codes *job) {
    if (job == NULL || hgca_check_span(&job->of, HGCA_BLOCK) || (job->of.count > 0 && !job->codes)) return HGCA_BAD_ARGUMENT;
    if (job->shared < 0) return HGCA_BAD_ARGUMENT;
    encoding e = {.job = job, .first_block = job->of.first / HGCA_BLOCK, .blocks = (job->of.count + HGCA_BLOCK - 1) / HGCA_BLOCK};
    e.shared = job->shared ? job->shared : 1;
    e.pieces = (e.blocks + e.shared - 1) / e.shared;
    e.batch.run = run_blocks;
    e.batch.pieces = (int32_t)(e.pieces * job->of.heads);
    hgca_finish_batch(&e.batch, ALONE);
    return HGCA_OK;
}
