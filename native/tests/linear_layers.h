/* Layers of random weights that are known exactly. Their memory is allocated to the byte and begins at odd addresses. */
#ifndef HGCA_TESTS_LINEAR_LAYERS_H
#define HGCA_TESTS_LINEAR_LAYERS_H

#include "hgca.h"
#include "linear.h"
#include "numbers.h"

enum { TILE = 16, BLOCK = 32 };

typedef struct {
    hgca_weights w;
    double *exact; /* [outputs][inputs] */
    double *bias;
    char *memory;
    float *biases;
} layer;

static inline float draw_half(char *at, uint64_t *state) { return put(at, HGCA_F16, state); }

/* Rows r of a tile: numbers are s q + m. Rows behind the last are zeros. */
static inline void fill_grid(layer *l, char *at, uint64_t *state) {
    static const int floats[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const int real = l->w.kind == HGCA_FLOAT4, bits = l->w.kind == HGCA_GRID8 ? 8 : 4, blocks = l->w.inputs / BLOCK;
    const int factors = l->w.kind == HGCA_GRID4 ? 64 : 32;
    for (int tile = 0; tile * TILE < l->w.outputs; tile++)
        for (int b = 0; b < blocks; b++, at += factors + TILE * (bits == 4 ? 16 : 32))
            for (int r = 0; r < TILE && tile * TILE + r < l->w.outputs; r++) {
                const double s = draw_half(at + 2 * r, state), m = factors == 64 ? draw_half(at + 32 + 2 * r, state) : 0.0;
                double *row = l->exact + ((int64_t)tile * TILE + r) * l->w.inputs + (int64_t)b * BLOCK;
                for (int i = 0; i < BLOCK; i++) {
                    const int code = bits == 4 ? (int)(fabs(uniform(state)) * 16.0) : (int)(uniform(state) * 128.0);
                    char *byte = at + factors + (bits == 4 ? i / 8 * 64 + i % 4 : i / 4 * 64 + i % 4) + 4 * r;
                    if (bits == 8) *byte = (char)(int8_t)code;
                    else *byte = (char)(*byte | code << (i % 8 < 4 ? 0 : 4));
                    row[i] = s * (real ? floats[code] : code) + m;
                }
            }
}

static const int hgca_row_bytes[] = {0, 0, 0, HGCA_GRID8_ROW, HGCA_GRID4_ROW, HGCA_FLOAT4_ROW};

static inline layer make_layer(int outputs, int inputs, int kind, int biased, uint64_t *state) {
    static const int size[] = {4, 2, 2};
    const int grid = kind >= HGCA_GRID8, gap = grid ? 0 : outputs % 3;
    layer l = {.w = {.outputs = outputs, .inputs = inputs, .kind = kind, .dtype = HGCA_F32}};
    int64_t bytes = grid ? (int64_t)(outputs + TILE - 1) / TILE * TILE * (inputs / BLOCK) * hgca_row_bytes[kind] : 0;
    if (!grid) l.w.row_bytes = (int64_t)(inputs + gap) * size[kind], bytes = l.w.row_bytes * outputs - gap * size[kind];
    l.memory = must(calloc(1, (size_t)bytes + 1));
    l.w.weight = l.memory + 1;
    l.exact = must(calloc((size_t)outputs * (size_t)inputs, sizeof(double)));
    if (grid) fill_grid(&l, l.memory + 1, state);
    for (int64_t i = 0; !grid && i < (int64_t)outputs * inputs; i++)
        l.exact[i] = put(l.memory + 1 + i / inputs * l.w.row_bytes + i % inputs * size[kind], kind, state);
    l.bias = must(calloc((size_t)outputs, sizeof(double)));
    l.biases = must(malloc(sizeof(float) * (size_t)outputs));
    for (int i = 0; biased && i < outputs; i++) l.bias[i] = l.biases[i] = (float)uniform(state);
    if (biased) l.w.bias = l.biases;
    return l;
}

static inline void drop_layer(layer *l) { free(l->memory), free(l->exact), free(l->bias), free(l->biases); }

#endif
