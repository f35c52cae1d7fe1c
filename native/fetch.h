/* Lines of memory that will be read. */
#ifndef HGCA_FETCH_H
#define HGCA_FETCH_H

#include <stdint.h>

/* Brought into the first level of the caches (level 1), or the second. Inline: GCC takes away a call of what does nothing else. */
static inline __attribute__((always_inline)) void hgca_fetch(const char *from, int64_t bytes, int level) {
    for (int64_t at = 0; at < bytes; at += 64)
        if (level == 1) __builtin_prefetch(from + at, 0, 3);
        else __builtin_prefetch(from + at, 0, 2);
}

#endif
