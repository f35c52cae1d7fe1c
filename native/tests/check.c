/* Compares every instruction set of this machine with a reference in double precision, and works the pool from several
 * threads at once. Without Python, so that it runs under sanitizers and emulators (.ci/native). Buffers are allocated
 * to the byte: reading past a row is what AddressSanitizer sees. Exit code 0 if all holds. */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check_processors.h"
#include "hgca.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static int failures;

static void expect(int good, const char *what, const char *detail) {
    if (good) return;
    if (failures++ < 20) fprintf(stderr, "FAILED: %s %s\n", what, detail);
}

static double uniform(uint64_t *state) { /* -1 .. 1; xorshift64* */
    *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27;
    return (double)(*state * 0x2545F4914F6CDD1DULL >> 11) / 4503599627370496.0 - 1.0;
}

static void *must(void *memory) {
    if (memory == NULL) exit(2);
    return memory;
}

/* Numbers of which every dtype is an exact copy: an eighth times a small integer. */
static float put(char *at, int dtype, uint64_t *state) {
    float x = (float)floor(uniform(state) * 16.0) / 8.0f;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t half = (uint16_t)(bits >> 16);
    if (dtype == HGCA_F16 && x != 0.0f)
        half = (uint16_t)((bits >> 16 & 0x8000) | ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 1023));
    if (dtype == HGCA_F32) memcpy(at, &x, 4);
    else memcpy(at, &half, 2);
    return x;
}

typedef struct {
    int kv_heads, group, rows, key_dim, value_dim, dtype;
    int lists; /* 0 all rows, 1 a list per KV head, 2 a list per query head */
    int gap;   /* numbers between rows; odd ones leave rows unaligned */
    float softcap;
} shape;

typedef struct {
    hgca_attention job;
    float *keys, *values; /* exact copies */
} problem;

static void fill(char *to, float *copy, int64_t head_stride, int64_t row_stride, const shape *s, int dim, uint64_t *state) {
    int size = s->dtype == HGCA_F32 ? 4 : 2;
    for (int h = 0; h < s->kv_heads; h++)
        for (int r = 0; r < s->rows; r++)
            for (int d = 0; d < dim; d++)
                copy[((int64_t)h * s->rows + r) * dim + d] =
                    put(to + h * head_stride + r * row_stride + (int64_t)d * size, s->dtype, state);
}

static int64_t bytes_of(const shape *s, int dim, int64_t *head_stride, int64_t *row_stride) {
    int64_t size = s->dtype == HGCA_F32 ? 4 : 2;
    *row_stride = (dim + s->gap) * size;
    *head_stride = s->rows * *row_stride;
    int64_t rows = (int64_t)s->kv_heads * s->rows;
    return rows ? (rows - 1) * *row_stride + dim * size : 0; /* nothing after the last row */
}

static problem make(const shape *s, uint64_t seed) {
    uint64_t state = seed * 2 + 1;
    int heads = s->kv_heads * s->group, lists = s->lists == 2 ? heads : s->lists ? s->kv_heads : 0;
    problem p = {.job = {.rows = s->rows, .kv_heads = s->kv_heads, .heads = heads, .key_dim = s->key_dim,
                         .tokens = 1, .value_dim = s->value_dim, .dtype = s->dtype, .lists = lists,
                         .scale = 1.0f / sqrtf((float)s->key_dim), .softcap = s->softcap}};
    hgca_attention *job = &p.job;
    char *key = must(malloc((size_t)bytes_of(s, s->key_dim, &job->key_head_stride, &job->key_row_stride) + 1));
    char *value = must(malloc((size_t)bytes_of(s, s->value_dim, &job->value_head_stride, &job->value_row_stride) + 1));
    /* malloc aligns the start: shifting by one byte leaves nothing aligned and the end exact */
    job->key = key + 1, job->value = value + 1;
    p.keys = must(malloc(sizeof(float) * (size_t)(s->kv_heads * s->rows * s->key_dim + 1)));
    p.values = must(malloc(sizeof(float) * (size_t)(s->kv_heads * s->rows * s->value_dim + 1)));
    fill(key + 1, p.keys, job->key_head_stride, job->key_row_stride, s, s->key_dim, &state);
    fill(value + 1, p.values, job->value_head_stride, job->value_row_stride, s, s->value_dim, &state);
    float *query = must(malloc(sizeof(float) * (size_t)(heads * s->key_dim)));
    for (int i = 0; i < heads * s->key_dim; i++) query[i] = (float)uniform(&state) * 2.0f;
    job->query = query;
    job->out = must(malloc(sizeof(float) * (size_t)(heads * s->value_dim)));
    job->lse = must(malloc(sizeof(float) * (size_t)heads));
    if (lists) { /* every third list is empty; repeats and any order otherwise */
        int64_t *start = must(malloc(sizeof(int64_t) * (size_t)(lists + 1)));
        int32_t *row = must(malloc(sizeof(int32_t) * (size_t)(lists * s->rows + 1)));
        start[0] = 0;
        for (int l = 0; l < lists; l++) {
            int n = s->rows == 0 || l % 3 == 1 ? 0 : 1 + (int)(fabs(uniform(&state)) * (s->rows - 1));
            for (int i = 0; i < n; i++) row[start[l] + i] = (int32_t)(fabs(uniform(&state)) * (s->rows - 1));
            start[l + 1] = start[l] + n;
        }
        job->row_start = start, job->row = row;
    }
    return p;
}

