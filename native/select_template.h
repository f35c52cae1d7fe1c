/* Choosing rows, written once in vectors of 16 lanes that the compiler makes of what the machine has; an instruction set's
 * file names its table in SELECT_ISA and includes this. (Loops over 16 lanes in plain C it unrolled first, and then found
 * no vectors in them.) Only the dot product of codes has instructions of its own. All arithmetic on codes
 * is in integers and nothing is contracted, so every instruction set gives the same scores, bit by bit. */
#include <math.h>
#include <string.h>

#include "codes.h"
#include "kernels.h"
#include "select.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
enum { QUERIES = 4, MOST_WIDTH = HGCA_MOST_WIDTH, AHEAD = 8 }; /* queries at once; groups until one that is prefetched */

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to inlined functions only; clang understands it too */

typedef float lanes_f __attribute__((vector_size(64)));
typedef int32_t lanes_i __attribute__((vector_size(64)));
typedef int32_t word_t __attribute__((may_alias)); /* four numbers of a query */
typedef uint16_t lanes_h __attribute__((vector_size(32)));

INLINE lanes_f all_f(float x) { return (lanes_f){0} + x; }

INLINE lanes_f load_f(const void *p) {
    lanes_f x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE lanes_f load_bf16(const void *p) {
    lanes_h half;
    memcpy(&half, p, sizeof half);
    return (lanes_f)(__builtin_convertvector(half, lanes_i) << 16);
}

INLINE lanes_f pick(lanes_i mask, lanes_f yes, lanes_f no) { return (lanes_f)((mask & (lanes_i)yes) | (~mask & (lanes_i)no)); }

/* b where either is NaN */
INLINE lanes_f largest_f(lanes_f a, lanes_f b) { return pick(a > b, a, b); }

typedef float half_f __attribute__((vector_size(32)));
typedef float quarter_f __attribute__((vector_size(16)));

INLINE float sum_f(lanes_f x) {
    half_f half[2];
    quarter_f quarter[2];
    memcpy(half, &x, sizeof x);
    half[0] += half[1];
    memcpy(quarter, half, sizeof quarter);
    quarter[0] += quarter[1];
    return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

/* The largest of numbers, none of them NaN. */
INLINE float top_f(lanes_f x) {
    half_f half[2];
    quarter_f quarter[2];
    memcpy(half, &x, sizeof x);
    for (int i = 0; i < 8; i++) half[0][i] = half[0][i] > half[1][i] ? half[0][i] : half[1][i];
    memcpy(quarter, half, sizeof quarter);
    for (int i = 0; i < 4; i++) quarter[0][i] = quarter[0][i] > quarter[1][i] ? quarter[0][i] : quarter[1][i];
    float a = quarter[0][0] > quarter[0][2] ? quarter[0][0] : quarter[0][2];
    float b = quarter[0][1] > quarter[0][3] ? quarter[0][1] : quarter[0][3];
    return a > b ? a : b;
}

/* 2^x, as vexp2 of kernels_template.h but for -126 in place of -127, by shifting bits. */
INLINE lanes_f exp2_f(lanes_f x) {
    x = largest_f(x, all_f(-126.0f));
    lanes_f n = (x + 12582912.0f) - 12582912.0f, r = x - n; /* to the nearest integer: 1.5 * 2^23 has none behind the point */
    lanes_f p = r * 1.32646982e-3f + 9.67150927e-3f;
    p = p * r + 5.55073395e-2f;
    p = p * r + 2.40222424e-1f;
    p = p * r + 6.93147004e-1f;
    p = p * r + 1.0f;
    return p * (lanes_f)((__builtin_convertvector(n, lanes_i) + 127) << 23);
}

/* dot[q][r] as of dot_lanes, of one group. */
#if !defined(__AVX512BW__)
INLINE void dot_group(const uint8_t *codes, int64_t width, const int8_t *query8, int queries, int32_t dot[][HGCA_LANES]) {
#if defined(__AVX2__)
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
                memcpy(&a, query8 + q * MOST_WIDTH + d, sizeof a);
                memcpy(&b, query8 + q * MOST_WIDTH + d + 4, sizeof b);
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
                    dot[q][r] += (codes[4 * r + j] & 15) * query8[q * MOST_WIDTH + d + j] +
                                 (codes[4 * r + j] >> 4) * query8[q * MOST_WIDTH + d + 4 + j];
#endif
}
#endif

/* dot[q][r] = sum over numbers of codes of position r times query8[q], for `queries` (a constant) queries; of two groups. */
INLINE void dot_lanes(const uint8_t *codes, const uint8_t *other, int64_t width, const int8_t *query8, int queries,
                      int32_t dot[][HGCA_LANES], int32_t other_dot[][HGCA_LANES]) {
#if defined(__AVX512BW__)
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512i sum[QUERIES], more[QUERIES];
    UNROLL
    for (int q = 0; q < queries; q++) sum[q] = more[q] = _mm512_setzero_si512();
    for (int64_t d = 0; d < width; d += 8, codes += 64, other += 64) {
        __m512i a = _mm512_loadu_si512(codes), b = _mm512_loadu_si512(other);
        __m512i a_low = _mm512_and_si512(a, low_half), a_high = _mm512_and_si512(_mm512_srli_epi16(a, 4), low_half);
        __m512i b_low = _mm512_and_si512(b, low_half), b_high = _mm512_and_si512(_mm512_srli_epi16(b, 4), low_half);
        UNROLL
        for (int q = 0; q < queries; q++) {
            const word_t *word = (const word_t *)(const void *)(query8 + q * MOST_WIDTH + d);
            __m512i low = _mm512_set1_epi32(word[0]), high = _mm512_set1_epi32(word[1]);
#if defined(__AVX512VNNI__)
            sum[q] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum[q], a_low, low), a_high, high);
            more[q] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(more[q], b_low, low), b_high, high);
#else
            const __m512i one = _mm512_set1_epi16(1);
            __m512i a_pairs = _mm512_add_epi16(_mm512_maddubs_epi16(a_low, low), _mm512_maddubs_epi16(a_high, high));
            __m512i b_pairs = _mm512_add_epi16(_mm512_maddubs_epi16(b_low, low), _mm512_maddubs_epi16(b_high, high));
            sum[q] = _mm512_add_epi32(sum[q], _mm512_madd_epi16(a_pairs, one));
            more[q] = _mm512_add_epi32(more[q], _mm512_madd_epi16(b_pairs, one));
#endif
        }
    }
    UNROLL
    for (int q = 0; q < queries; q++) {
        _mm512_storeu_si512(dot[q], sum[q]);
        _mm512_storeu_si512(other_dot[q], more[q]);
    }
