/* Attention over one piece, written once. An instruction set's file defines a vocabulary and includes this:
 *   VF, VW                     a vector of VW floats
 *   HEADS, ROWS, COLUMNS       query heads per pass; with ROWS rows at once HEADS * ROWS accumulators, ROWS keys, 1 query; then
 *                              with COLUMNS vectors of a value (2 or 4) HEADS * COLUMNS accumulators
 *   vzero vset1 vload vstore vmul vadd vsub vfma(a, b, c) = a * b + c
 *   vmax(a, b)                 b where either is NaN
 *   vexceeds(a, b)             whether any number of a is larger than that of b; NaN is not
 *   vround                     nearest integer
 *   vscale2(x, n)              x * 2^n for whole n in -127 .. 127, tiny or 0 where n is -127; NaN where x is
 *   vsum vlargest              horizontal
 *   vsum_heads(sum, heads, score, r)   score[h][r .. r + ROWS - 1] = the horizontal sums of sum[h][0 .. ROWS - 1], once vsettle was called
 *   vsettle(score, rows)       after the last of them; beyond `rows`, rounded up to SETTLED, the last vector is then -inf
 *   vload_rows(p, dtype)       VW numbers of a row as floats;  vtail_rows(p, dtype, n)  n < VW of them, then zeros
 *   vload_pair(p, even, odd)   2 * VW bf16 numbers of a row as floats
 *   USUAL_DIM                  compile loops for rows of this width, and of half of it, where that is faster (not of float32)
 *   AHEAD_LEVEL                into which cache the next tile is fetched, as of __builtin_prefetch; 2 if it is not told
 *   MANY_ROWS, MANY_VECTORS    see kernels_many.h; none if they are not told
 *   FEW_REGISTERS              where those of four rows leave no room for sums: see kernels_score_few.h; no vsum_heads, vsettle
 *
 * A tile of rows (at most TILE) is scored for HEADS query heads at a time, its scores stay on the stack, and its values are
 * added up while they are in cache; meanwhile the next tile is prefetched, which alone doubles the rate of a core. */
#include <math.h>
#include <string.h>

#include "hgca.h"
#include "kernels.h"

#define LOG2E 1.44269504088896341f
#define INLINE static inline __attribute__((always_inline))
enum { TILE = 64, LINE = 64, TILE_BYTES = 8192 };
#ifndef AHEAD_LEVEL
#define AHEAD_LEVEL 2
#endif
#define KNOWN(width) (__builtin_constant_p(width) ? (int)(width) : 0) /* of key and value, in loops compiled for it */
enum { BF16_QUERY = HGCA_I8 + 1 }; /* bf16 rows for queries that are bf16 numbers themselves */

typedef struct tile_rows {
    const struct tile_rows *then; /* the tile after this one */
    int then_rows;
    int passes, pass; /* 2: in each of the two over the tile before it, this and the next, half of the lines are fetched */
    const char *half[2 * TILE]; /* of row r the key, 2 r, and the value, 2 r + 1 */
    float key_scale[TILE] __attribute__((aligned(64))); /* of int8 rows */
    float value_scale[TILE] __attribute__((aligned(64)));
    int64_t at[TILE];
} tile_rows;

/* Where the next tile's rows are. */
typedef struct {
    const int32_t *row, *run;
    int64_t first;
} row_cursor;

/* Where number d of a row of `dim` stands in registers. A vector of 2 * VW bf16 numbers is widened with one operation
 * per half (a shift, a mask) if its even numbers come first, then the odd ones; what is left of a row after its last
 * whole vector stands as in memory. */
INLINE void place_floats(const float *query, float scale, int64_t dim, float *to) {
    for (int64_t d = 0; d < dim; d++) to[d] = query[d] * scale;
    for (int64_t d = dim; d < hgca_padded(dim); d++) to[d] = 0.0f;
}

static void place_plain(const float *query, float scale, int64_t dim, float *to) { place_floats(query, scale, dim, to); }

