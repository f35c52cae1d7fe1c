/* A linear layer with one vector, and how its rows are cut into pieces for the pool. */
#ifndef HGCA_LINEAR_ONE_H
#define HGCA_LINEAR_ONE_H

#include <sched.h>
#include <stdatomic.h>

#include "linear.h"
#include "tickets.h"

enum { HGCA_GRID_BLOCK = 32 }; /* rows of which pieces are multiples: a block of the layer that follows */
enum { HGCA_MOST_PIECES = 256 };

/* blocks of 32 rows, and of the last piece the end */
typedef struct {
    int32_t count;
    int32_t first[HGCA_MOST_PIECES + 1];
} hgca_pieces;

/* One layer of a call, all floats.
 *   row_bytes  of a grid a sixteenth of a tile;  placed: of a grid the vector, which `in` is else */
typedef struct {
    hgca_weights w;
    hgca_linear_kernel kernel;
    int64_t row_bytes;
    const float *in;
    hgca_placed_block *placed;
    const float *bias;
    float *out;
} hgca_one;

hgca_one hgca_one_of(const hgca_weights *weights);

static inline int hgca_on_grid(const hgca_one *l) { return l->w.kind >= HGCA_GRID8; }
static inline int32_t hgca_blocks_of(int64_t rows) { return (int32_t)((rows + HGCA_GRID_BLOCK - 1) / HGCA_GRID_BLOCK); }

/* Cut blocks of 32 rows, `bytes` for each row. */
void hgca_cut(int32_t blocks, int64_t bytes, hgca_pieces *to);

/* Numbers first .. of a layer's vector, as grids are multiplied with. */
void hgca_place(const hgca_one *l, const float *in, int64_t first, int64_t count);

/* Room for a vector of a grid. */
static inline hgca_placed_block *hgca_take_blocks(int64_t inputs, hgca_layout *own) {
    return hgca_take(own, sizeof(hgca_placed_block) * (size_t)(inputs / HGCA_GRID_BLOCK));
}

/* Until none of the pieces is left that others are at work on. */
static inline void hgca_await(_Atomic int32_t *left) {
    enum { PATIENCE = 2000 };
    for (int turn = 0; atomic_load_explicit(left, memory_order_acquire) > 0; turn++)
        if (turn > PATIENCE) sched_yield();
}

/* Rows first .. of a piece, with their bias; returns how many. */
int64_t hgca_run_rows(const hgca_one *l, int64_t first, int64_t most);

#endif
