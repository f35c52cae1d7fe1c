/* Persistent workers. A worker that runs out of work stays awake for a while, then sleeps: between two layers of a
 * decode step it is awake, between two tokens of an idle chat it costs nothing.
 *
 * A worker takes a batch under the lock and claims pieces of it without; `users` counts the workers that are at it. A
 * batch that is in nobody's hands and no longer in the queue is its owner's again: that is what hgca_pool_wait waits
 * for, so a late worker can never touch freed memory, nor claim a piece of the next batch by an old counter. */
#define _GNU_SOURCE
#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include "hgca.h"
#include "denormals.h"
#include "pool_waiting.h"
#include "processors.h"

enum { MOST_THREADS = 1024 };

/* Longer than the gap between two layers of a decode step (0.2 .. 1 ms), shorter than what an idle process is noticed
 * by. Measured in docs/log.md. */
enum { AWAKE_NANOSECONDS = 2000000 };

enum { LOCK_TRIES = 200 }; /* a few microseconds: the lock is held for tens of nanoseconds */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t batch_done = PTHREAD_COND_INITIALIZER;
static hgca_batch *first, *last;         /* batches with unclaimed pieces, oldest first */
static _Atomic int32_t wanted;           /* threads, the caller included; 0: not yet known */
static _Atomic int64_t awake;            /* nanoseconds before a thread without work sleeps */
static int32_t running;                  /* workers started */
static int32_t spinning, sleeping;       /* of them without work */
static int32_t waiting;                  /* owners asleep */
static _Atomic int32_t generation;
static hgca_parallel parallel; /* GOMP_parallel, if its threads are to be shared */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int machine_known; /* what follows is read once, with the lock */
static hgca_machine machine;
static hgca_processor_set node[HGCA_MOST_NODES];
static int32_t nodes, room[HGCA_MOST_NODES]; /* cores of the node less workers bound to it */

int64_t hgca_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void take_lock(void) { /* waking from a mutex takes longer than anything that is done with this one */
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (pthread_mutex_trylock(&lock) == 0) return;
        hgca_relax();
    }
    pthread_mutex_lock(&lock);
}

static void leave_lock(void) { pthread_mutex_unlock(&lock); }

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

static int32_t unclaimed(const hgca_batch *batch) {
    int32_t left = batch->pieces - atomic_load_explicit(&batch->claimed, memory_order_relaxed);
    return left > 0 ? left : 0;
}

/* Work on a batch until no piece is unclaimed. */
static void work_on(hgca_batch *batch) {
    for (;;) { /* looking first keeps `claimed` from overflowing, however often this is called */
        if (unclaimed(batch) == 0) return;
        int32_t piece = atomic_fetch_add(&batch->claimed, 1);
        if (piece >= batch->pieces) return;
        batch->run(batch, piece);
    }
}

/* A worker is kept to a NUMA node, so that it does not wander off from the memory it read last; inside a node, and on a
 * machine of one node, the scheduler places it. One core per worker would save no time and loses milliseconds whenever
 * that core happens to be the caller's, whom we never move: its own threads would inherit the mask. */
static void bind_to(int32_t to) {
#if defined(__linux__)
    if (to >= 0) (void)sched_setaffinity(0, sizeof node[to], (const cpu_set_t *)&node[to]); /* refused: as it was */
#else
    (void)to;
#endif
}

/* A worker that is woken must not push off whoever runs on that core: it is the caller more often than not, just back
 * from hgca_start, and would lose milliseconds. Batch threads do not; everything else about them is as usual. Whoever
 * chose another policy than the usual one for the process keeps it. */
static void be_patient(void) {
#if defined(SCHED_BATCH)
    struct sched_param none = {0};
    if (sched_getscheduler(0) == SCHED_OTHER)
        (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &none); /* refused: as it was */
#endif
}

static void *worker(void *argument) {
    int32_t mine = (int32_t)(intptr_t)argument;
    bind_to(mine);
    be_patient();
    flush_denormals();
    take_lock();
    for (;;) {
        if (running > wanted - 1) { /* fewer threads were asked for */
            running--;
            if (mine >= 0) room[mine]++;
            leave_lock();
            return NULL;
        }
        while (first != NULL && unclaimed(first) == 0) unlink_batch(first);
        hgca_batch *batch = first;
        if (batch != NULL) {
            atomic_fetch_add(&batch->users, 1);
            leave_lock();
            work_on(batch);
            atomic_fetch_sub(&batch->users, 1); /* from here the batch may be gone */
            take_lock();
            if (waiting > 0) pthread_cond_broadcast(&batch_done);
            continue;
        }
        uint32_t seen = atomic_load(&news.count);
        spinning++;
        leave_lock();
        int came = spin(&news.count, seen, atomic_load_explicit(&awake, memory_order_relaxed));
        take_lock();
        spinning--;
        if (came || first != NULL || running > wanted - 1) continue;
        /* What is queued from here on is announced after the lock was given back, so `seen` is old by then. */
        seen = atomic_load(&news.count);
        sleeping++;
        leave_lock();
        sleep_on(seen);
        take_lock();
        sleeping--;
    }
}

static void before_fork(void) { take_lock(); }
static void in_parent(void) { leave_lock(); }

