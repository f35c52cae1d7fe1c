/* Persistent workers. A worker that runs out of work spins briefly, then sleeps: between two layers of a decode step
 * it is still awake, between two tokens of an idle chat it costs nothing. On few cores a long spin would take a core
 * from torch's own threads, so it is kept short. */
#define _GNU_SOURCE
#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include "hgca.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MOST_THREADS = 1024, SPIN_NANOSECONDS = 20000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_came = PTHREAD_COND_INITIALIZER;
static pthread_cond_t batch_done = PTHREAD_COND_INITIALIZER;
static hgca_batch *first, *last;      /* batches with unclaimed pieces, oldest first */
static _Atomic int64_t submitted;     /* spinning workers watch this */
static int32_t wanted;                /* threads, the caller included; 0: not yet known */
static int32_t running;               /* workers started */
static int32_t sleeping;
static _Atomic int32_t generation;
static hgca_parallel parallel; /* GOMP_parallel, if its threads are to be shared */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static inline void relax(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Denormal numbers slow some kernels five-fold and mean nothing here. Returns what to restore. */
static uint64_t flush_denormals(void) {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before));
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before | 1u << 24));
    return before;
#else
    return 0;
#endif
}

static void restore_denormals(uint64_t before) {
#if defined(__x86_64__)
    _mm_setcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

static void unlink_batch(hgca_batch *batch) { /* with the lock; a batch that is not linked is left alone */
    hgca_batch *before = NULL;
    for (hgca_batch *at = first; at != NULL; before = at, at = at->next) {
        if (at != batch) continue;
        if (before) before->next = at->next;
        else first = at->next;
        if (last == at) last = before;
        return;
    }
}

/* Work on a batch until no piece is unclaimed. */
static void work_on(hgca_batch *batch) {
    for (;;) {
        int32_t piece = atomic_fetch_add(&batch->claimed, 1);
        if (piece >= batch->pieces) return;
        int32_t pieces = batch->pieces;
        batch->run(batch, piece);
        if (atomic_fetch_add(&batch->done, 1) + 1 == pieces) { /* from here the batch may be gone */
            pthread_mutex_lock(&lock);
            pthread_cond_broadcast(&batch_done);
            pthread_mutex_unlock(&lock);
            return;
        }
    }
}

static void *worker(void *unused) {
    (void)unused;
    flush_denormals();
    pthread_mutex_lock(&lock);
    for (;;) {
        if (running > wanted - 1) { /* fewer threads were asked for */
            running--;
            pthread_mutex_unlock(&lock);
            return NULL;
        }
        hgca_batch *batch = first;
        if (batch != NULL) {
            /* Claiming under the lock keeps the batch alive: it is unlinked before its owner may free it. */
            int32_t piece = atomic_fetch_add(&batch->claimed, 1);
            if (piece >= batch->pieces) {
                unlink_batch(batch);
                continue;
            }
            int32_t pieces = batch->pieces;
            pthread_mutex_unlock(&lock);
            batch->run(batch, piece);
            int alone = atomic_fetch_add(&batch->done, 1) + 1 == pieces;
            pthread_mutex_lock(&lock);
            if (alone) pthread_cond_broadcast(&batch_done);
            continue;
        }
        int64_t seen = atomic_load(&submitted);
        pthread_mutex_unlock(&lock);
        int64_t until = nanoseconds() + SPIN_NANOSECONDS;
        while (atomic_load_explicit(&submitted, memory_order_relaxed) == seen && nanoseconds() < until)
            for (int i = 0; i < 16; i++) relax();
        pthread_mutex_lock(&lock);
        if (first == NULL && atomic_load(&submitted) == seen && running <= wanted - 1) {
            sleeping++;
            pthread_cond_wait(&work_came, &lock);
            sleeping--;
        }
    }
}

static int32_t usable_processors(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online < 1 ? 1 : (int32_t)online;
}

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void in_parent(void) { pthread_mutex_unlock(&lock); }

static void in_child(void) { /* no worker came along, and no batch of the parent's will ever be finished here */
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&work_came, NULL);
    pthread_cond_init(&batch_done, NULL);
    first = last = NULL;
    running = sleeping = 0;
    atomic_fetch_add(&generation, 1);
}

static void watch_forks(void) { pthread_atfork(before_fork, in_parent, in_child); }

/* With the lock. As many workers as are wanted, or as many as the system gives. */
static void start_workers(void) {
    if (wanted == 0) wanted = usable_processors() < MOST_THREADS ? usable_processors() : MOST_THREADS;
    while (running < wanted - 1) {
        pthread_attr_t attributes;
        pthread_t thread;
        if (pthread_attr_init(&attributes) != 0) return;
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&thread, &attributes, worker, NULL);
        pthread_attr_destroy(&attributes);
        if (failed) return; /* the waiting caller does the work */
        running++;
    }
}

void hgca_pool_submit(hgca_batch *batch) {
    pthread_once(&once, watch_forks);
    atomic_store(&batch->claimed, 0);
    atomic_store(&batch->done, 0);
    batch->next = NULL;
    pthread_mutex_lock(&lock);
    batch->shared = parallel;
    if (batch->shared) {
        pthread_mutex_unlock(&lock);
        return;
    }
    start_workers();
    if (batch->pieces > 0) {
        if (last) last->next = batch;
        else first = batch;
        last = batch;
        atomic_fetch_add(&submitted, 1);
        if (sleeping > 0) pthread_cond_broadcast(&work_came);
    }
    pthread_mutex_unlock(&lock);
}

static void help(void *batch) {
    uint64_t before = flush_denormals();
    work_on(batch);
    restore_denormals(before);
}

int hgca_share_openmp(int32_t on) {
    hgca_parallel found = NULL;
    if (on) *(void **)&found = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    pthread_mutex_lock(&lock);
    parallel = found;
    pthread_mutex_unlock(&lock);
    return on && !found ? HGCA_NO_OPENMP : HGCA_OK;
}

void hgca_pool_wait(hgca_batch *batch) {
    if (batch->shared) {
        int32_t threads = hgca_threads();
        if (threads > batch->pieces) threads = batch->pieces;
        if (threads > 1) batch->shared(help, batch, (unsigned)threads, 0);
        else help(batch);
        return;
    }
    if (batch->pieces > 0) {
        help(batch);
        int64_t until = nanoseconds() + SPIN_NANOSECONDS;
        while (atomic_load(&batch->done) < batch->pieces && nanoseconds() < until)
            for (int i = 0; i < 16; i++) relax();
    }
    pthread_mutex_lock(&lock);
    while (atomic_load(&batch->done) < batch->pieces) pthread_cond_wait(&batch_done, &lock);
    unlink_batch(batch);
    pthread_mutex_unlock(&lock);
}

void hgca_pool_lock(void) { pthread_mutex_lock(&lock); }
void hgca_pool_unlock(void) { pthread_mutex_unlock(&lock); }

int32_t hgca_pool_generation(void) { return atomic_load(&generation); }

int hgca_set_threads(int32_t threads) {
    if (threads < 1 || threads > MOST_THREADS) return HGCA_BAD_ARGUMENT;
    pthread_mutex_lock(&lock);
    wanted = threads;
    pthread_cond_broadcast(&work_came); /* who is too many goes */
    pthread_mutex_unlock(&lock);
    return HGCA_OK;
}

int32_t hgca_threads(void) {
    pthread_mutex_lock(&lock);
    int32_t threads = wanted ? wanted : usable_processors();
    pthread_mutex_unlock(&lock);
    return threads;
}
