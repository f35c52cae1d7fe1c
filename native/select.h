/* What every instruction set provides to choose rows: scores from codes, weights from scores, rows from weights. */
#ifndef HGCA_SELECT_H
#define HGCA_SELECT_H

#include <stdint.h>

#include "hgca.h"

/* Bins of weights: eight to an octave (by the bits of the float), from 1 down to 2^-32. */
enum { HGCA_BINS = 256 };

/* Most groups a call of `scan` takes without scratch, and at all. */
enum { HGCA_UNIT = 128, HGCA_WIDE_UNIT = 1024 };

/* Query heads that are scored at once. */
enum { HGCA_QUERIES = 4 };

/* Some of a head's groups of 16 positions, for `queries` query heads.
 *   codes    block 0 of the head;  dim  numbers of a row
 *   groups   which: position 16 g .. 16 g + 15;  count of them;  NULL: first, first + 1, ...
 *   end      positions from here on do not exist
 *   spanned  of the first so many blocks every `span` (a power of two) begin with `shared` that have the scales of the first of them
 *   sides    0: codes. Else they are pages' boxes with so many sides (hgca_pages), 16 pages taking the place of 16 positions
 *   query    f32 [queries][dim rounded up to 8], zeros behind; brings scores into base 2 (with a softcap: natural)
 *   raw      out, if not NULL: f32 [queries][16 * count], the scores themselves, and nothing else is written; NaN where the
 *            query or a block's scales are no numbers
 *   score    out: bf16 [queries][16 * count], 2^(s - max[query]), 2^-126 for positions that do not exist
 *   scratch  f32 [HGCA_QUERIES][16 * count] for more than HGCA_UNIT groups
 *   max, sum out: f32 [queries], the largest score and sum_j 2^(s_j - max); -inf and 0 over nothing */
typedef struct {
    const char *codes;
    int32_t dim;
    int32_t queries;
    const int32_t *groups;
    int64_t first;
    int64_t count;
    int64_t end;
    int64_t spanned;
    int32_t span;
    int32_t shared;
    int32_t sides;
    const float *query;
    float softcap;
    float *raw;
    float *scratch;
    uint16_t *score;
    float *max;
    float *sum;
} hgca_scan;

/* The block that holds the scales of a block's codes. */
static inline int64_t hgca_scales_of(const hgca_scan *scan, int64_t block) {
    const int64_t in = block & (scan->span - 1);
    return block < scan->spanned && in < scan->shared ? block - in : block;
}

/* By how much the log of the mass of n rows is above what their mean key says: v / 2 of scores that spread by the variance v, as
 * of normal ones; where they spread far it is about the largest that counts, and no more: from the variance `from` on
 * `slope` times its root, less `less`. */
typedef struct {
    float from, slope, less;
} hgca_bend;

/* score, max and sum as of hgca_scan from raw scores [queries][count] of mean keys: as they are, or, with the variances
 * of the scores about them, for what the rows may hold. `unit` is that of the scores, 1 if natural. */
typedef struct {
    const float *raw;
    const float *variance; /* of raw's size, or NULL */
    hgca_bend bend;
    float unit;
    int32_t queries;
    int64_t count; /* a multiple of 16, at most 16 HGCA_UNIT */
    uint16_t *score;
    float *max;
    float *sum;
} hgca_reaching;

/* weight[i] = the largest of share[query] * score[query][i]; those of at least `least` are counted into bins, all are
 * added to *total. */
typedef struct {
    const uint16_t *score;
    int64_t count; /* of weights: a multiple of 16 */
    int32_t queries;
    const float *share;
    float least;
    float *weight;
    uint32_t *rows; /* [HGCA_BINS] */
    float *mass;
    float *total;
} hgca_weighing;

/* What was scored and is not read, as rows with the mean value of their block: sum[q] += w, out[q][..] += w * mean, where w is
 * the sum of score[q] over the positions of a block whose bit of chosen[g] is not set. */
