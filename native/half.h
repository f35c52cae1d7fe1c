/* Half floats in plain C, rounded to the nearest even. */
#ifndef HGCA_HALF_H
#define HGCA_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0));
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float tiny = (float)fraction * 5.9604644775390625e-8f; /* 2^-24 */
    return sign ? -tiny : tiny;
}

static inline uint16_t float_to_half(float x) {
    uint32_t sign = bits_of(x) >> 16 & 0x8000, bits = bits_of(x) & 0x7fffffffu;
    if (bits > 0x7f800000u) bits = 0x7e00 | (bits >> 13 & 1023);
    else if (bits >= 0x477ff000u) bits = 0x7c00; /* 65520 and more */
    else if (bits < 0x38800000u) bits = (uint32_t)(from_bits(bits) * 16777216.0f + 12582912.0f - 12582912.0f); /* below 2^-14 */
    else bits = (bits - 0x38000000u + 0xfff + (bits >> 13 & 1)) >> 13;
    return (uint16_t)(sign | bits);
}

#endif
