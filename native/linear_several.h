/* Weights on a grid times several vectors, in whole numbers of 16 bits, included by linear_template.h.
 *
 * A block of a tile is unpacked once, into pairs of numbers, for up to HGCA_SEVERAL vectors. A few of these are multiplied at a time:
 * what is read of the codes serves all of them, what is spread of a vector all rows of the tile.
 *
 * The vocabulary has besides:
 *   SEVERAL                   vectors whose sums the registers hold
 *   vpairs4(bytes, to)        codes of a line of 4 bits: numbers 0 2, 1 3, 4 6, 5 7 of a row's eight, as 16 bits each
 *   vpairs8(bytes, to)        of 8 bits: numbers 0 2, 1 3 of four
 *   vpair(p)                  two numbers of 16 bits, for every lane;  vheld(x)  x, in a register
 *   vdots2(sum, a, b)         sum + the two products of a lane */
enum { PAIRS = BLOCK / 2 };
#define UNROLL_PAIRS _Pragma("GCC unroll 16")

/* What an array of the stack holds is in memory from here on: GCC keeps what it can of it in registers otherwise, and copies the rest. */
INLINE const VI *in_memory(const VI *pairs) {
    __asm__("" : "+r"(pairs) : : "memory");
    return pairs;
}

INLINE void unpack(const char *codes, int bits, VI *pair) {
    const int each = bits == 4 ? 4 : 2;
    for (int line = 0; line < PAIRS / each; line++)
        for (int part = 0; part < PARTS; part++) {
            VI to[4];
            const VI bytes = vbytes(codes + line * LINE + part * 4 * VW);
            if (bits == 4) vpairs4(bytes, to);
            else vpairs8(bytes, to);
            for (int i = 0; i < each; i++) pair[(line * each + i) * PARTS + part] = to[i];
        }
}

/* `count` vectors, known when this is compiled, with a block: onto sums of float [count][16]. */
INLINE void dot_several(const VI *pair, const hgca_numbers *x, int count, const VF *scale, const VF *least, int bits, float *out) {
    VI sum[SEVERAL][PARTS];
    pair = in_memory(pair);
    UNROLL
    for (int v = 0; v < count; v++)
        UNROLL
        for (int part = 0; part < PARTS; part++) sum[v][part] = vint(0);
    UNROLL_PAIRS
    for (int i = 0; i < PAIRS; i++) {
        VI code[PARTS];
        UNROLL
        for (int part = 0; part < PARTS; part++) code[part] = vheld(pair[i * PARTS + part]);
        UNROLL
        for (int v = 0; v < count; v++) {
            const VI numbers = vpair(x[v].number + 2 * i);
            UNROLL
            for (int part = 0; part < PARTS; part++) sum[v][part] = vdots2(sum[v][part], code[part], numbers);
        }
    }
    UNROLL
    for (int v = 0; v < count; v++) {
        const VF by = vset1(x[v].scale), whole = vset1(x[v].whole);
        UNROLL
        for (int part = 0; part < PARTS; part++) {
            float *at = out + v * HGCA_TILE + part * VW;
            VF all = vfma(vlanes(sum[v][part]), vmul(scale[part], by), vload(at));
            if (bits == 4) all = vfma(least[part], whole, all);
            vstore(at, all);
        }
    }
}

INLINE void dot_several_tile(const hgca_several_rows *p, const char *tile, int bits, float *out) {
    const int64_t blocks = p->inputs / BLOCK;
    const hgca_numbers *x = p->numbers;
    for (int64_t b = 0; b < blocks; b++, x += p->vectors, tile += tile_block_bytes(bits)) {
        VF scale[PARTS], least[PARTS];
        VI room[PAIRS * PARTS];
        UNROLL
        for (int part = 0; part < PARTS; part++) {
            scale[part] = vload_rows(tile + 2 * VW * part, HGCA_F16);
            least[part] = bits == 4 ? vload_rows(tile + 2 * HGCA_TILE + 2 * VW * part, HGCA_F16) : vzero();
        }
        unpack(tile + HGCA_TILE * (bits == 4 ? 4 : 2), bits, room);
        const VI *pair = room;
        int64_t v = 0;
        for (; v + SEVERAL <= p->vectors; v += SEVERAL) dot_several(pair, x + v, SEVERAL, scale, least, bits, out + v * HGCA_TILE);
        const int rest = (int)(p->vectors - v);
        if (SEVERAL > 4 && rest & 4) dot_several(pair, x + v, 4, scale, least, bits, out + v * HGCA_TILE), v += 4;
        if (SEVERAL > 2 && rest & 2) dot_several(pair, x + v, 2, scale, least, bits, out + v * HGCA_TILE), v += 2;
        if (SEVERAL > 1 && rest & 1) dot_several(pair, x + v, 1, scale, least, bits, out + v * HGCA_TILE);
    }
}

INLINE void dot_several_tiles(const hgca_several_rows *p, int bits) {
    const int64_t tile_bytes = p->inputs / BLOCK * tile_block_bytes(bits);
    const char *tile = p->weight;
    for (int64_t r = 0; r < p->rows; r += HGCA_TILE, tile += tile_bytes) {
        float out[HGCA_SEVERAL * HGCA_TILE];
        float bias[HGCA_TILE] = {0};
        const int64_t left = p->rows - r, rows = left < HGCA_TILE ? left : HGCA_TILE;
        if (p->bias) memcpy(bias, p->bias + r, (size_t)rows * sizeof(float));
        for (int64_t v = 0; v < p->vectors; v++) memcpy(out + v * HGCA_TILE, bias, sizeof bias);
        dot_several_tile(p, tile, bits, out);
        for (int64_t v = 0; v < p->vectors; v++) {
            const float *from = out + v * HGCA_TILE, *onto = p->onto + v * p->out_stride + r;
            float *to = p->out + v * p->out_stride + r;
            for (int64_t i = 0; p->onto && i < rows; i++) to[i] = onto[i] + from[i];
            if (p->onto) continue;
            if (rows == HGCA_TILE) memcpy(to, from, sizeof bias); /* of a size that is known: two moves */
            else memcpy(to, from, (size_t)rows * sizeof(float));
        }
    }
}

static void several_grid8(const hgca_several_rows *p) { dot_several_tiles(p, 8); }
static void several_grid4(const hgca_several_rows *p) { dot_several_tiles(p, 4); }

static void place_several(const float *in, int64_t inputs, hgca_numbers *to, int64_t stride) {
    for (int64_t b = 0; b < inputs / BLOCK; b++, in += BLOCK, to += stride) {
        int32_t number[BLOCK];
        to->scale = whole_numbers(in, MOST_NUMBER, number, &to->whole);
        for (int i = 0; i < BLOCK; i += 8) { /* in the order of pairs */
            int16_t *at = to->number + i;
            at[0] = (int16_t)number[i], at[1] = (int16_t)number[i + 2], at[2] = (int16_t)number[i + 1], at[3] = (int16_t)number[i + 3];
            at[4] = (int16_t)number[i + 4], at[5] = (int16_t)number[i + 6], at[6] = (int16_t)number[i + 5], at[7] = (int16_t)number[i + 7];
        }
    }
}
