/* Linear layers with one vector (hgca_linear, hgca_gated): rows are cut into pieces for the pool. */
#include <string.h>

#include "convert.h"
#include "hgca.h"
#include "linear_one.h"
#include "pool.h"
#include "tickets.h"

enum { PIECE_BYTES = 16 << 10, MOST = 1 << 28 };

int hgca_weights_fit(const hgca_weights *w) {
    static const int32_t bytes[] = {[HGCA_F32] = 4, [HGCA_BF16] = 2, [HGCA_F16] = 2};
    if (w->weight == NULL || w->outputs < 1 || w->inputs < 1 || w->outputs > MOST || w->inputs > MOST) return 0;
    if (w->kind < HGCA_F32 || w->kind > HGCA_FLOAT4 || w->dtype < HGCA_F32 || w->dtype > HGCA_F16) return 0;
    if (w->kind >= HGCA_GRID8) return w->inputs % HGCA_GRID_BLOCK == 0;
    return w->row_bytes >= (int64_t)w->inputs * bytes[w->kind];
}

int64_t hgca_grid_row_bytes(const hgca_weights *w) {
    static const int32_t bytes[] = {[HGCA_GRID8] = HGCA_GRID8_ROW, [HGCA_GRID4] = HGCA_GRID4_ROW, [HGCA_FLOAT4] = HGCA_FLOAT4_ROW};
    return w->inputs / HGCA_GRID_BLOCK * bytes[w->kind];
}

hgca_one hgca_one_of(const hgca_weights *w) {
    hgca_one l = {.w = *w, .kernel = hgca_linear_kernels()->rows[w->kind], .row_bytes = w->row_bytes};
    if (w->kind >= HGCA_GRID8) l.row_bytes = hgca_grid_row_bytes(w);
    return l;
}

static int is_wide(const hgca_one *l) { return l->w.dtype == HGCA_F32; }

/* A thread reads one piece: where a piece begins memory has to be waited for, and what was fetched beyond its end is another thread's. Of
 * many threads some are slower than others, or have neighbours: there a piece is three quarters of a thread's share, and the rest goes to
 * whoever is there first. */
void hgca_cut(int32_t blocks, int64_t bytes, hgca_pieces *to) {
    const int32_t threads = hgca_threads();
    int32_t least = (int32_t)(PIECE_BYTES / (HGCA_GRID_BLOCK * bytes)), at;
    do {
        least = least < 1 ? 1 : least;
        to->count = at = 0;
        while (at < blocks && to->count < HGCA_MOST_PIECES) {
            const int32_t left = blocks - at, even = (blocks + threads - 1) / threads;
            const int32_t uneven = 4 * at < 3 * blocks ? 3 * even / 4 : (left + threads - 1) / threads;
            const int32_t share = threads > HGCA_FEW_THREADS ? uneven : even, size = share < least ? least : share;
            to->first[to->count++] = at;
            at += size < left ? size : left;
        }
        least *= 2; /* so many threads that there are more pieces than places */
    } while (at < blocks);
    to->first[to->count] = blocks;
}

/* Numbers of one dtype as another's, by the converters of the instruction set. */
static void convert(const void *from, int32_t from_dtype, void *to, int32_t to_dtype, int64_t count) {
    hgca_rows row = {.from = from, .to = to, .rows = 1, .dim = (size_t)count};
    hgca_converters()->rows[from_dtype][to_dtype](&row);
}

void hgca_place(const hgca_one *l, const float *in, int64_t first, int64_t count) {
    if (hgca_on_grid(l)) hgca_linear_kernels()->place(in + first, count / HGCA_GRID_BLOCK, l->placed + first / HGCA_GRID_BLOCK);
}

/* The vector as floats: of 16-bit numbers a copy in `floats`. */
static const float *floats_of(uintptr_t in, const hgca_one *l, float *floats) {
    if (is_wide(l)) return (const float *)in;
    convert((const void *)in, l->w.dtype, floats, HGCA_F32, l->w.inputs);
    return floats;
}

