/* Rows of weights with a vector, written once. An instruction set's file defines a vocabulary and includes this:
 *   VF, VW                    a vector of VW floats
 *   vzero vset1 vload vstore vadd vmul vsum vfma(a, b, c) = a * b + c
 *   vload_rows(p, dtype)      VW numbers (f32, bf16, f16, i8) as floats
 *   vtail_rows(p, dtype, n)   n < VW of them, then zeros
 *   VECTORS_AT_ONCE           1 to 4, whose sums with AT_ONCE rows the registers hold
 * and what linear_grid.h, linear_several.h, linear_pack.h and kernels_exp2.h need besides.
 *   MOST_VECTORS              as in hgca_isa_linear; so is FEW_VECTORS, if it is defined
 *
 * A layer's weights are read once a token and are far more than the caches hold, so what counts is that memory never
 * waits: four rows are added up at a time, and those that come next are fetched meanwhile, in the order of memory. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "hgca.h"
#include "kernels.h"
#include "linear.h"

#define INLINE static inline __attribute__((always_inline))
enum { AT_ONCE = 4, LINE = 64, AHEAD = 8 << 10, AHEAD_GRID = 4 << 10, BLOCK = 32 };

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

#include "linear_grid.h"

#include "linear_several.h"

#include "linear_floats.h"

#ifdef FEW_VECTORS
#include "linear_few.h"
#define OF_FEW {few_grid8, few_grid4, few_float4}, place_few, FEW_VECTORS
#else
#define OF_FEW {NULL, NULL, NULL}, NULL, 0
#endif

#include "linear_pack.h"

#include "kernels_exp2.h"

/* exp(-|x|) cannot overflow. Relative error below 1e-6 for |x| < 10; it grows with |x|, as that of |x| log2(e) does. Blocks are whole, and
 * without conditions, so that compilers make vectors of them: 0.5 ns a number in place of 2.0 with AVX2. */
INLINE void gate_block(float *x, const float *up) {
    float e[BLOCK];
    for (int i = 0; i < BLOCK; i++) e[i] = -1.44269504f * fabsf(x[i]);
    for (int i = 0; i < BLOCK; i += VW) {
        const VF y = vload(x + i), power = vexp2(vload(e + i));
        const VF above = vmax(vzero(), y), below = vmax(vzero(), vsub(vzero(), y)); /* of an infinity one is 0 */
        vstore(x + i, vsub(above, vmul(below, power)));
        vstore(e + i, power);
    }
    for (int i = 0; i < BLOCK; i++) x[i] = x[i] * up[i] / (1.0f + e[i]);
}

static void gate(float *x, const float *up, int64_t count) {
    int64_t at = 0;
    for (; at + BLOCK <= count; at += BLOCK) gate_block(x + at, up + at);
    if (at == count) return;
    const size_t rest = (size_t)(count - at) * sizeof *x;
    float some[BLOCK] = {0}, by[BLOCK] = {0};
    memcpy(some, x + at, rest);
    memcpy(by, up + at, rest);
    gate_block(some, by);
    memcpy(x + at, some, rest);
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

#define HGCA_TEMPLATE_LINEAR                                                     \
    {                                                                            \
        {linear_f32, linear_bf16, linear_f16, linear_grid8, linear_grid4, linear_float4}, \
        place,                                                                   \
        {several_f32, several_bf16, several_f16, several_grid8, several_grid4, several_float4}, \
        place_several,                                                           \
        OF_FEW,                                                                  \
        MOST_VECTORS,                                                            \
        gate,                                                                    \
        {pack_grid8, pack_grid4},                                                \
    }
