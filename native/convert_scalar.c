/* Plain C: the reference of the others, and what runs where nothing better does. */
#include <stdint.h>
#include <string.h>

#include "half.h"
#include "hgca.h"

typedef float VF;
typedef uint32_t VU;
#define STREAMS 0
enum { VW = 1 };

static inline VF vset1(float x) { return x; }
static inline VF vmul(VF a, VF b) { return a * b; }
static inline VU vuzero(void) { return 0; }
static inline VU vumax(VU a, VU b) { return a > b ? a : b; }
static inline uint32_t vulargest(VU x) { return x; }

static inline VU vabs_bits(VF x) { return bits_of(x) & 0x7fffffffu; }

/* |x| < 2^22: adding this leaves no room for digits after the point, and the sum is rounded to the nearest even. */
static inline float nearest(float x) { return x + 12582912.0f - 12582912.0f; }

static inline uint16_t float_to_bf16(float x) {
    uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline VF vload_from(const char *p, int dtype) {
    uint32_t bits = 0;
    if (dtype == HGCA_F32) {
        memcpy(&bits, p, 4);
        return from_bits(bits);
    }
    uint16_t half;
    memcpy(&half, p, 2);
    return dtype == HGCA_F16 ? half_to_float(half) : from_bits((uint32_t)half << 16);
}

static inline void vstore_to(char *p, int dtype, VF x) {
    if (dtype == HGCA_F32) {
        memcpy(p, &x, 4);
        return;
    }
    uint16_t half = dtype == HGCA_F16 ? float_to_half(x) : float_to_bf16(x);
    memcpy(p, &half, 2);
}

static inline void vstore_i8(char *p, VF x) { *(int8_t *)p = (int8_t)nearest(x); }

#include "convert_template.h"

const hgca_isa_converters hgca_convert_scalar = HGCA_TEMPLATE_CONVERTERS;
