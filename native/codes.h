/* How 4-bit codes lie in memory (hgca_codes in hgca.h), and what all that makes an index needs. */
#ifndef HGCA_CODES_H
#define HGCA_CODES_H

#include <stdint.h>
#include <string.h>

#include "hgca.h"
#include "pool.h"

enum { HGCA_MOST_WIDTH = 1024 }; /* numbers of a row an index is made of */
enum { HGCA_GROUPS = HGCA_BLOCK / HGCA_LANES }; /* of 16 positions in a block */

static inline int64_t hgca_smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* n up to a multiple. */
static inline int64_t hgca_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline int64_t hgca_code_width(int64_t dim) { return (dim + 7) / 8 * 8; }

/* Bytes of scales and zeros before the codes of a block, and of the codes of 16 positions. */
static inline int64_t hgca_scales_bytes(int64_t dim) { return 4 * hgca_code_width(dim); }
static inline int64_t hgca_lanes_bytes(int64_t dim) { return hgca_code_width(dim) / 2 * HGCA_LANES; }

static inline float hgca_from_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* bf16 towards -inf and towards +inf, of no NaN. */
static inline uint16_t hgca_bf16_below(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits >> 16) + (x < 0.0f && (bits & 0xffff) ? 1 : 0));
}

static inline uint16_t hgca_bf16_above(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits >> 16) + (x > 0.0f && (bits & 0xffff) ? 1 : 0));
}

/* HGCA_OK, or HGCA_BAD_ARGUMENT for a span that is none: heads, widths, a `first` that is no multiple of `step`. */
int hgca_check_span(const hgca_span *span, int64_t step);

/* Row `row` of a head as floats [dim]. */
void hgca_load_row(const hgca_span *span, int64_t head, int64_t row, float *to);

/* bf16 [dim] of floats, to the nearest even. */
void hgca_store_bf16(const float *from, int64_t dim, void *to);

/* Works on a batch until it is done: the caller alone if there are at most `alone` pieces, else the pool. */
void hgca_finish_batch(hgca_batch *batch, int32_t alone);

#endif
