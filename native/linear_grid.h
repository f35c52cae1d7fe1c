/* Weights on a grid times a vector in whole numbers, included by linear_template.h. How tiles lie in memory: hgca.h.
 *
 * A vector's lanes are rows, so nothing is added up across lanes and a row's scale needs no spreading. The vector of
 * inputs is placed once: each block of 32 becomes three levels of -64 .. 63, number = scale * (128 * (128 * a + b) + c), 21
 * bits of the block's largest. A block's sums are exact then. 16 bits are too few: what goes into a model's first
 * projections has numbers a thousand times as large as the others, on which its weights are small (docs/log.md).
 *
 * The vocabulary has besides:
 *   VI, VS                   VW times 32 bits: of codes or sums, and of sums on the way
 *   vbytes(p)                32 bits of each row;  vhalves(bytes, low, high)  of each byte a half, as bytes
 *   vfour(p)                 four levels, for every lane
 *   vdots4(sum, a, b)        sum + the four products of a lane, codes 0 .. 15 and levels, 16 times at most; vnone() none
 *   vfloats(halves)          floats of 4 bits, in bytes, as twice their value
 *   vcode8(bytes)            int8 codes as vdots8 wants them: OFFSET8 is added;  vdots8(sum, a, b)  likewise, onto a VI
 *   vsums(sum) as a VI;  vint(x)  in all lanes;  vlevels(a, b) = 128 * a + b;  vlanes(x) as floats */
enum { PARTS = HGCA_TILE / VW, MOST_LEVEL = 63, UNITS = MOST_LEVEL * (128 * 128 + 128 + 1), MOST_NUMBER = 127 * 256 + 127 };

/* Sums of a block, in units of the placed scale, of the rows of all vectors: what a level is spread over serves them all. */
INLINE void dot_block4(const char *codes, const int8_t *level, VF *dots) {
    VS sum[PARTS][HGCA_LEVELS];
    UNROLL
    for (int part = 0; part < PARTS; part++)
        UNROLL
        for (int n = 0; n < HGCA_LEVELS; n++) sum[part][n] = vnone();
    UNROLL
    for (int line = 0; line < 4; line++) {
        VI low[PARTS], high[PARTS];
        UNROLL
        for (int part = 0; part < PARTS; part++) vhalves(vbytes(codes + line * LINE + part * 4 * VW), &low[part], &high[part]);
        UNROLL
        for (int n = 0; n < HGCA_LEVELS; n++) {
            const VI first = vfour(level + n * BLOCK + 8 * line), second = vfour(level + n * BLOCK + 8 * line + 4);
            UNROLL
            for (int part = 0; part < PARTS; part++) {
                sum[part][n] = vdots4(sum[part][n], low[part], first);
                sum[part][n] = vdots4(sum[part][n], high[part], second);
            }
        }
    }
    UNROLL
    for (int part = 0; part < PARTS; part++)
        dots[part] = vlanes(vlevels(vlevels(vsums(sum[part][0]), vsums(sum[part][1])), vsums(sum[part][2])));
}

/* What a tile has: 8 and 4 are bits of whole numbers, FLOAT floats of 4. */
enum { FLOAT = 5 };
INLINE int halves(int bits) { return bits != 8; }
INLINE int factor_bytes(int bits) { return bits == 4 ? 4 : 2; }

INLINE void dot_four(VI sum[HGCA_LEVELS], VI code, const int8_t *level) {
    UNROLL
    for (int n = 0; n < HGCA_LEVELS; n++) sum[n] = vdots8(sum[n], code, vfour(level + n * BLOCK));
}

/* Of numbers of 8 bits, or floats of 4. */
INLINE VF dot_block8(const char *codes, const int8_t *level, const int32_t *sums, int bits) {
    VI sum[HGCA_LEVELS];
    UNROLL
    for (int n = 0; n < HGCA_LEVELS; n++) sum[n] = vint(-OFFSET8 * sums[n]);
    if (halves(bits)) {
        UNROLL
        for (int line = 0; line < 4; line++) {
            VI low, high;
            vhalves(vbytes(codes + line * LINE), &low, &high);
            dot_four(sum, vcode8(vfloats(low)), level + 8 * line);
            dot_four(sum, vcode8(vfloats(high)), level + 8 * line + 4);
        }
    } else {
        UNROLL
        for (int line = 0; line < 8; line++) dot_four(sum, vcode8(vbytes(codes + line * LINE)), level + 4 * line);
    }
    return vfma(vlanes(vlevels(sum[0], sum[1])), vset1(128.0f), vlanes(sum[2])); /* 32 bits do not hold it */
}

INLINE int64_t tile_block_bytes(int bits) { return HGCA_TILE * (factor_bytes(bits) + (halves(bits) ? BLOCK / 2 : BLOCK)); }

