/* Attention over one piece, written once. An instruction set's file defines a vocabulary and includes this:
 *   VF, VW                     a vector of VW floats
 *   HEADS                      query heads per pass (with 4 rows at once: HEADS * 4 accumulators, 4 keys, 1 query)
 *   vzero vset1 vload vstore vmul vadd vsub vfma(a, b, c) = a * b + c
 *   vmax(a, b)                 b where either is NaN
 *   vround                     nearest integer
 *   vscale2(x, n)              x * 2^n for whole n in -127 .. 127, tiny or 0 where n is -127; NaN where x is
 *   vsum vlargest              horizontal
 *   vsum_heads(sum, heads, score, r)   score[h][r .. r + 3] = the horizontal sums of sum[h][0 .. 3]
 *   vload_rows(p, dtype)       VW numbers of a row as floats;  vtail_rows(p, dtype, n)  n < VW of them, then zeros
 *   vload_pair(p, even, odd)   2 * VW bf16 numbers of a row as floats
 *
 * A tile of rows is scored for HEADS query heads at a time, its scores stay on the stack, and its values are added up
 * while they are in cache; meanwhile the next tile is prefetched, which alone doubles the rate of a core. */
#include <math.h>
#include <string.h>

#include "hgca.h"
#include "kernels.h"

#define LOG2E 1.44269504088896341f
#define INLINE static inline __attribute__((always_inline))
enum { TILE = 64, LINE = 64 };
enum { BF16_QUERY = HGCA_I8 + 1 }; /* bf16 rows for queries that are bf16 numbers themselves */

typedef struct {
    const char *key[TILE];
    const char *value[TILE];
    float key_scale[TILE] __attribute__((aligned(64))); /* of int8 rows */
    float value_scale[TILE] __attribute__((aligned(64)));
    int64_t at[TILE];
} tile_rows;

/* Where the next tile's rows are. */
typedef struct {
    const int32_t *row, *run;
    int64_t first;
} row_cursor;

INLINE int64_t size_of(int dtype) { return dtype == HGCA_F32 ? 4 : dtype == HGCA_I8 ? 1 : 2; }

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

/* 2^x for x <= 0 (or a little above), relative error below 2e-7; less than 2^-126 below -126, NaN for NaN. The fraction is
 * in -1/2 .. 1/2; the polynomial, exact at 0, has the smallest largest relative error there of its degree (9.2e-8). */
INLINE VF vexp2(VF x) {
    x = vmax(vset1(-127.0f), x);
    VF n = vround(x), r = vsub(x, n);
    VF p = vset1(1.32646982e-3f);
    p = vfma(p, r, vset1(9.67150927e-3f));
    p = vfma(p, r, vset1(5.55073395e-2f));
    p = vfma(p, r, vset1(2.40222424e-1f));
    p = vfma(p, r, vset1(6.93147004e-1f));
    p = vfma(p, r, vset1(1.0f));
    return vscale2(p, n);
}

INLINE void find_rows(const hgca_piece *p, row_cursor *at, int rows, int dtype, tile_rows *tile) {
    for (int r = 0; r < rows; r++) {
        int64_t row = at->first;
        if (at->row == NULL) at->first++;
        else if (at->run == NULL) row = *at->row++;
        else {
            while (at->first >= *at->run) at->first = 0, at->run++, at->row++; /* the first one may be used up, or empty */
            row = *at->row + at->first++;
        }
        tile->key[r] = p->key + row * p->key_row_stride;
        tile->value[r] = p->value + row * p->value_row_stride;
        tile->at[r] = row;
        if (dtype == HGCA_I8) {
            memcpy(&tile->key_scale[r], p->key_scale + row * p->scale_row_stride, sizeof(float));
            memcpy(&tile->value_scale[r], p->value_scale + row * p->scale_row_stride, sizeof(float));
        }
    }
    for (int r = rows; r < TILE && dtype == HGCA_I8; r++) tile->key_scale[r] = tile->value_scale[r] = 0.0f;
}

/* Half-row `half` of the next tile: its keys are even, its values odd. While keys are scored the first half of the tile is
 * fetched, while values are added up the second: in the order of memory, where a row is [key | value]. */
