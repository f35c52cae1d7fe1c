/* How the threads of the pool wait for each other: awake for a while, then asleep. A part of pool.c. */
#ifndef HGCA_POOL_WAITING_H
#define HGCA_POOL_WAITING_H

#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <unistd.h>

#include "pool.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include "relax.h"

/* Workers without work watch this. On a line of its own, as they read it all the time. */
static struct {
    _Alignas(128) _Atomic uint32_t count;
    char rest[124];
} news;

/* Stay awake until `at` is no longer `seen`, but not for long. Returns whether it changed. Whoever else wants this core
 * gets it: without that a caller that waits can keep the very worker it waits for off the core, for milliseconds. */
static int spin(const _Atomic uint32_t *at, uint32_t seen, int64_t duration) {
    if (duration == 0) return 0;
    int64_t until = hgca_now() + duration;
    do {
        for (int i = 0; i < 16; i++) {
            if (atomic_load_explicit(at, memory_order_acquire) != seen) return 1;
            hgca_relax();
        }
        sched_yield();
    } while (hgca_now() < until);
    return 0;
}

/* A futex, not a condition variable: many are woken by one call, and who wakes has no lock to fight for. */
#if defined(__linux__)
static void sleep_on(uint32_t seen) { syscall(SYS_futex, &news.count, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0); }
static void wake(int32_t workers) { syscall(SYS_futex, &news.count, FUTEX_WAKE_PRIVATE, workers, NULL, NULL, 0); }
static void forget_sleepers(void) {}
#else
static pthread_mutex_t news_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news_came = PTHREAD_COND_INITIALIZER;
static void sleep_on(uint32_t seen) {
    pthread_mutex_lock(&news_lock);
    if (atomic_load(&news.count) == seen) pthread_cond_wait(&news_came, &news_lock);
    pthread_mutex_unlock(&news_lock);
}
static void wake(int32_t workers) {
    pthread_mutex_lock(&news_lock);
    if (workers == 1) pthread_cond_signal(&news_came);
    else pthread_cond_broadcast(&news_came);
    pthread_mutex_unlock(&news_lock);
}
static void forget_sleepers(void) { /* in a forked child */
    pthread_mutex_init(&news_lock, NULL);
    pthread_cond_init(&news_came, NULL);
}
#endif

#endif
