/* What every instruction set provides: attention over one piece of one list, not yet normalised. */
#ifndef HGCA_KERNELS_H
#define HGCA_KERNELS_H

#include <stdint.h>

/* Floats the padded rows of queries and outputs are rounded up to: the widest vector there is. */
enum { HGCA_PAD = 16 };

static inline int64_t hgca_padded(int64_t width) { return (width + HGCA_PAD - 1) / HGCA_PAD * HGCA_PAD; }

/* Rows of one KV head, for `heads` query heads that read the same rows.
 *   row     positions of the rows; NULL: first, first + 1, ...
 *   query   f32 [heads][padded key_dim], scaled, zeros in the padding
 * Results, relative to the largest score:
 *   out     f32 [heads][padded value_dim] sum_j exp(s_j - max) v_j
 *   max     f32 [heads], -inf over no rows;  sum  f32 [heads] sum_j exp(s_j - max) */
typedef struct {
    const char *key;
    const char *value;
    int64_t key_row_stride;
    int64_t value_row_stride;
    const int32_t *row;
    int64_t first;
    int64_t count;
    int32_t key_dim;
    int32_t value_dim;
    int32_t heads;
    float softcap;
    const float *query;
    float *out;
    float *max;
    float *sum;
} hgca_piece;

typedef void (*hgca_piece_fn)(const hgca_piece *piece);

typedef struct {
    const char *name;
    hgca_piece_fn piece[3]; /* by dtype: f32, bf16, f16 */
} hgca_isa_kernels;

extern const hgca_isa_kernels hgca_scalar, hgca_avx2, hgca_avx512, hgca_neon;

#endif