INLINE void prefetch_half(const hgca_piece *p, const tile_rows *next, int next_rows, int half, int64_t size) {
    if (half / 2 >= next_rows) return;
    const char *row = half % 2 ? next->value[half / 2] : next->key[half / 2];
    const int64_t bytes = (half % 2 ? p->value_dim : p->key_dim) * size;
    for (int64_t at = 0; at < bytes; at += LINE) __builtin_prefetch(row + at, 0, 2);
}

#ifdef I8_DOTS
#include "kernels_i8_dots.h"
#endif
#ifdef BF16_DOTS
#include "kernels_bf16_dots.h"
#endif

/* score[h][r] for `heads` (a constant) queries over `rows` rows; rows beyond are left alone. */
INLINE void score_tile(const hgca_piece *p, const float *query, const tile_rows *tile, int rows, const tile_rows *next,
                       int next_rows, int heads, int dtype, float score[][TILE]) {
    const int dim = p->key_dim;
    const int64_t stride = hgca_query_width(dim, dtype), size = size_of(dtype);
#ifdef BF16_DOTS
    if (dtype == BF16_QUERY) {
        score_tile_bf16(p, query, tile, rows, next, next_rows, heads, score);
        return;
    }
#endif
#ifdef I8_DOTS
    if (dtype == HGCA_I8 && dim <= I8_MOST) {
        score_tile_i8(p, query, tile, rows, next, next_rows, heads, score);
        return;
    }
#endif
    for (int r = 0; r < rows; r += 4) {
        const char *key[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            key[j] = tile->key[r + j < rows ? r + j : rows - 1];
            prefetch_half(p, next, next_rows, r + j, size);
        }
        VF sum[HEADS][4];
        UNROLL
        for (int h = 0; h < heads; h++)
            UNROLL
            for (int j = 0; j < 4; j++) sum[h][j] = vzero();
        int d = 0;
        for (; dtype == HGCA_BF16 && d + 2 * VW <= dim; d += 2 * VW) {
            VF even[4], odd[4];
            UNROLL
            for (int j = 0; j < 4; j++) vload_pair(key[j] + d * size, &even[j], &odd[j]);
            UNROLL
            for (int h = 0; h < heads; h++) {
                VF q = vload(query + h * stride + d), next_q = vload(query + h * stride + d + VW);
                UNROLL
                for (int j = 0; j < 4; j++) sum[h][j] = vfma(q, even[j], sum[h][j]);
                UNROLL
                for (int j = 0; j < 4; j++) sum[h][j] = vfma(next_q, odd[j], sum[h][j]);
            }
        }
        for (; d + VW <= dim; d += VW) {
            VF k[4];
            UNROLL
            for (int j = 0; j < 4; j++) k[j] = vload_rows(key[j] + d * size, dtype);
            UNROLL
            for (int h = 0; h < heads; h++) {
                VF q = vload(query + h * stride + d);
                UNROLL
                for (int j = 0; j < 4; j++) sum[h][j] = vfma(q, k[j], sum[h][j]);
            }
        }
        if (d < dim) {
            UNROLL
            for (int j = 0; j < 4; j++) {
                VF k = vtail_rows(key[j] + d * size, dtype, dim - d);
                UNROLL
                for (int h = 0; h < heads; h++) sum[h][j] = vfma(vload(query + h * stride + d), k, sum[h][j]);
            }
        }
        vsum_heads(sum, heads, score, r);
    }
}

/* score = log2(e) * softcap * tanh(score / softcap): capped, and in base 2 like scores that need no cap. Near zero an odd polynomial (Cephes), as 1 - exp(-2x) has lost its digits
 * there; else (1 - e) / (1 + e) with e = exp(-2 |x|), which cannot overflow. NaN stays NaN. */
