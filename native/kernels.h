/* What every instruction set provides: attention over one piece of one list, not yet normalised. */
#ifndef HGCA_KERNELS_H
#define HGCA_KERNELS_H

#include <stdint.h>
#include <string.h>

#include "hgca.h"

/* Before a loop of few, constant turns over vectors in arrays: GCC keeps the arrays in registers only if the loop is gone
 * early, and writes every vector to the stack and reads it back otherwise. */
#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 16")
#define NO_UNROLL _Pragma("GCC unroll 1") /* of a loop whose sums fill the registers: two turns at once keep them on the stack */
#else
#define UNROLL
#define NO_UNROLL
#endif

/* Keeps GCC from adding up in another order, for which there are not registers enough, and from copying sums about. */
#if defined(__x86_64__)
#define NAMED(sum) __asm__("" : "+v"(sum))
#endif

static inline int64_t hgca_number_bytes(int dtype) { return dtype == HGCA_F32 ? 4 : dtype == HGCA_I8 ? 1 : 2; }

/* Floats the padded rows of queries and outputs are rounded up to: the widest vector there is. */
enum { HGCA_PAD = 16 };

static inline int64_t hgca_padded(int64_t width) { return (width + HGCA_PAD - 1) / HGCA_PAD * HGCA_PAD; }

/* Floats from one placed query to the next. */
static inline int64_t hgca_query_width(int64_t dim, int dtype) {
    return dtype == HGCA_I8 ? (dim + 63) / 64 * 64 + HGCA_PAD : hgca_padded(dim);
}

/* Whether all are numbers of bf16: a float's lower half is empty then. */
static inline int hgca_are_bf16(const float *number, int64_t count) {
    uint32_t any = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, number + i, sizeof bits);
        any |= bits;
    }
    return (any & 0xffff) == 0;
}

/* Rows of one KV head, for `heads` queries (query heads times tokens) that read the same rows.
 *   row     positions of the rows, or of the first rows of runs; NULL: first, first + 1, ...
 *   run     rows of each run, of the first one from its row number `first` on; NULL: 1 each
 *   query   f32 [heads][hgca_query_width], scaled, as the kernel's `place` leaves them
 *   unseen  first position query 0 does not see; `group` queries later it is one more. INT64_MAX: all see all
 * Scores are in base 2 (query and scale bring log2(e) along, a softcap's scores get it after the cap). Results, relative
 * to the largest score:
 *   out     f32 [heads][padded value_dim] sum_j 2^(s_j - max) v_j
 *   max     f32 [heads], -inf over no rows;  sum  f32 [heads] sum_j 2^(s_j - max) */
typedef struct {
    const char *key;
    const char *value;
    const char *key_scale;
    const char *value_scale;
    int64_t key_row_stride;
    int64_t value_row_stride;
    int64_t scale_row_stride;
    const int32_t *row;
    const int32_t *run;
    int64_t first;
    int64_t count;
    int64_t unseen;
    int32_t group;
    int32_t key_dim;
    int32_t value_dim;
    int32_t heads;
    int32_t by_line; /* hgca_by_line() */
    float softcap;
    float scale; /* for scores, where `place` leaves it to the kernel */
    const float *query;
    float *out;
    float *max;
    float *sum;
} hgca_piece;

/* How rows of one dtype are read. `place` writes `query` times `scale` as `piece` wants it: f32 [hgca_query_width]. */
typedef struct {
    void (*piece)(const hgca_piece *piece);
    void (*place)(const float *query, float scale, int64_t dim, float *to);
} hgca_kernel;

typedef struct {
    const char *name;
    hgca_kernel kernel[4];  /* by dtype: f32, bf16, f16, i8 */
    hgca_kernel bf16_exact; /* bf16 rows for queries that are bf16 numbers; no piece: none, or none that is faster */
    hgca_kernel i8_many;    /* int8 rows for the queries of more than HGCA_FEW_TOKENS tokens, no row wider than HGCA_MANY_DIM; no piece: none */
    hgca_kernel bf16_tiles; /* bf16 rows for 3 to 8 queries that see all of them; no piece: none */
    hgca_kernel bf16_many;  /* bf16 rows as i8_many, keys of an even number of numbers: rounds queries and weights, see kernels_many_pairs.h; no piece: none */
    hgca_kernel i8_pairs;   /* int8 rows, as bf16_many */
    hgca_kernel bf16_many_tiles; /* bf16 rows for more queries, no row wider than HGCA_MANY_DIM, of a multiple of HGCA_TILES_STEP; no piece: none */
    hgca_kernel i8_many_tiles;   /* int8 rows, the same */
} hgca_isa_kernels;

/* Most numbers of a key, and of a value, that matrices of AMX are used for. */
enum { HGCA_TILES_KEY = 128, HGCA_TILES_VALUE = 256, HGCA_TILES_STEP = 32 };

extern const hgca_isa_kernels hgca_scalar, hgca_avx2, hgca_avx512, hgca_avx512vnni, hgca_avx512bf16, hgca_amx, hgca_neon;

int hgca_bf16_dots_pay(void);

/* Whether rows that one or two queries read, which wait for memory alone, are to be fetched line by line as other rows are. A Zen's own
 * prefetcher brings them sooner if it is left alone; an Intel's leaves a third of the bandwidth unused (Granite Rapids). */
int hgca_by_line(void);

/* Whether this processor's tiles give the numbers they should, and sooner. */
int hgca_tiles_pay(void);

#endif