static void take_bias(hgca_one *l, hgca_layout *own) {
    if (l->w.bias == NULL) return;
    if (is_wide(l)) {
        l->bias = l->w.bias;
        return;
    }
    float *floats = hgca_take(own, sizeof(float) * (size_t)l->w.outputs);
    if (own->base) convert(l->w.bias, l->w.dtype, floats, HGCA_F32, l->w.outputs);
    l->bias = floats;
}

int64_t hgca_run_rows(const hgca_one *l, int64_t first, int64_t most) {
    const int64_t left = l->w.outputs - first;
    hgca_linear_rows rows = {
        .weight = (const char *)l->w.weight + first * l->row_bytes,
        .end = (const char *)l->w.weight + l->w.outputs * l->row_bytes,
        .row_bytes = l->row_bytes,
        .rows = left < most ? left : most,
        .inputs = l->w.inputs,
        .in = l->in,
        .placed = l->placed,
        .out = l->out + first,
    };
    l->kernel(&rows);
    for (int64_t i = 0; l->bias && i < rows.rows; i++) rows.out[i] += l->bias[first + i];
    return rows.rows;
}

/* ---- layers that share a vector */

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    hgca_one layer[HGCA_MOST_LAYERS];
    int32_t layers;
    hgca_pieces cut; /* of all layers' blocks, one layer after the other */
} products;

static void run_product(hgca_batch *batch, int32_t piece) {
    const products *all = (const products *)(const void *)batch;
    int32_t first = all->cut.first[piece], end = all->cut.first[piece + 1];
    for (int32_t i = 0; i < all->layers && end > 0; i++) {
        const hgca_one *l = &all->layer[i];
        const int32_t blocks = hgca_blocks_of(l->w.outputs);
        if (first < blocks) hgca_run_rows(l, (int64_t)first * HGCA_GRID_BLOCK, (int64_t)(end - first) * HGCA_GRID_BLOCK);
        first = first < blocks ? 0 : first - blocks;
        end -= blocks;
    }
}

int hgca_linear(const hgca_weights *weights, int32_t count, uintptr_t in, uintptr_t out) {
    if (weights == NULL || in == 0 || out == 0 || count < 1 || count > HGCA_MOST_LAYERS) return HGCA_BAD_ARGUMENT;
    products all = {.batch = {.run = run_product}, .layers = count};
    const hgca_one *grid = NULL, *first = &all.layer[0];
    int64_t outputs = 0, bytes = 0;
    int32_t blocks = 0;
    for (int32_t i = 0; i < count; i++) {
        if (!hgca_weights_fit(&weights[i]) || weights[i].inputs != weights[0].inputs || weights[i].dtype != weights[0].dtype)
            return HGCA_BAD_ARGUMENT;
        hgca_one *l = &all.layer[i];
        *l = hgca_one_of(&weights[i]);
        blocks += hgca_blocks_of(l->w.outputs);
        bytes += l->w.outputs * l->row_bytes;
        outputs += l->w.outputs;
        if (hgca_on_grid(l)) grid = l;
    }
    hgca_cut(blocks, bytes / outputs, &all.cut);
    all.batch.pieces = all.cut.count;
    hgca_layout own = {NULL, 0}; /* what is placed for a grid; of 16-bit numbers as floats what comes in and goes out, the biases */
    float *in_floats = NULL, *out_floats = (float *)out;
    hgca_placed_block *placed = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && own.used && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        if (grid) placed = hgca_take_blocks(grid->w.inputs, &own);
        if (!is_wide(first)) in_floats = hgca_take(&own, sizeof(float) * (size_t)first->w.inputs);
        if (!is_wide(first)) out_floats = hgca_take(&own, sizeof(float) * (size_t)outputs);
        for (int32_t i = 0; i < count; i++) take_bias(&all.layer[i], &own);
    }
    const float *numbers = floats_of(in, first, in_floats);
    float *to = out_floats;
    for (int32_t i = 0; i < count; i++) {
        hgca_one *l = &all.layer[i];
        l->in = numbers, l->out = to, l->placed = placed;
        to += l->w.outputs;
    }
    if (grid) hgca_place(grid, numbers, 0, grid->w.inputs);
    hgca_pool_run(&all.batch, 0);
    if (!is_wide(first)) convert(out_floats, HGCA_F32, (void *)out, first->w.dtype, outputs);
    if (own.base) hgca_give_memory(own.base);
    return HGCA_OK;
}

