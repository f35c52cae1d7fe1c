/* Nanoseconds of a row, by instruction set, kernel, queries and how much there is to read: what a kernel takes where memory does not
 * limit it. Each thread reads rows of its own, one behind the other in a shuffled list, without the pool.
 *
 *   time_kernels [threads ...]     default: 1, and all processors
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "denormals.h"
#include "dispatch.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

enum { DIM = 128, QUERIES = 48, MOST = 8192, LEAST_READ = 20000, TURNS = 7, MOST_THREADS = 256 };

static const int sizes[] = {32, 64, 640, MOST}; /* rows of 512 bytes: in the first level with the next tile's, alone, in the second, beyond */
static const int queries[] = {1, 4, 8, 16, 48};

typedef struct {
    const hgca_kernel *kernel;
    pthread_barrier_t *together;
    int rows, queries;
    double ns;
} work;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void *room(size_t bytes) {
    void *made = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (made == NULL) exit(1);
    return made;
}

static void *measure(void *given) {
    work *w = given;
    flush_denormals(); /* as the pool's threads do */
    const int64_t width = hgca_query_width(DIM, HGCA_BF16);
    uint16_t *rows = room((size_t)w->rows * 2 * DIM * sizeof *rows);
    int32_t *list = room((size_t)w->rows * sizeof *list);
    float *placed = room((size_t)(QUERIES * width) * sizeof *placed), *out = room(QUERIES * (DIM + 2) * sizeof *out);
    uint32_t state = 1;
    for (int i = 0; i < w->rows * 2 * DIM; i++)
        state = state * 1664525u + 1013904223u, rows[i] = (uint16_t)(0x3e80 + (state >> 25) + (state >> 9 & 0x8000));
    for (int i = 0; i < w->rows; i++) list[i] = (int32_t)((int64_t)i * 37 % w->rows);
    for (int h = 0; h < w->queries; h++) {
        float query[DIM];
        for (int d = 0; d < DIM; d++) query[d] = (float)((h * 7 + d * 5) % 16 - 8) / 16.0f; /* numbers of bf16 */
        w->kernel->place(query, 0.1f, DIM, placed + h * width);
    }
    const hgca_piece piece = {.key = (const char *)rows, .value = (const char *)(rows + DIM), .key_row_stride = 4 * DIM,
                              .value_row_stride = 4 * DIM, .row = list, .count = w->rows, .unseen = INT64_MAX, .group = w->queries,
                              .key_dim = DIM, .value_dim = DIM, .heads = w->queries, .scale = 0.1f, .query = placed, .out = out,
                              .max = out + QUERIES * DIM, .sum = out + QUERIES * DIM + QUERIES};
    const int times = LEAST_READ / w->rows + 1;
    double least = INFINITY;
    for (int turn = 0; turn < TURNS; turn++) {
        pthread_barrier_wait(w->together);
        const double began = now();
        for (int i = 0; i < times; i++) w->kernel->piece(&piece);
        least = fmin(least, (now() - began) / times / w->rows);
    }
    w->ns = 1e9 * least;
    free(rows), free(list), free(placed), free(out);
    return NULL;
}

/* The slowest thread's. */
static double slowest(const hgca_kernel *kernel, int rows, int of_queries, int threads) {
    pthread_t thread[MOST_THREADS];
    work given[MOST_THREADS];
    pthread_barrier_t together;
    pthread_barrier_init(&together, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        given[i] = (work){.kernel = kernel, .together = &together, .rows = rows, .queries = of_queries};
        if (pthread_create(&thread[i], NULL, measure, &given[i]) != 0) exit(1);
    }
    double ns = 0.0;
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL), ns = fmax(ns, given[i].ns);
    pthread_barrier_destroy(&together);
    return ns;
}

static void tell(const char *isa, const char *name, const hgca_kernel *kernel, int threads) {
    if (kernel->piece == NULL) return;
    for (int q = 0; q < COUNT(queries); q++) {
        printf("%-12s %-6s %3d threads %3d queries", isa, name, threads, queries[q]);
        for (int s = 0; s < COUNT(sizes); s++) printf(" %8.2f", slowest(kernel, sizes[s], queries[q], threads));
        printf("\n");
        if (strcmp(name, "read") == 0) break;
    }
    fflush(stdout);
}

int main(int arguments, char **argument) {
    char *isas = strdup(hgca_isas());
    printf("ns of a row of %d bytes; rows of a thread:", 4 * DIM);
    for (int s = 0; s < COUNT(sizes); s++) printf(" %d", sizes[s]);
    printf("\n");
    const int usual[] = {1, (int)sysconf(_SC_NPROCESSORS_ONLN)}, all = arguments > 1 ? arguments - 1 : 2;
    for (int t = 0; t < all; t++) {
        const int threads = arguments > 1 ? atoi(argument[t + 1]) : usual[t];
        if (threads < 1 || threads > MOST_THREADS) return 2;
        tell("", "read", hgca_only_read(HGCA_BF16), threads);
        char *left = NULL, *names = strdup(isas);
        for (const char *isa = strtok_r(names, ",", &left); isa != NULL; isa = strtok_r(NULL, ",", &left)) {
            if (strcmp(isa, "scalar") == 0 || hgca_use_isa(isa) != HGCA_OK) continue;
            const hgca_isa_kernels *kernels = hgca_kernels();
            tell(isa, "bf16", &kernels->kernel[HGCA_BF16], threads);
            tell(isa, "exact", &kernels->bf16_exact, threads);
            tell(isa, "tiles", &kernels->bf16_tiles, threads);
            tell(isa, "pairs", &kernels->bf16_many, threads);
            tell(isa, "many", &kernels->bf16_many_tiles, threads);
        }
        free(names);
    }
    free(isas);
    return 0;
}
