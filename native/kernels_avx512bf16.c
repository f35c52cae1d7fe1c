/* AVX-512 with VNNI and bf16 dot products (Cooper Lake, Sapphire Rapids, Zen 4 and later). */
#include "vocabulary_avx512.h"

#include <time.h>

#define I8_DOTS
#define BF16_DOTS
#include "kernels_template.h"

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Seconds of the same number of instructions, of which as many are on their way at once as the latency needs. */
static double time_instruction(int dots) {
    VF sum[12];
    __m512i one = _mm512_set1_epi16(0x3f80);
    for (int i = 0; i < 12; i++) sum[i] = vset1((float)i);
    double began = seconds();
    for (int turn = 0; turn < 500; turn++) {
        for (int i = 0; i < 12; i++)
            sum[i] = dots ? _mm512_dpbf16_ps(sum[i], (__m512bh)one, (__m512bh)one)
                          : vfma(sum[i], vset1(0.999f), _mm512_castsi512_ps(one));
        for (int i = 0; i < 12; i++) __asm__ volatile("" : "+v"(sum[i]));
    }
    return seconds() - began;
}

/* One dot product replaces two FMAs and two operations that widen. Xeons before Granite Rapids issue it at a quarter of
 * the rate of an FMA, Zen 4 at the same rate: the processor's name does not tell, a few microseconds do. */
int hgca_bf16_dots_pay(void) {
    double dots = 1.0, fma = 1.0;
    for (int turn = 0; turn < 7; turn++) {
        double d = time_instruction(1), f = time_instruction(0);
        dots = d < dots ? d : dots;
        fma = f < fma ? f : fma;
    }
    return dots < 1.6 * fma;
}

const hgca_isa_kernels hgca_avx512bf16 = {"avx512bf16", HGCA_TEMPLATE_KERNELS, {piece_bf16_dots, place_bf16_dots}, MANY_I8};
