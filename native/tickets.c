/* The list of what was started: hgca_wait takes it off. */
#include "tickets.h"

#include <stddef.h>
#include <stdlib.h>

#include "hgca.h"

static hgca_started *outstanding; /* both with the pool's lock, which survives a fork */
static int64_t last_ticket;

/* The size stands before the memory. */
enum { SPARES = 4, LINE = 64 };
static void *spare[SPARES]; /* with the pool's lock too */

static size_t *size_of(void *memory) { return (size_t *)(void *)((char *)memory - LINE); }

void *hgca_take_memory(size_t bytes) {
    void *found = NULL;
    int best = -1;
    hgca_pool_lock();
    for (int i = 0; i < SPARES; i++) /* the smallest that is enough: a large job finds the memory it had, still in the cache */
        if (spare[i] && *size_of(spare[i]) >= bytes && (best < 0 || *size_of(spare[i]) < *size_of(spare[best]))) best = i;
    if (best >= 0) found = spare[best], spare[best] = NULL;
    hgca_pool_unlock();
    if (found) return found;
    const size_t size = (bytes + bytes / 8 + LINE) / LINE * LINE; /* a little more: the next asks for a little more */
    char *fresh = aligned_alloc(LINE, size + LINE);
    if (fresh == NULL) return NULL;
    *(size_t *)(void *)fresh = size;
    return fresh + LINE;
}

void hgca_give_memory(void *memory) {
    void *out = memory;
    hgca_pool_lock();
    for (int i = 0; i < SPARES && out; i++) /* the smallest goes */
        if (spare[i] == NULL || *size_of(spare[i]) < *size_of(out)) {
            void *kept = spare[i];
            spare[i] = out;
            out = kept;
        }
    hgca_pool_unlock();
    if (out) free(size_of(out));
}

void hgca_submit(hgca_started *work, int64_t *ticket) {
    hgca_pool_lock();
    work->ticket = *ticket = ++last_ticket;
    work->generation = hgca_pool_generation();
    work->next = outstanding;
    outstanding = work;
    hgca_pool_unlock();
    hgca_pool_submit(&work->batch);
}

int hgca_wait(int64_t ticket) {
    hgca_pool_lock();
    hgca_started **at = &outstanding;
    while (*at && (*at)->ticket != ticket) at = &(*at)->next;
    hgca_started *work = *at;
    if (work) *at = work->next;
    hgca_pool_unlock();
    if (work == NULL) return HGCA_BAD_ARGUMENT;
    int ours = work->generation == hgca_pool_generation();
    if (ours) {
        hgca_pool_wait(&work->batch);
        if (work->finish) work->finish(work);
    }
    hgca_give_memory(work);
    return ours ? HGCA_OK : HGCA_FORKED;
}
