/* Random numbers of which every dtype holds an exact copy. */
#ifndef HGCA_TESTS_NUMBERS_H
#define HGCA_TESTS_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "hgca.h"

static double uniform(uint64_t *state) { /* -1 .. 1; xorshift64* */
    *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27;
    return (double)(*state * 0x2545F4914F6CDD1DULL >> 11) / 4503599627370496.0 - 1.0;
}

static inline int pick(uint64_t *state, int n) { return (int)(fabs(uniform(state)) * n); }

static void *must(void *memory) {
    if (memory == NULL) exit(2);
    return memory;
}

/* Numbers of which every dtype is an exact copy: an eighth times a small integer. */
static inline float put(char *at, int dtype, uint64_t *state) {
    float x = (float)floor(uniform(state) * 16.0) / 8.0f;
    if (dtype == HGCA_I8) {
        *at = (char)(int8_t)(x * 8.0f);
        return x * 8.0f;
    }
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t half = (uint16_t)(bits >> 16);
    if (dtype == HGCA_F16 && x != 0.0f)
        half = (uint16_t)((bits >> 16 & 0x8000) | ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 1023));
    if (dtype == HGCA_F32) memcpy(at, &x, 4);
    else memcpy(at, &half, 2);
    return x;
}

/* The nearest number of bf16. */
static inline float as_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &bits, 4);
    return x;
}

#endif