INLINE void dot_tile(const hgca_linear_rows *p, const char *tile, int bits, float *out) {
    const int64_t blocks = p->inputs / BLOCK, block_bytes = tile_block_bytes(bits);
    VF sum[PARTS];
    UNROLL
    for (int part = 0; part < PARTS; part++) sum[part] = vzero();
    for (int64_t b = 0; b < blocks; b++) {
        const char *factor = tile + b * block_bytes, *codes = factor + HGCA_TILE * factor_bytes(bits);
        const hgca_placed_block *x = &p->placed[b];
        const VF scale = vset1(x->scale), whole = vset1(x->whole);
        prefetch_lines(p, factor + AHEAD_GRID, block_bytes);
        VF dots[PARTS];
        if (bits == 4) dot_block4(codes, x->level[0], dots);
        else {
            UNROLL
            for (int part = 0; part < PARTS; part++) dots[part] = dot_block8(codes + part * 4 * VW, x->level[0], x->sum, bits);
        }
        UNROLL
        for (int part = 0; part < PARTS; part++, factor += 2 * VW) {
            sum[part] = vfma(dots[part], vmul(vload_rows(factor, HGCA_F16), scale), sum[part]);
            if (bits == 4) sum[part] = vfma(vload_rows(factor + 2 * HGCA_TILE, HGCA_F16), whole, sum[part]);
        }
    }
    UNROLL
    for (int part = 0; part < PARTS; part++) vstore(out + part * VW, sum[part]);
}

INLINE void dot_tiles(const hgca_linear_rows *p, int bits) {
    const int64_t tile_bytes = p->inputs / BLOCK * tile_block_bytes(bits);
    const char *tile = p->weight;
    int64_t r = 0;
    prefetch_lines(p, tile, AHEAD_GRID);
    for (; r + HGCA_TILE <= p->rows; r += HGCA_TILE, tile += tile_bytes) dot_tile(p, tile, bits, p->out + r);
    if (r == p->rows) return;
    float whole[HGCA_TILE];
    dot_tile(p, tile, bits, whole);
    memcpy(p->out + r, whole, (size_t)(p->rows - r) * sizeof(float));
}

static void linear_grid8(const hgca_linear_rows *p) { dot_tiles(p, 8); }
static void linear_grid4(const hgca_linear_rows *p) { dot_tiles(p, 4); }
static void linear_float4(const hgca_linear_rows *p) { dot_tiles(p, FLOAT); }

/* The largest size of a block's numbers, 0 of those whose scale would be no normal float, infinity or NaN if one of them is. */
INLINE float largest_of(const float *in) {
    int32_t largest = 0;
    for (int i = 0; i < BLOCK; i++) { /* sizes are ordered as their bits are, infinity and NaN behind all numbers */
        int32_t size;
        memcpy(&size, in + i, sizeof size);
        size &= 0x7fffffff;
        largest = size > largest ? size : largest;
    }
    float top;
    memcpy(&top, &largest, sizeof top);
    return top <= 1e-30f ? 0.0f : top;
}

INLINE int32_t nearest(float x) {
    const float moved = x + 12582912.0f; /* 1.5 * 2^23: rounded, and in the low bits */
    int32_t number;
    memcpy(&number, &moved, sizeof number);
    return number - 0x4b400000;
}

/* A block as whole numbers up to `most`, and what one of them is. Their sum, times that, is `whole`. */
INLINE float whole_numbers(const float *in, int32_t most, int32_t *number, float *whole) {
    const float top = largest_of(in);
    const int some = top > 0.0f && top <= FLT_MAX;
    const float by = some ? (float)most / top : 0.0f, scale = some || top == 0.0f ? top / (float)most : NAN; /* NaN: so is every product */
    int32_t all = 0;
    for (int i = 0; i < BLOCK; i++) number[i] = nearest(some ? in[i] * by : 0.0f), all += number[i];
    *whole = (float)all * scale;
    return scale;
}

static void place(const float *in, int64_t blocks, hgca_placed_block *to) {
    for (int64_t b = 0; b < blocks; b++, in += BLOCK, to++) {
        int32_t numbers[BLOCK];
        to->scale = whole_numbers(in, UNITS, numbers, &to->whole);
        memset(to->sum, 0, sizeof to->sum);
        for (int i = 0; i < BLOCK; i++) {
            const int32_t number = numbers[i];
            const int32_t upper = (number + 64) >> 7, first = (upper + 64) >> 7; /* to the nearest */
            const int32_t level[HGCA_LEVELS] = {first, upper - 128 * first, number - 128 * upper};
            for (int n = 0; n < HGCA_LEVELS; n++) to->level[n][i] = (int8_t)level[n], to->sum[n] += level[n];
        }
    }
}
