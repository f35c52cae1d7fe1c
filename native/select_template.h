/* Choosing rows, written once in plain C that the compiler turns into vectors of 16 lanes; an instruction set's file names
 * its table in SELECT_ISA and includes this. Only the dot product of codes has instructions of its own. All arithmetic on
 * codes is in integers and nothing is contracted, so every instruction set gives the same scores, bit by bit. */
#include <math.h>
#include <string.h>

#include "codes.h"
#include "kernels.h"
#include "select.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
enum { QUERIES = 4, MOST_WIDTH = 1024 };

/* 2^x, as vexp2 of kernels_template.h but for -126 in place of -127, by shifting bits. */
INLINE float exp2_lane(float x) {
    x = x > -126.0f ? x : -126.0f;
    float n = (x + 12582912.0f) - 12582912.0f, r = x - n; /* to the nearest integer: 1.5 * 2^23 has none behind the point */
    float p = 1.32646982e-3f;
    p = p * r + 9.67150927e-3f;
    p = p * r + 5.55073395e-2f;
    p = p * r + 2.40222424e-1f;
    p = p * r + 6.93147004e-1f;
    p = p * r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* dot[q][r] = sum over numbers of codes of position r times query8[q], for `queries` (a constant) queries. */
INLINE void dot_lanes(const uint8_t *codes, int64_t width, const int8_t *query8, int queries, int32_t dot[][HGCA_LANES]) {
#if defined(__AVX512BW__)
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512i sum[QUERIES], more[QUERIES];
    UNROLL
    for (int q = 0; q < queries; q++) sum[q] = more[q] = _mm512_setzero_si512();
    for (int64_t d = 0; d < width; d += 8, codes += 64) {
        __m512i both = _mm512_loadu_si512(codes);
        __m512i low = _mm512_and_si512(both, low_half), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
        UNROLL
        for (int q = 0; q < queries; q++) {
            int32_t a, b;
            memcpy(&a, query8 + q * width + d, sizeof a);
            memcpy(&b, query8 + q * width + d + 4, sizeof b);
#if defined(__AVX512VNNI__)
            sum[q] = _mm512_dpbusd_epi32(sum[q], low, _mm512_set1_epi32(a));
            more[q] = _mm512_dpbusd_epi32(more[q], high, _mm512_set1_epi32(b));
#else
            __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, _mm512_set1_epi32(a)),
                                             _mm512_maddubs_epi16(high, _mm512_set1_epi32(b)));
            sum[q] = _mm512_add_epi32(sum[q], _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
        }
    }
    UNROLL
    for (int q = 0; q < queries; q++) _mm512_storeu_si512(dot[q], _mm512_add_epi32(sum[q], more[q]));
#elif defined(__AVX2__)
    const __m256i low_half = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
    for (int lanes = 0; lanes < HGCA_LANES; lanes += 8) {
        const uint8_t *at = codes + 4 * lanes;
        __m256i sum[QUERIES];
        UNROLL
        for (int q = 0; q < queries; q++) sum[q] = _mm256_setzero_si256();
        for (int64_t d = 0; d < width; d += 8, at += 64) {
            __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)at);
            __m256i low = _mm256_and_si256(both, low_half), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
            UNROLL
            for (int q = 0; q < queries; q++) {
                int32_t a, b;
                memcpy(&a, query8 + q * width + d, sizeof a);
                memcpy(&b, query8 + q * width + d + 4, sizeof b);
                __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, _mm256_set1_epi32(a)),
                                                 _mm256_maddubs_epi16(high, _mm256_set1_epi32(b)));
                sum[q] = _mm256_add_epi32(sum[q], _mm256_madd_epi16(pairs, one));
            }
        }
        UNROLL
        for (int q = 0; q < queries; q++) _mm256_storeu_si256((__m256i *)(void *)(dot[q] + lanes), sum[q]);
    }
#else
    for (int q = 0; q < queries; q++)
        for (int r = 0; r < HGCA_LANES; r++) dot[q][r] = 0;
    for (int64_t d = 0; d < width; d += 8, codes += 64)
        for (int q = 0; q < queries; q++)
            for (int r = 0; r < HGCA_LANES; r++)
                for (int j = 0; j < 4; j++)
                    dot[q][r] += (codes[4 * r + j] & 15) * query8[q * width + d + j] +
                                 (codes[4 * r + j] >> 4) * query8[q * width + d + 4 + j];
