/* A number in memory that a device writes too: it says something once it is a certain one. */
#ifndef HGCA_FLAGS_H
#define HGCA_FLAGS_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#include "pool.h"
#include "relax.h"

typedef const volatile _Atomic int32_t hgca_flag;

static inline int hgca_is_told(hgca_flag *flag, int32_t token) { return atomic_load_explicit(flag, memory_order_acquire) == token; }

/* Whether it says so until then (hgca_now). Whoever else wants this core may be who says it. */
static inline int hgca_wait_told(hgca_flag *flag, int32_t token, int64_t until) {
    enum { LOOKS = 256 }; /* between two looks at the clock */
    while (!hgca_is_told(flag, token)) {
        for (int i = 0; i < LOOKS && !hgca_is_told(flag, token); i++) hgca_relax();
        sched_yield();
        if (!hgca_is_told(flag, token) && hgca_now() > until) return 0;
    }
    return 1;
}

#endif
