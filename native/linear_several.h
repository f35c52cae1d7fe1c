/* Weights on a grid times several vectors, in whole numbers of 16 bits, included by linear_template.h.
 *
 * A block of a tile is unpacked once, into pairs of numbers, for up to HGCA_SEVERAL vectors. A few of these are multiplied at a time:
 * what is read of the codes serves all of them, what is spread of a vector all rows of the tile.
 *
 * The vocabulary has besides:
 *   SEVERAL, TILES            vectors, and tiles of rows, whose sums the registers hold together
 *   vpairs4(bytes, to)        codes of a line of 4 bits: numbers 0 2, 1 3, 4 6, 5 7 of a row's eight, as 16 bits each
 *   vpairs8(bytes, to)        of 8 bits: numbers 0 2, 1 3 of four
 *   vfloat_pairs(pair)        codes of floats of 4 bits, as 16 bits each, as twice their value
 *   vpair(p)                  two numbers of 16 bits, for every lane;  vheld(x)  x, in a register
 *   vdots2(sum, a, b)         sum + the two products of a lane */
enum { PAIRS = BLOCK / 2 };
#define UNROLL_PAIRS _Pragma("GCC unroll 16")

/* What an array of the stack holds is in memory from here on: GCC keeps what it can of it in registers otherwise, and copies the rest. */
INLINE const VI *in_memory(const VI *pairs) {
    __asm__("" : "+r"(pairs) : : "memory");
    return pairs;
}

/* The same block of `tiles` tiles, one behind the other in memory: pair [PAIRS][tiles][PARTS]. */
INLINE void unpack(const char *codes, int64_t tile_bytes, int tiles, int bits, VI *pair) {
    const int each = halves(bits) ? 4 : 2;
    for (int line = 0; line < PAIRS / each; line++)
        UNROLL
        for (int at = 0; at < tiles * PARTS; at++) {
            VI to[4];
            const char *from = codes + at / PARTS * tile_bytes + line * LINE + at % PARTS * 4 * VW;
            const VI bytes = vbytes(from);
            if (at % PARTS == 0) __builtin_prefetch(from + tiles * tile_bytes, 0, 2);
            if (halves(bits)) vpairs4(bytes, to);
            else vpairs8(bytes, to);
            for (int i = 0; i < each && bits == FLOAT; i++) to[i] = vfloat_pairs(to[i]);
            for (int i = 0; i < each; i++) pair[(line * each + i) * tiles * PARTS + at] = to[i];
        }
}

/* `count` vectors, known when this is compiled, with a block of `tiles` tiles: onto sums of float [count][tiles][16]. */
INLINE void dot_several(const VI *pair, const hgca_numbers *x, int count, int tiles, const VF *scale, const VF *least, int bits,
                        float *out) {
    const int parts = tiles * PARTS;
    VI sum[SEVERAL][TILES * PARTS];
    pair = in_memory(pair);
    UNROLL
    for (int v = 0; v < count; v++)
        UNROLL
        for (int part = 0; part < parts; part++) sum[v][part] = vint(0);
    UNROLL_PAIRS
    for (int i = 0; i < PAIRS; i++) {
        VI code[TILES * PARTS];
        UNROLL
        for (int part = 0; part < parts; part++) code[part] = vheld(pair[i * parts + part]);
        UNROLL
        for (int v = 0; v < count; v++) {
            const VI numbers = vpair(x[v].number + 2 * i);
            UNROLL
            for (int part = 0; part < parts; part++) sum[v][part] = vdots2(sum[v][part], code[part], numbers);
        }
    }
    UNROLL
    for (int v = 0; v < count; v++) {
        const VF by = vset1(x[v].scale), whole = vset1(x[v].whole);
        UNROLL
        for (int part = 0; part < parts; part++) {
            float *at = out + (v * parts + part) * VW;
            VF all = vfma(vlanes(sum[v][part]), vmul(scale[part], by), vload(at));
            if (bits == 4) all = vfma(least[part], whole, all);
            vstore(at, all);
        }
    }
}

