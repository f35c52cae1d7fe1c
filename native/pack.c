/* Weights rounded onto a grid (hgca_pack): tiles by pieces of the pool. */
#include <stdatomic.h>
#include <string.h>

#include "hgca.h"
#include "linear.h"
#include "pool.h"

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    const hgca_weights *w;
    int bits;
    char *to;
    _Atomic uint32_t lost; /* bits of a float that is not negative: larger ones are larger numbers */
} packing;

static void run_tile(hgca_batch *batch, int32_t piece) {
    packing *p = (packing *)(void *)batch;
    const int64_t first = (int64_t)piece * HGCA_TILE, left = p->w->outputs - first;
    const int64_t tile_bytes = p->w->inputs / 32 * HGCA_TILE * (p->bits == 4 ? HGCA_GRID4_ROW : HGCA_GRID8_ROW);
    const hgca_packed_rows rows = {
        .from = (const char *)p->w->weight + first * p->w->row_bytes,
        .row_bytes = p->w->row_bytes,
        .rows = left < HGCA_TILE ? left : HGCA_TILE,
        .inputs = p->w->inputs,
        .dtype = p->w->kind,
        .tile = p->to + piece * tile_bytes,
    };
    const float lost = hgca_linear_kernels()->pack[p->bits == 4](&rows);
    uint32_t bits, most = atomic_load_explicit(&p->lost, memory_order_relaxed);
    memcpy(&bits, &lost, sizeof bits);
    while (bits > most && !atomic_compare_exchange_weak_explicit(&p->lost, &most, bits, memory_order_relaxed, memory_order_relaxed)) continue;
}

int hgca_pack(const hgca_weights *weights, int32_t kind, uintptr_t to, float *lost) {
    if (weights == NULL || to == 0 || lost == NULL || (kind != HGCA_GRID8 && kind != HGCA_GRID4)) return HGCA_BAD_ARGUMENT;
    if (!hgca_weights_fit(weights) || weights->kind > HGCA_F16 || weights->inputs % 32) return HGCA_BAD_ARGUMENT;
    packing p = {.w = weights, .bits = kind == HGCA_GRID4 ? 4 : 8, .to = (char *)to};
    p.batch.run = run_tile, p.batch.pieces = (weights->outputs + HGCA_TILE - 1) / HGCA_TILE;
    hgca_pool_run(&p.batch, 0);
    const uint32_t bits = atomic_load_explicit(&p.lost, memory_order_relaxed);
    memcpy(lost, &bits, sizeof bits);
    return HGCA_OK;
}
