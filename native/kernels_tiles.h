/* bf16 rows with AMX (Sapphire Rapids and later), for 3 to 8 queries that read the same rows of at most 128 numbers a key. Included
 * after the template, in its words.
 *
 * Scores: 16 keys, which lie one behind the other or are copied to where they do, times the queries (kernels_tiles_queries.h).
 * Values: weights, in two bf16 numbers each, times values. A matrix wants pairs of rows side by side: two rows are interleaved within
 * their 16 bytes, which leaves the numbers of a line in another order until the end. */
#include "tiles.h"

#include "kernels_tiles_queries.h"

typedef struct {
    float sum[HGCA_TILES_VALUE / TILE_LINES][TILE_LINES][TILE_LINES]; /* of 16 numbers each: by a weight's first part 0 .. 7, by its second 8 .. */
    float scores[TILE][TILE_LINES];
    uint16_t weight[TILE / TILES_STEP][TILE_LINES][TILES_STEP];
    char keys[2][TILE_LINES * HGCA_TILES_KEY * 2];
    char pairs[2][TILES_AT_ONCE][TILE_LINES * TILE_LINE];
} tiles_memory;

/* Half-rows from `half` on of the next tile, and of the one after it, in the order of memory and few at a time: see fetch_lines. */
INLINE void fetch_halves(const hgca_piece *p, const tile_rows *next, int next_rows, const char *otherwise, int half, int count) {
    enum { USUAL = HGCA_TILES_KEY / TILES_STEP };
    if (count <= USUAL && p->key_dim == HGCA_TILES_KEY && p->value_dim == HGCA_TILES_KEY) { /* loops whose turns are known are a tenth faster */
        UNROLL
        for (int h = 0; h < USUAL; h++)
            if (h < count) fetch_lines(next, next_rows, half + h, otherwise, 0, USUAL);
        return;
    }
    for (int h = half; h < half + count; h++) fetch_lines(next, next_rows, h, otherwise, 0, (h % 2 ? p->value_dim : p->key_dim) / TILES_STEP);
}

/* One step of a key for 16 rows. */
#define SCORE_STEP(queries, step)                                                                     \
    if ((step) < steps) {                                                                             \
        fetch_halves(p, next, next_rows, tile->half[0], r + (step) * each, each);                     \
        TILE_LOAD(1, from + (step) * TILE_LINE, stride);                                              \
        TILE_DOT(0, 1, queries);                                                                      \
        if (q->rest) {                                                                                \
            TILE_LOAD(2, q->pair[1][step], TILE_LINE);                                                \
            TILE_DOT(0, 1, 2);                                                                        \
        }                                                                                             \
    }

/* m->scores of a tile's rows, by columns of the matrix of queries. */
INLINE void score_by_tiles(const hgca_piece *p, const tiles_queries *q, const tile_rows *tile, int rows, const tile_rows *next, int next_rows,
                           tiles_memory *m) {
    const int steps = p->key_dim / TILES_STEP, lined_up = p->row == NULL;
    const int each = (TILE_LINES + steps - 1) / steps; /* half-rows to fetch with a step: as many as there are rows */
    TILES_ORDERED();
    TILE_LOAD(4, q->pair[0][0], TILE_LINE);
    if (steps > 1) TILE_LOAD(5, q->pair[0][1], TILE_LINE);
    if (steps > 2) TILE_LOAD(6, q->pair[0][2], TILE_LINE);
    if (steps > 3) TILE_LOAD(7, q->pair[0][3], TILE_LINE);
    for (int r = 0; r < rows; r += TILE_LINES) {
        const char *from = tile->half[2 * r];
        int64_t stride = p->key_row_stride;
        if (!lined_up || r + TILE_LINES > rows) {
            char *to = m->keys[r / TILE_LINES % 2];
            from = to, stride = steps * TILE_LINE;
            for (int i = r; i < r + TILE_LINES; i++, to += stride) {
                const char *key = tile->half[2 * (i < rows ? i : rows - 1)];
                for (int s = 0; s < steps; s++) _mm512_storeu_si512(to + s * TILE_LINE, _mm512_loadu_si512(key + s * TILE_LINE));
            }
        }
        TILES_ORDERED();
        TILE_ZERO(0);
        SCORE_STEP(4, 0)
        SCORE_STEP(5, 1)
        SCORE_STEP(6, 2)
        SCORE_STEP(7, 3)
        TILE_STORE(0, m->scores[r]);
    }
}