INLINE void cap_scores(float *score, int rows, float softcap) {
    float e[TILE] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) e[r] = -2.0f * LOG2E * fabsf(score[r] / softcap);
    for (int r = rows; r % VW != 0; r++) e[r] = 0.0f;
    for (int r = 0; r < rows; r += VW) vstore(e + r, vexp2(vload(e + r)));
    for (int r = 0; r < rows; r++) {
        float x = score[r] / softcap, z = x * x;
        float p = -5.70498872745e-3f;
        p = p * z + 2.06390887954e-2f;
        p = p * z - 5.37397155531e-2f;
        p = p * z + 1.33314422036e-1f;
        p = p * z - 3.33332819422e-1f;
        float near_zero = p * z * x + x, far = copysignf((1.0f - e[r]) / (1.0f + e[r]), x);
        score[r] = LOG2E * softcap * (fabsf(x) < 0.625f ? near_zero : far);
    }
}

/* Scores of one head, in base 2, become weights 2^(s - max); returns the factor what was there before must shrink by. */
INLINE float weigh_tile(float *score, int rows, float *max, float *sum) {
    int padded = (rows + VW - 1) / VW * VW;
    for (int r = rows; r < padded; r++) score[r] = -INFINITY;
    VF top = vset1(-INFINITY);
    for (int r = 0; r < padded; r += VW) top = vmax(vload(score + r), top);
    float largest = vlargest(top), before = *max;
    float now = largest > before ? largest : before;
    if (now == -INFINITY) { /* nothing visible so far: weights of zero, unless a score is NaN */
        for (int r = 0; r < padded; r++) score[r] = score[r] == -INFINITY ? 0.0f : score[r];
        for (int r = 0; r < rows; r++) *sum += score[r];
        return 1.0f;
    }
    VF total = vzero(), shift = vset1(now);
    for (int r = 0; r < padded; r += VW) {
        VF weight = vexp2(vsub(vload(score + r), shift));
        vstore(score + r, weight);
        total = vadd(total, weight);
    }
    float factor = before == now ? 1.0f : before == -INFINITY ? 0.0f : exp2f(before - now); /* mostly 1: no call */
    *max = now;
    *sum = *sum * factor + vsum(total);
    return factor;
}

