/* Compares every instruction set of this machine with a reference in double precision, and works the pool from several
 * threads at once. Without Python, so that it runs under sanitizers and emulators (.ci/native). With a number, so many
 * seconds of random jobs follow; a failure prints the seed that makes it again. Exit code 0 if all holds. */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check_convert.h"
#include "check_experts.h"
#include "check_layer.h"
#include "check_linear.h"
#include "check_listing.h"
#include "check_processors.h"
#include "check_select.h"
#include "check_serve.h"
#include "hgca.h"
#include "problem.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static int failures;

static void expect(int good, const char *what, const char *detail) {
    if (good) return;
    if (failures++ < 20) fprintf(stderr, "FAILED: %s %s\n", what, detail);
}

/* Over int8 rows weights have 16 bits: what is left of sums of numbers up to 24, beside what rounding a query does. */
static double tolerance(const shape *s) { return s->dtype == HGCA_I8 ? 3e-4 : 1e-5; }

static void compare(problem *p, const char *isa, const shape *s) {
    char detail[240];
    for (int h = 0; h < p->job.heads; h++) {
        double error = error_of(p, h);
        snprintf(detail, sizeof detail, "%s: dtype %d, %d x %d heads, %d rows, dims %d %d, lists %d, runs %d, tokens %d, causal %d, head %d: error %.2g",
                 isa, s->dtype, s->kv_heads, s->group, s->rows, s->key_dim, s->value_dim, s->lists, s->runs, s->tokens,
                 s->causal, h, error);
        expect(error <= tolerance(s), "attention", detail); /* a NaN fails too */
    }
}

static void check_shapes(const char *isa) {
    static const int dims[] = {1, 3, 8, 17, 40, 64, 80, 96, 128, 192, 256}, groups[] = {1, 2, 3, 4, 5, 8};
    static const int rows[] = {0, 1, 3, 5, 15, 63, 64, 65, 130, 600};
    uint64_t turn = 0;
    for (int d = 0; d < COUNT(dims); d++)
        for (int g = 0; g < COUNT(groups); g++)
            for (int dtype = HGCA_F32; dtype <= HGCA_I8; dtype++, turn++) {
                shape s = {.kv_heads = 1 + (int)(turn % 2), .group = groups[g], .rows = rows[turn % COUNT(rows)],
                           .key_dim = dims[d], .value_dim = dims[(d + turn / 7) % COUNT(dims)], .dtype = dtype,
                           .lists = (int)(turn / 3 % 3), .runs = (int)(turn / 2 % 2), .tokens = 1 + (int)(turn / 5 % 3),
                           .exact = (int)(turn % 2), .gap = (int)(turn % 4), .softcap = turn % 5 == 0 ? 2.0f : 0.0f};
                s.causal = s.rows >= s.tokens && turn % 3 == 0;
                problem p = make(&s, turn);
                int64_t ticket;
                expect(hgca_start(&p.job, 1, &ticket) == HGCA_OK && hgca_wait(ticket) == HGCA_OK, "start, wait", isa);
                compare(&p, isa, &s);
                drop(&p);
            }
}

/* So many tokens that queries are shared out, and are lanes. */
static void check_prompts(const char *isa) {
    static const int dims[] = {2, 6, 17, 40, 64, 96, 128, 250, 256}, groups[] = {1, 3, 4, 7}, rows[] = {0, 1, 47, 48, 49, 131};
    uint64_t turn = 0;
    for (int d = 0; d < COUNT(dims); d++)
        for (int dtype = HGCA_F32; dtype <= HGCA_I8; dtype++)
            for (int exact = 0; exact < 2; exact++, turn++) {
                shape s = {.kv_heads = 1 + (int)(turn % 2), .group = groups[turn % COUNT(groups)], .rows = rows[(turn / 3 + turn) % COUNT(rows)],
                           .key_dim = dims[d], .value_dim = dims[(d + turn / 7) % COUNT(dims)], .dtype = dtype, .lists = turn % 5 == 4 ? 1 : 0,
                           .runs = (int)(turn / 5 % 2), .tokens = 65 + (int)(turn % 40), .exact = exact, .gap = (int)(turn / 2 % 4),
                           .softcap = turn % 7 == 0 ? 2.0f : 0.0f};
                s.causal = s.rows >= s.tokens && turn % 3 != 0;
                problem p = make(&s, turn);
                int64_t ticket;
                expect(hgca_start(&p.job, 1, &ticket) == HGCA_OK && hgca_wait(ticket) == HGCA_OK, "start, wait of a prompt", isa);
                compare(&p, isa, &s);
                drop(&p);
            }
}

