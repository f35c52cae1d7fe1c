#define _GNU_SOURCE
#include "dispatch.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef HGCA_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "convert.h"
#include "hgca.h"
#include "linear.h"
#include "select.h"

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

static int has_avx512vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
static int has_avx512bf16(void) { return has_avx512vnni() && __builtin_cpu_supports("avx512bf16"); }

#ifdef HGCA_TILES
/* Linux gives a process memory for the tiles only if it asks. */
static int has_amx(void) {
#ifdef HGCA_EMULATE_TILES
    return has_avx512bf16();
#else
    enum { BF16 = 1u << 22, TILE = 1u << 24, SAVED = 3u << 17, REQUEST = 0x1023, DATA = 18 };
    unsigned a, b, c, d, low, high;
    if (!has_avx512bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & BF16) || !(d & TILE)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & SAVED) == SAVED && syscall(SYS_arch_prctl, REQUEST, DATA) == 0;
#endif
}
#endif
#endif

/* Fastest first. A new instruction set is one file and one row. */
static const struct {
    const hgca_isa_kernels *kernels;
    const hgca_isa_converters *converters;
    const hgca_isa_selection *selection;
    const hgca_isa_linear *linear;
    int (*present)(void);
} table[] = {
#if defined(__x86_64__)
#ifdef HGCA_TILES
    {&hgca_amx, &hgca_convert_avx512, &hgca_select_avx512vnni, &hgca_linear_avx512vnni, has_amx},
#endif
    {&hgca_avx512bf16, &hgca_convert_avx512, &hgca_select_avx512vnni, &hgca_linear_avx512vnni, has_avx512bf16},
    {&hgca_avx512vnni, &hgca_convert_avx512, &hgca_select_avx512vnni, &hgca_linear_avx512vnni, has_avx512vnni},
    {&hgca_avx512, &hgca_convert_avx512, &hgca_select_avx512, &hgca_linear_avx512, has_avx512},
    {&hgca_avx2, &hgca_convert_avx2, &hgca_select_avx2, &hgca_linear_avx2, has_avx2},
#elif defined(__aarch64__)
    {&hgca_neon, &hgca_convert_neon, &hgca_select_neon, &hgca_linear_neon, always},
#endif
    {&hgca_scalar, &hgca_convert_scalar, &hgca_select_scalar, &hgca_linear_scalar, always},
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

#if defined(__x86_64__)
/* What is asked of a processor once. */
static int asked_once(_Atomic int *known, int (*ask)(void)) { /* 0 not known, 1 no, 2 yes */
    int answer = atomic_load_explicit(known, memory_order_relaxed);
    if (answer == 0) atomic_store_explicit(known, answer = ask() ? 2 : 1, memory_order_relaxed);
    return answer == 2;
}
#endif

#ifdef HGCA_TILES
static int in_steps(const hgca_attention *job) { return job->key_dim % HGCA_TILES_STEP == 0 && job->value_dim % HGCA_TILES_STEP == 0; }

/* Only of a processor that has them. */
static int tiles_pay(void) {
    static _Atomic int known;
    return asked_once(&known, hgca_tiles_pay);
}

/* Queries that read the same rows. */
static int64_t queries_of(const hgca_attention *job) { return (int64_t)job->tokens * (job->heads / (job->lists ? job->lists : job->kv_heads)); }

enum { FEW_QUERIES = 8 /* that two parts of each fill the lines of a matrix */ };

/* For two queries a matrix is half empty. Up to four wait for memory, unless their rows were fetched before, and FMAs leave it more room
 * (Granite Rapids: .82 of its rate, tiles .74). */
static int suits_tiles(const hgca_attention *job, int fetched) {
    const int64_t queries = queries_of(job);
    return job->dtype == HGCA_BF16 && !(job->causal && job->tokens > 1) && queries >= (fetched ? 3 : 5) && queries <= FEW_QUERIES &&
           in_steps(job) && job->key_dim <= HGCA_TILES_KEY && job->value_dim <= HGCA_TILES_VALUE;
}

static int suits_many_tiles(const hgca_attention *job) {
    return queries_of(job) > FEW_QUERIES && in_steps(job) && job->key_dim <= HGCA_MANY_DIM && job->value_dim <= HGCA_MANY_DIM;
}
#endif

#if defined(__x86_64__)
static int look_for_intel(void) {
    unsigned most, name[3]; /* "Genu" "ntel" "ineI" */
    return __get_cpuid(0, &most, &name[0], &name[1], &name[2]) && memcmp(name, "GenuntelineI", sizeof name) == 0;
}

static int is_intel(void) {
    static _Atomic int known;
    return asked_once(&known, look_for_intel);
}
#endif

int hgca_by_line(void) {
#if defined(__x86_64__)
    return is_intel();
#else
    return 0;
#endif
}

/* Only of a processor that has them. Of a Zen it is known: prompts are read half as fast again with them (Zen 5). */
static int dots_pay(void) {
#if defined(__x86_64__)
    static _Atomic int known;
    return has_avx512bf16() && (!is_intel() || asked_once(&known, hgca_bf16_dots_pay));
#else
    return 1;
#endif
}

const hgca_kernel *hgca_kernel_for(const hgca_attention *job, int fetched) {
    if (job->only_read) return hgca_only_read(job->dtype);
    const hgca_isa_kernels *isa = hgca_kernels();
    const hgca_kernel *plain = &isa->kernel[job->dtype];
    const int many = job->tokens > HGCA_FEW_TOKENS && job->key_dim <= HGCA_MANY_DIM && job->value_dim <= HGCA_MANY_DIM;
#ifdef HGCA_TILES
    if (suits_many_tiles(job)) {
        if (job->dtype == HGCA_BF16 && isa->bf16_many_tiles.piece && tiles_pay()) return &isa->bf16_many_tiles;
        if (job->dtype == HGCA_I8 && isa->i8_many_tiles.piece && tiles_pay()) return &isa->i8_many_tiles;
    }
#endif
    if (many && job->key_dim % 2 == 0 && dots_pay()) {
        if (job->dtype == HGCA_BF16 && isa->bf16_many.piece) return &isa->bf16_many;
        if (job->dtype == HGCA_I8 && isa->i8_pairs.piece) return &isa->i8_pairs;
    }
    if (job->dtype == HGCA_I8 && many && isa->i8_many.piece) return &isa->i8_many;
#ifdef HGCA_TILES
    if (isa->bf16_tiles.piece && suits_tiles(job, fetched) && tiles_pay()) return &isa->bf16_tiles;
#endif
    (void)fetched;
    if (job->dtype != HGCA_BF16 || isa->bf16_exact.piece == NULL || !dots_pay()) return plain;
    return hgca_are_bf16(job->query, (int64_t)job->tokens * job->heads * job->key_dim) ? &isa->bf16_exact : plain;
}

static int in_use(void) {
    const hgca_isa_kernels *kernels = hgca_kernels();
    int i = 0;
    while (table[i].kernels != kernels) i++;
    return i;
}

const hgca_isa_converters *hgca_converters(void) { return table[in_use()].converters; }
const hgca_isa_selection *hgca_selection_kernels(void) { return table[in_use()].selection; }
const hgca_isa_linear *hgca_linear_kernels(void) { return table[in_use()].linear; }

const char *hgca_isas(void) {
    static _Thread_local char names[96];
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
