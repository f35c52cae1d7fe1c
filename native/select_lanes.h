/* Vectors of LANES numbers, the words of select_template.h, which includes this: as many as a register holds, as a compiler that
 * has to take wider ones apart keeps them in memory. Sixteen positions are PARTS of them, and are added up in the same order
 * whatever LANES is. What an instruction set does with one of its own gives the same bits as the plain C beside it. */
#ifndef HGCA_SELECT_LANES_H
#define HGCA_SELECT_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { PARTS = HGCA_LANES / LANES };

#define INLINE static inline __attribute__((always_inline))

typedef float lanes_f __attribute__((vector_size(4 * LANES)));
typedef int32_t lanes_i __attribute__((vector_size(4 * LANES)));
typedef int32_t word_t __attribute__((may_alias)); /* four numbers of a query */
typedef uint16_t lanes_h __attribute__((vector_size(2 * LANES)));
typedef int8_t lanes_b __attribute__((vector_size(LANES)));

INLINE lanes_f all_f(float x) { return (lanes_f){0} + x; }

INLINE lanes_f load_f(const void *p) {
    lanes_f x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store_f(void *p, lanes_f x) { memcpy(p, &x, sizeof x); }

INLINE lanes_f load_bf16(const void *p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (lanes_f)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    lanes_h half;
    memcpy(&half, p, sizeof half);
    return (lanes_f)(__builtin_convertvector(half, lanes_i) << 16);
#endif
}

/* Numbers that are not negative, cut to bf16. */
INLINE void cut_bf16(void *p, lanes_f x) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i half = _mm256_srli_epi32((__m256i)x, 16);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
#else
    lanes_h half = __builtin_convertvector((lanes_i)x >> 16, lanes_h);
    memcpy(p, &half, sizeof half);
#endif
}

/* Sixteen whole numbers in -128 .. 127 as bytes. */
INLINE void store_bytes(void *p, const lanes_i x[PARTS]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i words = _mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]); /* 0-3, 8-11, 4-7, 12-15 */
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)p, _mm_shuffle_epi32(bytes, 0xd8));
#else
    UNROLL
    for (int i = 0; i < PARTS; i++) {
        lanes_b bytes = __builtin_convertvector(x[i], lanes_b);
        memcpy((char *)p + i * LANES, &bytes, sizeof bytes);
    }
#endif
}

INLINE lanes_f pick(lanes_i mask, lanes_f yes, lanes_f no) { return (lanes_f)((mask & (lanes_i)yes) | (~mask & (lanes_i)no)); }

/* b where either is NaN */
INLINE lanes_f largest_f(lanes_f a, lanes_f b) {
#if defined(__AVX512F__)
    return (lanes_f)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (lanes_f)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return pick(a > b, a, b);
#endif
}

INLINE lanes_i nearest(lanes_f x) { /* of numbers below 2^22; of a NaN any */
#if defined(__AVX512F__)
    return (lanes_i)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (lanes_i)_mm256_cvtps_epi32((__m256)x);
#else
    return __builtin_convertvector((x + 12582912.0f) - 12582912.0f, lanes_i); /* 1.5 * 2^23 has no bits behind the point */
#endif
}

/* The sum of 16 numbers. */
INLINE float sum_f(const lanes_f x[PARTS]) {
#if defined(__AVX512F__)
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)x[0]), _mm512_extractf32x8_ps((__m512)x[0], 1));
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
#elif defined(__AVX2__)
    __m256 half = (__m256)(x[0] + x[1]);
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
#else
    const lanes_f quarter = (x[0] + x[2]) + (x[1] + x[3]);
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
#endif
}

/* The largest of LANES numbers, none of them NaN. */
INLINE float top_of(lanes_f x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#elif defined(__AVX2__)
    __m128 quarter = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
#else
    float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
#endif
}

/* The largest of 16 numbers, none of them NaN. */
INLINE float top_f(const lanes_f x[PARTS]) {
    lanes_f most = x[0];
    UNROLL
    for (int p = 1; p < PARTS; p++) most = largest_f(x[p], most);
    return top_of(most);
}

INLINE lanes_f root_f(lanes_f x) {
#if defined(__AVX512F__)
    return (lanes_f)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (lanes_f)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < LANES; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}

/* 2^x for x <= 0, 2^-126 below -126: relative error below 1.1e-4 (a polynomial of the third degree, exact at whole numbers), as
 * codes are far from that. */
INLINE lanes_f exp2_f(lanes_f x) {
    x = largest_f(x, all_f(-126.0f));
    const lanes_f shifted = x + 12582912.0f, r = x - (shifted - 12582912.0f); /* 1.5 * 2^23 has no bits behind the point */
    lanes_f p = r * 5.50089300e-2f + 2.42210984e-1f;
    p = p * r + 6.93282843e-1f;
    p = p * r + 1.0f;
    return (lanes_f)((lanes_i)p + ((lanes_i)shifted << 23)); /* the last bits of `shifted` are n; at -126 p is 1 or more */
}

/* Those of LANES numbers whose bit is set, else 0. */
INLINE lanes_f where_set(lanes_f x, uint32_t bits) {
#if defined(__AVX512F__)
    return (lanes_f)_mm512_maskz_mov_ps((__mmask16)bits, (__m512)x);
#else
#if defined(__AVX2__)
    const lanes_i bit = {1, 2, 4, 8, 16, 32, 64, 128};
#else
    const lanes_i bit = {1, 2, 4, 8};
#endif
    return (lanes_f)((lanes_i)x & ((bit & ((lanes_i){0} + (int32_t)bits)) != 0));
#endif
}

#endif
