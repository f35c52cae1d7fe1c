/* Plain C: the reference of the others, and what runs where nothing better does. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"
#include "linear.h"

typedef float VF;
enum { VW = 1 };

static inline VF vzero(void) { return 0.0f; }
static inline VF vset1(float x) { return x; }
static inline VF vmul(VF a, VF b) { return a * b; }
static inline VF vload(const float *p) { return *p; }
static inline void vstore(float *p, VF x) { *p = x; }
static inline VF vadd(VF a, VF b) { return a + b; }
static inline VF vfma(VF a, VF b, VF c) { return a * b + c; }
static inline VF vsub(VF a, VF b) { return a - b; }
static inline VF vmax(VF a, VF b) { return a > b ? a : b; }
static inline VF vround(VF x) { return rintf(x); }
static inline VF vscale2(VF x, VF n) { return n == n ? ldexpf(x, (int)n) : n; }
static inline float vsum(VF x) { return x; }

static inline VF vload_rows(const char *p, int dtype) {
    if (dtype == HGCA_I8) return (float)*(const int8_t *)p;
    uint32_t bits = 0;
    memcpy(&bits, p, dtype == HGCA_F32 ? 4 : 2);
    if (dtype == HGCA_BF16) bits <<= 16;
    if (dtype == HGCA_F16) {
        uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
        if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction * 5.9604644775390625e-8f; /* 2^-24 */
        bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    }
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline VF vtail_rows(const char *p, int dtype, int n) {
    (void)n;
    return vload_rows(p, dtype);
}

typedef int32_t VI, VS;
enum { OFFSET8 = 0 };

static inline VS vnone(void) { return 0; }
static inline VI vint(int32_t x) { return x; }

static inline VI vbytes(const char *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline VI vfour(const int8_t *p) { return vbytes((const char *)p); }

static inline void vhalves(VI x, VI *low, VI *high) {
    *low = x & 0x0f0f0f0f;
    *high = x >> 4 & 0x0f0f0f0f;
}

static inline VI vfloats(VI x) {
    static const int8_t table[16] = {HGCA_FLOATS4};
    int8_t byte[4];
    memcpy(byte, &x, sizeof byte);
    for (int i = 0; i < 4; i++) byte[i] = table[byte[i] & 15];
    memcpy(&x, byte, sizeof x);
    return x;
}

static inline VI vcode8(VI x) { return x; }

static inline VI vdots8(VI sum, VI a, VI b) {
    int8_t x[4], y[4];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    return sum + x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3];
}

static inline VS vdots4(VS sum, VI a, VI b) { return vdots8(sum, a, b); }
static inline VI vsums(VS sum) { return sum; }
static inline VI vlevels(VI a, VI b) { return 128 * a + b; }
static inline VF vlanes(VI x) { return (float)x; }

enum { SEVERAL = 1, TILES = 1, VECTORS_AT_ONCE = 2, MOST_VECTORS = 0 };

static inline VI two(int first, int second) { return (VI)((uint32_t)first & 0xffff) | (VI)((uint32_t)second << 16); }

static inline void vpairs4(VI x, VI to[4]) {
    to[0] = x & 0x000f000f;
    to[1] = x >> 8 & 0x000f000f;
    to[2] = x >> 4 & 0x000f000f;
    to[3] = x >> 12 & 0x000f000f;
}

static inline void vpairs8(VI x, VI to[2]) {
    int8_t byte[4];
    memcpy(byte, &x, sizeof byte);
    to[0] = two(byte[0], byte[2]);
    to[1] = two(byte[1], byte[3]);
}

static inline VI vfloat_pairs(VI x) {
    int8_t byte[4];
    const VI found = vfloats(x);
    memcpy(byte, &found, sizeof byte);
    return two(byte[0], byte[2]);
}

static inline VI vpair(const int16_t *p) { return vbytes((const char *)p); }
static inline VI vheld(VI x) { return x; }

static inline VI vdots2(VI sum, VI a, VI b) {
    int16_t x[2], y[2];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    return sum + x[0] * y[0] + x[1] * y[1];
}

#include "linear_template.h"

const hgca_isa_linear hgca_linear_scalar = HGCA_TEMPLATE_LINEAR;
