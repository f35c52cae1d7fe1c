/* Random checks, each by its seed, which a failure prints. */
#ifndef HGCA_TESTS_FAILURES_H
#define HGCA_TESTS_FAILURES_H

#include <stdint.h>
#include <stdio.h>

#include "hgca.h"

/* How many are wrong of `count`, from this seed on. one: what is wrong, or NULL. */
static int count_failures(const char *what, const char *(*one)(uint64_t seed), int count, uint64_t seed) {
    int failures = 0;
    for (int i = 0; i < count; i++) {
        const char *wrong = one(seed + (uint64_t)i);
        if (wrong == NULL) continue;
        failures++;
        fprintf(stderr, "FAILED: %s, %s: %s (seed %llu, %d threads)\n", what, hgca_isa(), wrong,
                (unsigned long long)(seed + (uint64_t)i), hgca_threads());
    }
    return failures;
}

#endif
