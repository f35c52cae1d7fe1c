/* The templates' words in AVX2 with FMA and F16C: 8 floats, 16 registers, so two query heads a pass. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"

typedef __m256 VF;
enum { VW = 8, SETTLED = VW };
#define HEADS 2

static inline VF vzero(void) { return _mm256_setzero_ps(); }
static inline VF vset1(float x) { return _mm256_set1_ps(x); }
static inline VF vload(const float *p) { return _mm256_loadu_ps(p); }
static inline void vstore(float *p, VF x) { _mm256_storeu_ps(p, x); }
static inline VF vmul(VF a, VF b) { return _mm256_mul_ps(a, b); }
static inline VF vadd(VF a, VF b) { return _mm256_add_ps(a, b); }
static inline VF vsub(VF a, VF b) { return _mm256_sub_ps(a, b); }
static inline VF vfma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
static inline VF vmax(VF a, VF b) { return _mm256_max_ps(a, b); }
static inline int vexceeds(VF a, VF b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
static inline VF vround(VF x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline VF vscale2(VF x, VF n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

static inline void vsum4(VF a, VF b, VF c, VF d, float *out) {
    __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}

static inline void vsum_heads(VF sum[HEADS][4], int heads, float score[][64], int r) {
    for (int h = 0; h < heads; h++) vsum4(sum[h][0], sum[h][1], sum[h][2], sum[h][3], &score[h][r]);
}

static inline void vsettle(float score[][64], int rows) { (void)score, (void)rows; }
static inline float vsum(VF x) {
    float out[4];
    vsum4(x, x, x, x, out);
    return out[0];
}

static inline float vlargest(VF x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

static inline VF widen(__m128i x, int dtype) {
    if (dtype == HGCA_F16) return _mm256_cvtph_ps(x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

static inline VF vload_rows(const char *p, int dtype) {
    if (dtype == HGCA_F32) return _mm256_loadu_ps((const float *)(const void *)p);
    if (dtype == HGCA_I8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
    return widen(_mm_loadu_si128((const __m128i *)(const void *)p), dtype);
}

static inline void vload_pair(const char *p, VF *even, VF *odd) {
    __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)p);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
}

static inline VF vtail_rows(const char *p, int dtype, int n) {
    char whole[32] = {0};
    memcpy(whole, p, (size_t)n * (dtype == HGCA_F32 ? 4 : dtype == HGCA_I8 ? 1 : 2));
    return vload_rows(whole, dtype);
}