static void place_bf16(const float *query, float scale, int64_t dim, float *to) {
    int64_t whole = VW > 1 ? dim - dim % (2 * VW) : 0;
    for (int64_t d = 0; d < whole; d += 2 * VW)
        for (int64_t i = 0; i < VW; i++) {
            to[d + i] = query[d + 2 * i] * scale;
            to[d + VW + i] = query[d + 2 * i + 1] * scale;
        }
    for (int64_t d = whole; d < hgca_padded(dim); d++) to[d] = d < dim ? query[d] * scale : 0.0f;
}

#include "kernels_rows.h"

#include "kernels_softmax.h"

#ifdef I8_DOTS
#include "kernels_i8_dots.h"
#endif
#ifdef I8_PAIRS
#include "kernels_i8_pairs.h"
#endif
#ifdef BF16_DOTS
#include "kernels_bf16_dots.h"
#endif

#ifdef FEW_REGISTERS
#include "kernels_score_few.h"
#else
#include "kernels_score.h"
#endif

/* out[h][c ..] += sum_r weight[h][r] * value[r][c ..], `columns` (a constant) vectors wide. */
INLINE void add_columns(const hgca_piece *p, float *out, const tile_rows *tile, int rows, const tile_rows *next,
                        int next_rows, int heads, int dtype, int dim, int c, int columns, int tail,
                        float weight[][TILE]) {
    const int64_t stride = hgca_padded(dim), size = hgca_number_bytes(dtype);
#ifdef FEW_REGISTERS
    /* a pass fetches a line every `step` rows, so a half-row every `turn`: all passes together as many half-rows as there are rows */
    const int lines = lines_of_half(dim, dtype), even = lines && !left_alone(p, heads);
    const int step = 4 / (int)size, turn = even ? step * lines : TILE;
    int half = rows + c / (2 * VW) * ((rows + turn - 1) / turn);
    if (!even) prefetch_slice(p, next, next_rows, rows, c / VW, columns, size, KNOWN(dim));
#else
    /* a pass fetches its share of a half-row with every row */
    const int lines = lines_of_half(dim, dtype), even = lines && !left_alone(p, heads);
    const int mine = lines ? lines * columns * VW / dim : 0;
    const int turn = TILE;
#endif
    VF sum[HEADS][COLUMNS];
    UNROLL
    for (int h = 0; h < heads; h++)
        UNROLL
        for (int j = 0; j < columns; j++) sum[h][j] = vload(out + h * stride + c + j * VW);
    for (int from = 0; from < rows; from += turn) {
#ifdef FEW_REGISTERS
        const char *ahead = even ? half_ahead(next, next_rows, half++, tile->half[1]) : NULL;
#endif
        for (int r = from; r < rows && r < from + turn; r++) {
            const char *value = tile->half[2 * r + 1] + c * size;
#ifdef FEW_REGISTERS
            if (even && r % step == 0) __builtin_prefetch(ahead + (r - from) / step * LINE, 0, AHEAD_LEVEL);
#else
            if (even) fetch_share(next, next_rows, rows, tile->half[1], lines, (c / (columns * VW) * rows + r) * mine, mine);
            if (!even && c == 0) prefetch_half(p, next, next_rows, rows + r, size, 0);
#endif
            VF v[COLUMNS];
            if (dtype == HGCA_BF16 && columns % 2 == 0)
                UNROLL
                for (int j = 0; j < columns; j += 2) vload_pair(value + j * VW * size, &v[j], &v[j + 1]);
            else
                UNROLL
                for (int j = 0; j < columns; j++)
                    v[j] = tail ? vtail_rows(value, dtype, tail) : vload_rows(value + j * VW * size, dtype);
            UNROLL
            for (int h = 0; h < heads; h++) {
                VF w = vset1(weight[h][r]);
                UNROLL
                for (int j = 0; j < columns; j++) sum[h][j] = vfma(w, v[j], sum[h][j]);
            }
        }
    }
    UNROLL
    for (int h = 0; h < heads; h++)
        UNROLL
        for (int j = 0; j < columns; j++) vstore(out + h * stride + c + j * VW, sum[h][j]);
}

