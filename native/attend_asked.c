/* Attention whose rows are known before its queries are: rows come into the caches meanwhile. */
#define _GNU_SOURCE
#include <unistd.h>

#include "attend.h"
#include "fetch.h"

enum { USUAL_CACHE = 1 << 20 };

/* Bytes of a thread's own second level that rows may take: what does not fit would push out what was fetched before. */
static int64_t cache_bytes(void) {
    static _Atomic int64_t known;
    int64_t bytes = atomic_load_explicit(&known, memory_order_relaxed);
    if (bytes) return bytes;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    bytes = (bytes > 0 ? bytes : USUAL_CACHE) * 3 / 4;
    atomic_store_explicit(&known, bytes, memory_order_relaxed);
    return bytes;
}

static int is_there(const hgca_asked *a) { return hgca_is_told(a->flag, a->token); }

/* Rows of a list's piece, as far as `room` bytes go; what is left of these, none once the queries are there. */
static int64_t fetch_piece(const hgca_work *w, int32_t index, int64_t room) {
    const hgca_attention *job = w->lists[w->parts[index].list].job;
    const hgca_piece p = hgca_piece_at(w, index, NULL);
    const int64_t size = hgca_number_bytes(job->dtype), key = p.key_dim * size, value = p.value_dim * size;
    if (p.row == NULL || p.run) return room; /* one after the other: the processor's own prefetcher does well */
    for (int64_t i = 0; i < p.count && room > 0; i++, room -= key + value) {
        hgca_fetch(p.key + p.row[i] * p.key_row_stride, key, 2);
        hgca_fetch(p.value + p.row[i] * p.value_row_stride, value, 2);
        if (p.key_scale) __builtin_prefetch(p.key_scale + p.row[i] * p.scale_row_stride, 0, 2);
        if (i % 16 == 0 && is_there(&w->asked)) return 0;
    }
    return room;
}

/* Whether the queries came. */
static int wait_for_queries(const hgca_asked *a) {
    int64_t none = 0;
    if (!hgca_wait_told(a->flag, a->token, a->until)) return 0;
    if (atomic_load_explicit(a->when, memory_order_relaxed) == 0) atomic_compare_exchange_strong(a->when, &none, hgca_now());
    return 1;
}

/* A job and the kernel for it, which depends on its queries. */
typedef struct {
    const hgca_attention *job;
    const hgca_kernel *kernel;
} choice;

static void attend_to(hgca_work *w, int32_t index, float *query, choice *latest) {
    if (atomic_load_explicit(&w->asked.taken[index], memory_order_relaxed) || atomic_exchange(&w->asked.taken[index], 1)) return;
    const hgca_list *l = &w->lists[w->parts[index].list];
    if (latest->job != l->job) *latest = (choice){l->job, hgca_kernel_for(l->job, 1)};
    hgca_place_queries(l, latest->kernel, query);
    hgca_attend_piece(w, index, latest->kernel, query);
}

static void run_strand(hgca_batch *batch, int32_t strand) {
    hgca_work *w = (hgca_work *)(void *)batch;
    const hgca_asked *a = &w->asked;
    const int32_t first = (int32_t)((int64_t)a->pieces * strand / a->strands), end = (int32_t)((int64_t)a->pieces * (strand + 1) / a->strands);
    int64_t room = cache_bytes();
    for (int32_t i = first; i < end && room > 0 && !is_there(a); i++) room = fetch_piece(w, i, room);
    if (!wait_for_queries(a)) return;
    float *query = a->query + strand * a->query_floats;
    choice latest = {NULL, NULL};
    for (int32_t i = 0; i < a->pieces; i++) attend_to(w, (first + i) % a->pieces, query, &latest);
}

int hgca_start_asked(const hgca_attention *jobs, int32_t count, hgca_flag *flag, int32_t token, int64_t until, hgca_when *when,
                     int64_t *ticket) {
    hgca_work *w;
    const int status = hgca_make_work(jobs, count, hgca_threads(), &w);
    if (status) return status;
    w->asked.flag = flag, w->asked.token = token, w->asked.until = until, w->asked.when = when;
    for (int32_t i = 0; i < w->asked.pieces; i++) atomic_init(&w->asked.taken[i], 0);
    atomic_store(when, 0);
    w->started.batch.run = run_strand;
    w->started.batch.pieces = w->asked.strands;
    hgca_submit(&w->started, ticket);
    return HGCA_OK;
}