#else
    dot_group(codes, width, query8, queries, dot);
    dot_group(other, width, query8, queries, other_dot);
#endif
}

/* A block's scales enter the query, which is then rounded to 8 bits: *step makes scores of dot products, *base is the part
 * of the score that all positions of the block share. */
INLINE void place_query(const float *query, const char *block, int64_t width, int8_t *query8, float *step, float *base) {
    const uint16_t *scale = (const uint16_t *)(const void *)block, *zero = scale + width;
    float scaled[MOST_WIDTH] __attribute__((aligned(64)));
    const lanes_i magnitude = (lanes_i){0} + 0x7fffffff;
    lanes_f most = {0}, part = {0};
    int64_t d = 0;
    float top, sum;
    for (; d + HGCA_LANES <= width; d += HGCA_LANES) {
        lanes_f q = load_f(query + d), x = q * load_bf16(scale + d);
        memcpy(scaled + d, &x, sizeof x);
        most = largest_f((lanes_f)((lanes_i)x & magnitude), most);
        part += q * load_bf16(zero + d);
    }
    top = top_f(most);
    sum = sum_f(part);
    for (; d < width; d++) { /* half a vector */
        float size = fabsf(scaled[d] = query[d] * hgca_from_bf16(scale[d]));
        top = size > top ? size : top;
        sum += query[d] * hgca_from_bf16(zero[d]);
    }
    for (; d % HGCA_LANES; d++) scaled[d] = 0.0f;
    const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
    for (int64_t i = 0; i < width; i += HGCA_LANES) { /* to the nearest; a NaN is no largest, but its base is NaN */
        lanes_f x = load_f(scaled + i) * inverse;
        x = largest_f(x, all_f(-127.0f));
        x = pick(x < all_f(127.0f), x, all_f(127.0f));
        lanes_i whole = __builtin_convertvector((x + 12582912.0f) - 12582912.0f, lanes_i);
        typedef int8_t lanes_b __attribute__((vector_size(16)));
        lanes_b bytes = __builtin_convertvector(whole, lanes_b);
        memcpy(query8 + i, &bytes, sizeof bytes);
    }
    *step = top / 127.0f;
    *base = sum;
}