INLINE void add_values(const hgca_piece *p, float *out, const tile_rows *tile, int rows, const tile_rows *next,
                       int next_rows, int heads, int dtype, int dim, float weight[][TILE]) {
    int c = 0;
    if (dtype == BF16_QUERY) dtype = HGCA_BF16;
#if defined I8_DOTS || defined I8_PAIRS
    if (dtype == HGCA_I8 && add_values_i8(p, out, tile, rows, next, next_rows, heads, dim, weight)) return;
#endif
    for (; COLUMNS > 2 && c + 4 * VW <= dim; c += 4 * VW)
        add_columns(p, out, tile, rows, next, next_rows, heads, dtype, dim, c, COLUMNS, 0, weight);
    for (; c + 2 * VW <= dim; c += 2 * VW)
        add_columns(p, out, tile, rows, next, next_rows, heads, dtype, dim, c, 2, 0, weight);
    for (; c + VW <= dim; c += VW)
        add_columns(p, out, tile, rows, next, next_rows, heads, dtype, dim, c, 1, 0, weight);
    if (c < dim) add_columns(p, out, tile, rows, next, next_rows, heads, dtype, dim, c, 1, dim - c, weight);
}

INLINE void scale_tile(float *score, const float *scale, int rows) {
    for (int r = 0; r < rows; r++) score[r] *= scale[r];
}

/* What was added up so far, once its largest score is no longer the largest. */
static void scale_sums(float *out, float factor, int64_t width) {
    for (int64_t d = 0; d < width; d += VW) vstore(out + d, vmul(vload(out + d), vset1(factor)));
}

/* After the softcap, which would make -inf visible again. */
static void hide_unseen(const hgca_piece *p, int head, const tile_rows *tile, int rows, float *score) {
    int64_t unseen = p->unseen + head / p->group;
    for (int r = 0; r < rows; r++)
        if (tile->at[r] >= unseen) score[r] = -INFINITY;
}

/* The two loops over a tile's rows, for one dtype and number of heads. Functions of their own: in one body GCC ran out of
 * registers and kept values of the inner loops on the stack, which took half as long again. */
typedef struct {
    void (*score)(const hgca_piece *p, const float *query, const tile_rows *tile, int rows, const tile_rows *next,
                  int next_rows, float score[][TILE]);
    int (*weigh)(float score[][TILE], int rows, const float *max, float *sum);
    void (*add)(const hgca_piece *p, float *out, const tile_rows *tile, int rows, const tile_rows *next, int next_rows,
                float weight[][TILE]);
} tile_loops;

#define WEIGH(heads)                                                                        \
    static int weigh_##heads(float score[][TILE], int rows, const float *max, float *sum) { \
        return weigh_heads(score, heads, rows, max, sum);                                   \
    }
WEIGH(1)
WEIGH(2)
#if HEADS > 2
WEIGH(3)
WEIGH(4)
#endif

/* Whether there are loops compiled for this width, which most models have: the count of their turns is known. */
#ifndef USUAL_DIM
#define USUAL_DIM 0
#endif
INLINE int is_usual(const hgca_piece *p, int dim, int dtype) {
    return USUAL_DIM != 0 && p->key_dim == dim && p->value_dim == dim && dtype != HGCA_F32;
}

INLINE int has_usual_width(const hgca_piece *p, int dtype) { return is_usual(p, USUAL_DIM, dtype) || is_usual(p, USUAL_DIM / 2, dtype); }

/* `loop` compiled for a width that is usual, or for any. Both loops take their arguments in this order. */
#define FOR_WIDTH(loop, vector, heads, dtype, dim, scores)                                                              \
    if (is_usual(p, USUAL_DIM, dtype))                                                                                  \
        loop(p, vector, tile, rows, next, next_rows, heads, dtype, USUAL_DIM, scores);                                  \
    else if (is_usual(p, USUAL_DIM / 2, dtype))                                                                         \
        loop(p, vector, tile, rows, next, next_rows, heads, dtype, USUAL_DIM / 2, scores);                              \
    else loop(p, vector, tile, rows, next, next_rows, heads, dtype, dim, scores);

