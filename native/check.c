/* Compares every instruction set this machine has with sums in double, and exercises pool and memory: what the
 * sanitizer builds and the emulated machines run. Prints one line and exits with 0, or says what differs. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hgca.h"

static _Thread_local uint32_t state = 2463534242u;

static float random_float(void) { /* xorshift; -2 .. 2 */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return (float)(state >> 8) / (float)(1 << 22) - 2.0f;
}

static int size_of(int dtype) { return dtype == HGCA_F32 ? 4 : 2; }

/* A number that is exact in every dtype: seven bits of mantissa. */
static double put(char *at, int dtype) {
    float x = ldexpf(roundf(random_float() * 32.0f), -5);
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (dtype == HGCA_F32) memcpy(at, &bits, 4);
    else if (dtype == HGCA_BF16) memcpy(at, (char *)&bits + 2, 2);
    else {
        uint16_t half = 0;
        if (x != 0.0f)
            half = (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) | (bits >> 13 & 1023));
        memcpy(at, &half, 2);
    }
    return x;
}

typedef struct {
    hgca_attention job;
    double *key, *value;
    char *memory;
} problem;

static problem make(int dtype, int kv_heads, int group, int key_dim, int value_dim, int rows, int lists) {
    problem p = {0};
    int width = (key_dim + value_dim) * size_of(dtype);
    /* exactly as large as its rows, so that a read past the last one is seen */
    p.memory = malloc((size_t)(kv_heads * rows * width) + 1);
    p.key = malloc(sizeof(double) * (size_t)(kv_heads * rows * key_dim + 1));
    p.value = malloc(sizeof(double) * (size_t)(kv_heads * rows * value_dim + 1));
    for (int r = 0; r < kv_heads * rows; r++) {
        char *row = p.memory + r * width;
        for (int d = 0; d < key_dim; d++) p.key[r * key_dim + d] = put(row + d * size_of(dtype), dtype);
        row += key_dim * size_of(dtype);
        for (int d = 0; d < value_dim; d++) p.value[r * value_dim + d] = put(row + d * size_of(dtype), dtype);
    }
    int heads = kv_heads * group;
    float *query = malloc(sizeof(float) * (size_t)(heads * key_dim));
    for (int i = 0; i < heads * key_dim; i++) query[i] = random_float();
    int64_t *start = NULL;
    int32_t *row = NULL;
    if (lists) {
        start = calloc((size_t)lists + 1, sizeof *start);
        for (int l = 0; l < lists; l++) start[l + 1] = start[l] + (l % 3 == 2 ? 0 : rows / (l + 1));
        row = malloc(sizeof *row * (size_t)(start[lists] + 1));
        for (int64_t i = 0; i < start[lists]; i++) row[i] = (int32_t)((i * 7919) % rows);
    }
    p.job = (hgca_attention){p.memory, p.memory + key_dim * size_of(dtype),
                             (int64_t)rows * width, width, (int64_t)rows * width, width,
                             rows, kv_heads, heads, key_dim, value_dim, dtype, lists, start, row, query,
                             1.0f / sqrtf((float)key_dim), (rows & 1) ? 3.0f : 0.0f,
                             malloc(sizeof(float) * (size_t)(heads * value_dim)),
                             malloc(sizeof(float) * (size_t)heads)};
    return p;
}

static void drop(problem *p) {
    free(p->memory);
    free(p->key);
    free(p->value);
    free((void *)p->job.query);
    free((void *)p->job.row_start);
    free((void *)p->job.row);
    free(p->job.out);
    free(p->job.lse);
}

static double differs(const problem *p) {
    const hgca_attention *j = &p->job;
    int group = j->heads / j->kv_heads;
    double worst = 0.0;
    for (int h = 0; h < j->heads; h++) {
        int list = j->lists ? h / (j->heads / j->lists) : 0;
        int64_t begin = j->lists ? j->row_start[list] : 0, end = j->lists ? j->row_start[list + 1] : j->rows;
        double sum = 0.0, *out = calloc((size_t)j->value_dim, sizeof *out);
        for (int64_t i = begin; i < end; i++) {
            int64_t r = (h / group) * j->rows + (j->lists ? j->row[i] : i);
            double s = 0.0;
            for (int d = 0; d < j->key_dim; d++) s += (double)j->query[h * j->key_dim + d] * p->key[r * j->key_dim + d];
            s *= j->scale;
            if (j->softcap > 0) s = j->softcap * tanh(s / j->softcap);
            sum += exp(s);
            for (int d = 0; d < j->value_dim; d++) out[d] += exp(s) * p->value[r * j->value_dim + d];
        }
        double lse = sum > 0 ? log(sum) : -INFINITY;
        if (begin == end) worst = fmax(worst, j->lse[h] == -INFINITY ? 0.0 : 1e9);
        else worst = fmax(worst, fabs(j->lse[h] - lse));
        for (int d = 0; d < j->value_dim; d++)
            worst = fmax(worst, fabs(j->out[h * j->value_dim + d] - (sum > 0 ? out[d] / sum : 0.0)));
        free(out);
    }
    return worst;
}

