/* A linear layer with one vector (hgca_linear): the layer's rows are cut into pieces for the pool. */
#include <stdlib.h>

#include "convert.h"
#include "hgca.h"
#include "linear.h"
#include "pool.h"

/* A piece takes some microseconds, so that a thread which is taken away holds nobody up; a large layer has more rows in
 * a piece, as claiming one is a shared counter. */
enum { PIECE_BYTES = 32 << 10, PIECES_PER_THREAD = 32, MOST = 1 << 28, BLOCK = 32 };

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    const hgca_weights *weights;
    hgca_linear_kernel kernel;
    int64_t rows_per_piece;
    int64_t grid_floats; /* of a row */
    const float *in;
    const float *block_sum;
    float *out;
} product;

static void run_piece(hgca_batch *batch, int32_t number) {
    const product *all = (const product *)(const void *)batch;
    const hgca_weights *w = all->weights;
    int64_t first = number * all->rows_per_piece, left = w->outputs - first;
    hgca_linear_rows rows = {
        .weight = (const char *)w->weight + first * w->row_bytes,
        .grid = w->grid ? w->grid + first * all->grid_floats : NULL,
        .end = (const char *)w->weight + w->outputs * w->row_bytes,
        .row_bytes = w->row_bytes,
        .rows = left < all->rows_per_piece ? left : all->rows_per_piece,
        .inputs = w->inputs,
        .in = all->in,
        .block_sum = all->block_sum,
        .out = all->out + first,
    };
    all->kernel(&rows);
}

static int fits(const hgca_weights *w) {
    static const int32_t bits[] = {[HGCA_F32] = 32, [HGCA_BF16] = 16, [HGCA_F16] = 16, [HGCA_GRID8] = 8, [HGCA_GRID4] = 4};
    if (w->weight == NULL || w->outputs < 1 || w->inputs < 1 || w->outputs > MOST || w->inputs > MOST) return 0;
    if (w->kind < HGCA_F32 || w->kind > HGCA_GRID4 || w->dtype < HGCA_F32 || w->dtype > HGCA_F16) return 0;
    if (w->kind >= HGCA_GRID8 && (w->grid == NULL || w->inputs % BLOCK)) return 0;
    return w->row_bytes >= (int64_t)w->inputs * bits[w->kind] / 8;
}

/* Numbers of one dtype as another's, by the converters of the instruction set. */
static void convert(const void *from, int32_t from_dtype, void *to, int32_t to_dtype, int64_t count) {
    hgca_rows row = {.from = from, .to = to, .rows = 1, .dim = (size_t)count};
    hgca_converters()->rows[from_dtype][to_dtype](&row);
}

int hgca_linear(const hgca_weights *w, uintptr_t in, uintptr_t out) {
    if (w == NULL || in == 0 || out == 0 || !fits(w)) return HGCA_BAD_ARGUMENT;
    product all = {.weights = w, .kernel = hgca_linear_kernels()->rows[w->kind], .in = (const float *)in, .out = (float *)out};
    const int wide = w->dtype == HGCA_F32, blocks = w->inputs / BLOCK;
    const float *bias = w->bias;
    float *own = NULL; /* sums of blocks; of 16-bit numbers as floats what comes in, what goes out, and the bias */
    if (!wide || w->kind == HGCA_GRID4) {
        int64_t floats = blocks + (wide ? 0 : w->inputs + 2 * (int64_t)w->outputs);
        own = malloc(sizeof(float) * (size_t)(floats + 1));
        if (own == NULL) return HGCA_NO_MEMORY;
        all.block_sum = own;
    }
    if (!wide) {
        float *in_floats = own + blocks, *bias_floats = in_floats + w->inputs + w->outputs;
        convert((const void *)in, w->dtype, in_floats, HGCA_F32, w->inputs);
        if (bias) convert(bias, w->dtype, bias_floats, HGCA_F32, w->outputs);
        all.in = in_floats;
        all.out = in_floats + w->inputs;
        if (bias) bias = bias_floats;
    }
    if (w->kind == HGCA_GRID4)
        for (int32_t b = 0; b < blocks; b++) {
            own[b] = 0.0f;
            for (int32_t i = 0; i < BLOCK; i++) own[b] += all.in[b * BLOCK + i];
        }
    if (w->kind >= HGCA_GRID8) all.grid_floats = w->kind == HGCA_GRID4 ? 2 * blocks : blocks;

    int64_t rows = PIECE_BYTES / w->row_bytes, most = (int64_t)hgca_threads() * PIECES_PER_THREAD;
    if (rows < w->outputs / most) rows = w->outputs / most;
    all.rows_per_piece = rows / 4 * 4 + 4; /* the kernels' four at a time */
    all.batch.run = run_piece;
    all.batch.pieces = (int32_t)((w->outputs + all.rows_per_piece - 1) / all.rows_per_piece);
    hgca_pool_submit(&all.batch);
    hgca_pool_wait(&all.batch);

    for (int32_t i = 0; bias && i < w->outputs; i++) all.out[i] += bias[i];
    if (!wide) convert(all.out, HGCA_F32, (void *)out, w->dtype, w->outputs);
    free(own);
    return HGCA_OK;
}
