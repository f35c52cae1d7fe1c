#include "dispatch.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "hgca.h"

/* Fastest first. A new instruction set is one file and one row. */
static const hgca_isa_kernels *const table[] = {
#if defined(__x86_64__) || defined(_M_X64)
    &hgca_avx512,
    &hgca_avx2,
#elif defined(__aarch64__)
    &hgca_neon,
#endif
    &hgca_scalar,
};
enum { ROWS = sizeof table / sizeof table[0] };

static _Atomic(const hgca_isa_kernels *) chosen;

const hgca_isa_kernels *hgca_kernels(void) {
    const hgca_isa_kernels *kernels = atomic_load_explicit(&chosen, memory_order_acquire);
    for (int i = 0; kernels == NULL; i++) {
        if (!table[i]->present()) continue;
        kernels = table[i];
        atomic_store_explicit(&chosen, kernels, memory_order_release);
    }
    return kernels;
}

const char *hgca_isas(void) {
    static char names[64]; /* the same bytes whoever writes them */
    char list[sizeof names] = "";
    for (int i = 0; i < ROWS; i++) {
        if (!table[i]->present()) continue;
        if (list[0]) strcat(list, ",");
        strcat(list, table[i]->name);
    }
    memcpy(names, list, sizeof names);
    return names;
}

const char *hgca_isa(void) { return hgca_kernels()->name; }

int hgca_use_isa(const char *name) {
    if (name == NULL) return HGCA_BAD_ARGUMENT;
    for (int i = 0; i < ROWS; i++) {
        if (strcmp(table[i]->name, name) != 0) continue;
        if (!table[i]->present()) return HGCA_NO_ISA;
        atomic_store_explicit(&chosen, table[i], memory_order_release);
        return HGCA_OK;
    }
    return HGCA_NO_ISA;
}
