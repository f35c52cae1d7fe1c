/* Weights rounded onto a grid, included by linear_template.h: a tile at a time, block by block. What is made: hgca_model.h.
 *
 * 4 bits: 14 to 16 1/3 steps over the range of a block are tried, the plain 15 among them; for each the line (least squares) through
 * the numbers over their codes is what they are measured with, and the best one's codes and line are found once more. Of normal
 * numbers 0.00485 of their squares is lost so, with the plain range 0.0061, with 20 tries of which none is repeated 0.00487.
 *
 * Numbers that were on such a grid before they were rounded to 16 bits, as a GGUF file's Q4_K were, are put back on it: between their
 * smallest and their largest are 15 whole steps, or fewer. A row's blocks are tried so as long as the one before was found. */
#include "half.h"

enum { WORDS = BLOCK / VW, MOST_CODE4 = 15, MOST_CODE8 = 127, TRIES = 8, FEWEST_WHOLE = 8 }; /* of fewer steps twice as many do, too */
static const float FEWEST_STEPS = 14.0f, MORE_STEPS = 1.0f / 3.0f;
static const float ON_GRID = 1e-5f; /* of a block's squares: rounding to bf16 takes 1.3e-6 to 5e-6, 16 codes for any numbers 5e-3 */

/* least: where code 0 stands; error: of squares, what the line does not hold */
typedef struct {
    float scale;
    float least;
    float error;
} line_of_codes;

/* A block's numbers; 0 if one of them is not finite. */
INLINE int read_block(const char *from, int dtype, VF *x) {
    const int64_t size = dtype == HGCA_F32 ? 4 : 2;
    VF strange = vzero();
    UNROLL
    for (int i = 0; i < WORDS; i++) {
        x[i] = vload_rows(from + i * VW * size, dtype);
        strange = vadd(strange, vmul(x[i], vzero()));
    }
    return vsum(strange) == 0.0f;
}

INLINE float largest_lane(VF x) {
    float each[VW];
    vstore(each, x);
    float top = each[0];
    for (int i = 1; i < VW; i++) top = each[i] > top ? each[i] : top;
    return top;
}

/* The largest number, or, sign = -1, the opposite of the smallest. */
INLINE float extreme(const VF *x, float sign) {
    VF top = vmul(x[0], vset1(sign));
    UNROLL
    for (int i = 1; i < WORDS; i++) top = vmax(top, vmul(x[i], vset1(sign)));
    return largest_lane(top);
}

INLINE VF code4(VF x, VF least, VF by) {
    const VF most = vset1((float)MOST_CODE4), above = vmax(vround(vmul(vsub(x, least), by)), vzero());
    return vsub(most, vmax(vsub(most, above), vzero()));
}

/* The nearest line to numbers over their codes by (x - least) * by. sum, squares: of the numbers. */
INLINE line_of_codes line_through(const VF *x, float sum, float squares, float least, float by) {
    VF codes = vzero(), code_squares = vzero(), products = vzero();
    UNROLL
    for (int i = 0; i < WORDS; i++) {
        const VF code = code4(x[i], vset1(least), vset1(by));
        codes = vadd(codes, code);
        code_squares = vfma(code, code, code_squares);
        products = vfma(code, x[i], products);
    }
    const float n = (float)BLOCK, q = vsum(codes), qq = vsum(code_squares), xq = vsum(products), spread = n * qq - q * q;
    if (!(spread > 0.0f)) return (line_of_codes){0.0f, sum / n, INFINITY};
    line_of_codes line = {.scale = (n * xq - sum * q) / spread, .least = (qq * sum - q * xq) / spread};
    line.error = squares - line.scale * xq - line.least * sum;
    return line;
}

INLINE line_of_codes better(line_of_codes a, line_of_codes b) { return b.error < a.error ? b : a; }

/* The line numbers from 0 to 1 are on already, but for an error of `most`; beyond it if there is none. */
INLINE line_of_codes line_they_are_on(const VF *x, float sum, float squares, float most) {
    line_of_codes line = {0.0f, 0.0f, INFINITY};
    for (int steps = MOST_CODE4; steps >= FEWEST_WHOLE && line.error > most / 4.0f; steps--) /* so near is no chance */
        line = better(line, line_through(x, sum, squares, 0.0f, (float)steps));
    return line;
}

/* What the codes of a row's blocks make of it so far. on_grid: whether the block before was on a grid already. */
typedef struct {
    float squares, lost;
    int on_grid, whole;
} packed_row;

/* What a block becomes: squares of its numbers, and of what codes do not hold of them. */
INLINE void add_block(const VF *x, const float *code, float step, float least, packed_row *row) {
    VF squares = vzero(), lost = vzero();
    UNROLL
    for (int i = 0; i < WORDS; i++) {
        const VF left = vsub(x[i], vfma(vload(code + i * VW), vset1(step), vset1(least)));
        squares = vfma(x[i], x[i], squares), lost = vfma(left, left, lost);
    }
    row->squares += vsum(squares), row->lost += vsum(lost);
}

