/* The templates' words in AVX2 with FMA and F16C: 8 floats, 16 registers: four query heads a pass, but of two rows. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"
#include "kernels.h"

typedef __m256 VF;
enum { VW = 8, SETTLED = 2 };
#define HEADS 4
#define ROWS 2
#define COLUMNS 2
#define FEW_REGISTERS
#define USUAL_DIM 128

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

/* The sums of two rows of each head, in one vector: [row][row] of the heads 0, 1, 2, 3. */
static inline void vsum_heads(VF sum[HEADS][ROWS], int heads, float score[][64], int r) {
    VF x[HEADS];
    UNROLL
    for (int h = 0; h < HEADS; h++) {
        if (h >= heads) {
            x[h] = vzero();
            continue;
        }
        VF a = sum[h][0], b = sum[h][1]; /* vhaddps would take two shuffles */
        x[h] = _mm256_add_ps(_mm256_blend_ps(a, b, 0xcc), _mm256_shuffle_ps(a, b, 0x4e));
    }
    __m256 a = _mm256_add_ps(_mm256_shuffle_ps(x[0], x[1], 0x88), _mm256_shuffle_ps(x[0], x[1], 0xdd));
    __m256 b = _mm256_add_ps(_mm256_shuffle_ps(x[2], x[3], 0x88), _mm256_shuffle_ps(x[2], x[3], 0xdd));
    vstore(&score[r / 2 % 4][r / 8 * 8], _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
}

/* Four heads times two rows at a time, as vsum_heads left them, become 8 rows of each head. A vector that is read must have
 * been stored as one: read from four quarters it waits until they have left the store buffer. */
static inline void vsettle(float score[][64], int rows) {
    for (int r = 0; r < rows; r += 8) {
        __m256d x[4], none = _mm256_castps_pd(vset1(-INFINITY));
        UNROLL
        for (int g = 0; g < 4; g++) x[g] = r + 2 * g < rows ? _mm256_castps_pd(vload(&score[g][r])) : none;
        __m256d a = _mm256_unpacklo_pd(x[0], x[1]), b = _mm256_unpackhi_pd(x[0], x[1]);
        __m256d c = _mm256_unpacklo_pd(x[2], x[3]), d = _mm256_unpackhi_pd(x[2], x[3]);
        vstore(&score[0][r], _mm256_castpd_ps(_mm256_permute2f128_pd(a, c, 0x20)));
        vstore(&score[1][r], _mm256_castpd_ps(_mm256_permute2f128_pd(b, d, 0x20)));
        vstore(&score[2][r], _mm256_castpd_ps(_mm256_permute2f128_pd(a, c, 0x31)));
        vstore(&score[3][r], _mm256_castpd_ps(_mm256_permute2f128_pd(b, d, 0x31)));
    }
}

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

static inline VF vload_half(const char *p, int half) {
    __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm256_castsi256_ps(half ? _mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)) : _mm256_slli_epi32(both, 16));
}

static inline void vload_pair(const char *p, VF *even, VF *odd) {
    *even = vload_half(p, 0);
    *odd = vload_half(p, 1);
}

static inline VF vload_once(const float *p) {
    VF x = vload(p);
    __asm__("" : "+x"(x)); /* GCC reads it from memory for every product else */
    return x;
}

static inline VF vtail_rows(const char *p, int dtype, int n) {
    char whole[32] = {0};
    memcpy(whole, p, (size_t)n * (dtype == HGCA_F32 ? 4 : dtype == HGCA_I8 ? 1 : 2));
    return vload_rows(whole, dtype);
}