/* Eight vectors of eight numbers, twice over, with lines and columns exchanged in each half. */
INLINE void exchange(__m512 x[8]) {
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    __m512 a[8];
    __m512d b[8];
    UNROLL
    for (int i = 0; i < 8; i += 2) a[i] = _mm512_unpacklo_ps(x[i], x[i + 1]), a[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    UNROLL
    for (int i = 0; i < 8; i += 4)
        UNROLL
        for (int k = 0; k < 2; k++) {
            b[i + 2 * k] = _mm512_unpacklo_pd(_mm512_castps_pd(a[i + k]), _mm512_castps_pd(a[i + k + 2]));
            b[i + 2 * k + 1] = _mm512_unpackhi_pd(_mm512_castps_pd(a[i + k]), _mm512_castps_pd(a[i + k + 2]));
        }
    UNROLL
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_castpd_ps(_mm512_permutex2var_pd(b[i], low, b[i + 4]));
        x[i + 4] = _mm512_castpd_ps(_mm512_permutex2var_pd(b[i], high, b[i + 4]));
    }
}

/* score[h] of a tile's rows; -inf beyond them, up to whole vectors. */
INLINE void scores_by_head(const hgca_piece *p, const tiles_memory *m, int rows, int heads, float score[TILES_HEADS][TILE]) {
    const __m512 scale = _mm512_set1_ps(p->scale);
    for (int r = 0; r < rows; r += TILE_LINES) {
        __m512 x[8];
        UNROLL
        for (int i = 0; i < 8; i++) {
            const __m512 a = _mm512_load_ps(m->scores[r + i]), b = _mm512_load_ps(m->scores[r + i + 8]);
            x[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        }
        exchange(x);
        for (int h = 0; h < heads; h++) _mm512_store_ps(&score[h][r], _mm512_mul_ps(x[h], scale));
    }
    for (int h = 0; h < heads; h++)
        for (int r = rows; r % TILE_LINES; r++) score[h][r] = -INFINITY;
}

INLINE __m512i two_vectors(__m512 a, __m512 b) { return (__m512i)_mm512_cvtne2ps_pbh(b, a); }

INLINE __m512 of_half(__m512i numbers, int high) {
    const __m256i half = high ? _mm512_extracti64x4_epi64(numbers, 1) : _mm512_castsi512_si256(numbers);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Weights of a head, in two parts, as lines of matrices; of no rows 0. */
INLINE void put_weights(const float *weight, int rows, int head, tiles_memory *m) {
    for (int r = 0; r < rows; r += TILES_STEP) {
        const __m512 a = _mm512_load_ps(weight + r), b = r + TILE_LINES < rows ? _mm512_load_ps(weight + r + TILE_LINES) : _mm512_setzero_ps();
        const __m512i first = two_vectors(a, b);
        const __m512i rest = two_vectors(_mm512_sub_ps(a, of_half(first, 0)), _mm512_sub_ps(b, of_half(first, 1)));
        _mm512_store_si512(m->weight[r / TILES_STEP][head], first);
        _mm512_store_si512(m->weight[r / TILES_STEP][TILES_HEADS + head], rest);
    }
}

/* What was added up for a head so far, once its largest score is no longer the largest. */
static void scale_by_tiles(tiles_memory *m, int tiles, int head, float factor) {
    for (int t = 0; t < tiles; t++)
        for (int part = head; part < TILE_LINES; part += TILES_HEADS)
            vstore(m->sum[t][part], vmul(vload(m->sum[t][part]), vset1(factor)));
}

/* Scores of heads become weights. */
INLINE void weigh_by_tiles(const hgca_piece *p, int head, int heads, int rows, float score[TILES_HEADS][TILE], tiles_memory *m) {
    static int (*const weigh[])(float score[][TILE], int rows, const float *max, float *sum) = {weigh_1, weigh_2, weigh_3, weigh_4};
    for (int from = 0; from < heads; from += HEADS) {
        const int some = heads - from < HEADS ? heads - from : HEADS;
        float *max = p->max + head + from, *sum = p->sum + head + from;
        for (int h = from; h < from + some && p->softcap > 0.0f; h++) cap_scores(score[h], rows, p->softcap);
        const int same = weigh[some - 1](score + from, rows, max, sum);
        for (int h = 0; h < some; h++) {
            const float factor = same ? 1.0f : weigh_tile(score[from + h], rows, max + h, sum + h);
            if (factor != 1.0f) scale_by_tiles(m, p->value_dim / TILE_LINES, from + h, factor);
            put_weights(score[from + h], rows, from + h, m);
        }
    }
}

/* Values of 32 rows, numbers from `d` on, as pairs of lines: matrices of 16 numbers. With each pair `count` half-rows of the next
 * tile are fetched, from `half` on. */
INLINE void pair_values(const hgca_piece *p, const tile_rows *tile, int rows, int from, int d, int tiles, const tile_rows *next,
                        int next_rows, int half, int count, char to[][TILE_LINES * TILE_LINE]) {
    for (int r = 0; r < TILES_STEP; r += 2) {
        fetch_halves(p, next, next_rows, tile->half[1], half + r / 2 * count, count);
        const int at = from + r;
        const char *even = tile->half[2 * (at < rows ? at : rows - 1) + 1] + 2 * d, *odd = tile->half[2 * (at + 1 < rows ? at + 1 : rows - 1) + 1] + 2 * d;
        UNROLL
        for (int t = 0; t < TILES_AT_ONCE; t += 2) {
            if (t >= tiles) break;
            const __m512i none = _mm512_setzero_si512();
            const __m512i a = at < rows ? _mm512_loadu_si512(even + t * 32) : none, b = at + 1 < rows ? _mm512_loadu_si512(odd + t * 32) : none;
            _mm512_store_si512(to[t] + r / 2 * TILE_LINE, _mm512_unpacklo_epi16(a, b));
            _mm512_store_si512(to[t + 1] + r / 2 * TILE_LINE, _mm512_unpackhi_epi16(a, b));
        }
    }
}

/* The number of a tile is a word for the assembler. */
#define ADD_STEP(to, i, b)                    \
    if ((i) < tiles) {                        \
        TILE_LOAD(b, pairs[i], TILE_LINE);    \
        TILE_DOT(to, 1, b);                   \
    }
#define FOR_TILES(what)          \
    {                            \
        what(4, 0);              \
        if (tiles > 1) what(5, 1); \
        if (tiles > 2) what(6, 2); \
        if (tiles > 3) what(7, 3); \
    }
#define LOAD_SUMS(tile, i) TILE_LOAD(tile, m->sum[first + (i)], TILE_LINE)
#define STORE_SUMS(tile, i) TILE_STORE(tile, m->sum[first + (i)])

INLINE void add_by_tiles(const hgca_piece *p, const tile_rows *tile, int rows, const tile_rows *next, int next_rows, tiles_memory *m) {
    const int all = p->value_dim / TILE_LINES, count = all > TILES_AT_ONCE ? 1 : 2; /* the other half of the next tile, in all passes */
    int side = 0, half = rows;
    for (int first = 0; first < all; first += TILES_AT_ONCE) {
        const int tiles = all - first < TILES_AT_ONCE ? all - first : TILES_AT_ONCE;
        TILES_ORDERED();
        FOR_TILES(LOAD_SUMS)
        for (int r = 0; r < rows; r += TILES_STEP, side ^= 1) {
            char(*pairs)[TILE_LINES * TILE_LINE] = m->pairs[side];
            pair_values(p, tile, rows, r, first * TILE_LINES, tiles, next, next_rows, half, count, pairs);
            half += TILES_STEP / 2 * count;
            TILES_ORDERED();
            TILE_LOAD(1, m->weight[r / TILES_STEP], TILE_LINE);
            ADD_STEP(4, 0, 2)
            ADD_STEP(5, 1, 3)
            ADD_STEP(6, 2, 2)
            ADD_STEP(7, 3, 3)
        }
        FOR_TILES(STORE_SUMS)
    }
}

/* Both parts of a head's sums, numbers as in memory. */
static void tell_sums(const hgca_piece *p, int head, int heads, const tiles_memory *m) {
    for (int h = 0; h < heads; h++)
        for (int t = 0; t < p->value_dim / TILE_LINES; t += 2) {
            const __m512 a = vadd(vload(m->sum[t][h]), vload(m->sum[t][TILES_HEADS + h]));
            const __m512 b = vadd(vload(m->sum[t + 1][h]), vload(m->sum[t + 1][TILES_HEADS + h]));
            const __m512 low = _mm512_shuffle_f32x4(a, b, 0x44), high = _mm512_shuffle_f32x4(a, b, 0xee);
            float *to = p->out + (head + h) * hgca_padded(p->value_dim) + t * TILE_LINES;
            vstore(to, _mm512_shuffle_f32x4(low, low, 0xd8));
            vstore(to + VW, _mm512_shuffle_f32x4(high, high, 0xd8));
        }
}

static void heads_by_tiles(const hgca_piece *p, int head, int heads, tiles_memory *m) {
    float score[TILES_HEADS][TILE] __attribute__((aligned(64)));
    tiles_queries q __attribute__((aligned(64)));
    cut_queries(p, p->query + head * hgca_query_width(p->key_dim, HGCA_BF16), heads, &q);
    memset(m->sum, 0, sizeof m->sum[0] * (size_t)(p->value_dim / TILE_LINES));
    memset(m->weight, 0, sizeof m->weight);
    tile_rows tiles[3];
    row_cursor at = {p->row, p->run, p->first};
    int rows = p->count < TILES_ROWS ? (int)p->count : TILES_ROWS;
    find_rows(p, &at, rows, HGCA_BF16, &tiles[0]);
    int next_rows = p->count - rows < TILES_ROWS ? (int)(p->count - rows) : TILES_ROWS;
    find_rows(p, &at, next_rows, HGCA_BF16, &tiles[1]);
    for (int64_t from = 0, turn = 0; from < p->count; from += TILES_ROWS, turn++) {
        const tile_rows *tile = &tiles[turn % 3];
        tile_rows *next = &tiles[(turn + 1) % 3], *then = &tiles[(turn + 2) % 3];
        const int64_t left = p->count - from - rows - next_rows;
        const int then_rows = left < TILES_ROWS ? (int)left : TILES_ROWS;
        find_rows(p, &at, then_rows, HGCA_BF16, then);
        next->then = then, next->then_rows = then_rows;
        score_by_tiles(p, &q, tile, rows, next, next_rows, m);
        scores_by_head(p, m, rows, heads, score);
        weigh_by_tiles(p, head, heads, rows, score, m);
        add_by_tiles(p, tile, rows, next, next_rows, m);
        rows = next_rows, next_rows = then_rows;
    }
    tell_sums(p, head, heads, m);
}

static void piece_tiles(const hgca_piece *p) {
    tiles_memory m __attribute__((aligned(64)));
    for (int h = 0; h < p->heads; h++) p->max[h] = -INFINITY, p->sum[h] = 0.0f;
    tiles_begin();
    for (int head = 0; head < p->heads; head += TILES_HEADS)
        heads_by_tiles(p, head, p->heads - head < TILES_HEADS ? p->heads - head : TILES_HEADS, &m);
    tiles_end();
}
