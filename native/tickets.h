/* Work that was started and not waited for yet. */
#ifndef HGCA_TICKETS_H
#define HGCA_TICKETS_H

#include <stddef.h>
#include <stdint.h>

#include "pool.h"

/* The first member of every kind of work: one piece of hgca_take_memory that hgca_wait gives back. */
typedef struct hgca_started {
    hgca_batch batch; /* first: the pool hands this back */
    int64_t ticket;
    int32_t generation;
    struct hgca_started *next;
    void (*finish)(struct hgca_started *work); /* the last thing before the memory is given back; or NULL */
} hgca_started;

/* Hand the batch to the pool; *ticket is what hgca_wait takes. */
void hgca_submit(hgca_started *work, int64_t *ticket);

/* Memory is laid out in two passes over the same code: without a base it only counts. */
typedef struct {
    char *base;
    size_t used;
} hgca_layout;

static inline void *hgca_take(hgca_layout *at, size_t bytes) {
    void *here = at->base ? at->base + at->used : NULL;
    at->used += (bytes + 63) & ~(size_t)63;
    return here;
}

/* Memory for work, aligned to a cache line, not cleared; hgca_give_memory keeps some for the next, as fresh pages cost more than
 * a small job. NULL if there is none. */
void *hgca_take_memory(size_t bytes);
void hgca_give_memory(void *memory);

#endif
