#include "dispatch.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "convert.h"
#include "hgca.h"

/* The questions stand here and not beside the kernels: those files are compiled with instructions the machine may lack.
 * The compiler's own test asks CPUID, and XGETBV whether the system saves the registers. */
static int always(void) { return 1; }

#if defined(__x86_64__)
static int has_avx2(void) {
    unsigned a, b, c = 0, d;
    int f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1); /* older compilers cannot ask for it by name */
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

/* Fastest first. A new instruction set is one file and one row. */
static const struct {
    const hgca_isa_kernels *kernels;
    const hgca_isa_converters *converters;
    int (*present)(void);
} table[] = {
#if defined(__x86_64__)
    {&hgca_avx512, &hgca_convert_avx512, has_avx512},
    {&hgca_avx2, &hgca_convert_avx2, has_avx2},
#elif defined(__aarch64__)
    {&hgca_neon, &hgca_convert_neon, always},
#endif
    {&hgca_scalar, &hgca_convert_scalar, always},
};
enum { ROWS = sizeof table / sizeof table[0] };

static _Atomic(const hgca_isa_kernels *) chosen;

const hgca_isa_kernels *hgca_kernels(void) {
    const hgca_isa_kernels *kernels = atomic_load_explicit(&chosen, memory_order_acquire);
    for (int i = 0; kernels == NULL; i++) {
        if (!table[i].present()) continue;
        kernels = table[i].kernels;
        atomic_store_explicit(&chosen, kernels, memory_order_release);
    }
    return kernels;
}

const hgca_isa_converters *hgca_converters(void) {
    const hgca_isa_kernels *kernels = hgca_kernels();
    int i = 0;
    while (table[i].kernels != kernels) i++;
    return table[i].converters;
}

const char *hgca_isas(void) {
    static _Thread_local char names[64];
    names[0] = 0;
    for (int i = 0; i < ROWS; i++) {
        if (!table[i].present()) continue;
        if (names[0]) strcat(names, ",");
        strcat(names, table[i].kernels->name);
    }
    return names;
}

const char *hgca_isa(void) { return hgca_kernels()->name; }

int hgca_use_isa(const char *name) {
    if (name == NULL) return HGCA_BAD_ARGUMENT;
    for (int i = 0; i < ROWS; i++) {
        if (strcmp(table[i].kernels->name, name) != 0 || !table[i].present()) continue;
        atomic_store_explicit(&chosen, table[i].kernels, memory_order_release);
        return HGCA_OK;
    }
    return HGCA_NO_ISA;
}
