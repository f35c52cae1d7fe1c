/* Rows of weights that are floats, or 16 bits, times several vectors, included by linear_template.h: a row is read from memory once for
 * all of them.
 *
 * A few rows and VECTORS_AT_ONCE vectors are multiplied at a time, as many sums as the registers hold; the next vectors find the rows in the
 * first cache. What becomes of a vector does not depend on who is multiplied beside it. */

/* `rows` rows from r on with `count` vectors from v on, both known when this is compiled. fetch: what comes next in memory. */
INLINE void dot_rows_with(const hgca_several_rows *p, int64_t r, int rows, int64_t v, int count, int dtype, int fetch) {
    const int64_t size = dtype == HGCA_F32 ? 4 : 2, whole = p->inputs - p->inputs % VW;
    const char *row = p->weight + r * p->row_bytes, *ahead = row + AHEAD;
    const float *in = p->in + v * p->inputs;
    VF sum[AT_ONCE][VECTORS_AT_ONCE];
    UNROLL
    for (int i = 0; i < rows; i++)
        UNROLL
        for (int j = 0; j < count; j++) sum[i][j] = vzero();
    for (int64_t d = 0; d < p->inputs; d += VW) {
        const int rest = d < whole ? 0 : (int)(p->inputs - d);
        VF x[VECTORS_AT_ONCE];
        UNROLL
        for (int j = 0; j < count; j++) {
            const float *from = in + j * p->inputs + d;
            x[j] = rest ? vtail_rows((const char *)from, HGCA_F32, rest) : vload(from);
        }
        for (int64_t at = 0; fetch && at < rows * VW * size; at += LINE) __builtin_prefetch(ahead + rows * d * size + at, 0, 2);
        UNROLL
        for (int i = 0; i < rows; i++) {
            const char *from = row + i * p->row_bytes + d * size;
            const VF weight = rest ? vtail_rows(from, dtype, rest) : vload_rows(from, dtype);
            UNROLL
            for (int j = 0; j < count; j++) sum[i][j] = vfma(weight, x[j], sum[i][j]);
        }
    }
    UNROLL
    for (int i = 0; i < rows; i++)
        UNROLL
        for (int j = 0; j < count; j++) {
            const int64_t at = (v + j) * p->out_stride + r + i;
            float one = vsum(sum[i][j]) + (p->bias ? p->bias[r + i] : 0.0f);
            p->out[at] = p->onto ? p->onto[at] + one : one;
        }
}

INLINE void rows_with_all(const hgca_several_rows *p, int64_t r, int rows, int dtype) {
    int64_t v = 0;
    for (; v + VECTORS_AT_ONCE <= p->vectors; v += VECTORS_AT_ONCE) dot_rows_with(p, r, rows, v, VECTORS_AT_ONCE, dtype, v == 0);
    const int rest = (int)(p->vectors - v);
    if (rest == 3) dot_rows_with(p, r, rows, v, VECTORS_AT_ONCE < 3 ? VECTORS_AT_ONCE : 3, dtype, v == 0);
    if (rest == 2) dot_rows_with(p, r, rows, v, VECTORS_AT_ONCE < 2 ? VECTORS_AT_ONCE : 2, dtype, v == 0);
    if (rest == 1) dot_rows_with(p, r, rows, v, 1, dtype, v == 0);
}

#define HGCA_SEVERAL_FLOATS(name, dtype)                                                                     \
    static void name(const hgca_several_rows *p) {                                                           \
        int64_t r = 0;                                                                                       \
        for (; r + AT_ONCE <= p->rows; r += AT_ONCE) rows_with_all(p, r, AT_ONCE, dtype);                    \
        for (; r < p->rows; r++) rows_with_all(p, r, 1, dtype);                                              \
    }

HGCA_SEVERAL_FLOATS(several_f32, HGCA_F32)
HGCA_SEVERAL_FLOATS(several_bf16, HGCA_BF16)
HGCA_SEVERAL_FLOATS(several_f16, HGCA_F16)
