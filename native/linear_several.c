/* Linear layers with several vectors (hgca_linear_several): those are placed for grids first, then rows are multiplied by pieces of the
 * pool. What is done to the vectors before is done where they are placed, what is added to the result where it is written. */
#include <string.h>

#include "hgca.h"
#include "layer.h"
#include "linear.h"
#include "pool.h"
#include "tickets.h"

/* A piece is some ten microseconds of products, or of placing. */
enum { PIECE_PRODUCTS = 1 << 20, PIECE_NUMBERS = 16 << 10, MOST = 1 << 28, BLOCK = 32, FEW = 64, AT_MEMORY = 8, MADE = 256, PIECE_ROWS = 4 * HGCA_TILE };

typedef struct {
    hgca_weights w;
    int64_t row_bytes; /* of a grid a sixteenth of a tile */
    int64_t rows;      /* of a piece */
    int64_t row_pieces;
    int64_t first_piece;
    float *out;
} layer;

/* numbers: of chunks of HGCA_SEVERAL vectors, one behind the other; NULL: no layer is on a grid
 * made: the vectors as floats; NULL: no layer wants them, or they are `in` */
typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    layer layer[HGCA_MOST_LAYERS];
    int32_t layers;
    int64_t vectors;
    int64_t inputs;
    int64_t each; /* vectors that a piece of placing has */
    int few; /* vectors, for the kernels of a few */
    const float *in;
    hgca_around around;
    hgca_numbers *numbers;
    float *made;
} products;

static int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t pieces_of(int64_t all, int64_t each) { return (all + each - 1) / each; }
static int64_t in_chunk(const products *p, int64_t chunk) { return lesser(HGCA_SEVERAL, p->vectors - chunk * HGCA_SEVERAL); }
static hgca_numbers *chunk_of(const products *p, int64_t chunk) {
    return p->numbers ? p->numbers + chunk * HGCA_SEVERAL * (p->inputs / BLOCK) : NULL;
}

/* Some numbers of a vector as they are multiplied: first .. first + count - 1. */
static void make(const products *p, int64_t v, float inverse, int64_t first, int64_t count, float *to) {
    const float *in = p->in + v * p->inputs + first;
    if (p->around.norm) hgca_norm_by(p->around.norm, inverse, in, first, count, to);
    if (p->around.up) {
        memcpy(to, in, sizeof(float) * (size_t)count);
        hgca_linear_kernels()->gate(to, p->around.up + v * p->inputs + first, count);
    }
}

/* What a vector is multiplied as: on grids as whole numbers, elsewhere as floats. */
static void place_vector(const products *p, int64_t v, hgca_numbers *to, int64_t stride) {
    const hgca_isa_linear *kernels = hgca_linear_kernels();
    void (*const place)(const float *, int64_t, hgca_numbers *, int64_t) = p->few ? kernels->place_few : kernels->place_several;
    const float *in = p->in + v * p->inputs;
    if (!p->around.norm && !p->around.up) {
        if (p->numbers) place(in, p->inputs, to, stride);
        return;
    }
    const float inverse = p->around.norm ? hgca_norm_inverse(p->around.norm, in, p->inputs) : 0.0f;
    for (int64_t first = 0; first < p->inputs; first += MADE) {
        float some[MADE];
        const int64_t count = lesser(MADE, p->inputs - first);
        float *made = p->made ? p->made + v * p->inputs + first : some;
        make(p, v, inverse, first, count, made);
        if (p->numbers) place(made, count, to + first / BLOCK * stride, stride);
    }
}

static void run_placing(hgca_batch *batch, int32_t piece) {
    const products *p = (const products *)(const void *)batch;
    const int64_t first = piece * p->each, end = lesser(p->vectors, first + p->each);
    for (int64_t v = first; v < end; v++) {
        const int64_t chunk = v / HGCA_SEVERAL;
        hgca_numbers *first_of = chunk_of(p, chunk);
        place_vector(p, v, first_of ? first_of + v % HGCA_SEVERAL : NULL, in_chunk(p, chunk));
    }
}

static void run_products(hgca_batch *batch, int32_t piece) {
    const products *p = (const products *)(const void *)batch;
    int32_t i = p->layers - 1;
    while (piece < p->layer[i].first_piece) i--;
    const layer *l = &p->layer[i];
    const int64_t at = piece - l->first_piece, chunk = at / l->row_pieces, first = at % l->row_pieces * l->rows;
    const hgca_several_rows rows = {
        .weight = (const char *)l->w.weight + first * l->row_bytes,
        .row_bytes = l->row_bytes,
        .rows = lesser(l->rows, l->w.outputs - first),
        .inputs = p->inputs,
        .numbers = chunk_of(p, chunk),
        .in = (p->made ? p->made : p->in) + chunk * HGCA_SEVERAL * p->inputs,
        .vectors = in_chunk(p, chunk),
        .bias = l->w.bias ? (const float *)l->w.bias + first : NULL,
        .onto = p->around.onto ? p->around.onto + chunk * HGCA_SEVERAL * l->w.outputs + first : NULL,
        .out = l->out + chunk * HGCA_SEVERAL * l->w.outputs + first,
        .out_stride = l->w.outputs,
    };
    const hgca_isa_linear *kernels = hgca_linear_kernels();
    if (p->few && l->w.kind >= HGCA_GRID8) kernels->few[l->w.kind - HGCA_GRID8](&rows);
    else kernels->several[l->w.kind](&rows);
}

