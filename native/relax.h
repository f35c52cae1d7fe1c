/* What a thread does between two looks at what it waits for. */
#ifndef HGCA_RELAX_H
#define HGCA_RELAX_H

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static inline void hgca_relax(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
