/* The list of what was started: hgca_wait takes it off. */
#include "tickets.h"

#include <stddef.h>
#include <stdlib.h>

#include "hgca.h"

static hgca_started *outstanding; /* both with the pool's lock, which survives a fork */
static int64_t last_ticket;

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
    if (ours) hgca_pool_wait(&work->batch);
    free(work);
    return ours ? HGCA_OK : HGCA_FORKED;
}
