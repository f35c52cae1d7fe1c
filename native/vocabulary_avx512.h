/* The template's words in AVX-512 (F, BW, VL, DQ): 16 floats, 32 registers, four query heads a pass. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "hgca.h"
#include "kernels.h"

typedef __m512 VF;
enum { VW = 16, SETTLED = 4 };
#define HEADS 4
#define ROWS 4
#define COLUMNS 4
#define MANY_ROWS 8
#define MANY_VECTORS 3
#define USUAL_DIM 128
#define AHEAD_LEVEL 3 /* Zen 5: the second level takes a tenth longer */

static inline VF vzero(void) { return _mm512_setzero_ps(); }
static inline VF vset1(float x) { return _mm512_set1_ps(x); }
static inline VF vload(const float *p) { return _mm512_loadu_ps(p); }
static inline void vstore(float *p, VF x) { _mm512_storeu_ps(p, x); }
static inline VF vmul(VF a, VF b) { return _mm512_mul_ps(a, b); }
static inline VF vadd(VF a, VF b) { return _mm512_add_ps(a, b); }
static inline VF vsub(VF a, VF b) { return _mm512_sub_ps(a, b); }
static inline VF vfma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
static inline VF vmax(VF a, VF b) { return _mm512_max_ps(a, b); }
static inline int vexceeds(VF a, VF b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
static inline VF vround(VF x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline VF vscale2(VF x, VF n) { return _mm512_scalef_ps(x, n); }

/* Sums of 16 vectors in 45 operations: within 128-bit lanes to one vector of four rows a head, then across lanes. */
static inline void vsum_heads(VF sum[HEADS][4], int heads, float score[][64], int r) {
    __m512 head[HEADS];
    UNROLL
    for (int h = 0; h < HEADS; h++) {
        if (h >= heads) {
            head[h] = _mm512_setzero_ps();
            continue;
        }
        VF *s = sum[h];
        __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(s[0], s[1]), _mm512_unpackhi_ps(s[0], s[1])));
        __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(s[2], s[3]), _mm512_unpackhi_ps(s[2], s[3])));
        head[h] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    }
    __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(head[0], head[1], 0x88), _mm512_shuffle_f32x4(head[0], head[1], 0xdd));
    __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(head[2], head[3], 0x88), _mm512_shuffle_f32x4(head[2], head[3], 0xdd));
    __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    _mm512_storeu_ps(&score[r / 4 % 4][r / 16 * 16], all);
}

/* Four heads times four rows at a time, as vsum_heads left them, become 16 rows of each head. A vector that is read must
 * have been stored as one: read from four halves of a line it waits until they have left the store buffer. */
static inline void vsettle(float score[][64], int rows) {
    for (int r = 0; r < rows; r += 16) {
        __m512 x[4], none = _mm512_set1_ps(-INFINITY);
        UNROLL
        for (int g = 0; g < 4; g++) x[g] = r + 4 * g < rows ? _mm512_loadu_ps(&score[g][r]) : none;
        __m512 a = _mm512_shuffle_f32x4(x[0], x[1], 0x44), b = _mm512_shuffle_f32x4(x[0], x[1], 0xee);
        __m512 c = _mm512_shuffle_f32x4(x[2], x[3], 0x44), e = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
        _mm512_storeu_ps(&score[0][r], _mm512_shuffle_f32x4(a, c, 0x88));
        _mm512_storeu_ps(&score[1][r], _mm512_shuffle_f32x4(a, c, 0xdd));
        _mm512_storeu_ps(&score[2][r], _mm512_shuffle_f32x4(b, e, 0x88));
        _mm512_storeu_ps(&score[3][r], _mm512_shuffle_f32x4(b, e, 0xdd));
    }
}

static inline float vsum(VF x) { return _mm512_reduce_add_ps(x); }
static inline float vlargest(VF x) { return _mm512_reduce_max_ps(x); }

static inline VF widen(__m256i x, int dtype) {
    if (dtype == HGCA_F16) return _mm512_cvtph_ps(x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline VF vload_rows(const char *p, int dtype) {
    if (dtype == HGCA_F32) return _mm512_loadu_ps(p);
    if (dtype == HGCA_I8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
    return widen(_mm256_loadu_si256((const __m256i *)(const void *)p), dtype);
}

static inline void vload_pair(const char *p, VF *even, VF *odd) {
    __m512i both = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}

static inline VF vtail_rows(const char *p, int dtype, int n) {
    __mmask16 some = (__mmask16)((1u << n) - 1);
    if (dtype == HGCA_F32) return _mm512_maskz_loadu_ps(some, p);
    if (dtype == HGCA_I8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(some, p)));
    return widen(_mm256_maskz_loadu_epi16(some, p), dtype);
}