static void in_child(void) { /* no worker came along, and no batch of the parent's will ever be finished here */
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&batch_done, NULL);
    forget_sleepers();
    first = last = NULL;
    running = spinning = sleeping = waiting = 0;
    machine_known = 0; /* the child may be in another cgroup, and its nodes are empty */
    atomic_fetch_add(&generation, 1);
}

static void watch_forks(void) { pthread_atfork(before_fork, in_parent, in_child); }

/* With the lock. */
static void know_machine(void) {
    if (machine_known) return;
    machine_known = 1;
    hgca_machine_read("", &machine);
    nodes = hgca_machine_nodes("", node, room);
    if (nodes == 1) nodes = 0;
}

/* With the lock. More threads than processors must not spin: they would do so on the one that has work. */
static void set_wanted(int32_t threads) {
    know_machine();
    int64_t most = (int64_t)machine.processors * 1000;
    if (machine.quota < most) most = machine.quota;
    atomic_store(&awake, (int64_t)threads * 1000 <= most ? AWAKE_NANOSECONDS : 0);
    atomic_store(&wanted, threads);
}

static void know_wanted(void) {
    if (wanted != 0) return;
    know_machine();
    int32_t threads = hgca_machine_threads(&machine);
    set_wanted(threads < MOST_THREADS ? threads : MOST_THREADS);
}

/* With the lock. The node with most room, which goes round them; -1 if all their cores have a worker already. */
static int32_t next_node(void) {
    int32_t best = -1;
    for (int32_t i = 0; i < nodes; i++)
        if (room[i] > (best < 0 ? 0 : room[best])) best = i;
    return best;
}

/* With the lock. As many workers as are wanted, or as many as the system gives. */
static void start_workers(void) {
    know_machine();
    know_wanted();
    while (running < wanted - 1) {
        pthread_attr_t attributes;
        pthread_t thread;
        int32_t to = next_node();
        if (pthread_attr_init(&attributes) != 0) return;
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        sigset_t all, before; /* a worker takes no signals: Ctrl-C must wake the thread that reads the terminal */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int failed = pthread_create(&thread, &attributes, worker, (void *)(intptr_t)to);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
        if (failed) return; /* the waiting caller does the work */
        if (to >= 0) room[to]--;
        running++;
    }
}

static hgca_parallel find_openmp(void) {
    hgca_parallel found = NULL;
    if (atomic_load(&generation)) return NULL; /* its threads did not come along into this process, and it would wait for them */
    *(void **)&found = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    return found;
}

void hgca_pool_submit(hgca_batch *batch) {
    const hgca_parallel among = batch->among_openmp ? find_openmp() : NULL;
    pthread_once(&once, watch_forks);
    atomic_store(&batch->claimed, 0);
    atomic_store(&batch->users, 0);
    batch->next = NULL;
    take_lock();
    batch->shared = among ? among : parallel;
    if (batch->shared || batch->pieces < 1) {
        leave_lock();
        return;
    }
    start_workers();
    if (last) last->next = batch;
    else first = batch;
    last = batch;
    int32_t needed = 0; /* of the sleeping ones: those who are awake come by themselves */
    if (sleeping > 0) {
        for (const hgca_batch *at = first; at != NULL && needed < MOST_THREADS; at = at->next) needed += unclaimed(at);
        needed -= spinning;
        if (needed > sleeping) needed = sleeping;
    }
    leave_lock();
    atomic_fetch_add(&news.count, 1); /* not before: who spins would run into the lock */
    if (needed > 0) wake(needed);
}

static void help(void *batch) {
    uint64_t before = flush_denormals();
    work_on(batch);
    restore_denormals(before);
}

void hgca_pool_run(hgca_batch *batch, int among_openmp) {
    batch->among_openmp = among_openmp;
    hgca_pool_submit(batch);
    hgca_pool_wait(batch);
}

int hgca_share_openmp(int32_t on) {
    hgca_parallel found = on ? find_openmp() : NULL;
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
    if (batch->pieces < 1) return;
    help(batch);
    take_lock();
    unlink_batch(batch); /* nobody takes it any more */
    leave_lock();
    int64_t duration = atomic_load_explicit(&awake, memory_order_relaxed);
    for (uint32_t left = atomic_load(&batch->users); left > 0; left = atomic_load(&batch->users))
        if (!spin(&batch->users, left, duration)) break;
    if (atomic_load(&batch->users) == 0) return;
    take_lock();
    waiting++;
    while (atomic_load(&batch->users) > 0) pthread_cond_wait(&batch_done, &lock);
    waiting--;
    leave_lock();
}

void hgca_pool_lock(void) { take_lock(); }
void hgca_pool_unlock(void) { leave_lock(); }

int32_t hgca_pool_generation(void) { return atomic_load(&generation); }

int hgca_set_threads(int32_t threads) {
    if (threads < 1 || threads > MOST_THREADS) return HGCA_BAD_ARGUMENT;
    take_lock();
    set_wanted(threads);
    int32_t asleep = sleeping;
    leave_lock();
    atomic_fetch_add(&news.count, 1);
    if (asleep > 0) wake(asleep); /* who is too many goes */
    return HGCA_OK;
}

int32_t hgca_threads(void) {
    int32_t threads = atomic_load_explicit(&wanted, memory_order_relaxed);
    if (threads != 0) return threads;
    take_lock();
    know_wanted();
    threads = wanted;
    leave_lock();
    return threads;
}
