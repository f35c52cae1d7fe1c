/* A linear layer with one vector (hgca_linear): the layer's rows are cut into pieces for the pool. */
#include "convert.h"
#include "hgca.h"
#include "linear.h"
#include "pool.h"
#include "tickets.h"

/* A piece takes some microseconds, so that a thread which is taken away holds nobody up; a large layer has more rows in
 * a piece, as claiming one is a shared counter. */
enum { PIECE_BYTES = 32 << 10, PIECES_PER_THREAD = 32, MOST = 1 << 28, BLOCK = 32 };

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    const hgca_weights *weights;
    hgca_linear_kernel kernel;
    int64_t rows_per_piece;
    const float *in;
    hgca_placed_block *placed;
    float *out;
} product;

/* Of one row; of a grid a sixteenth of a tile. */
static int64_t row_bytes(const hgca_weights *w) {
    if (w->kind < HGCA_GRID8) return w->row_bytes;
    return w->inputs / BLOCK * (w->kind == HGCA_GRID4 ? 20 : 34);
}

static void run_piece(hgca_batch *batch, int32_t number) {
    const product *all = (const product *)(const void *)batch;
    const hgca_weights *w = all->weights;
    const int64_t first = number * all->rows_per_piece, left = w->outputs - first, bytes = row_bytes(w);
    hgca_linear_rows rows = {
        .weight = (const char *)w->weight + first * bytes,
        .end = (const char *)w->weight + w->outputs * bytes,
        .row_bytes = bytes,
        .rows = left < all->rows_per_piece ? left : all->rows_per_piece,
        .inputs = w->inputs,
        .in = all->in,
        .placed = all->placed,
        .out = all->out + first,
    };
    all->kernel(&rows);
}

static int fits(const hgca_weights *w) {
    static const int32_t bytes[] = {[HGCA_F32] = 4, [HGCA_BF16] = 2, [HGCA_F16] = 2};
    if (w->weight == NULL || w->outputs < 1 || w->inputs < 1 || w->outputs > MOST || w->inputs > MOST) return 0;
    if (w->kind < HGCA_F32 || w->kind > HGCA_GRID4 || w->dtype < HGCA_F32 || w->dtype > HGCA_F16) return 0;
    if (w->kind >= HGCA_GRID8) return w->inputs % BLOCK == 0;
    return w->row_bytes >= (int64_t)w->inputs * bytes[w->kind];
}

/* Numbers of one dtype as another's, by the converters of the instruction set. */
static void convert(const void *from, int32_t from_dtype, void *to, int32_t to_dtype, int64_t count) {
    hgca_rows row = {.from = from, .to = to, .rows = 1, .dim = (size_t)count};
    hgca_converters()->rows[from_dtype][to_dtype](&row);
}

int hgca_linear(const hgca_weights *w, uintptr_t in, uintptr_t out) {
    if (w == NULL || in == 0 || out == 0 || !fits(w)) return HGCA_BAD_ARGUMENT;
    const hgca_isa_linear *isa = hgca_linear_kernels();
    product all = {.weights = w, .kernel = isa->rows[w->kind], .in = (const float *)in, .out = (float *)out};
    const int wide = w->dtype == HGCA_F32, grid = w->kind >= HGCA_GRID8;
    const size_t blocks = (size_t)(w->inputs / BLOCK);
    const float *bias = w->bias;
    hgca_layout own = {NULL, 0}; /* what is placed for a grid; of 16-bit numbers, as floats, what comes in and goes out and the bias */
    float *in_floats = NULL, *out_floats = NULL, *bias_floats = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && own.used && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        if (grid) all.placed = hgca_take(&own, sizeof *all.placed * blocks);
        if (wide) continue;
        in_floats = hgca_take(&own, sizeof(float) * (size_t)w->inputs);
        out_floats = hgca_take(&own, sizeof(float) * (size_t)w->outputs);
        if (bias) bias_floats = hgca_take(&own, sizeof(float) * (size_t)w->outputs);
    }
    if (!wide) {
        convert((const void *)in, w->dtype, in_floats, HGCA_F32, w->inputs);
        if (bias) convert(bias, w->dtype, bias_floats, HGCA_F32, w->outputs);
        all.in = in_floats;
        all.out = out_floats;
        bias = bias_floats;
    }
    if (grid) isa->place(all.in, (int64_t)blocks, all.placed);

    int64_t rows = PIECE_BYTES / row_bytes(w), most = (int64_t)hgca_threads() * PIECES_PER_THREAD;
    if (rows < w->outputs / most) rows = w->outputs / most;
    all.rows_per_piece = rows / HGCA_TILE * HGCA_TILE + HGCA_TILE;
    all.batch.run = run_piece;
    all.batch.pieces = (int32_t)((w->outputs + all.rows_per_piece - 1) / all.rows_per_piece);
    hgca_pool_submit(&all.batch);
    hgca_pool_wait(&all.batch);

    for (int32_t i = 0; bias && i < w->outputs; i++) all.out[i] += bias[i];
    if (!wide) convert(all.out, HGCA_F32, (void *)out, w->dtype, w->outputs);
    if (own.base) hgca_give_memory(own.base);
    return HGCA_OK;
}