/* One thread's share of the pool test: three tickets at once, waited for out of order. */
static void *several(void *argument) {
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    shape s = {.kv_heads = 2, .group = 3, .rows = 700, .key_dim = 24, .value_dim = 16, .dtype = HGCA_F32,
               .lists = (int)(seed % 3), .runs = (int)(seed % 2), .tokens = 1, .gap = 1};
    problem p[3];
    int64_t ticket[3];
    for (int turn = 0; turn < 5; turn++) {
        for (int i = 0; i < 3; i++) {
            p[i] = make(&s, seed * 1000 + (uint64_t)(turn * 3 + i));
            if (hgca_start(&p[i].job, 1, &ticket[i]) != HGCA_OK) return argument;
        }
        for (int i = 2; i >= 0; i--)
            if (hgca_wait(ticket[i]) != HGCA_OK) return argument;
        for (int i = 0; i < 3; i++) {
            for (int h = 0; h < p[i].job.heads; h++)
                if (!(error_of(&p[i], h) <= 1e-5)) return argument;
            drop(&p[i]);
        }
        usleep((unsigned)(seed * 100 + (uint64_t)turn * 700)); /* the workers stay awake, are about to sleep, sleep */
    }
    return NULL;
}

static void check_threads(void) {
    for (int threads = 1; threads <= 5; threads++) { /* 5: as many as there are just then, and that changes */
        pthread_t id[4];
        if (threads < 5) expect(hgca_set_threads(threads) == HGCA_OK && hgca_threads() == threads, "threads", "");
        for (uintptr_t i = 0; i < 4; i++) {
            int failed = pthread_create(&id[i], NULL, several, (void *)(i + 1));
            if (failed) exit(2);
        }
        for (int turn = 0; threads == 5 && turn < 60; turn++) {
            expect(hgca_set_threads(1 + turn % 5) == HGCA_OK, "other threads meanwhile", "");
            usleep(300);
        }
        for (int i = 0; i < 4; i++) {
            void *bad;
            pthread_join(id[i], &bad);
            expect(bad == NULL, "several callers at once", "");
        }
    }
}

static void *choosing(void *seed) { return (void *)(intptr_t)check_select(8, (uintptr_t)seed * 7919); }

/* Choices wait for each other's stages: several of them at once, on fewer threads than there are callers. */
static void check_choices_at_once(void) {
    pthread_t id[3];
    expect(hgca_set_threads(2) == HGCA_OK, "threads", "");
    for (uintptr_t i = 0; i < 3; i++)
        if (pthread_create(&id[i], NULL, choosing, (void *)(i + 1))) exit(2);
    for (int i = 0; i < 3; i++) {
        void *bad;
        pthread_join(id[i], &bad);
        failures += (int)(intptr_t)bad;
    }
}

