/* Plain C: the reference of the others, and what runs where nothing better does. */
#include <stdint.h>
#include <string.h>

#include "hgca.h"

typedef float VF;
enum { VW = 1 };

static inline VF vzero(void) { return 0.0f; }
static inline VF vset1(float x) { return x; }
static inline VF vmul(VF a, VF b) { return a * b; }
static inline VF vload(const float *p) { return *p; }
static inline VF vadd(VF a, VF b) { return a + b; }
static inline VF vfma(VF a, VF b, VF c) { return a * b + c; }
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

static inline void vnibbles(const char *p, VF *low, VF *high) {
    *low = (float)(*(const uint8_t *)p & 15);
    *high = (float)(*(const uint8_t *)p >> 4);
}

#include "linear_template.h"

const hgca_isa_linear hgca_linear_scalar = HGCA_TEMPLATE_LINEAR;
