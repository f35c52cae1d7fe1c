/* Plain C: the reference of the others, and what runs where nothing better does. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"

typedef float VF;
enum { VW = 1, SETTLED = VW };
#define HEADS 4
#define ROWS 4
#define COLUMNS 4

static inline VF vzero(void) { return 0.0f; }
static inline VF vset1(float x) { return x; }
static inline VF vload(const float *p) { return *p; }
static inline void vstore(float *p, VF x) { *p = x; }
static inline VF vmul(VF a, VF b) { return a * b; }
static inline VF vadd(VF a, VF b) { return a + b; }
static inline VF vsub(VF a, VF b) { return a - b; }
static inline VF vfma(VF a, VF b, VF c) { return a * b + c; }
static inline VF vmax(VF a, VF b) { return a > b ? a : b; }
static inline int vexceeds(VF a, VF b) { return a > b; }
static inline VF vround(VF x) { return nearbyintf(x); }
static inline void vsettle(float score[][64], int rows) { (void)score, (void)rows; }
static inline float vsum(VF x) { return x; }
static inline float vlargest(VF x) { return x; }

static inline VF from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline VF vscale2(VF x, VF n) { return x * from_bits((uint32_t)((int32_t)(n == n ? n : 0.0f) + 127) << 23); }

static inline void vsum4(VF a, VF b, VF c, VF d, float *out) {
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

static inline void vsum_heads(VF sum[HEADS][4], int heads, float score[][64], int r) {
    for (int h = 0; h < heads; h++) vsum4(sum[h][0], sum[h][1], sum[h][2], sum[h][3], &score[h][r]);
}

static inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float tiny = (float)fraction * 5.9604644775390625e-8f; /* 2^-24 */
    return sign ? -tiny : tiny;
}

static inline VF vload_rows(const char *p, int dtype) {
    if (dtype == HGCA_I8) return (float)*(const int8_t *)p;
    uint32_t bits = 0;
    memcpy(&bits, p, dtype == HGCA_F32 ? 4 : 2);
    if (dtype == HGCA_F16) return half_to_float((uint16_t)bits);
    return from_bits(dtype == HGCA_BF16 ? bits << 16 : bits);
}

static inline void vload_pair(const char *p, VF *even, VF *odd) {
    *even = vload_rows(p, HGCA_BF16);
    *odd = vload_rows(p + 2, HGCA_BF16);
}

static inline VF vtail_rows(const char *p, int dtype, int n) {
    (void)n;
    return vload_rows(p, dtype);
}

#include "kernels_template.h"

const hgca_isa_kernels hgca_scalar = {"scalar", HGCA_TEMPLATE_KERNELS, {0}, MANY_I8, {0}, {0}, {0}, {0}, {0}};