#endif
}

/* A block's scales enter the query, which is then rounded to 8 bits: *step makes scores of dot products, *base is the part
 * of the score that all positions of the block share. */
INLINE void place_query(const float *query, const char *block, int64_t width, int8_t *query8, float *step, float *base) {
    const uint16_t *scale = (const uint16_t *)(const void *)block, *zero = scale + width;
    float scaled[MOST_WIDTH], largest[HGCA_PAD] = {0}, part[HGCA_PAD] = {0}, top = 0.0f, sum = 0.0f;
    for (int64_t d = 0; d < width; d += 8)
        for (int i = 0; i < 8; i++) {
            float x = query[d + i] * hgca_from_bf16(scale[d + i]), size = x < 0.0f ? -x : x;
            scaled[d + i] = x;
            largest[i] = size > largest[i] ? size : largest[i];
            part[i] += query[d + i] * hgca_from_bf16(zero[d + i]);
        }
    for (int i = 0; i < 8; i++) top = largest[i] > top ? largest[i] : top;
    for (int i = 0; i < 8; i++) sum += part[i];
    float inverse = top > 0.0f ? 127.0f / top : 0.0f;
    for (int64_t d = 0; d < width; d++) { /* to the nearest; not a NaN, that was no largest: its base is NaN */
        float x = scaled[d] * inverse;
        x = x > -127.0f ? x : -127.0f;
        x = x < 127.0f ? x : 127.0f;
        query8[d] = (int8_t)(int32_t)(x + (x < 0.0f ? -0.5f : 0.5f));
    }
    *step = top / 127.0f;
    *base = sum;
}

/* The largest score a row in each of 16 boxes could have: for every number the side that the query's sign makes larger. */
INLINE void score_boxes(const hgca_scan *s, int64_t block, const float *query, int queries, float raw[][HGCA_LANES]) {
    const int64_t width = hgca_code_width(s->dim), each = (int64_t)s->sides * HGCA_LANES;
    const uint16_t *box = (const uint16_t *)(const void *)s->codes + block * s->dim * each;
    for (int q = 0; q < queries; q++)
        for (int r = 0; r < HGCA_LANES; r++) raw[q][r] = 0.0f;
    for (int64_t d = 0; d < s->dim; d++, box += each) {
        UNROLL
        for (int q = 0; q < queries; q++) {
            const float x = query[q * width + d];
            const uint16_t *side = box + (x > 0.0f ? each - HGCA_LANES : 0);
            for (int r = 0; r < HGCA_LANES; r++) raw[q][r] += x * hgca_from_bf16(side[r]);
        }
    }
}

