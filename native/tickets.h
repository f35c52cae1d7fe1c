/* Work that was started and not waited for yet. */
#ifndef HGCA_TICKETS_H
#define HGCA_TICKETS_H

#include <stdint.h>

#include "pool.h"

/* The first member of every kind of work: one malloc'ed piece of memory that hgca_wait frees. */
typedef struct hgca_started {
    hgca_batch batch; /* first: the pool hands this back */
    int64_t ticket;
    int32_t generation;
    struct hgca_started *next;
} hgca_started;

/* Hand the batch to the pool; *ticket is what hgca_wait takes. */
void hgca_submit(hgca_started *work, int64_t *ticket);

#endif