/* ---- a gated feed-forward block */

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    hgca_one gate, up, down;
    hgca_pieces hidden, last;  /* these come last */
    _Atomic int32_t left; /* of the hidden ones */
} block;

static void run_hidden(block *all, int64_t first, int64_t most) {
    const int64_t rows = hgca_run_rows(&all->gate, first, most);
    float *hidden = all->gate.out + first;
    hgca_run_rows(&all->up, first, rows);
    hgca_linear_kernels()->gate(hidden, all->up.out + first, rows);
    hgca_place(&all->down, all->gate.out, first, rows);
}

static void run_block(hgca_batch *batch, int32_t piece) {
    block *all = (block *)(void *)batch;
    const int is_hidden = piece < all->hidden.count;
    const int32_t *cut = is_hidden ? &all->hidden.first[piece] : &all->last.first[piece - all->hidden.count];
    const int64_t first = (int64_t)cut[0] * HGCA_GRID_BLOCK, rows = (int64_t)(cut[1] - cut[0]) * HGCA_GRID_BLOCK;
    if (is_hidden) {
        run_hidden(all, first, rows);
        atomic_fetch_sub_explicit(&all->left, 1, memory_order_release);
        return;
    }
    hgca_await(&all->left);
    hgca_run_rows(&all->down, first, rows);
}

int hgca_gated(const hgca_weights *weights, uintptr_t in, uintptr_t out) {
    if (weights == NULL || in == 0 || out == 0) return HGCA_BAD_ARGUMENT;
    for (int i = 0; i < 3; i++)
        if (!hgca_weights_fit(&weights[i]) || weights[i].dtype != weights[0].dtype) return HGCA_BAD_ARGUMENT;
    block all = {.batch = {.run = run_block}, .gate = hgca_one_of(&weights[0]), .up = hgca_one_of(&weights[1]), .down = hgca_one_of(&weights[2])};
    hgca_one *gate = &all.gate, *up = &all.up, *down = &all.down;
    const hgca_one *grid = hgca_on_grid(gate) ? gate : hgca_on_grid(up) ? up : NULL;
    const int64_t width = gate->w.outputs;
    if (up->w.outputs != width || down->w.inputs != width || up->w.inputs != gate->w.inputs) return HGCA_BAD_ARGUMENT;
    hgca_cut(hgca_blocks_of(width), gate->row_bytes + up->row_bytes, &all.hidden);
    hgca_cut(hgca_blocks_of(down->w.outputs), down->row_bytes, &all.last);
    all.batch.pieces = all.hidden.count + all.last.count;
    atomic_init(&all.left, all.hidden.count);

    hgca_layout own = {NULL, 0};
    hgca_placed_block *placed = NULL;
    float *in_floats = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        if (grid) placed = hgca_take_blocks(grid->w.inputs, &own);
        if (hgca_on_grid(down)) down->placed = hgca_take_blocks(down->w.inputs, &own);
        gate->out = hgca_take(&own, sizeof(float) * (size_t)width);
        up->out = hgca_take(&own, sizeof(float) * (size_t)width);
        down->out = is_wide(down) ? (float *)out : hgca_take(&own, sizeof(float) * (size_t)down->w.outputs);
        if (!is_wide(gate)) in_floats = hgca_take(&own, sizeof(float) * (size_t)gate->w.inputs);
        take_bias(gate, &own);
        take_bias(up, &own);
        take_bias(down, &own);
    }
    gate->in = up->in = floats_of(in, gate, in_floats);
    gate->placed = up->placed = placed;
    down->in = gate->out;
    if (grid) hgca_place(grid, gate->in, 0, gate->w.inputs);
    hgca_pool_run(&all.batch, 0);
    if (!is_wide(down)) convert(down->out, HGCA_F32, (void *)out, down->w.dtype, down->w.outputs);
    hgca_give_memory(own.base);
    return HGCA_OK;
}

int hgca_same(uintptr_t a, uintptr_t b, int64_t bytes) { return memcmp((const void *)a, (const void *)b, (size_t)bytes) == 0; }