INLINE void dot_several_tiles(const hgca_several_rows *p, const char *tile, int tiles, int bits, float *out) {
    const int64_t blocks = p->inputs / BLOCK, tile_bytes = blocks * tile_block_bytes(bits);
    const int each = tiles * HGCA_TILE;
    const hgca_numbers *x = p->numbers;
    for (int64_t b = 0; b < blocks; b++, x += p->vectors, tile += tile_block_bytes(bits)) {
        VF scale[TILES * PARTS], least[TILES * PARTS];
        VI room[PAIRS * TILES * PARTS];
        UNROLL
        for (int part = 0; part < tiles * PARTS; part++) {
            const char *factor = tile + part / PARTS * tile_bytes + part % PARTS * 2 * VW;
            scale[part] = vload_rows(factor, HGCA_F16);
            least[part] = bits == 4 ? vload_rows(factor + 2 * HGCA_TILE, HGCA_F16) : vzero();
        }
        unpack(tile + HGCA_TILE * factor_bytes(bits), tile_bytes, tiles, bits, room);
        const VI *pair = room;
        int64_t v = 0;
        for (; v + SEVERAL <= p->vectors; v += SEVERAL) dot_several(pair, x + v, SEVERAL, tiles, scale, least, bits, out + v * each);
        const int rest = (int)(p->vectors - v);
        if (SEVERAL > 4 && rest & 4) dot_several(pair, x + v, 4, tiles, scale, least, bits, out + v * each), v += 4;
        if (SEVERAL > 2 && rest & 2) dot_several(pair, x + v, 2, tiles, scale, least, bits, out + v * each), v += 2;
        if (SEVERAL > 1 && rest & 1) dot_several(pair, x + v, 1, tiles, scale, least, bits, out + v * each);
    }
}

/* Rows r .. r + rows - 1, which `tiles` tiles hold. */
INLINE void several_rows(const hgca_several_rows *p, const char *tile, int64_t r, int64_t rows, int tiles, int bits) {
    float out[HGCA_SEVERAL * TILES * HGCA_TILE];
    float bias[TILES * HGCA_TILE] = {0};
    const int each = tiles * HGCA_TILE;
    const size_t bytes = (size_t)each * sizeof(float);
    if (p->bias) memcpy(bias, p->bias + r, (size_t)rows * sizeof(float));
    for (int64_t v = 0; v < p->vectors; v++) memcpy(out + v * each, bias, bytes);
    dot_several_tiles(p, tile, tiles, bits, out);
    for (int64_t v = 0; v < p->vectors; v++) {
        const float *from = out + v * each, *onto = p->onto + v * p->out_stride + r;
        float *to = p->out + v * p->out_stride + r;
        for (int64_t i = 0; p->onto && i < rows; i++) to[i] = onto[i] + from[i];
        if (p->onto) continue;
        if (rows == each) memcpy(to, from, bytes); /* of a size that is known: a few moves */
        else memcpy(to, from, (size_t)rows * sizeof(float));
    }
}

INLINE void several_grid(const hgca_several_rows *p, int bits) {
    const int64_t tile_bytes = p->inputs / BLOCK * tile_block_bytes(bits);
    const char *tile = p->weight;
    int64_t r = 0;
    for (; TILES > 1 && r + (TILES - 1) * HGCA_TILE < p->rows; r += TILES * HGCA_TILE, tile += TILES * tile_bytes) {
        const int64_t left = p->rows - r, most = TILES * HGCA_TILE;
        several_rows(p, tile, r, left < most ? left : most, TILES, bits);
    }
    for (; r < p->rows; r += HGCA_TILE, tile += tile_bytes) {
        const int64_t left = p->rows - r;
        several_rows(p, tile, r, left < HGCA_TILE ? left : HGCA_TILE, 1, bits);
    }
}

static void several_grid8(const hgca_several_rows *p) { several_grid(p, 8); }
static void several_grid4(const hgca_several_rows *p) { several_grid(p, 4); }
static void several_float4(const hgca_several_rows *p) { several_grid(p, FLOAT); }

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