INLINE void scan_groups(const hgca_scan *s, int first_query, int queries, float *raw) {
    const int64_t width = hgca_code_width(s->dim), block_bytes = hgca_block_bytes(s->dim), n = s->count * HGCA_LANES;
    int8_t query8[QUERIES * MOST_WIDTH];
    float step[QUERIES] = {0}, base[QUERIES] = {0};
    float top[QUERIES][HGCA_LANES];
    int64_t placed = -1;
    for (int q = 0; q < queries; q++)
        for (int r = 0; r < HGCA_LANES; r++) top[q][r] = -INFINITY;
    for (int64_t i = 0; i < s->count; i++) {
        int64_t group = s->groups ? s->groups[i] : s->first + i;
        float score[QUERIES][HGCA_LANES];
        if (s->sides) score_boxes(s, group, s->query + first_query * width, queries, score);
        else {
            const char *block = s->codes + group / HGCA_GROUPS * block_bytes;
            const uint8_t *codes = (const uint8_t *)block + hgca_scales_bytes(s->dim) + group % HGCA_GROUPS * hgca_lanes_bytes(s->dim);
            if (i + 2 < s->count) { /* the group after the next */
                int64_t later = s->groups ? s->groups[i + 2] : group + 2;
                const char *at = s->codes + later / HGCA_GROUPS * block_bytes + hgca_scales_bytes(s->dim) + later % HGCA_GROUPS * hgca_lanes_bytes(s->dim);
                for (int64_t b = 0; b < hgca_lanes_bytes(s->dim); b += 64) __builtin_prefetch(at + b, 0, 2);
            }
            if (group / HGCA_GROUPS != placed) {
                placed = group / HGCA_GROUPS;
                for (int q = 0; q < queries; q++)
                    place_query(s->query + (first_query + q) * width, block, width, query8 + q * width, &step[q], &base[q]);
            }
            int32_t dot[QUERIES][HGCA_LANES];
            dot_lanes(codes, width, query8, queries, dot);
            for (int q = 0; q < queries; q++)
                for (int r = 0; r < HGCA_LANES; r++) score[q][r] = (float)dot[q][r] * step[q] + base[q];
        }
        const int64_t left = s->end - group * HGCA_LANES;
        for (int q = 0; q < queries; q++) {
            float *to = raw + q * n + i * HGCA_LANES;
            memcpy(to, score[q], sizeof score[q]);
            if (s->softcap > 0.0f)
                for (int r = 0; r < HGCA_LANES; r++) to[r] = 1.44269504f * s->softcap * tanhf(to[r] / s->softcap);
            for (int64_t r = left < 0 ? 0 : left; r < HGCA_LANES; r++) to[r] = -INFINITY;
            for (int r = 0; r < HGCA_LANES; r++) top[q][r] = to[r] > top[q][r] || to[r] != to[r] ? to[r] : top[q][r];
        }
    }
    for (int q = 0; q < queries; q++) {
        float max = -INFINITY, sum = 0.0f, lanes[HGCA_LANES] = {0};
        for (int r = 0; r < HGCA_LANES; r++) max = top[q][r] > max || top[q][r] != top[q][r] ? top[q][r] : max;
        uint16_t *score = s->score + (first_query + q) * n;
        const float shift = max == -INFINITY ? 0.0f : max, *from = raw + q * n;
        for (int64_t i = 0; i < n; i += HGCA_LANES)
            for (int r = 0; r < HGCA_LANES; r++) {
                float e = exp2_lane(from[i + r] - shift);
                uint32_t bits;
                lanes[r] += e;
                memcpy(&bits, &e, sizeof bits);
                score[i + r] = (uint16_t)(bits >> 16);
            }
        for (int r = 0; r < HGCA_LANES; r++) sum += lanes[r];
        s->max[first_query + q] = max;
        s->sum[first_query + q] = max == -INFINITY ? 0.0f : sum;
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
    float raw[RAW] __attribute__((aligned(64)));
    for (int first = 0; first < s->queries; first += QUERIES) scan_all(s, raw, s->queries, first);
}

static void weigh(const hgca_weighing *w) {
    for (int64_t i = 0; i < w->count; i += HGCA_LANES) {
        float weight[HGCA_LANES] = {0};
        uint32_t bits[HGCA_LANES], any = 0;
        for (int q = 0; q < w->queries; q++) {
            const uint16_t *score = w->score + q * w->count + i;
            for (int r = 0; r < HGCA_LANES; r++) weight[r] += w->share[q] * hgca_from_bf16(score[r]);
        }
        memcpy(w->weight + i, weight, sizeof weight);
        for (int r = 0; r < HGCA_LANES; r++) any |= weight[r] >= w->least;
        if (!any) continue;
        memcpy(bits, weight, sizeof bits);
        for (int r = 0; r < HGCA_LANES; r++) {
            if (!(weight[r] >= w->least)) continue;
            uint32_t bin = bits[r] >= 0x3f800000u ? 0 : (0x3f800000u - bits[r] + 0xfffffu) >> 20;
            if (bin >= HGCA_BINS) continue;
            w->rows[bin]++;
            w->mass[bin] += weight[r];
        }
    }
}

static void leave(const hgca_leaving *l) {
    for (int32_t q = 0; q < l->queries; q++)
        for (int64_t g = 0; g < l->groups; g++) {
            const uint16_t *score = l->score + (q * l->groups + g) * HGCA_LANES;
            float part[4] = {0};
            for (int r = 0; r < HGCA_LANES; r++)
                part[r % 4] += hgca_from_bf16((uint16_t)(score[r] & ((l->chosen[g] >> r & 1) - 1)));
            l->left[q * l->groups + g] = (part[0] + part[1]) + (part[2] + part[3]);
        }
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

const hgca_isa_selection SELECT_ISA = {scan, weigh, leave, lanes_from};