typedef struct {
    const uint16_t *score; /* [queries][16 * count] */
    const int32_t *groups; /* ascending */
    int64_t count;
    const uint16_t *chosen; /* a bit per position of a group */
    int32_t queries;
    int32_t dim;
    const char *mean; /* bf16 [blocks][dim] */
    float *out;       /* [queries][padded dim] */
    float *sum;
    int64_t blocks; /* out: how many means were looked at */
} hgca_leaving;

/* Groups that are not looked into, as rows with the mean value of their block: sum[q] += w, out[q][..] += w * mean, where w is
 * the sum of score[q] over those of a block whose bit of `passed` is set. */
typedef struct {
    const uint16_t *score;  /* [queries][count] */
    const uint16_t *passed; /* a bit per group */
    const int32_t *open;    /* which 16 groups stand side by side, as of hgca_scan */
    int64_t count;          /* of groups: a multiple of 16 */
    int32_t queries;
    int32_t dim;
    const char *mean; /* bf16 [blocks][dim] */
    float *out;       /* [queries][padded dim] */
    float *sum;
    int64_t blocks; /* out: how many means were looked at */
} hgca_passing;

/* Blocks that stay closed, as rows with their mean value: sum[q] += score[q][b], out[q][..] += score[q][b] * mean[b] for each
 * bit b of `closed`. */
typedef struct {
    const uint16_t *score;  /* [queries][count] */
    const uint16_t *closed; /* a bit per block */
    int64_t count;          /* a multiple of 16 */
    int32_t queries;
    int32_t dim;
    const char *mean; /* bf16 [count][dim] */
    float *out;       /* [queries][padded dim] */
    float *sum;
} hgca_closing;

/* Rows to be put into groups: some of `row`, f32 [..][width], width a multiple of 16, by their indexes [count]. */
typedef struct {
    const float *row;
    int64_t width;
    const int32_t *index;
    int64_t count;
} hgca_gathered;

/* The rows that are read of some groups: those of at least `least`, and of those below `above` the first `room`.
 *   weight   [16 * count], or NULL: all are read
 *   light    those below this stand behind the others
 *   order    the row of each position below `clustered`; others are their own, and from `end` on there are none
 *   fetched  so many rows are asked for as soon as they are known: key_bytes from `key` and value_bytes from `value` on */
typedef struct {
    const int32_t *groups; /* ascending */
    int64_t count;
    const float *weight;
    float least, above, light;
    int64_t room;
    const int32_t *order;
    int64_t clustered;
    int64_t end;
    const char *key, *value;
    int64_t key_row_stride, value_row_stride;
    int64_t key_bytes, value_bytes;
    int64_t fetched;
    int32_t *rows;     /* out; written up to [16 * count] */
    int32_t *behind;   /* [16 * count]: light rows until they get their place */
    int64_t light_rows; /* out: how many of them there are */
    uint16_t *chosen;  /* out: a bit per position of each group */
    int64_t looked_up; /* out: how many of `order` */
} hgca_listing;

typedef struct {
    void (*scan)(const hgca_scan *scan);
    void (*reach)(const hgca_reaching *reaching);
    void (*weigh)(const hgca_weighing *weighing);
    void (*leave)(hgca_leaving *leaving);
    void (*pass_by)(hgca_passing *passing);
    void (*close)(const hgca_closing *closing);
    /* The sum of scores [count] whose bit is set; count is a multiple of 16. */
    float (*hold)(const uint16_t *score, const uint16_t *bits, int64_t count);
    /* to[index] = the row's product with a line, or its squared distance from a point; to[width] = the mean of rows. */
    void (*along)(const hgca_gathered *rows, const float *line, float *to);
    void (*apart)(const hgca_gathered *rows, const float *point, float *to);
    void (*middle)(const hgca_gathered *rows, float *to);
    /* How many rows are read. */
    int64_t (*list)(hgca_listing *listing);
    /* Bit i: weight[i] >= edge, of 16. */
    uint32_t (*lanes)(const float *weight, float edge);
} hgca_isa_selection;

extern const hgca_isa_selection hgca_select_scalar, hgca_select_avx2, hgca_select_avx512, hgca_select_avx512vnni,
    hgca_select_neon;

/* Those of the instruction set in use. */
const hgca_isa_selection *hgca_selection_kernels(void);

#endif
