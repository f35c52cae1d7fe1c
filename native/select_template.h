/* Choosing rows, written once in vectors as wide as a register (select_lanes.h); an instruction set's file names its table in
 * SELECT_ISA and includes this. (Loops over 16 lanes in plain C the compiler unrolled first, and then found no vectors in
 * them.) Only the dot product of codes has instructions of its own. All arithmetic on codes is in integers, floats are added
 * up in the same order and nothing is contracted, so every instruction set gives the same scores, bit by bit. */
#include "codes.h"
#include "fetch.h"
#include "kernels.h"
#include "select.h"
#include "select_lanes.h"

/* Queries at once; bytes of codes until those that are fetched, groups from there to one whose scales are. */
enum { QUERIES = HGCA_QUERIES, MOST_WIDTH = HGCA_MOST_WIDTH, AHEAD_BYTES = 5632, MORE_AHEAD = 3 };

/* Rows that are asked for at once while others are listed. */
enum { AT_ONCE = 8 };

#include "select_dots.h"

/* Scales, as a block begins with them, enter `queries` (a constant) queries, which are then rounded to 8 bits: step makes scores of dot
 * products, base is the part of the score that all positions with these scales share. One largest number a query, or there are not registers enough. */
INLINE void place_queries(const float *query, int queries, const char *block, int64_t width, int8_t *query8, float *step, float *base) {
    const uint16_t *scale = (const uint16_t *)(const void *)block, *zero = scale + width;
    float scaled[QUERIES][MOST_WIDTH + HGCA_LANES] __attribute__((aligned(64))); /* not a page apart: loads would wait for stores */
    const lanes_i magnitude = (lanes_i){0} + 0x7fffffff;
    lanes_f most[QUERIES], part[QUERIES][PARTS];
    float inverse[QUERIES];
    UNROLL
    for (int q = 0; q < queries; q++) {
        most[q] = all_f(0.0f);
        UNROLL
        for (int p = 0; p < PARTS; p++) part[q][p] = all_f(0.0f);
    }
    int64_t d = 0;
    for (; d + HGCA_LANES <= width; d += HGCA_LANES)
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            const int64_t at = d + p * LANES;
            const lanes_f by = load_bf16(scale + at), plus = load_bf16(zero + at);
            UNROLL
            for (int q = 0; q < queries; q++) {
                const lanes_f one = load_f(query + q * width + at), x = one * by;
                store_f(scaled[q] + at, x);
                most[q] = largest_f((lanes_f)((lanes_i)x & magnitude), most[q]);
                part[q][p] += one * plus;
            }
        }
    UNROLL
    for (int q = 0; q < queries; q++) {
        float top = top_of(most[q]), sum = sum_f(part[q]);
        int64_t i = d;
        for (; i < width; i++) { /* half a vector */
            float size = fabsf(scaled[q][i] = query[q * width + i] * hgca_from_bf16(scale[i]));
            top = size > top ? size : top;
            sum += query[q * width + i] * hgca_from_bf16(zero[i]);
        }
        for (; i % HGCA_LANES; i++) scaled[q][i] = 0.0f;
        inverse[q] = top > 0.0f ? 127.0f / top : 0.0f; /* a NaN is no largest, but its base is NaN */
        step[q] = top / 127.0f;
        base[q] = sum;
    }
    for (int64_t i = 0; i < width; i += HGCA_LANES)
        UNROLL
        for (int q = 0; q < queries; q++) {
            lanes_i whole[PARTS];
            UNROLL
            for (int p = 0; p < PARTS; p++) whole[p] = nearest(load_f(scaled[q] + i + p * LANES) * inverse[q]);
            store_bytes(query8 + q * MOST_WIDTH + i, whole);
        }
}

INLINE int64_t block_bytes(int64_t dim) { return hgca_scales_bytes(dim) + HGCA_GROUPS * hgca_lanes_bytes(dim); }

INLINE int64_t group_at(const hgca_scan *s, int64_t i) { return s->groups ? s->groups[i] : s->first + i; }

INLINE const uint8_t *codes_at(const hgca_scan *s, int64_t group) {
    return (const uint8_t *)s->codes + group / HGCA_GROUPS * block_bytes(s->dim) + hgca_scales_bytes(s->dim) +
           group % HGCA_GROUPS * hgca_lanes_bytes(s->dim);
}