static int run(hgca_attention *jobs, int count) {
    int64_t ticket;
    int status = hgca_start(jobs, count, &ticket);
    return status ? status : hgca_wait(ticket);
}

static int compare(const char *isa) {
    static const int dims[] = {1, 8, 40, 64, 80, 96, 128, 192, 256}, groups[] = {1, 3, 4, 8};
    static const int sizes[] = {0, 1, 3, 63, 64, 65, 130, 700};
    if (hgca_use_isa(isa) != HGCA_OK) return 1;
    for (unsigned i = 0; i < sizeof dims / sizeof *dims; i++)
        for (unsigned g = 0; g < 4; g++)
            for (int dtype = 0; dtype < 3; dtype++)
                for (unsigned s = 0; s < sizeof sizes / sizeof *sizes; s++) {
                    if (sizes[s] == 700 && dims[i] > 96) continue; /* emulated machines are slow */
                    int lists = sizes[s] == 0 ? 0 : (s % 3 == 0 ? 0 : s % 3 == 1 ? 2 : 2 * groups[g]);
                    problem p = make(dtype, 2, groups[g], dims[i], dims[(i + g) % 9], sizes[s], lists);
                    int status = run(&p.job, 1);
                    double worst = status ? 1e9 : differs(&p);
                    drop(&p);
                    if (worst > 1e-5) {
                        printf("%s: dtype %d, head_dim %d, group %d, rows %d: status %d, difference %g\n", isa, dtype,
                               dims[i], groups[g], sizes[s], status, worst);
                        return 1;
                    }
                }
    return 0;
}

static void *client(void *failed) { /* several callers, several jobs a batch */
    problem p[3];
    for (int i = 0; i < 3; i++) p[i] = make(i, 2, 3, 64, 64, 900, 0);
    for (int turn = 0; turn < 30; turn++) {
        hgca_attention jobs[3] = {p[0].job, p[1].job, p[2].job};
        if (run(jobs, 3) != HGCA_OK) *(int *)failed = 1;
    }
    for (int i = 0; i < 3; i++) {
        if (differs(&p[i]) > 1e-5) *(int *)failed = 1;
        drop(&p[i]);
    }
    return NULL;
}

static int pool(void) {
    int failed[4] = {0}, any = 0;
    pthread_t threads[4];
    hgca_set_threads(3);
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, client, &failed[i]);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        any |= failed[i];
    }
    hgca_set_threads(1);
    client(&any);
    hgca_set_threads(4);
    client(&any);
    return any;
}

#if !defined(__SANITIZE_THREAD__)
static int survives_fork(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int failed = 0;
        client(&failed);
        _exit(failed);
    }
    int status = 1;
    waitpid(child, &status, 0);
    return status;
}
#endif

static int refuses(void) {
    problem p = make(HGCA_F32, 2, 2, 8, 8, 4, 2);
    int bad = 0;
    int64_t ticket;
    ((int32_t *)p.job.row)[0] = 4;
    bad |= run(&p.job, 1) != HGCA_BAD_ARGUMENT;
    ((int32_t *)p.job.row)[0] = -1;
    bad |= run(&p.job, 1) != HGCA_BAD_ARGUMENT;
    p.job.heads = 3;
    bad |= run(&p.job, 1) != HGCA_BAD_ARGUMENT;
    bad |= hgca_start(NULL, 1, &ticket) != HGCA_BAD_ARGUMENT;
    bad |= hgca_wait(123456) != HGCA_BAD_ARGUMENT;
    bad |= hgca_use_isa("none") != HGCA_NO_ISA;
    bad |= hgca_set_threads(0) != HGCA_BAD_ARGUMENT;
    drop(&p);
    return bad;
}

static int memory(void) {
    void *base;
    int64_t size = (int64_t)1 << 36; /* 64 GiB of address space, of which little is touched */
    if (hgca_reserve(size, &base) != HGCA_OK) return 0; /* ulimit -v, or an emulator */
    int bad = hgca_commit(base, size - 4096, 4096) != HGCA_OK;
    if (!bad) {
        char *last = (char *)base + size - 1;
        bad = *last != 0;
        *last = 1;
    }
    bad |= hgca_commit(base, -1, 4096) != HGCA_BAD_ARGUMENT;
    return bad | (hgca_release(base, size) != HGCA_OK);
}

int main(int count, char **words) {
    int forks = !(count > 1 && strcmp(words[1], "--no-fork") == 0); /* qemu-user cannot fork with threads */
    char names[64];
    strncpy(names, hgca_isas(), sizeof names - 1);
    names[sizeof names - 1] = 0;
    char *rest = NULL;
    (void)forks;
    for (char *isa = strtok_r(names, ",", &rest); isa; isa = strtok_r(NULL, ",", &rest))
        if (compare(isa)) return 1;
    if (pool()) return puts("pool: wrong results"), 1;
#if !defined(__SANITIZE_THREAD__)
    if (forks && survives_fork()) return puts("fork: the child failed"), 1;
#endif
    if (refuses()) return puts("a bad argument was taken"), 1;
    if (memory()) return puts("memory: wrong"), 1;
    printf("ok: %s\n", hgca_isas());
    return 0;
}
