/* AVX2 with F16C: 8 floats. */
#include <immintrin.h>
#include <stdint.h>

#include "hgca.h"

typedef __m256 VF;
typedef __m256i VU;
#define STREAMS 1
enum { VW = 8 };

static inline VF vset1(float x) { return _mm256_set1_ps(x); }
static inline VF vmul(VF a, VF b) { return _mm256_mul_ps(a, b); }
static inline VU vuzero(void) { return _mm256_setzero_si256(); }
static inline VU vumax(VU a, VU b) { return _mm256_max_epu32(a, b); }
static inline VU vabs_bits(VF x) { return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)); }

static inline uint32_t vulargest(VU x) {
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1)));
}

static inline VF vload_from(const char *p, int dtype) {
    if (dtype == HGCA_F32) return _mm256_loadu_ps((const float *)(const void *)p);
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)p);
    if (dtype == HGCA_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

static inline __m128i to_bf16(VF x) {
    __m256i bits = _mm256_castps_si256(x), top = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08));
}

static inline void vstore_to(char *p, int dtype, VF x) {
    if (dtype == HGCA_F32) {
        _mm256_storeu_ps((float *)(void *)p, x);
        return;
    }
    __m128i half = dtype == HGCA_F16 ? _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : to_bf16(x);
    _mm_storeu_si128((__m128i *)(void *)p, half);
}

static inline void vstream_to(char *p, int dtype, VF x) {
    if (dtype == HGCA_F32) {
        _mm256_stream_ps((float *)(void *)p, x);
        return;
    }
    __m128i half = dtype == HGCA_F16 ? _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : to_bf16(x);
    _mm_stream_si128((__m128i *)(void *)p, half);
}

static inline __m128i to_i8(VF x) { /* in the lower half */
    __m256i n = _mm256_cvtps_epi32(x);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
    return _mm_packs_epi16(words, words);
}

static inline void vstore_i8(char *p, VF x) { _mm_storel_epi64((__m128i *)(void *)p, to_i8(x)); }
static inline void vstream_i8(char *p, VF x) { _mm_stream_si64((long long *)(void *)p, _mm_cvtsi128_si64(to_i8(x))); }
static inline void vfence(void) { _mm_sfence(); }

#include "convert_template.h"

const hgca_isa_converters hgca_convert_avx2 = HGCA_TEMPLATE_CONVERTERS;
