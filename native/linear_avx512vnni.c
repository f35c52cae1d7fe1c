/* AVX-512 with VNNI: four products of a lane and their sum are one instruction. */
#include "linear_avx512.h"

static inline VI vdots8(VI sum, VI a, VI b) { return _mm512_dpbusd_epi32(sum, a, b); }
static inline VS vdots4(VS sum, VI a, VI b) { return vdots8(sum, a, b); }
static inline VI vsums(VS sum) { return sum; }

enum { MOST_VECTORS = 1 << 30 };
#define FEW_VECTORS 8
static inline VI vhigher(VI a, VI b) { return _mm512_add_epi32(_mm512_slli_epi32(a, 8), b); }
static inline VI vdots2(VI sum, VI a, VI b) { return _mm512_dpwssd_epi32(sum, a, b); }

#include "linear_template.h"

const hgca_isa_linear hgca_linear_avx512vnni = HGCA_TEMPLATE_LINEAR;