INLINE int64_t block_bytes(int64_t dim) { return hgca_scales_bytes(dim) + HGCA_GROUPS * hgca_lanes_bytes(dim); }

INLINE int64_t group_at(const hgca_scan *s, int64_t i) { return s->groups ? s->groups[i] : s->first + i; }

INLINE const void *codes_at(const hgca_scan *s, int64_t group) {
    return s->codes + group / HGCA_GROUPS * block_bytes(s->dim) + hgca_scales_bytes(s->dim) +
           group % HGCA_GROUPS * hgca_lanes_bytes(s->dim);
}

/* The largest score a row in each of 16 boxes could have: for every number the side that the query's sign makes larger. */
INLINE lanes_f score_boxes(const hgca_scan *s, int64_t block, const float *query) {
    const int64_t each = (int64_t)s->sides * HGCA_LANES;
    const uint16_t *box = (const uint16_t *)(const void *)s->codes + block * s->dim * each;
    lanes_f sum = {0};
    for (int64_t d = 0; d < s->dim; d++, box += each) sum += load_bf16(box + (query[d] > 0.0f ? each - HGCA_LANES : 0)) * query[d];
    return sum;
}

INLINE void scan_groups(const hgca_scan *s, int first_query, int queries, float *raw) {
    const int64_t width = hgca_code_width(s->dim), n = s->count * HGCA_LANES;
    int8_t query8[QUERIES * MOST_WIDTH] __attribute__((aligned(64)));
    float step[QUERIES] = {0}, base[QUERIES] = {0};
    lanes_f top[QUERIES];
    int strange[QUERIES] = {0}; /* a score is NaN: a block's scales, or the query, are no numbers */
    int64_t placed = -1;
    for (int q = 0; q < queries; q++) top[q] = all_f(-INFINITY);
    for (int64_t i = 0, both; i < s->count; i += 1 + both) {
        const int64_t group = group_at(s, i);
        both = !s->sides && i + 1 < s->count && group_at(s, i + 1) / HGCA_GROUPS == group / HGCA_GROUPS;
        const int64_t other = both ? group_at(s, i + 1) : group;
        lanes_f scores[2][QUERIES];
        if (s->sides)
            for (int q = 0; q < queries; q++) {
                scores[0][q] = score_boxes(s, group, s->query + (first_query + q) * width);
                strange[q] |= !(fabsf(sum_f(scores[0][q])) < INFINITY);
            }
        else {
            for (int64_t ahead = i + AHEAD; ahead < s->count && ahead <= i + AHEAD + both; ahead++) {
                const char *at = codes_at(s, group_at(s, ahead));
                for (int64_t b = 0; b < hgca_lanes_bytes(s->dim); b += 64) __builtin_prefetch(at + b, 0, 2);
            }
            if (group / HGCA_GROUPS != placed) {
                placed = group / HGCA_GROUPS;
                const char *block = s->codes + placed * block_bytes(s->dim);
                for (int q = 0; q < queries; q++) {
                    place_query(s->query + (first_query + q) * width, block, width, query8 + q * MOST_WIDTH, &step[q], &base[q]);
                    strange[q] |= !(fabsf(base[q]) < INFINITY && step[q] < INFINITY);
                }
            }
            int32_t dot[2][QUERIES][HGCA_LANES] __attribute__((aligned(64)));
            dot_lanes(codes_at(s, group), codes_at(s, other), width, query8, queries, dot[0], dot[1]);
            for (int k = 0; k <= both; k++)
                for (int q = 0; q < queries; q++) {
                    lanes_i whole;
                    memcpy(&whole, dot[k][q], sizeof whole);
                    scores[k][q] = __builtin_convertvector(whole, lanes_f) * step[q] + base[q];
                }
        }
        for (int k = 0; k <= both; k++) {
            const int64_t left = s->end - (k ? other : group) * HGCA_LANES;
            for (int q = 0; q < queries; q++) {
                float *to = raw + q * n + (i + k) * HGCA_LANES;
                lanes_f score = scores[k][q];
                memcpy(to, &score, sizeof score);
                if (s->plus) {
                    score += load_f(s->plus + (first_query + q) * n + (i + k) * HGCA_LANES);
                    memcpy(to, &score, sizeof score);
                }
                if (s->softcap > 0.0f || left < HGCA_LANES) {
                    if (s->softcap > 0.0f)
                        for (int r = 0; r < HGCA_LANES; r++) to[r] = 1.44269504f * s->softcap * tanhf(to[r] / s->softcap);
                    for (int64_t r = left < 0 ? 0 : left; r < HGCA_LANES; r++) to[r] = -INFINITY;
                    score = load_f(to);
                }
                top[q] = largest_f(score, top[q]);
            }
        }
    }
    if (s->raw) {
        for (int q = 0; q < queries; q++) memcpy(s->raw + (first_query + q) * n, raw + q * n, sizeof(float) * (size_t)n);
        return;
    }
    for (int q = 0; q < queries; q++) {
        const float max = strange[q] ? NAN : top_f(top[q]), shift = max == -INFINITY ? 0.0f : max, *from = raw + q * n;
        uint16_t *score = s->score + (first_query + q) * n;
        lanes_f lanes = {0};
        for (int64_t i = 0; i < n; i += HGCA_LANES) {
            lanes_f e = exp2_f(load_f(from + i) - shift);
            lanes_h half = __builtin_convertvector((lanes_i)e >> 16, lanes_h);
            lanes += e;
            memcpy(score + i, &half, sizeof half);
        }
        s->max[first_query + q] = max;
        s->sum[first_query + q] = max == -INFINITY ? 0.0f : sum_f(lanes);
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

static void weigh(const hgca_weighing *w) {
    lanes_f total = {0};
    for (int64_t i = 0; i < w->count; i += HGCA_LANES) {
        lanes_f weight = {0};
        for (int q = 0; q < w->queries; q++) weight += load_bf16(w->score + q * w->count + i) * w->share[q];
        memcpy(w->weight + i, &weight, sizeof weight);
        total += weight;
        uint32_t bits[HGCA_LANES];
        memcpy(bits, &weight, sizeof bits);
        for (uint32_t some = lanes_from(w->weight + i, w->least); some; some &= some - 1) {
            const int r = __builtin_ctz(some);
            uint32_t bin = bits[r] >= 0x3f800000u ? 0 : (0x3f800000u - bits[r] + 0xfffffu) >> 20;
            if (bin >= HGCA_BINS) continue;
            w->rows[bin]++;
            w->mass[bin] += w->weight[i + r];
        }
    }
    *w->total += sum_f(total);
}

static void leave(hgca_leaving *l) {
    const lanes_i bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    const int64_t dim = l->dim, width = hgca_padded(dim), whole = dim / HGCA_LANES * HGCA_LANES;
    for (int64_t i = 0, end; i < l->count; i = end, l->blocks++) {
        const int64_t block = l->groups[i] / HGCA_GROUPS;
        const uint16_t *mean = (const uint16_t *)(const void *)(l->mean + 2 * dim * block);
        for (end = i; end < l->count && l->groups[end] / HGCA_GROUPS == block;) end++;
        for (int32_t q = 0; q < l->queries; q++) {
            lanes_f part = {0};
            for (int64_t g = i; g < end; g++) {
                lanes_i stays = (bit & ((lanes_i){0} + (int32_t)l->chosen[g])) == 0;
                part += (lanes_f)((lanes_i)load_bf16(l->score + (q * l->count + g) * HGCA_LANES) & stays);
            }
            const float weight = sum_f(part);
            float *out = l->out + q * width;
            l->sum[q] += weight;
            for (int64_t d = 0; d < whole; d += HGCA_LANES) {
                lanes_f more = load_f(out + d) + load_bf16(mean + d) * weight;
                memcpy(out + d, &more, sizeof more);
            }
            for (int64_t d = whole; d < dim; d++) out[d] += weight * hgca_from_bf16(mean[d]);
        }
    }
}

const hgca_isa_selection SELECT_ISA = {scan, weigh, leave, lanes_from};
