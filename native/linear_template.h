/* Rows of weights with one vector, written once. An instruction set's file defines a vocabulary and includes this:
 *   VF, VW                    a vector of VW floats
 *   vzero vset1 vload vadd vmul vsum vfma(a, b, c) = a * b + c
 *   vload_rows(p, dtype)      VW numbers (f32, bf16, f16, i8) as floats
 *   vtail_rows(p, dtype, n)   n < VW of them, then zeros
 *   vnibbles(p, low, high)    the lower and the upper halves of VW bytes as floats 0 .. 15
 *
 * A layer's weights are read once a token and are far more than the caches hold, so what counts is that memory never
 * waits: four rows are added up at a time, and those that come next are fetched meanwhile, in the order of memory. */
#include <string.h>

#include "hgca.h"
#include "kernels.h"
#include "linear.h"

#define INLINE static inline __attribute__((always_inline))
enum { AT_ONCE = 4, LINE = 64, AHEAD = 8 << 10, AHEAD_ROWS = 4, BLOCK = 32 };

INLINE void prefetch_lines(const hgca_linear_rows *p, const char *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += LINE)
        if (from + at < p->end) __builtin_prefetch(from + at, 0, 2);
}

INLINE void dot_rows(const hgca_linear_rows *p, int64_t first, int rows, int dtype) {
    const int64_t size = dtype == HGCA_F32 ? 4 : 2, whole = p->inputs - p->inputs % VW;
    const char *row = p->weight + first * p->row_bytes, *ahead = row + AHEAD;
    VF sum[AT_ONCE][2];
    UNROLL
    for (int r = 0; r < AT_ONCE; r++) sum[r][0] = sum[r][1] = vzero();
    int64_t d = 0;
    for (; d + 2 * VW <= whole; d += 2 * VW) {
        VF a = vload(p->in + d), b = vload(p->in + d + VW);
        prefetch_lines(p, ahead + rows * d * size, rows * 2 * VW * size);
        UNROLL
        for (int r = 0; r < AT_ONCE; r++) {
            if (r >= rows) break;
            sum[r][0] = vfma(vload_rows(row + r * p->row_bytes + d * size, dtype), a, sum[r][0]);
            sum[r][1] = vfma(vload_rows(row + r * p->row_bytes + (d + VW) * size, dtype), b, sum[r][1]);
        }
    }
    for (; d < whole; d += VW)
        for (int r = 0; r < rows; r++)
            sum[r][0] = vfma(vload_rows(row + r * p->row_bytes + d * size, dtype), vload(p->in + d), sum[r][0]);
    if (d < p->inputs) {
        const int rest = (int)(p->inputs - d);
        const VF in = vtail_rows((const char *)(p->in + d), HGCA_F32, rest);
        for (int r = 0; r < rows; r++)
            sum[r][0] = vfma(vtail_rows(row + r * p->row_bytes + d * size, dtype, rest), in, sum[r][0]);
    }
    for (int r = 0; r < rows; r++) p->out[first + r] = vsum(vadd(sum[r][0], sum[r][1]));
}

/* Floats with floats, any count. */
INLINE VF dot_floats(const float *a, const float *b, int64_t count, VF sum) {
    int64_t i = 0;
    for (; i + VW <= count; i += VW) sum = vfma(vload(a + i), vload(b + i), sum);
    if (i == count) return sum;
    const int rest = (int)(count - i);
    return vfma(vtail_rows((const char *)(a + i), HGCA_F32, rest), vtail_rows((const char *)(b + i), HGCA_F32, rest), sum);
}

INLINE void dot_grid(const hgca_linear_rows *p, int64_t first, int rows, int bits) {
    const int64_t blocks = p->inputs / BLOCK, block_bytes = BLOCK * bits / 8, each = bits == 4 ? 2 * blocks : blocks;
    const char *row = p->weight + first * p->row_bytes, *ahead = row + AHEAD;
    const float *grid = p->grid + first * each;
    const int64_t grid_bytes = rows * each * (int64_t)sizeof(float);
    for (int64_t at = 0; at < grid_bytes; at += LINE) __builtin_prefetch((const char *)grid + AHEAD_ROWS * grid_bytes + at, 0, 2);
    VF sum[AT_ONCE];
    UNROLL
    for (int r = 0; r < AT_ONCE; r++) sum[r] = vzero();
    for (int64_t b = 0; b < blocks; b++) {
        const float *in = p->in + b * BLOCK;
        if (b % 2 == 0) prefetch_lines(p, ahead + rows * b * block_bytes, 2 * rows * block_bytes);
        UNROLL
        for (int r = 0; r < AT_ONCE; r++) {
            if (r >= rows) break;
            const char *block = row + r * p->row_bytes + b * block_bytes;
            VF part = vzero();
            for (int i = 0; i < BLOCK / 2; i += VW) {
                VF low, high;
                if (bits == 4) vnibbles(block + i, &low, &high);
                else low = vload_rows(block + i, HGCA_I8), high = vload_rows(block + i + BLOCK / 2, HGCA_I8);
                part = i ? vfma(low, vload(in + i), part) : vmul(low, vload(in));
                part = vfma(high, vload(in + i + BLOCK / 2), part);
            }
            sum[r] = vfma(part, vset1(grid[r * each + b]), sum[r]);
        }
    }
    for (int r = 0; r < rows; r++) {
        if (bits == 4) sum[r] = dot_floats(grid + r * each + blocks, p->block_sum, blocks, sum[r]);
        p->out[first + r] = vsum(sum[r]);
    }
}

#define HGCA_LINEAR(name, four, one)                                             \
    static void name(const hgca_linear_rows *p) {                                \
        int64_t r = 0;                                                           \
        prefetch_lines(p, p->weight, AHEAD);                                     \
        for (; r + AT_ONCE <= p->rows; r += AT_ONCE) four;                       \
        for (; r < p->rows; r++) one;                                            \
    }

HGCA_LINEAR(linear_f32, dot_rows(p, r, AT_ONCE, HGCA_F32), dot_rows(p, r, 1, HGCA_F32))
HGCA_LINEAR(linear_bf16, dot_rows(p, r, AT_ONCE, HGCA_BF16), dot_rows(p, r, 1, HGCA_BF16))
HGCA_LINEAR(linear_f16, dot_rows(p, r, AT_ONCE, HGCA_F16), dot_rows(p, r, 1, HGCA_F16))
HGCA_LINEAR(linear_grid8, dot_grid(p, r, AT_ONCE, 8), dot_grid(p, r, 1, 8))
HGCA_LINEAR(linear_grid4, dot_grid(p, r, AT_ONCE, 4), dot_grid(p, r, 1, 4))

#define HGCA_TEMPLATE_LINEAR                                                     \
    {                                                                            \
        { linear_f32, linear_bf16, linear_f16, linear_grid8, linear_grid4 }      \
    }
