/* The words of linear layers in AVX-512, but for products: 16 floats. */
#include <string.h>

#include "vocabulary_avx512.h"

typedef __m512i VI, VS;
enum { OFFSET8 = 128 };

static inline VS vnone(void) { return _mm512_setzero_si512(); }
static inline VI vbytes(const char *p) { return _mm512_loadu_si512(p); }
static inline VI vint(int32_t x) { return _mm512_set1_epi32(x); }

static inline VI vfour(const int8_t *p) {
    int32_t all;
    memcpy(&all, p, sizeof all);
    return _mm512_set1_epi32(all);
}

static inline void vhalves(VI x, VI *low, VI *high) {
    *low = _mm512_and_si512(x, _mm512_set1_epi8(15));
    *high = _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15));
}

static inline VI vcode8(VI x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
static inline VI vlevels(VI a, VI b) { return _mm512_add_epi32(_mm512_slli_epi32(a, 7), b); }
static inline VF vlanes(VI x) { return _mm512_cvtepi32_ps(x); }
