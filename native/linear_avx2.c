/* AVX2 with FMA and F16C: 8 floats. */
#include "linear.h"
#include "vocabulary_avx2.h"

typedef __m256i VI, VS;
enum { OFFSET8 = 128 };

static inline VS vnone(void) { return _mm256_setzero_si256(); }
static inline VI vbytes(const char *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
static inline VI vint(int32_t x) { return _mm256_set1_epi32(x); }

static inline VI vfour(const int8_t *p) {
    int32_t all;
    memcpy(&all, p, sizeof all);
    return _mm256_set1_epi32(all);
}

static inline void vhalves(VI x, VI *low, VI *high) {
    *low = _mm256_and_si256(x, _mm256_set1_epi8(15));
    *high = _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15));
}

static inline VI vfloats(VI x) {
    const __m128i table = _mm_setr_epi8(HGCA_FLOATS4);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), x);
}

static inline VI vcode8(VI x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
static inline VI vlevels(VI a, VI b) { return _mm256_add_epi32(_mm256_slli_epi32(a, 7), b); }
static inline VF vlanes(VI x) { return _mm256_cvtepi32_ps(x); }

/* Products by twos become words: of codes of 4 bits 16 such sums fit into them, of 8 bits and levels of 7 just one does. */
static inline VS vdots4(VS sum, VI a, VI b) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b));
    __asm__("" : "+x"(sum)); /* GCC adds up in an order of its own otherwise, all products first, and keeps them on the stack */
    return sum;
}

static inline VI vsums(VS sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
static inline VI vdots8(VI sum, VI a, VI b) {
    sum = _mm256_add_epi32(sum, vsums(_mm256_maddubs_epi16(a, b)));
    __asm__("" : "+x"(sum));
    return sum;
}

/* Two numbers of 16 bits of each row: these are whole, so that a block of 32 is added up in 32 bits without an error. */
enum { SEVERAL = 4, TILES = 1, VECTORS_AT_ONCE = 2, MOST_VECTORS = 1 << 30 };

static inline void vpairs4(VI x, VI to[4]) {
    const __m256i low = _mm256_set1_epi32(0x000f000f);
    to[0] = _mm256_and_si256(x, low);
    to[1] = _mm256_and_si256(_mm256_srli_epi32(x, 8), low);
    to[2] = _mm256_and_si256(_mm256_srli_epi32(x, 4), low);
    to[3] = _mm256_and_si256(_mm256_srli_epi32(x, 12), low);
}

static inline void vpairs8(VI x, VI to[2]) {
    to[0] = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
    to[1] = _mm256_srai_epi16(x, 8);
}

static inline VI vfloat_pairs(VI x) { return _mm256_srai_epi16(_mm256_slli_epi16(vfloats(x), 8), 8); }

static inline VI vpair(const int16_t *p) {
    int32_t both;
    memcpy(&both, p, sizeof both);
    return _mm256_set1_epi32(both);
}

static inline VI vheld(VI x) {
    __asm__("" : "+x"(x));
    return x;
}

static inline VI vdots2(VI sum, VI a, VI b) { return vheld(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b))); }

#include "linear_template.h"

const hgca_isa_linear hgca_linear_avx2 = HGCA_TEMPLATE_LINEAR;
