/* What every instruction set provides for a linear layer. */
#ifndef HGCA_LINEAR_H
#define HGCA_LINEAR_H

#include <stdint.h>

#include "hgca.h"

/* Bytes of a row in a block of a grid: half floats, and 32 codes. */
enum { HGCA_GRID8_ROW = 2 + 32, HGCA_GRID4_ROW = 4 + 16, HGCA_FLOAT4_ROW = 2 + 16 };

/* By its code: twice a float of 4 bits. */
#define HGCA_FLOATS4 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12

enum { HGCA_TILE = 16 }; /* rows of a grid that lie together */
enum { HGCA_LEVELS = 3 };

/* 32 numbers as grids are multiplied with: scale * (128 * (128 * level[0] + level[1]) + level[2]).
 * sum: of each level; whole: of the numbers. */
typedef struct {
    int8_t level[HGCA_LEVELS][32];
    int32_t sum[HGCA_LEVELS];
    float scale;
    float whole;
} hgca_placed_block;

/* Rows of weights with one vector: out[i] = sum_j row_i[j] in[j], i < rows, in float32.
 *   weight     of the kind the kernel is for: rows `row_bytes` apart, or of a grid whole tiles
 *   end        where the layer's weights end: nothing is prefetched beyond
 *   in         the vector; of grids `placed` is */
typedef struct {
    const char *weight;
    const char *end;
    int64_t row_bytes;
    int64_t rows;
    int64_t inputs;
    const float *in;
    const hgca_placed_block *placed; /* [inputs / 32] */
    float *out;
} hgca_linear_rows;

/* 32 numbers as several vectors are multiplied with grids: scale * number, in each eight in the order 0 2 1 3 4 6 5 7; of a few vectors
 * scale * (256 * level[0] + level[1]), and sum, of these.
 * whole: of the numbers. */
typedef struct {
    union {
        int16_t number[32];
        int8_t level[2][32];
    };
    int32_t sum;
    float scale;
    float whole;
} hgca_numbers;

enum { HGCA_FEW_THREADS = 4 }; /* that are likely to be alike, so that each may have as much to do */
enum { HGCA_SEVERAL = 64 }; /* vectors that share what is unpacked */

/* Rows of weights with 1 .. HGCA_SEVERAL vectors: out[v * out_stride + i] = bias[i] + sum_j row_i[j] in_v[j].
 *   weight     of a grid whole tiles; else rows `row_bytes` apart
 *   numbers    of a grid: block b of vector v is numbers[b * vectors + v]
 *   in         else: [vectors][inputs]
 *   bias       [rows], or NULL
 *   onto       as out, what is added to it; or NULL */
typedef struct {
    const char *weight;
    int64_t rows;
    int64_t inputs;
    int64_t row_bytes;
    const hgca_numbers *numbers;
    const float *in;
    int64_t vectors;
    const float *bias;
    const float *onto;
    float *out;
    int64_t out_stride;
} hgca_several_rows;

/* Up to 16 rows of weights, of a dtype and row_bytes apart, and the tile of a grid they become. */
typedef struct {
    const char *from;
    int64_t row_bytes;
    int64_t rows;
    int64_t inputs;
    int32_t dtype;
    char *tile;
} hgca_packed_rows;

typedef void (*hgca_linear_kernel)(const hgca_linear_rows *rows);

/* By kind of weights: f32, bf16, f16, grid of 8 bits, grid of 4 bits, floats of 4 bits.
 * place  blocks of 32 numbers
 * several        by kind as rows
 * place_several  a vector's blocks, `stride` apart
 * few, place_few  of grids of 8 and of 4 bits, and floats of 4, with up to few_vectors vectors; 0: there are no such kernels
 * most_vectors   so many at once are worth it, beside a product of floats
 * gate   gate[i] *= up[i] / (1 + exp(-gate[i]))
 * pack   onto a grid of 8 bits, of 4 bits: the share of their squares that is lost; infinity if a number is one that the grid cannot hold */
typedef struct {
    hgca_linear_kernel rows[6];
    void (*place)(const float *in, int64_t blocks, hgca_placed_block *to);
    void (*several[6])(const hgca_several_rows *rows);
    void (*place_several)(const float *in, int64_t inputs, hgca_numbers *to, int64_t stride);
    void (*few[3])(const hgca_several_rows *rows);
    void (*place_few)(const float *in, int64_t inputs, hgca_numbers *to, int64_t stride);
    int64_t few_vectors;
    int64_t most_vectors;
    void (*gate)(float *gate, const float *up, int64_t count);
    float (*pack[2])(const hgca_packed_rows *rows);
} hgca_isa_linear;

extern const hgca_isa_linear hgca_linear_scalar, hgca_linear_avx2, hgca_linear_avx512, hgca_linear_avx512vnni,
    hgca_linear_neon;

/* As hgca_linear_several, of vectors that are made of `in` first: its root-mean-square norm, or silu(in) * up.
 *   norm   NULL: none;  up [vectors][inputs], NULL: none
 *   onto   [vectors][outputs], what is added to the result of the only layer; NULL: nothing. May be `out`
 *   among_openmp  as of hgca_pool_run */
typedef struct {
    const hgca_norm *norm;
    const float *up;
    const float *onto;
    int among_openmp;
} hgca_around;

int hgca_linear_around(const hgca_weights *weights, int32_t count, int64_t vectors, const float *in, const hgca_around *around, float *out);

/* Whether what is described can be read. */
int hgca_weights_fit(const hgca_weights *weights);

/* Bytes of a row of a grid, of which 16 lie together. */
int64_t hgca_grid_row_bytes(const hgca_weights *weights);

/* Those of the instruction set in use. */
const hgca_isa_linear *hgca_linear_kernels(void);

#endif