static void check_refusals(void) {
    shape s = {.kv_heads = 2, .group = 2, .rows = 5, .key_dim = 4, .value_dim = 4, .dtype = HGCA_F32, .lists = 1, .tokens = 1};
    problem p = make(&s, 5);
    int64_t ticket = -7, start[3] = {0, 2, 4};
    int32_t row[4] = {0, 4, 5, 1}; /* 5 is out of range */
    p.job.out[0] = 42.0f;
    hgca_attention bad[19];
    for (int i = 0; i < COUNT(bad); i++) bad[i] = p.job;
    bad[0].key = NULL, bad[1].heads = 5, bad[2].rows = -1, bad[3].dtype = 9, bad[4].key_dim = 0, bad[5].lists = 3;
    bad[6].row_start = start, bad[6].row = row;
    int64_t falls[3] = {0, 2, 1};
    bad[7].row_start = falls, bad[8].softcap = -1.0f, bad[9].softcap = NAN, bad[10].out = NULL, bad[11].heads = INT32_MAX;
    int32_t good_row[4] = {0, 4, 3, 1}, past[4] = {1, 1, 3, 1}, negative[4] = {1, 0, -1, 1};
    bad[12].row_start = bad[13].row_start = start, bad[12].row = bad[13].row = good_row;
    bad[12].run = past, bad[13].run = negative;
    bad[14].tokens = 0, bad[15].causal = 2, bad[16].tokens = 6, bad[16].causal = 1;
    bad[17].dtype = HGCA_I8, bad[17].key_scale = NULL, bad[18].tokens = INT32_MAX;
    for (int i = 0; i < COUNT(bad); i++) {
        char which[16];
        snprintf(which, sizeof which, "%d", i);
        hgca_attention both[2] = {p.job, bad[i]};
        expect(hgca_start(both, 2, &ticket) == HGCA_BAD_ARGUMENT, "a bad job is refused", which);
        expect(p.job.out[0] == 42.0f && ticket == -7, "nothing is written on refusal", which);
    }
    expect(hgca_start(&p.job, 0, &ticket) == HGCA_BAD_ARGUMENT, "no jobs", "");
    expect(hgca_wait(999999999) == HGCA_BAD_ARGUMENT, "no such ticket", "");
    expect(hgca_set_threads(0) && hgca_set_threads(1025), "thread counts", "");
    expect(hgca_use_isa("mmx") == HGCA_NO_ISA, "no such instruction set", "");
    for (int status = -1; status < 6; status++) expect(hgca_status_text(status) != NULL, "status text", "");
    drop(&p);
}

static void check_memory(void) {
    void *base;
    int64_t size = (int64_t)1 << 36; /* 64 GiB of address space */
    if (hgca_reserve(size, &base) != HGCA_OK) { /* some sanitizers and emulators have less */
        size = (int64_t)1 << 28;
        expect(hgca_reserve(size, &base) == HGCA_OK, "reserve", "");
    }
    expect(hgca_commit(base, size - 100, 100) == HGCA_OK, "commit", "");
    char *end = (char *)base + size - 100;
    expect(end[0] == 0 && end[99] == 0, "committed memory is zero", "");
    memset(end, 1, 100);
    expect(hgca_commit(base, size - 5000, 5000) == HGCA_OK && end[99] == 1, "commit again keeps what is there", "");
    expect(hgca_commit(base, -1, 5) == HGCA_BAD_ARGUMENT, "commit before the start", "");
    expect(hgca_release(base, size) == HGCA_OK, "release", "");
}

static void check_fork(void) {
#if !defined(__SANITIZE_THREAD__)
    hgca_set_threads(3);
    shape s = {.kv_heads = 2, .group = 2, .rows = 900, .key_dim = 16, .value_dim = 16, .dtype = HGCA_F32, .tokens = 1};
    problem p = make(&s, 3);
    int64_t ticket;
    expect(hgca_start(&p.job, 1, &ticket) == HGCA_OK, "start before fork", "");
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        int stale = hgca_wait(ticket); /* the parent's */
        int ok = hgca_start(&p.job, 1, &ticket) == HGCA_OK && hgca_wait(ticket) == HGCA_OK && error_of(&p, 3) <= 1e-5;
        _exit(ok && stale == HGCA_FORKED ? 0 : 1);
    }
    int status;
    expect(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "fork", "");
    expect(hgca_wait(ticket) == HGCA_OK, "wait after fork", "");
    compare(&p, "after fork", &s);
    drop(&p);
