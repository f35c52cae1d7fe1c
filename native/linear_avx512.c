/* AVX-512 (F, BW, VL, DQ). */
#include "linear_avx512.h"

/* Products by twos become words: of codes of 4 bits 16 such sums fit into them, of 8 bits and levels of 7 just one does. */
static inline VS vdots4(VS sum, VI a, VI b) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(a, b)); }
static inline VI vsums(VS sum) { return _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }
static inline VI vdots8(VI sum, VI a, VI b) { return _mm512_add_epi32(sum, vsums(_mm512_maddubs_epi16(a, b))); }

/* As many products an instruction as those of floats have, which torch comes near to with many vectors. */
enum { MOST_VECTORS = 64 };
static inline VI vdots2(VI sum, VI a, VI b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }

#include "linear_template.h"

const hgca_isa_linear hgca_linear_avx512 = HGCA_TEMPLATE_LINEAR;
