/* How 4-bit codes lie in memory (hgca_codes in hgca.h). */
#ifndef HGCA_CODES_H
#define HGCA_CODES_H

#include <stdint.h>
#include <string.h>

#include "hgca.h"

enum { HGCA_GROUPS = HGCA_BLOCK / HGCA_LANES }; /* of 16 positions in a block */

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

/* bf16 towards -inf, towards +inf, and to the nearest. Only the last takes a NaN. */
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

static inline uint16_t hgca_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Rows of one head, of any dtype. */
typedef struct {
    const char *rows;
    const char *scale; /* of int8 rows */
    int64_t row_stride;
    int64_t scale_row_stride;
    int32_t dim;
    int32_t dtype;
} hgca_source;

/* Row `row` as floats [dim]. */
void hgca_load_row(const hgca_source *source, int64_t row, float *to);

#endif