static void drop(problem *p) {
    free((char *)(uintptr_t)p->job.key - 1);
    free((char *)(uintptr_t)p->job.value - 1);
    free((void *)(uintptr_t)p->job.query);
    free((void *)(uintptr_t)p->job.row_start);
    free((void *)(uintptr_t)p->job.row);
    free(p->job.out);
    free(p->job.lse);
    free(p->keys);
    free(p->values);
}

/* Largest error of a head's output and lse against the textbook formula; lists as they are. */
static double error_of(const problem *p, int head) {
    const hgca_attention *job = &p->job;
    int kv_head = head / (job->heads / job->kv_heads), list = job->lists ? head / (job->heads / job->lists) : 0;
    int64_t first = job->lists ? job->row_start[list] : 0;
    int64_t n = job->lists ? job->row_start[list + 1] - first : job->rows;
    double *score = must(malloc(sizeof(double) * (size_t)(n + 1))), top = -INFINITY, sum = 0.0, worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = kv_head * job->rows + (job->lists ? job->row[first + i] : i);
        score[i] = 0.0;
        for (int d = 0; d < job->key_dim; d++)
            score[i] += (double)job->query[head * job->key_dim + d] * p->keys[row * job->key_dim + d];
        score[i] *= job->scale;
        if (job->softcap > 0.0f) score[i] = job->softcap * tanh(score[i] / job->softcap);
        top = score[i] > top ? score[i] : top;
    }
    for (int64_t i = 0; i < n; i++) sum += exp(score[i] - top);
    for (int d = 0; d < job->value_dim; d++) {
        double want = 0.0;
        for (int64_t i = 0; i < n; i++) {
            int64_t row = kv_head * job->rows + (job->lists ? job->row[first + i] : i);
            want += exp(score[i] - top) / sum * p->values[row * job->value_dim + d];
        }
        worst = fmax(worst, fabs(want - job->out[head * job->value_dim + d]));
    }
    free(score);
    if (n == 0) return job->lse[head] == -INFINITY ? worst : 1.0;
    return fmax(worst, fabs(top + log(sum) - job->lse[head]));
}

static void compare(problem *p, const char *isa, const shape *s) {
    char detail[160];
    for (int h = 0; h < p->job.heads; h++) {
        double error = error_of(p, h);
        snprintf(detail, sizeof detail, "%s: dtype %d, %d x %d heads, %d rows, dims %d %d, lists %d, head %d: error %.2g", isa,
                 s->dtype, s->kv_heads, s->group, s->rows, s->key_dim, s->value_dim, s->lists, h, error);
        expect(error <= 1e-5, "attention", detail); /* a NaN fails too */
    }
}

static void check_shapes(const char *isa) {
    static const int dims[] = {1, 3, 8, 17, 40, 64, 80, 96, 128, 192, 256}, groups[] = {1, 2, 3, 4, 5, 8};
    static const int rows[] = {0, 1, 3, 5, 15, 63, 64, 65, 130, 600};
    uint64_t turn = 0;
    for (int d = 0; d < COUNT(dims); d++)
        for (int g = 0; g < COUNT(groups); g++)
            for (int dtype = HGCA_F32; dtype <= HGCA_F16; dtype++, turn++) {
                shape s = {1 + (int)(turn % 2), groups[g], rows[turn % COUNT(rows)], dims[d],
                           dims[(d + turn / 7) % COUNT(dims)], dtype, (int)(turn / 3 % 3), (int)(turn % 4),
                           turn % 5 == 0 ? 2.0f : 0.0f};
                problem p = make(&s, turn);
                int64_t ticket;
                expect(hgca_start(&p.job, 1, &ticket) == HGCA_OK && hgca_wait(ticket) == HGCA_OK, "start, wait", isa);
                compare(&p, isa, &s);
                drop(&p);
            }
}

/* One thread's share of the pool test: three tickets at once, waited for out of order. */
static void *several(void *argument) {
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    shape s = {2, 3, 700, 24, 16, HGCA_F32, (int)(seed % 3), 1, 0.0f};
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

static void check_refusals(void) {
    shape s = {2, 2, 5, 4, 4, HGCA_F32, 1, 0, 0.0f};
    problem p = make(&s, 5);
    int64_t ticket = -7, start[3] = {0, 2, 4};
    int32_t row[4] = {0, 4, 5, 1}; /* 5 is out of range */
    p.job.out[0] = 42.0f;
    hgca_attention bad[12];
    for (int i = 0; i < COUNT(bad); i++) bad[i] = p.job;
    bad[0].key = NULL, bad[1].heads = 5, bad[2].rows = -1, bad[3].dtype = 9, bad[4].key_dim = 0, bad[5].lists = 3;
    bad[6].row_start = start, bad[6].row = row;
    int64_t falls[3] = {0, 2, 1};
    bad[7].row_start = falls, bad[8].softcap = -1.0f, bad[9].softcap = NAN, bad[10].out = NULL, bad[11].heads = INT32_MAX;
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
    shape s = {2, 2, 900, 16, 16, HGCA_F32, 0, 0, 0.0f};
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

int main(void) {
    char names[64], *rest = names, *isa;
    snprintf(names, sizeof names, "%s", hgca_isas());
    while ((isa = strsep(&rest, ",")) != NULL) {
        expect(hgca_use_isa(isa) == HGCA_OK && strcmp(hgca_isa(), isa) == 0, "use", isa);
        check_shapes(isa);
    }
    check_threads();
    check_refusals();
    check_memory();
    check_fork();
    failures += check_processors();
    printf("%s: %d failures\n", hgca_isas(), failures);
    return failures != 0;
}