/* The largest score a row in each of 16 boxes could have: for every number the side that the query's sign makes larger. */
INLINE void score_boxes(const hgca_scan *s, int64_t block, const float *query, lanes_f score[PARTS]) {
    const int64_t each = (int64_t)s->sides * HGCA_LANES;
    const uint16_t *box = (const uint16_t *)(const void *)s->codes + block * s->dim * each;
    UNROLL
    for (int p = 0; p < PARTS; p++) score[p] = all_f(0.0f);
    for (int64_t d = 0; d < s->dim; d++, box += each)
        UNROLL
        for (int p = 0; p < PARTS; p++)
            score[p] += load_bf16(box + (query[d] > 0.0f ? each - HGCA_LANES : 0) + p * LANES) * query[d];
}

/* The block with the scales of the i-th group. */
INLINE int64_t scales_at(const hgca_scan *s, int64_t i) { return hgca_scales_of(s, group_at(s, i) / HGCA_GROUPS); }

/* The scales of the i-th group, if those of the one before it are others. */
INLINE void prefetch_scales(const hgca_scan *s, int64_t i) {
    const int64_t block = scales_at(s, i);
    if (i > 0 && scales_at(s, i - 1) == block) return;
    for (int64_t b = 0; b < hgca_scales_bytes(s->dim); b += 64) __builtin_prefetch(s->codes + block * block_bytes(s->dim) + b, 0, 2);
}

/* The groups that are not fetched while others are scored. */
INLINE void prefetch_first(const hgca_scan *s, int64_t ahead) {
    for (int64_t i = 0; i < s->count && i < ahead + MORE_AHEAD; i++) prefetch_scales(s, i);
    for (int64_t i = 0; i < s->count && i < ahead; i++)
        for (int64_t b = 0; b < hgca_lanes_bytes(s->dim); b += 64) __builtin_prefetch(codes_at(s, group_at(s, i)) + b, 0, 2);
}

/* Scores [n] of one query, the largest in a lane of `top`, become score, max and sum of hgca_scan. */
INLINE void soften(const float *from, int64_t n, const lanes_f top[PARTS], int strange, uint16_t *score, float *max, float *sum) {
    const float most = strange ? NAN : top_f(top), shift = most == -INFINITY ? 0.0f : most;
    lanes_f lanes[PARTS] = {{0}};
    for (int64_t i = 0; i < n; i += HGCA_LANES)
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            const lanes_f e = exp2_f(load_f(from + i + p * LANES) - shift);
            lanes[p] += e;
            cut_bf16(score + i + p * LANES, e);
        }
    *max = most;
    *sum = most == -INFINITY ? 0.0f : sum_f(lanes);
}

INLINE lanes_f reach_of(lanes_f variance, const hgca_bend *bend) {
    variance = largest_f(variance, all_f(0.0f)); /* rounded below zero */
    return pick(variance < bend->from, 0.5f * variance, bend->slope * root_f(variance) - bend->less);
}

static void reach(const hgca_reaching *s) {
    float raw[HGCA_UNIT * HGCA_LANES] __attribute__((aligned(64)));
    const float unit = s->unit, squared = 1.0f / (unit * unit);
    for (int32_t q = 0; q < s->queries; q++) {
        lanes_f top[PARTS];
        lanes_i strange = {0};
        for (int p = 0; p < PARTS; p++) top[p] = all_f(-INFINITY);
        for (int64_t i = 0; i < s->count; i += HGCA_LANES)
            UNROLL
            for (int p = 0; p < PARTS; p++) {
                const int64_t at = i + p * LANES;
                lanes_f score = load_f(s->raw + q * s->count + at);
                if (s->variance) score += unit * reach_of(load_f(s->variance + q * s->count + at) * squared, &s->bend);
                store_f(raw + at, score);
                strange |= score != score;
                top[p] = largest_f(score, top[p]);
            }
        int any = 0;
        for (int r = 0; r < LANES; r++) any |= strange[r];
        soften(raw, s->count, top, any, s->score + q * s->count, &s->max[q], &s->sum[q]);
    }
}

/* What of a scan goes on from group to group. */
typedef struct {
    int8_t query8[QUERIES * MOST_WIDTH] __attribute__((aligned(64)));
    int32_t dot[2][QUERIES][HGCA_LANES] __attribute__((aligned(64)));
    lanes_f top[QUERIES][PARTS];
    float step[QUERIES], base[QUERIES];
    int strange[QUERIES]; /* a score is NaN: a block's scales, or the query, are no numbers */
} scanning;

