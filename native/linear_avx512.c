/* AVX-512 (F, BW, VL, DQ): 16 floats. */
#include "vocabulary_avx512.h"

static inline void vnibbles(const char *p, VF *low, VF *high) {
    __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    *low = _mm512_cvtepi32_ps(_mm512_and_si512(both, _mm512_set1_epi32(15)));
    *high = _mm512_cvtepi32_ps(_mm512_srli_epi32(both, 4));
}

#include "linear_template.h"

const hgca_isa_linear hgca_linear_avx512 = HGCA_TEMPLATE_LINEAR;