#endif
}

/* Random jobs for so many seconds, on every instruction set and any number of threads. */
static void check_random(double seconds) {
    char names[96];
    snprintf(names, sizeof names, "%s", hgca_isas());
    char *isa[8], *rest = names;
    int isas = 0;
    while (isas < 8 && (isa[isas] = strsep(&rest, ",")) != NULL) isas++;
    struct timespec began, now;
    clock_gettime(CLOCK_MONOTONIC, &began);
    uint64_t seed = (uint64_t)began.tv_nsec + (uint64_t)began.tv_sec * 1000000007u, count = 0;
    do {
        uint64_t state = seed + ++count;
#define PICK(n) ((int)(fabs(uniform(&state)) * (n)))
        const int few = PICK(2) ? 1 : PICK(4) ? 9 : 130; /* tokens */
        shape s = {.kv_heads = 1 + PICK(4), .group = 1 + PICK(9), .rows = PICK(PICK(4) ? 140 : 2000), .key_dim = PICK(2) ? 32 * (1 + PICK(5)) : 1 + PICK(200),
                   .value_dim = PICK(2) ? 32 * (1 + PICK(9)) : 1 + PICK(200), .dtype = PICK(4), .lists = PICK(3), .runs = PICK(2), .tokens = 1 + PICK(few),
                   .exact = PICK(2), .gap = PICK(4), .softcap = PICK(4) ? 0.0f : 3.0f};
        s.causal = s.rows >= s.tokens && PICK(2);
        const char *use = isa[PICK(isas)];
        hgca_use_isa(use);
        hgca_set_threads(1 + PICK(4));
#undef PICK
        problem p = make(&s, state);
        int64_t ticket;
        char which[48];
        snprintf(which, sizeof which, "seed %llu", (unsigned long long)(seed + count));
        expect(hgca_start(&p.job, 1, &ticket) == HGCA_OK && hgca_wait(ticket) == HGCA_OK, "random job", which);
        int before = failures;
        compare(&p, use, &s);
        if (failures > before) failures = before + 1, fprintf(stderr, "  of %s\n", which);
        drop(&p);
        if (count % 4 == 0) failures += check_select(1, state);
        if (count % 4 == 2) failures += check_layer(1, state);
        if (count % 4 == 3) failures += check_listing(4, state);
        if (count % 4 == 1) failures += check_serve(1, state);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - began.tv_sec) < seconds);
    printf("%llu random jobs\n", (unsigned long long)count);
}

/* Instruction sets share the pool, so watching its threads, which is slow, takes one count of them for each. */
#if defined(__SANITIZE_THREAD__)
enum { FEWEST_THREADS = 3 };
#else
enum { FEWEST_THREADS = 1 };
#endif

int main(int argc, char **argv) {
    char names[96], *rest = names, *isa;
    snprintf(names, sizeof names, "%s", hgca_isas());
    while ((isa = strsep(&rest, ",")) != NULL) {
        expect(hgca_use_isa(isa) == HGCA_OK && strcmp(hgca_isa(), isa) == 0, "use", isa);
        check_shapes(isa);
        check_prompts(isa);
        failures += check_listing(300, 1);
        for (int threads = FEWEST_THREADS; threads <= 3; threads++) {
            expect(hgca_set_threads(threads) == HGCA_OK, "threads", isa);
            failures += check_select(40, (uint64_t)threads * 1000);
            failures += check_serve(20, (uint64_t)threads * 1000);
            failures += check_linear();
            failures += check_experts();
            failures += check_layer(60, (uint64_t)threads * 1000);
        }
    }
    failures += check_convert();
    check_threads();
    check_choices_at_once();
    check_refusals();
    check_memory();
    check_fork();
    failures += check_processors();
    if (argc > 1) check_random(atof(argv[1]));
    printf("%s: %d failures\n", hgca_isas(), failures);
    return failures != 0;
}
