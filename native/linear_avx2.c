/* AVX2 with FMA and F16C: 8 floats. */
#include "vocabulary_avx2.h"

static inline void vnibbles(const char *p, VF *low, VF *high) {
    __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
    *low = _mm256_cvtepi32_ps(_mm256_and_si256(both, _mm256_set1_epi32(15)));
    *high = _mm256_cvtepi32_ps(_mm256_srli_epi32(both, 4));
}

#include "linear_template.h"

const hgca_isa_linear hgca_linear_avx2 = HGCA_TEMPLATE_LINEAR;
