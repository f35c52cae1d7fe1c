/* AVX-512 (F, BW, VL, DQ): 16 floats, 32 registers, four query heads a pass.
 *
 * bf16 rows are widened (a shift) and multiplied with FMA. The bf16 dot product of AVX512-BF16 is not used: VDPBF16PS
 * issues at 0.47 a cycle on the Xeon it was measured on, FMA at 1.84, and it would round the query to bf16. */
#include <immintrin.h>
#include <stdint.h>

#include "hgca.h"

typedef __m512 VF;
enum { VW = 16 };
#define HEADS 4

static inline VF vzero(void) { return _mm512_setzero_ps(); }
static inline VF vset1(float x) { return _mm512_set1_ps(x); }
static inline VF vload(const float *p) { return _mm512_loadu_ps(p); }
static inline void vstore(float *p, VF x) { _mm512_storeu_ps(p, x); }
static inline VF vmul(VF a, VF b) { return _mm512_mul_ps(a, b); }
static inline VF vadd(VF a, VF b) { return _mm512_add_ps(a, b); }
static inline VF vsub(VF a, VF b) { return _mm512_sub_ps(a, b); }
static inline VF vfma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
static inline VF vmax(VF a, VF b) { return _mm512_max_ps(a, b); }
static inline VF vround(VF x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline VF vpow2(VF n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); }

static inline VF vzero_below(VF x, VF low, VF y) {
    return _mm512_maskz_mov_ps((__mmask16)~_mm512_cmp_ps_mask(x, low, _CMP_LT_OQ), y);
}

static inline __m256 fold(VF x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); }

static inline void vsum4(VF a, VF b, VF c, VF d, float *out) {
    __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}

static inline float vsum(VF x) { return _mm512_reduce_add_ps(x); }
static inline float vlargest(VF x) { return _mm512_reduce_max_ps(x); }

static inline VF widen(__m256i x, int dtype) {
    if (dtype == HGCA_F16) return _mm512_cvtph_ps(x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline VF vload_rows(const char *p, int dtype) {
    if (dtype == HGCA_F32) return _mm512_loadu_ps(p);
    return widen(_mm256_loadu_si256((const __m256i *)(const void *)p), dtype);
}

static inline VF vtail_rows(const char *p, int dtype, int n) {
    __mmask16 some = (__mmask16)((1u << n) - 1);
    if (dtype == HGCA_F32) return _mm512_maskz_loadu_ps(some, p);
    return widen(_mm256_maskz_loadu_epi16(some, p), dtype);
}

#include "kernels_template.h"

const hgca_isa_kernels hgca_avx512 = {"avx512", {piece_f32, piece_bf16, piece_f16}};