static void run(products *p, void (*piece)(hgca_batch *, int32_t), int64_t pieces) {
    memset(&p->batch, 0, sizeof p->batch);
    p->batch.run = piece, p->batch.pieces = (int32_t)pieces;
    hgca_pool_run(&p->batch, p->around.among_openmp);
}

int hgca_linear_several(const hgca_weights *weights, int32_t count, int64_t vectors, uintptr_t in, uintptr_t out) {
    const hgca_around none = {.among_openmp = vectors > FEW}; /* a prompt: torch does all else of a layer */
    return hgca_linear_around(weights, count, vectors, (const float *)in, &none, (float *)out);
}

/* Whole tiles. With a few vectors, which come at the rate of memory, a piece is all that a thread reads (linear.c); else as many as a
 * kernel takes at once, and every thread has two pieces at least. */
static int64_t rows_of_piece(int64_t inputs, int64_t vectors, int64_t rows) {
    const int32_t threads = hgca_threads();
    if (vectors <= AT_MEMORY && threads <= HGCA_FEW_THREADS) return pieces_of(rows, threads * HGCA_TILE) * HGCA_TILE;
    const int64_t share = rows / (2 * threads), most = lesser(PIECE_PRODUCTS / (inputs * vectors), share);
    if (most >= PIECE_ROWS) return most / PIECE_ROWS * PIECE_ROWS;
    return share < HGCA_TILE ? HGCA_TILE : lesser(share / HGCA_TILE * HGCA_TILE, PIECE_ROWS);
}

int hgca_linear_around(const hgca_weights *weights, int32_t count, int64_t vectors, const float *in, const hgca_around *around,
                       float *out) {
    if (weights == NULL || !in || !out || count < 1 || count > HGCA_MOST_LAYERS || vectors < 1 || vectors > MOST) return HGCA_BAD_ARGUMENT;
    products p = {.layers = count, .vectors = vectors, .inputs = weights[0].inputs, .in = in, .around = *around};
    const int64_t chunks = pieces_of(vectors, HGCA_SEVERAL);
    p.few = vectors <= hgca_linear_kernels()->few_vectors;
    float *to = out;
    int64_t pieces = 0, outputs = 0;
    int32_t grids = 0;
    for (int32_t i = 0; i < count; i++) outputs += weights[i].outputs;
    for (int32_t i = 0; i < count; i++) {
        const hgca_weights *w = &weights[i];
        if (!hgca_weights_fit(w) || w->dtype != HGCA_F32 || w->inputs != weights[0].inputs) return HGCA_BAD_ARGUMENT;
        const int on_grid = w->kind >= HGCA_GRID8;
        grids += on_grid;
        layer *l = &p.layer[i];
        const int64_t rows = rows_of_piece(p.inputs, lesser(vectors, HGCA_SEVERAL), chunks * outputs);
        *l = (layer){.w = *w, .rows = rows, .first_piece = pieces, .out = to};
        l->row_bytes = on_grid ? hgca_grid_row_bytes(w) : w->row_bytes;
        l->row_pieces = pieces_of(w->outputs, l->rows);
        pieces += chunks * l->row_pieces, to += vectors * w->outputs;
    }
    if (pieces > INT32_MAX) return HGCA_BAD_ARGUMENT;
    p.each = lesser(PIECE_NUMBERS / p.inputs, pieces_of(vectors, hgca_threads()));
    if (p.each < 1) p.each = 1;
    const int makes = grids < count && (around->norm || around->up);
    hgca_layout own = {NULL, 0};
    for (int pass = 0; pass < 2 && (grids || makes); pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        if (grids) p.numbers = hgca_take(&own, sizeof(hgca_numbers) * (size_t)(vectors * (p.inputs / BLOCK)));
        if (makes) p.made = hgca_take(&own, sizeof(float) * (size_t)(vectors * p.inputs));
    }
    if (own.base) run(&p, run_placing, pieces_of(vectors, p.each));
    run(&p, run_products, pieces);
    if (own.base) hgca_give_memory(own.base);
    return HGCA_OK;
}

int64_t hgca_most_vectors(void) { return hgca_linear_kernels()->most_vectors; }
