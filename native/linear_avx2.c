/* AVX2 with FMA and F16C: 8 floats. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"

typedef __m256 VF;
enum { VW = 8 };

static inline VF vzero(void) { return _mm256_setzero_ps(); }
static inline VF vset1(float x) { return _mm256_set1_ps(x); }
static inline VF vmul(VF a, VF b) { return _mm256_mul_ps(a, b); }
static inline VF vload(const float *p) { return _mm256_loadu_ps(p); }
static inline VF vadd(VF a, VF b) { return _mm256_add_ps(a, b); }
static inline VF vfma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }

static inline float vsum(VF x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline VF vload_rows(const char *p, int dtype) {
    if (dtype == HGCA_F32) return _mm256_loadu_ps((const float *)(const void *)p);
    if (dtype == HGCA_I8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)p);
    if (dtype == HGCA_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

static inline VF vtail_rows(const char *p, int dtype, int n) {
    char whole[32] = {0};
    memcpy(whole, p, (size_t)n * (dtype == HGCA_F32 ? 4 : 2));
    return vload_rows(whole, dtype);
}

static inline void vnibbles(const char *p, VF *low, VF *high) {
    __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
    *low = _mm256_cvtepi32_ps(_mm256_and_si256(both, _mm256_set1_epi32(15)));
    *high = _mm256_cvtepi32_ps(_mm256_srli_epi32(both, 4));
}

#include "linear_template.h"

const hgca_isa_linear hgca_linear_avx2 = HGCA_TEMPLATE_LINEAR;