/* Codes of a block, and its scale and smallest number as half floats; the row is not whole if these are too large. */
INLINE void encode4(VF *x, float *code, uint16_t *scale, uint16_t *least, packed_row *row) {
    const float top = extreme(x, 1.0f), low = -extreme(x, -1.0f), range = top - low;
    line_of_codes best = {0.0f, 0.0f, INFINITY};
    if (!(range <= (float)MOST_CODE4 * 65504.0f)) {
        row->whole = 0;
        return;
    }
    if (range > 0.0f) {
        VF from_low[WORDS], sums = vzero(), squared = vzero();
        UNROLL
        for (int i = 0; i < WORDS; i++) {
            from_low[i] = vmul(vsub(x[i], vset1(low)), vset1(1.0f / range)); /* 0 .. 1: no square of it is lost */
            sums = vadd(sums, from_low[i]);
            squared = vfma(from_low[i], from_low[i], squared);
        }
        const float sum = vsum(sums), squares = vsum(squared), away = low / range;
        const float most = ON_GRID * (squares + away * (2.0f * sum + away * (float)BLOCK)); /* of the numbers' own squares */
        if (row->on_grid) best = line_they_are_on(from_low, sum, squares, most);
        row->on_grid = best.error <= most;
        for (int t = 0; t < TRIES && !row->on_grid; t++)
            best = better(best, line_through(from_low, sum, squares, 0.0f, FEWEST_STEPS + MORE_STEPS * (float)t));
        best = better(best, line_through(from_low, sum, squares, best.least, 1.0f / best.scale));
    }
    *scale = float_to_half(best.scale * range), *least = float_to_half(low + best.least * range);
    const float step = half_to_float(*scale), first = half_to_float(*least), by = step > 0.0f ? 1.0f / step : 0.0f;
    UNROLL
    for (int i = 0; i < WORDS; i++) vstore(code + i * VW, code4(x[i], vset1(first), vset1(by)));
    row->whole &= first >= -FLT_MAX && first <= FLT_MAX;
    add_block(x, code, step, first, row);
}

INLINE void encode8(VF *x, float *code, uint16_t *scale, packed_row *row) {
    const float top = extreme(x, 1.0f), low = extreme(x, -1.0f), wanted = (top > low ? top : low) / (float)MOST_CODE8;
    *scale = float_to_half(wanted);
    if (half_to_float(*scale) < wanted) ++*scale; /* the next one: no number is beyond the largest code */
    const float step = half_to_float(*scale), by = step > 0.0f ? 1.0f / step : 0.0f;
    UNROLL
    for (int i = 0; i < WORDS; i++) vstore(code + i * VW, vround(vmul(x[i], vset1(by))));
    row->whole &= step <= FLT_MAX;
    add_block(x, code, step, 0.0f, row);
}

/* A block of a row that is the r-th of its tile. */
INLINE void pack_block(const char *from, int dtype, int bits, int r, char *block, packed_row *row) {
    char *codes = block + HGCA_TILE * (bits == 4 ? 4 : 2) + 4 * r;
    VF x[WORDS];
    float code[BLOCK];
    uint16_t scale = 0, least = 0;
    if (!read_block(from, dtype, x)) row->whole = 0;
    if (!row->whole) return;
    if (bits == 4) encode4(x, code, &scale, &least, row);
    else encode8(x, code, &scale, row);
    if (!row->whole) return;
    memcpy(block + 2 * r, &scale, 2);
    if (bits == 4) {
        memcpy(block + 2 * HGCA_TILE + 2 * r, &least, 2);
        for (int l = 0; l < 4; l++)
            for (int k = 0; k < 4; k++) codes[l * LINE + k] = (char)((int)code[8 * l + k] | (int)code[8 * l + 4 + k] << 4);
    } else
        for (int l = 0; l < 8; l++)
            for (int k = 0; k < 4; k++) codes[l * LINE + k] = (char)(int8_t)code[4 * l + k];
}

INLINE float pack_tile(const hgca_packed_rows *p, int dtype, int bits) {
    const int64_t block_bytes = tile_block_bytes(bits), size = dtype == HGCA_F32 ? 4 : 2;
    if (p->rows < HGCA_TILE) memset(p->tile, 0, (size_t)(p->inputs / BLOCK * block_bytes));
    float squares = 0.0f, lost = 0.0f;
    for (int64_t r = 0; r < p->rows; r++) {
        packed_row row = {.on_grid = 1, .whole = 1};
        for (int64_t b = 0; b < p->inputs / BLOCK; b++)
            pack_block(p->from + r * p->row_bytes + b * BLOCK * size, dtype, bits, (int)r, p->tile + b * block_bytes, &row);
        if (!row.whole) return INFINITY;
        squares += row.squares, lost += row.lost;
    }
    return squares > 0.0f ? lost / squares : 0.0f;
}

INLINE float pack_rows(const hgca_packed_rows *p, int bits) {
    if (p->dtype == HGCA_F32) return pack_tile(p, HGCA_F32, bits);
    return p->dtype == HGCA_BF16 ? pack_tile(p, HGCA_BF16, bits) : pack_tile(p, HGCA_F16, bits);
}

static float pack_grid8(const hgca_packed_rows *p) { return pack_rows(p, 8); }
static float pack_grid4(const hgca_packed_rows *p) { return pack_rows(p, 4); }