#define LOOPS(name, heads, dtype)                                                                                       \
    static void score_##name##_##heads(const hgca_piece *p, const float *query, const tile_rows *tile, int rows,        \
                                       const tile_rows *next, int next_rows, float score[][TILE]) {                     \
        FOR_WIDTH(score_tile, query, heads, dtype, p->key_dim, score)                                                   \
    }                                                                                                                   \
    static void add_##name##_##heads(const hgca_piece *p, float *out, const tile_rows *tile, int rows,                  \
                                     const tile_rows *next, int next_rows, float weight[][TILE]) {                      \
        FOR_WIDTH(add_values, out, heads, dtype, p->value_dim, weight)                                                  \
    }
#if HEADS > 2
#define ALL_LOOPS(name, dtype)                                                                                   \
    LOOPS(name, 1, dtype)                                                                                        \
    LOOPS(name, 2, dtype) LOOPS(name, 3, dtype) LOOPS(name, 4, dtype) static const tile_loops loops_##name[] = { \
        {score_##name##_1, weigh_1, add_##name##_1},                                                                      \
        {score_##name##_2, weigh_2, add_##name##_2},                                                                      \
        {score_##name##_3, weigh_3, add_##name##_3},                                                                      \
        {score_##name##_4, weigh_4, add_##name##_4}};
#else
#define ALL_LOOPS(name, dtype)                                                             \
    LOOPS(name, 1, dtype)                                                                  \
    LOOPS(name, 2, dtype) static const tile_loops loops_##name[] = {                       \
        {score_##name##_1, weigh_1, add_##name##_1}, {score_##name##_2, weigh_2, add_##name##_2}};
#endif

static void heads_over_tile(const hgca_piece *p, const tile_loops *loops, int head, int heads, const tile_rows *tile,
                            int rows, const tile_rows *next, int next_rows, int dtype) {
    float score[HEADS][TILE] __attribute__((aligned(64)));
    loops->score(p, p->query + head * hgca_query_width(p->key_dim, dtype), tile, rows, next, next_rows, score);
    for (int h = 0; h < heads; h++) {
        if (dtype == HGCA_I8) scale_tile(score[h], tile->key_scale, rows);
        if (p->softcap > 0.0f) cap_scores(score[h], rows, p->softcap);
        if (p->unseen != INT64_MAX) hide_unseen(p, head + h, tile, rows, score[h]);
    }
    const int same = loops->weigh(score, rows, p->max + head, p->sum + head);
    float *out = p->out + head * hgca_padded(p->value_dim);
    for (int h = 0; h < heads; h++) {
        const float factor = same ? 1.0f : weigh_tile(score[h], rows, p->max + head + h, p->sum + head + h);
        if (factor != 1.0f) scale_sums(out + h * hgca_padded(p->value_dim), factor, hgca_padded(p->value_dim));
        if (dtype == HGCA_I8) scale_tile(score[h], tile->value_scale, rows);
    }
    loops->add(p, out, tile, rows, next, next_rows, score);
}

/* Results of bf16 rows stand as place_bf16 leaves a query: put them where they belong. */
static void in_memory_order(const hgca_piece *p) {
    if (VW == 1) return;
    const int64_t dim = p->value_dim, whole = dim - dim % (2 * VW), width = hgca_padded(dim);
    for (int h = 0; h < p->heads; h++)
        for (float *block = p->out + h * width; block < p->out + h * width + whole; block += 2 * VW) {
            float copy[2 * VW];
            memcpy(copy, block, sizeof copy);
            for (int i = 0; i < VW; i++) {
                block[2 * i] = copy[i];
                block[2 * i + 1] = copy[VW + i];
            }
        }
}

/* Rows of a tile: two pages of 4 KiB, as what is read in short stretches comes from memory faster (Zen 4: 23.7 ns a row of
 * 512 bytes, against 28.8 in tiles of 64 rows). Of single rows here and there one page: nothing is fetched while the last tile is
 * worked on, and nothing is worked on while the first comes, so that of a few hundred rows most are in neither; not where tiles come
 * into the first level: Zen 5 has more lines on their way then (a tenth faster), and wants no more than 24 of bf16 rows so far ahead,
 * however narrow they are (a sixth faster where memory is slow). Many queries wait for arithmetic, of which a
 * large tile needs less. */
INLINE int rows_of_tile(const hgca_piece *p, int dtype) {
    const int few = p->heads <= 2 * HEADS, scattered = few && AHEAD_LEVEL == 2 && p->row != NULL && p->run == NULL;
    const int by_line = AHEAD_LEVEL > 2 && p->by_line && has_usual_width(p, dtype);
    const int even = USUAL_DIM != 0 && (p->heads > 2 || by_line); /* fetched evenly, three pages are faster */
    const int64_t bytes = (p->key_dim + p->value_dim) * hgca_number_bytes(dtype);
    const int64_t rows = (scattered ? TILE_BYTES / 2 : even ? 3 * TILE_BYTES / 2 : TILE_BYTES) / bytes / 4 * 4;
    const int most = !even || AHEAD_LEVEL == 2 ? TILE : dtype == HGCA_I8 ? 48 : 24;
    return !few ? TILE : rows > most ? most : rows < 8 ? 8 : (int)rows;
}

/* Whether lines can be fetched evenly over two passes: both ask for them one by one. All in the first, the second waits for nothing. */
INLINE int in_two_passes(const hgca_piece *p, int dtype) {
    return COLUMNS == 4 && VW > 4 && has_usual_width(p, dtype) && p->heads > HEADS + 2 && p->heads <= 2 * HEADS;
}

INLINE void whole_piece(const hgca_piece *p, const tile_loops loops[], int dtype) {
    memset(p->out, 0, sizeof(float) * p->heads * hgca_padded(p->value_dim));
    for (int h = 0; h < p->heads; h++) {
        p->max[h] = -INFINITY;
        p->sum[h] = 0.0f;
    }
    tile_rows tiles[3];
    row_cursor at = {p->row, p->run, p->first};
    const int most = rows_of_tile(p, dtype);
    int rows = p->count < most ? (int)p->count : most;
    find_rows(p, &at, rows, dtype, &tiles[0]);
    int next_rows = p->count - rows < most ? (int)(p->count - rows) : most;
    find_rows(p, &at, next_rows, dtype, &tiles[1]);
    for (int64_t from = 0, turn = 0; from < p->count; from += most, turn++) {
        const tile_rows *tile = &tiles[turn % 3];
        tile_rows *next = &tiles[(turn + 1) % 3], *then = &tiles[(turn + 2) % 3];
        const int64_t left = p->count - from - rows - next_rows;
        const int then_rows = left < most ? (int)left : most;
        find_rows(p, &at, then_rows, dtype, then);
        next->then = then, next->then_rows = then_rows;
        next->passes = in_two_passes(p, dtype) ? 2 : 1;
        for (int head = 0; head < p->heads; head += HEADS) { /* the later heads find the tile in cache */
            int heads = p->heads - head < HEADS ? p->heads - head : HEADS;
            next->pass = head / HEADS;
            heads_over_tile(p, &loops[heads - 1], head, heads, tile, rows, next, next->pass < next->passes ? next_rows : 0, dtype);
        }
        rows = next_rows, next_rows = then_rows;
    }
    if (dtype == HGCA_BF16 || dtype == BF16_QUERY) in_memory_order(p);
}

#ifdef MANY_ROWS
#include "kernels_many.h"
#define MANY_I8 {piece_many_i8, place_plain}
#else
#define MANY_I8 {NULL, NULL}
#define MANY(name, dtype) \
    static int many_##name(const hgca_piece *p) { return (void)p, 0; }
#endif

#define KERNEL(name, dtype)                                \
    ALL_LOOPS(name, dtype)                                 \
    MANY(name, dtype)                                      \
    static void piece_##name(const hgca_piece *p) {        \
        if (!many_##name(p)) whole_piece(p, loops_##name, dtype); \
    }
KERNEL(f32, HGCA_F32)
KERNEL(bf16, HGCA_BF16)
KERNEL(f16, HGCA_F16)
KERNEL(i8, HGCA_I8)
#ifdef BF16_DOTS
KERNEL(bf16_dots, BF16_QUERY)
#endif

#if !defined I8_DOTS && !defined I8_PAIRS
#define place_i8 place_plain
#endif

#define HGCA_TEMPLATE_KERNELS \
    {{piece_f32, place_plain}, {piece_bf16, place_bf16}, {piece_f16, place_plain}, {piece_i8, place_i8}}
