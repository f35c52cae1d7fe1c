/* The words of linear layers in AVX-512, but for products: 16 floats. */
#include <string.h>

#include "linear.h"
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

static inline VI vfloats(VI x) {
    const __m128i table = _mm_setr_epi8(HGCA_FLOATS4);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), x);
}

static inline VI vcode8(VI x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
static inline VI vlevels(VI a, VI b) { return _mm512_add_epi32(_mm512_slli_epi32(a, 7), b); }
static inline VF vlanes(VI x) { return _mm512_cvtepi32_ps(x); }

enum { SEVERAL = 4, TILES = 4, VECTORS_AT_ONCE = 4 };

static inline void vpairs4(VI x, VI to[4]) {
    const __m512i low = _mm512_set1_epi32(0x000f000f);
    to[0] = _mm512_and_si512(x, low);
    to[1] = _mm512_and_si512(_mm512_srli_epi32(x, 8), low);
    to[2] = _mm512_and_si512(_mm512_srli_epi32(x, 4), low);
    to[3] = _mm512_and_si512(_mm512_srli_epi32(x, 12), low);
}

static inline void vpairs8(VI x, VI to[2]) {
    to[0] = _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8);
    to[1] = _mm512_srai_epi16(x, 8);
}

static inline VI vfloat_pairs(VI x) { return _mm512_srai_epi16(_mm512_slli_epi16(vfloats(x), 8), 8); }

static inline VI vpair(const int16_t *p) {
    int32_t both;
    memcpy(&both, p, sizeof both);
    return _mm512_set1_epi32(both);
}

static inline VI vheld(VI x) { return x; }
