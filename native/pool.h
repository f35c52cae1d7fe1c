/* Worker threads and the queue of batches they work on. */
#ifndef HGCA_POOL_H
#define HGCA_POOL_H

#include <stdatomic.h>
#include <stdint.h>

/* GOMP_parallel: every thread of a team calls `run`. */
typedef void (*hgca_parallel)(void (*run)(void *), void *data, unsigned threads, unsigned flags);

/* A batch of pieces. The pool claims pieces one by one and calls `run` for each; `run` may be called by several threads
 * at once, for different pieces. The memory is the caller's until `hgca_pool_wait` has returned. */
typedef struct hgca_batch {
    void (*run)(struct hgca_batch *batch, int32_t piece);
    int32_t pieces;
    _Atomic int32_t claimed;
    _Atomic uint32_t users; /* workers that are at it */
    struct hgca_batch *next; /* in the queue */
    hgca_parallel shared;    /* OpenMP's threads do the work, in hgca_pool_wait; NULL: the queue does */
    int among_openmp;        /* as of hgca_pool_run, for hgca_pool_submit */
} hgca_batch;

void hgca_pool_submit(hgca_batch *batch);
void hgca_pool_wait(hgca_batch *batch);

/* Both. `among_openmp`: between work that OpenMP's threads do, if the process has any: they still spin for more, and are asked to help. */
void hgca_pool_run(hgca_batch *batch, int among_openmp);

/* The pool's lock, also for the list of outstanding work. */
void hgca_pool_lock(void);
void hgca_pool_unlock(void);

/* Counts the forks since the library was loaded: a batch of an earlier count belongs to the parent. */
int32_t hgca_pool_generation(void);

/* Nanoseconds of a clock that only goes forward. */
int64_t hgca_now(void);

#endif