/* Scores of 16 positions are kept, the largest noted; those from `left` on do not exist. */
INLINE void keep_scores(const hgca_scan *s, lanes_f score[PARTS], int64_t left, float *to, lanes_f top[PARTS]) {
    UNROLL
    for (int p = 0; p < PARTS; p++) store_f(to + p * LANES, score[p]);
    if (s->softcap > 0.0f || left < HGCA_LANES) {
        if (s->softcap > 0.0f)
            for (int r = 0; r < HGCA_LANES; r++) to[r] = 1.44269504f * s->softcap * tanhf(to[r] / s->softcap);
        for (int64_t r = left < 0 ? 0 : left; r < HGCA_LANES; r++) to[r] = -INFINITY;
        for (int p = 0; p < PARTS; p++) score[p] = load_f(to + p * LANES);
    }
    UNROLL
    for (int p = 0; p < PARTS; p++) top[p] = largest_f(score[p], top[p]);
}

/* Boxes: one after the other. */
INLINE void scan_boxes(const hgca_scan *s, int first_query, int queries, float *raw, scanning *at) {
    const int64_t width = hgca_code_width(s->dim), n = s->count * HGCA_LANES;
    for (int64_t i = 0; i < s->count; i++)
        for (int q = 0; q < queries; q++) {
            const int64_t group = group_at(s, i);
            lanes_f score[PARTS];
            score_boxes(s, group, s->query + (first_query + q) * width, score);
            at->strange[q] |= !(fabsf(sum_f(score)) < INFINITY);
            keep_scores(s, score, s->end - group * HGCA_LANES, raw + q * n + i * HGCA_LANES, at->top[q]);
        }
}

/* Codes: two groups with the same scales at once. */
INLINE void scan_codes(const hgca_scan *s, int first_query, int queries, float *raw, scanning *at) {
    const int64_t width = hgca_code_width(s->dim), n = s->count * HGCA_LANES;
    const int64_t ahead_by = AHEAD_BYTES / hgca_lanes_bytes(s->dim) + 1;
    int64_t placed = -1;
    prefetch_first(s, ahead_by);
    for (int64_t i = 0, both; i < s->count; i += 1 + both) {
        const int64_t group = group_at(s, i), block = scales_at(s, i);
        both = i + 1 < s->count && scales_at(s, i + 1) == block;
        const int64_t other = both ? group_at(s, i + 1) : group;
        const uint8_t *const codes[2] = {codes_at(s, group), codes_at(s, other)}, *ahead[2] = {codes[0], codes[1]};
        for (int k = 0; k <= both; k++) {
            if (i + k + ahead_by + MORE_AHEAD < s->count) prefetch_scales(s, i + k + ahead_by + MORE_AHEAD);
            if (i + k + ahead_by < s->count) ahead[k] = codes_at(s, group_at(s, i + k + ahead_by));
        }
        if (block != placed) {
            const char *scales = s->codes + block * block_bytes(s->dim);
            placed = block;
            place_queries(s->query + first_query * width, queries, scales, width, at->query8, at->step, at->base);
            for (int q = 0; q < queries; q++) at->strange[q] |= !(fabsf(at->base[q]) < INFINITY && at->step[q] < INFINITY);
        }
        dot_lanes(codes, ahead, width, at->query8, queries, at->dot);
        for (int k = 0; k <= both; k++)
            UNROLL
            for (int q = 0; q < queries; q++) {
                lanes_f score[PARTS];
                UNROLL
                for (int p = 0; p < PARTS; p++) {
                    lanes_i whole;
                    memcpy(&whole, at->dot[k][q] + p * LANES, sizeof whole);
                    score[p] = __builtin_convertvector(whole, lanes_f) * at->step[q] + at->base[q];
                }
                keep_scores(s, score, s->end - (k ? other : group) * HGCA_LANES, raw + q * n + (i + k) * HGCA_LANES, at->top[q]);
            }
    }
}