/* out[h][c ..] = out * factor + sum_r weight[h][r] * value[r][c ..], `columns` (a constant) vectors wide. */
INLINE void add_columns(const hgca_piece *p, float *out, const tile_rows *tile, int rows, const tile_rows *next,
                        int next_rows, int heads, int dtype, int c, int columns, int tail, float weight[][TILE],
                        const float *factor) {
    const int64_t stride = hgca_padded(p->value_dim), size = size_of(dtype);
    VF sum[HEADS][4];
    UNROLL
    for (int h = 0; h < heads; h++)
        UNROLL
        for (int j = 0; j < columns; j++)
            sum[h][j] = vmul(vload(out + h * stride + c + j * VW), vset1(factor[h]));
    for (int r = 0; r < rows; r++) {
        const char *value = tile->value[r] + c * size;
        if (c == 0) prefetch_half(p, next, next_rows, TILE + r, size);
        VF v[4];
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
    UNROLL
    for (int h = 0; h < heads; h++)
        UNROLL
        for (int j = 0; j < columns; j++) vstore(out + h * stride + c + j * VW, sum[h][j]);
}

INLINE void add_values(const hgca_piece *p, float *out, const tile_rows *tile, int rows, const tile_rows *next,
                       int next_rows, int heads, int dtype, float weight[][TILE], const float *factor) {
    const int dim = p->value_dim;
    int c = 0;
#ifdef I8_DOTS
    if (dtype == HGCA_I8 && add_values_i8(p, out, tile, rows, next, next_rows, heads, weight, factor)) return;
#endif
    for (; c + 4 * VW <= dim; c += 4 * VW)
        add_columns(p, out, tile, rows, next, next_rows, heads, dtype, c, 4, 0, weight, factor);
    for (; c + 2 * VW <= dim; c += 2 * VW)
        add_columns(p, out, tile, rows, next, next_rows, heads, dtype, c, 2, 0, weight, factor);
    for (; c + VW <= dim; c += VW)
        add_columns(p, out, tile, rows, next, next_rows, heads, dtype, c, 1, 0, weight, factor);
    if (c < dim) add_columns(p, out, tile, rows, next, next_rows, heads, dtype, c, 1, dim - c, weight, factor);
}

INLINE void scale_tile(float *score, const float *scale, int rows) {
    for (int r = 0; r < rows; r++) score[r] *= scale[r];
}

/* After the softcap, which would make -inf visible again. */
INLINE void hide_unseen(const hgca_piece *p, int head, const tile_rows *tile, int rows, float *score) {
    int64_t unseen = p->unseen + head / p->group;
    for (int r = 0; r < rows; r++)
        if (tile->at[r] >= unseen) score[r] = -INFINITY;
}

INLINE void heads_over_tile(const hgca_piece *p, int head, const tile_rows *tile, int rows, const tile_rows *next,
                            int next_rows, int heads, int dtype) {
    float score[HEADS][TILE] __attribute__((aligned(64)));
    float factor[HEADS];
    float *out = p->out + head * hgca_padded(p->value_dim);
    score_tile(p, p->query + head * hgca_query_width(p->key_dim, dtype), tile, rows, next, next_rows, heads, dtype, score);
    UNROLL
    for (int h = 0; h < heads; h++) {
        if (dtype == HGCA_I8) scale_tile(score[h], tile->key_scale, rows);
        if (p->softcap > 0.0f) cap_scores(score[h], rows, p->softcap);
        if (p->unseen != INT64_MAX) hide_unseen(p, head + h, tile, rows, score[h]);
        factor[h] = weigh_tile(score[h], rows, p->max + head + h, p->sum + head + h);
        if (dtype == HGCA_I8) scale_tile(score[h], tile->value_scale, rows);
    }
    add_values(p, out, tile, rows, next, next_rows, heads, dtype == BF16_QUERY ? HGCA_BF16 : dtype, score, factor);
}

/* Results of bf16 rows stand as place_bf16 leaves a query: put them where they belong. */
INLINE void in_memory_order(const hgca_piece *p) {
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

INLINE void whole_piece(const hgca_piece *p, int dtype) {
    memset(p->out, 0, sizeof(float) * p->heads * hgca_padded(p->value_dim));
    for (int h = 0; h < p->heads; h++) {
        p->max[h] = -INFINITY;
        p->sum[h] = 0.0f;
    }
    tile_rows tiles[2];
    row_cursor at = {p->row, p->run, p->first};
    int rows = p->count < TILE ? (int)p->count : TILE;
    find_rows(p, &at, rows, dtype, &tiles[0]);
    for (int64_t from = 0, turn = 0; from < p->count; from += TILE, turn++) {
        const tile_rows *tile = &tiles[turn & 1];
        tile_rows *next = &tiles[~turn & 1];
        int64_t left = p->count - from - rows;
        int next_rows = left < TILE ? (int)left : TILE;
        find_rows(p, &at, next_rows, dtype, next);
        for (int head = 0; head < p->heads; head += HEADS) {
            int ahead = head == 0 ? next_rows : 0; /* the later heads find the tile in cache */
            switch (p->heads - head) {             /* a constant number of heads keeps the sums in registers */
            case 1: heads_over_tile(p, head, tile, rows, next, ahead, 1, dtype); break;
#if HEADS > 2
            case 2: heads_over_tile(p, head, tile, rows, next, ahead, 2, dtype); break;
            case 3: heads_over_tile(p, head, tile, rows, next, ahead, 3, dtype); break;
#endif
            default: heads_over_tile(p, head, tile, rows, next, ahead, HEADS, dtype);
            }
        }
        rows = next_rows;
    }
    if (dtype == HGCA_BF16 || dtype == BF16_QUERY) in_memory_order(p);
}

static void piece_f32(const hgca_piece *p) { whole_piece(p, HGCA_F32); }
static void piece_bf16(const hgca_piece *p) { whole_piece(p, HGCA_BF16); }
static void piece_f16(const hgca_piece *p) { whole_piece(p, HGCA_F16); }
static void piece_i8(const hgca_piece *p) { whole_piece(p, HGCA_I8); }
#ifdef BF16_DOTS
static void piece_bf16_dots(const hgca_piece *p) { whole_piece(p, BF16_QUERY); }
#endif

#ifndef I8_DOTS
#define place_i8 place_plain
#endif

#define HGCA_TEMPLATE_KERNELS \
    {{piece_f32, place_plain}, {piece_bf16, place_bf16}, {piece_f16, place_plain}, {piece_i8, place_i8}}
