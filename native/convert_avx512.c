/* AVX-512 (F, BW, VL): 16 floats. bf16 is rounded with integers: the instruction for it flushes denormals, and not every
 * processor has it. */
#include <immintrin.h>
#include <stdint.h>

#include "hgca.h"

typedef __m512 VF;
typedef __m512i VU;
#define STREAMS 1
enum { VW = 16 };

static inline VF vset1(float x) { return _mm512_set1_ps(x); }
static inline VF vmul(VF a, VF b) { return _mm512_mul_ps(a, b); }
static inline VU vuzero(void) { return _mm512_setzero_si512(); }
static inline VU vumax(VU a, VU b) { return _mm512_max_epu32(a, b); }
static inline VU vabs_bits(VF x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)); }
static inline uint32_t vulargest(VU x) { return _mm512_reduce_max_epu32(x); }

static inline VF vload_from(const char *p, int dtype) {
    if (dtype == HGCA_F32) return _mm512_loadu_ps(p);
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)p);
    if (dtype == HGCA_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline __m256i to_bf16(VF x) {
    __m512i bits = _mm512_castps_si512(x), top = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, top, _mm512_set1_epi32(0x40)));
}

static inline void vstore_to(char *p, int dtype, VF x) {
    if (dtype == HGCA_F32) {
        _mm512_storeu_ps(p, x);
        return;
    }
    __m256i half = dtype == HGCA_F16 ? _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : to_bf16(x);
    _mm256_storeu_si256((__m256i *)(void *)p, half);
}

static inline void vstream_to(char *p, int dtype, VF x) {
    if (dtype == HGCA_F32) {
        _mm512_stream_ps((float *)(void *)p, x);
        return;
    }
    __m256i half = dtype == HGCA_F16 ? _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : to_bf16(x);
    _mm256_stream_si256((__m256i *)(void *)p, half);
}

static inline __m128i to_i8(VF x) { return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)); }
static inline void vstore_i8(char *p, VF x) { _mm_storeu_si128((__m128i *)(void *)p, to_i8(x)); }
static inline void vstream_i8(char *p, VF x) { _mm_stream_si128((__m128i *)(void *)p, to_i8(x)); }
static inline void vfence(void) { _mm_sfence(); }

#include "convert_template.h"

const hgca_isa_converters hgca_convert_avx512 = HGCA_TEMPLATE_CONVERTERS;