INLINE void scan_groups(const hgca_scan *s, int first_query, int queries, float *raw) {
    const int64_t n = s->count * HGCA_LANES;
    scanning at;
    for (int q = 0; q < queries; q++) {
        at.strange[q] = 0;
        for (int p = 0; p < PARTS; p++) at.top[q][p] = all_f(-INFINITY);
    }
    if (s->sides) scan_boxes(s, first_query, queries, raw, &at);
    else scan_codes(s, first_query, queries, raw, &at);
    for (int q = 0; q < queries; q++) {
        const int of = first_query + q;
        if (s->raw == NULL) soften(raw + q * n, n, at.top[q], at.strange[q], s->score + of * n, &s->max[of], &s->sum[of]);
        else if (at.strange[q]) for (int64_t i = 0; i < n; i++) s->raw[of * n + i] = NAN;
        else memcpy(s->raw + of * n, raw + q * n, sizeof(float) * (size_t)n);
    }
}

enum { RAW = HGCA_UNIT * HGCA_LANES * QUERIES }; /* floats of scores on the stack */

INLINE void scan_all(const hgca_scan *s, float *raw, int queries, int first) {
    switch (queries - first) { /* a constant number keeps the sums in registers */
    case 1: scan_groups(s, first, 1, raw); break;
    case 2: scan_groups(s, first, 2, raw); break;
    case 3: scan_groups(s, first, 3, raw); break;
    default: scan_groups(s, first, 4, raw);
    }
}

static void scan(const hgca_scan *s) {
    float few[RAW] __attribute__((aligned(64)));
    float *raw = s->count > HGCA_UNIT ? s->scratch : few;
    for (int first = 0; first < s->queries; first += QUERIES) scan_all(s, raw, s->queries, first);
}

static uint32_t lanes_from(const float *weight, float edge) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(weight), _mm512_set1_ps(edge), _CMP_GE_OQ);
#elif defined(__AVX2__)
    __m256 at = _mm256_set1_ps(edge);
    uint32_t low = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(weight), at, _CMP_GE_OQ));
    return low | (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(weight + 8), at, _CMP_GE_OQ)) << 8;
#else
    uint32_t bits = 0;
    for (int r = 0; r < HGCA_LANES; r++) bits |= (uint32_t)(weight[r] >= edge) << r;
    return bits;
#endif
}

/* Into `to`, those of 16 weights whose bit is set, one after the other; 16 are written. */
INLINE int64_t keep_weights(float *to, const float *weight, uint32_t bits) {
#if defined(__AVX512F__)
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps((__mmask16)bits, _mm512_loadu_ps(weight)));
#else
    int64_t kept = 0;
    UNROLL
    for (int r = 0; r < HGCA_LANES; r++) {
        to[kept] = weight[r];
        kept += bits >> r & 1;
    }
#endif
    return __builtin_popcount(bits);
}

INLINE void count_weights(const hgca_weighing *w, const float *weight, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &weight[i], sizeof bits);
        uint32_t bin = bits >= 0x3f800000u ? 0 : (0x3f800000u - bits + 0xfffffu) >> 20;
        if (bin >= HGCA_BINS) continue;
        w->rows[bin]++;
        w->mass[bin] += weight[i];
    }
}

/* Those that are counted are collected first: a loop over the few of each 16 ends where no processor expects it. */
INLINE void weigh_of(const hgca_weighing *w, int32_t queries) {
    enum { COLLECTED = 512 };
    float counted[COLLECTED + HGCA_LANES];
    int64_t count = 0;
    lanes_f total[PARTS] = {{0}};
    for (int64_t i = 0; i < w->count; i += HGCA_LANES) {
        lanes_f weight[PARTS] = {{0}};
        UNROLL
        for (int q = 0; q < queries; q++)
            UNROLL
            for (int p = 0; p < PARTS; p++) weight[p] = largest_f(weight[p], load_bf16(w->score + q * w->count + i + p * LANES) * w->share[q]);
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            store_f(w->weight + i + p * LANES, weight[p]);
            total[p] += weight[p];
        }
        count += keep_weights(counted + count, w->weight + i, lanes_from(w->weight + i, w->least));
        if (count < COLLECTED) continue;
        count_weights(w, counted, count);
        count = 0;
    }
    count_weights(w, counted, count);
    *w->total += sum_f(total);
}

static void weigh(const hgca_weighing *w) {
    switch (w->queries) { /* a constant number is no loop */
    case 3: weigh_of(w, 3); break;
    case 4: weigh_of(w, 4); break;
    default: weigh_of(w, w->queries);
    }
}

#include "select_listing.h"
#include "select_guessed.h"
#include "select_gathered.h"

const hgca_isa_selection SELECT_ISA = {scan, reach, weigh, leave,  pass_by, close_blocks,
                                       hold, along, apart, middle, list,    lanes_from};
