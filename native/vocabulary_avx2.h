/* The templates' words in AVX2 with FMA and F16C: 8 floats, 16 registers: four query heads a pass, but of two rows. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"
#include "kernels.h"

typedef __m256 VF;
enum { VW = 8, SETTLED = VW };
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

/* name(x, h): what each of x[0 .. 7][h], vectors V of floats or of integers, adds up to, in their order. VHADDPS would take two
 * shuffles where a blend and one do. `bits` and `back` turn a V into floats that are only moved, and back. */
#define SUM_EIGHT(name, V, add, bits, back)                                                                         \
    static inline V name(V x[8][HEADS], int h) {                                                                    \
        V pair[4], four[2];                                                                                         \
        UNROLL                                                                                                      \
        for (int i = 0; i < 4; i++) {                                                                               \
            __m256 a = bits(x[2 * i][h]), b = bits(x[2 * i + 1][h]);                                                \
            pair[i] = add(back(_mm256_blend_ps(a, b, 0xcc)), back(_mm256_shuffle_ps(a, b, 0x4e)));                  \
        }                                                                                                           \
        UNROLL                                                                                                      \
        for (int i = 0; i < 2; i++) {                                                                               \
            __m256 a = bits(pair[2 * i]), b = bits(pair[2 * i + 1]);                                                \
            four[i] = add(back(_mm256_shuffle_ps(a, b, 0x88)), back(_mm256_shuffle_ps(a, b, 0xdd)));                \
        }                                                                                                           \
        __m256 a = bits(four[0]), b = bits(four[1]);                                                                \
        return add(back(_mm256_permute2f128_ps(a, b, 0x20)), back(_mm256_permute2f128_ps(a, b, 0x31)));             \
    }
#define AS_THEY_ARE(x) (x)
SUM_EIGHT(vsum_eight, VF, _mm256_add_ps, AS_THEY_ARE, AS_THEY_ARE)
SUM_EIGHT(sum_eight_i32, __m256i, _mm256_add_epi32, _mm256_castsi256_ps, _mm256_castps_si256)

static inline float vsum(VF x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
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

/* Read from the number before on, an even number stands where an odd one does: one mask, which any port takes and which reads
 * memory itself, in place of a load and a shift. */
static inline VF vload_half(const char *p, int half, int before) {
    const int shift = !half && !before;
    __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)(p - (half || shift ? 0 : 2)));
    return _mm256_castsi256_ps(shift ? _mm256_slli_epi32(both, 16) : _mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
}

static inline void vload_pair(const char *p, VF *even, VF *odd) {
    *even = vload_half(p, 0, 0);
    *odd = vload_half(p, 1, 0);
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
