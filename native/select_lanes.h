/* Vectors of 16 lanes, the words of select_template.h, which includes this. What an instruction set does with one of its own
 * gives the same bits as the plain C beside it. */
#ifndef HGCA_SELECT_LANES_H
#define HGCA_SELECT_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to inlined functions only; clang understands it too */

typedef float lanes_f __attribute__((vector_size(64)));
typedef int32_t lanes_i __attribute__((vector_size(64)));
typedef int32_t word_t __attribute__((may_alias)); /* four numbers of a query */
typedef uint16_t lanes_h __attribute__((vector_size(32)));
typedef int8_t lanes_b __attribute__((vector_size(16)));

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
INLINE lanes_f largest_f(lanes_f a, lanes_f b) {
#if defined(__AVX512F__)
    return (lanes_f)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return pick(a > b, a, b);
#endif
}

INLINE lanes_f smallest_f(lanes_f a, lanes_f b) { /* likewise */
#if defined(__AVX512F__)
    return (lanes_f)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return pick(a < b, a, b);
#endif
}

INLINE lanes_i nearest(lanes_f x) { /* of numbers below 2^22 */
#if defined(__AVX512F__)
    return (lanes_i)_mm512_cvtps_epi32((__m512)x);
#else
    return __builtin_convertvector((x + 12582912.0f) - 12582912.0f, lanes_i); /* 1.5 * 2^23 has no bits behind the point */
#endif
}

typedef float half_f __attribute__((vector_size(32)));
typedef float quarter_f __attribute__((vector_size(16)));

INLINE float sum_f(lanes_f x) {
#if defined(__AVX512F__)
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
#else
    half_f half[2];
    quarter_f quarter[2];
    memcpy(half, &x, sizeof x);
    half[0] += half[1];
    memcpy(quarter, half, sizeof quarter);
    quarter[0] += quarter[1];
    return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
#endif
}

/* The largest of numbers, none of them NaN. */
INLINE float top_f(lanes_f x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    half_f half[2];
    quarter_f quarter[2];
    memcpy(half, &x, sizeof x);
    for (int i = 0; i < 8; i++) half[0][i] = half[0][i] > half[1][i] ? half[0][i] : half[1][i];
    memcpy(quarter, half, sizeof quarter);
    for (int i = 0; i < 4; i++) quarter[0][i] = quarter[0][i] > quarter[1][i] ? quarter[0][i] : quarter[1][i];
    float a = quarter[0][0] > quarter[0][2] ? quarter[0][0] : quarter[0][2];
    float b = quarter[0][1] > quarter[0][3] ? quarter[0][1] : quarter[0][3];
    return a > b ? a : b;
#endif
}

INLINE lanes_f root_f(lanes_f x) {
#if defined(__AVX512F__)
    return (lanes_f)_mm512_sqrt_ps((__m512)x);
#else
    for (int i = 0; i < HGCA_LANES; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}

/* 2^x for x <= 0, 2^-126 below -126: relative error below 1.1e-4 (a polynomial of the third degree, exact at whole numbers), as
 * codes are far from that. */
INLINE lanes_f exp2_f(lanes_f x) {
    x = largest_f(x, all_f(-126.0f));
    lanes_f n = (x + 12582912.0f) - 12582912.0f, r = x - n; /* to the nearest integer: 1.5 * 2^23 has none behind the point */
    lanes_f p = r * 5.50089300e-2f + 2.42210984e-1f;
    p = p * r + 6.93282843e-1f;
    p = p * r + 1.0f;
    return p * (lanes_f)((__builtin_convertvector(n, lanes_i) + 127) << 23);
}

/* Those of 16 numbers whose bit is set, else 0. */
INLINE lanes_f where_set(lanes_f x, uint32_t bits) {
#if defined(__AVX512F__)
    return (lanes_f)_mm512_maskz_mov_ps((__mmask16)bits, (__m512)x);
#else
    const lanes_i bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return (lanes_f)((lanes_i)x & ((bit & ((lanes_i){0} + (int32_t)bits)) != 0));
#endif
}

#endif
