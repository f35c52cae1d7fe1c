/* AVX-512 with VNNI: four products of a lane and their sum are one instruction. */
#include "linear_avx512.h"

static inline VI vdots8(VI sum, VI a, VI b) { return _mm512_dpbusd_epi32(sum, a, b); }
static inline VS vdots4(VS sum, VI a, VI b) { return vdots8(sum, a, b); }
static inline VI vsums(VS sum) { return sum; }

enum { MOST_VECTORS = 1 << 30 };
static inline VI vdots2(VI sum, VI a, VI b) { return _mm512_dpwssd_epi32(sum, a, b); }

#include "linear_template.h"

const hgca_isa_linear hgca_linear_avx512vnni = HGCA_TEMPLATE_LINEAR;
