/* Weights on a grid times a few vectors, in whole numbers of 16 bits, included by linear_template.h where FEW_VECTORS is defined.
 *
 * To make pairs of 16 bits of codes (linear_several.h) takes as long as multiplying them with four vectors. A few vectors' numbers are two
 * levels of 8 bits instead, and codes stay bytes, in registers: 16 products of a row and a vector are an instruction a level. Tiles are read
 * in the order of memory. The numbers are the very ones of several vectors, and are added up in their order: results are the same to the
 * last bit.
 *
 * A vector's lanes are a tile's rows. The vocabulary has besides, of linear_grid.h's words, for 8 bits:
 *   vhigher(a, b)             256 * a + b */
enum { CODES = BLOCK / 4 };

_Static_assert(PARTS == 1, "a register holds a number of every row of a tile");

/* `count` vectors, known when this is compiled: out [count][16], onto what is there. */
INLINE void dot_few(const hgca_several_rows *p, const char *tile, int count, int bits, VF *out) {
    const int64_t blocks = p->inputs / BLOCK, block_bytes = tile_block_bytes(bits);
    const hgca_numbers *x = p->numbers;
    for (int64_t b = 0; b < blocks; b++, x += count, tile += block_bytes) {
        const char *codes = tile + HGCA_TILE * factor_bytes(bits);
        for (int64_t at = 0; at < block_bytes; at += LINE) __builtin_prefetch(tile + AHEAD_GRID + at, 0, 2);
        const VF scale = vload_rows(tile, HGCA_F16);
        const VF least = bits == 4 ? vload_rows(tile + 2 * HGCA_TILE, HGCA_F16) : vzero();
        VI code[CODES];
        UNROLL
        for (int i = 0; i < CODES; i += halves(bits) ? 2 : 1) {
            if (halves(bits)) vhalves(vbytes(codes + i / 2 * LINE), &code[i], &code[i + 1]);
            else code[i] = vcode8(vbytes(codes + i * LINE));
            if (bits == FLOAT) code[i] = vcode8(vfloats(code[i])), code[i + 1] = vcode8(vfloats(code[i + 1]));
        }
        UNROLL
        for (int v = 0; v < count; v++) {
            VI high = vint(0), low = vint(bits == 4 ? 0 : -OFFSET8 * x[v].sum);
            UNROLL
            for (int i = 0; i < CODES; i++) {
                high = vdots8(high, code[i], vfour(x[v].level[0] + 4 * i));
                low = vdots8(low, code[i], vfour(x[v].level[1] + 4 * i));
            }
            out[v] = vfma(vlanes(vhigher(high, low)), vmul(scale, vset1(x[v].scale)), out[v]);
            if (bits == 4) out[v] = vfma(least, vset1(x[v].whole), out[v]);
        }
    }
}

INLINE void few_rows(const hgca_several_rows *p, int count, int bits) {
    const int64_t tile_bytes = p->inputs / BLOCK * tile_block_bytes(bits);
    const char *tile = p->weight;
    for (int64_t r = 0; r < p->rows; r += HGCA_TILE, tile += tile_bytes) {
        const int64_t left = p->rows - r, rows = left < HGCA_TILE ? left : HGCA_TILE;
        float some[HGCA_TILE] = {0};
        VF out[FEW_VECTORS];
        if (p->bias) memcpy(some, p->bias + r, (size_t)rows * sizeof(float));
        UNROLL
        for (int v = 0; v < count; v++) out[v] = vload(some);
        dot_few(p, tile, count, bits, out);
        UNROLL
        for (int v = 0; v < count; v++) {
            float *to = p->out + v * p->out_stride + r;
            const float *onto = p->onto + v * p->out_stride + r;
            if (rows == HGCA_TILE) {
                vstore(to, p->onto ? vadd(vload(onto), out[v]) : out[v]);
                continue;
            }
            vstore(some, out[v]);
            for (int64_t i = 0; i < rows; i++) to[i] = p->onto ? onto[i] + some[i] : some[i];
        }
    }
}

INLINE void few_grid(const hgca_several_rows *p, int bits) {
    switch (p->vectors) { /* what counts sums is kept in registers */
    case 1: few_rows(p, 1, bits); break;
    case 2: few_rows(p, 2, bits); break;
    case 3: few_rows(p, 3, bits); break;
    case 4: few_rows(p, 4, bits); break;
    case 5: few_rows(p, 5, bits); break;
    case 6: few_rows(p, 6, bits); break;
    case 7: few_rows(p, 7, bits); break;
    default: few_rows(p, FEW_VECTORS, bits); break;
    }
}

static void few_grid8(const hgca_several_rows *p) { few_grid(p, 8); }
static void few_grid4(const hgca_several_rows *p) { few_grid(p, 4); }
static void few_float4(const hgca_several_rows *p) { few_grid(p, FLOAT); }

static void place_few(const float *in, int64_t inputs, hgca_numbers *to, int64_t stride) {
    for (int64_t b = 0; b < inputs / BLOCK; b++, in += BLOCK, to += stride) {
        int32_t number[BLOCK];
        to->scale = whole_numbers(in, MOST_NUMBER, number, &to->whole);
        to->sum = 0;
        for (int i = 0; i < BLOCK; i++) {
            const int32_t high = (number[i] + 128) >> 8; /* to the nearest */
            to->level[0][i] = (int8_t)high, to->level[1][i] = (int8_t)(number[i] - 256 * high);
            to->sum += number[i];
        }
    }
}
