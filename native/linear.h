/* What every instruction set provides for a linear layer with one vector. */
#ifndef HGCA_LINEAR_H
#define HGCA_LINEAR_H

#include <stdint.h>

/* Rows of weights with one vector: out[i] = sum_j row_i[j] in[j], i < rows, in float32.
 *   weight     rows `row_bytes` apart, of the kind the kernel is for
 *   grid       grids only: of each row a scale per 32 numbers and then, HGCA_GRID4 only, a smallest number of each
 *   block_sum  HGCA_GRID4 only: sums of 32 numbers of `in`
 *   end        where the layer's weights end: nothing is prefetched beyond */
typedef struct {
    const char *weight;
    const float *grid;
    const char *end;
    int64_t row_bytes;
    int64_t rows;
    int64_t inputs;
    const float *in;
    const float *block_sum;
    float *out;
} hgca_linear_rows;

typedef void (*hgca_linear_kernel)(const hgca_linear_rows *rows);

/* By kind of weights: f32, bf16, f16, grid of 8 bits, grid of 4 bits. */
typedef struct {
    hgca_linear_kernel rows[5];
} hgca_isa_linear;

extern const hgca_isa_linear hgca_linear_scalar, hgca_linear_avx2, hgca_linear_avx512, hgca_linear_neon;

/* Those of the instruction set in use. */
const hgca_isa_linear *hgca_linear_kernels(void);

#endif
