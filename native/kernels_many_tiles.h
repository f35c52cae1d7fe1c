/* Many queries over rows of bf16, or int8, by matrices of AMX, beside kernels_many_pairs.h, whose layouts they take as they are: rows of
 * keys are one matrix, pairs of the numbers of queries the other, and what comes out are rows of scores, a lane a query. For values
 * a line holds one number of 32 rows, which is why they are turned; several blocks of lanes share what that takes, and what is fetched.
 *
 * Queries and weights are cut into two bf16 numbers here: for queries that costs less than to mend pairs. */
enum { MANY_STEP = 32 /* bf16 numbers of a line */, MANY_STEPS = MANY_MOST / MANY_STEP, MANY_BLOCKS = 6 };

/* Of one block of lanes. */
typedef struct {
    many m;                                                             /* query: pairs [pair][lane] of the first numbers */
    float rest[MANY_DIM / 2 * MANY_LANES] __attribute__((aligned(64))); /* of the second ones */
    float left[MANY_MOST / 2 * MANY_LANES] __attribute__((aligned(64))); /* pairs of weights' second numbers [pair][lane] */
    int two; /* whether any query has a second number that is not 0 */
    int count, vectors;
} tiles_block;

typedef struct {
    tiles_block block[MANY_BLOCKS];
    many_cut query;
    uint16_t row[2 * MANY_MOST][MANY_DIM] __attribute__((aligned(64))); /* rows that do not stand in memory as a matrix wants them */
    const char *value_row[MANY_MOST];
    char value[MANY_DIM / TILE_LINES][MANY_STEPS][TILE_LINES][TILE_LINE] __attribute__((aligned(64)));
} many_by_tiles;

/* Sixteen vectors of sixteen numbers of 32 bits, with lines and columns exchanged. */
INLINE void turn(__m512i x[16]) {
    __m512i a[16];
    UNROLL
    for (int i = 0; i < 16; i += 2) a[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]), a[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    UNROLL
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]), x[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]), x[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88), a[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88), a[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 8; i++) x[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88), x[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
}

/* to[pair][lane] of bf16 numbers of lanes. */
INLINE void turn_queries(const uint16_t from[MANY_LANES][MANY_DIM], int dim, int lanes, float *to) {
    for (int lane = 0; lane < lanes; lane += 16)
        for (int d = 0; d < dim; d += MANY_STEP) {
            __m512i x[16];
            UNROLL
            for (int i = 0; i < 16; i++) x[i] = _mm512_load_si512(from[lane + i] + d);
            turn(x);
            UNROLL
            for (int i = 0; i < 16; i++) _mm512_store_si512(to + (d / 2 + i) * lanes + lane, x[i]);
        }
}

INLINE void place_by_tiles(const hgca_piece *p, many_cut *cut, tiles_block *b, int first, int dtype) {
    const int lanes = b->vectors * VW;
    cut_many(p, cut, first, b->count, lanes, dtype);
    b->two = 0;
    for (int d = 0; d < p->key_dim; d++) b->two |= cut->square[d] != 0.0f;
    turn_queries(cut->near, p->key_dim, lanes, b->m.query);
    if (b->two) turn_queries(cut->rest, p->key_dim, lanes, b->rest);
    begin_many(p, &b->m, first, b->count, lanes);
}

/* Rows of bf16: where they are in memory, or widened, and keys of a list where they lie one behind the other. */
INLINE void rows_by_tiles(const hgca_piece *p, many_by_tiles *of, const tile_rows *tile, int rows, int dtype) {
    for (int r = 0; r < rows; r++) {
        of->value_row[r] = tile->half[2 * r + 1];
        if (dtype == HGCA_I8) {
            widen_i8(tile->half[2 * r], p->key_dim, of->row[2 * r]);
            widen_i8(tile->half[2 * r + 1], p->value_dim, of->row[2 * r + 1]);
            of->value_row[r] = (const char *)of->row[2 * r + 1];
        } else if (p->row != NULL || r >= rows / TILE_LINES * TILE_LINES) /* of the last lines a matrix would read beyond */
            for (int d = 0; d < p->key_dim; d += MANY_STEP) _mm512_store_si512(of->row[2 * r] + d, _mm512_loadu_si512(tile->half[2 * r] + 2 * d));
    }
}

/* of->value: numbers of rows as lines; of no row 0. Interleaved within 16 bytes, so that a line's number tells where it belongs. */
INLINE void turn_values(const hgca_piece *p, many_by_tiles *of, int rows) {
    const char *const *value = of->value_row;
    const __m512i none = _mm512_setzero_si512();
    for (int step = 0; step * MANY_STEP < rows; step++)
        for (int d = 0; d < p->value_dim; d += 32)
            for (int high = 0; high < 2; high++) {
                __m512i x[16];
                UNROLL
                for (int i = 0; i < 16; i++) {
                    const int r = step * MANY_STEP + 2 * i;
                    const __m512i even = r < rows ? _mm512_loadu_si512(value[r] + 2 * d) : none;
                    const __m512i odd = r + 1 < rows ? _mm512_loadu_si512(value[r + 1] + 2 * d) : none;
                    x[i] = high ? _mm512_unpackhi_epi16(even, odd) : _mm512_unpacklo_epi16(even, odd);
                }
                turn(x);
                UNROLL
                for (int i = 0; i < 16; i++) {
                    const int number = i / 4 * 8 + high * 4 + i % 4;
                    _mm512_store_si512(of->value[(d + number) / TILE_LINES][step][number % TILE_LINES], x[i]);
                }
            }
}

/* What is done with each vector of lanes: the number of a tile is a word for the assembler. */
#define EACH_VECTOR(what)          \
    {                              \
        what(0, 4);                \
        if (vectors > 1) what(1, 5); \
        if (vectors > 2) what(2, 6); \
    }
#define ZERO_SUM(v, b) TILE_ZERO(v)
#define ADD_DOT(v, b)                                        \
    {                                                        \
        TILE_LOAD(b, from + (v) * TILE_LINE, lanes * 4);     \
        TILE_DOT(v, 3, b);                                   \
    }
#define LOAD_SUM(v, b) TILE_LOAD(v, (const char *)out + (v) * TILE_LINE, lanes * 4)
#define LEAVE_SUM(v, b) TILE_STORE_AT(v, (char *)out + (v) * TILE_LINE, lanes * 4)

/* weight[row][lane] = the products of all rows and queries. */
INLINE void score_many_by_tiles(const hgca_piece *p, const many_by_tiles *of, tiles_block *b, const tile_rows *tile, int rows, int vectors, int dtype) {
    const int lanes = vectors * VW;
    TILES_ORDERED();
    for (int r = 0; r < rows; r += TILE_LINES) {
        const int there = dtype == HGCA_BF16 && p->row == NULL && r + TILE_LINES <= rows;
        const char *key = there ? tile->half[2 * r] : (const char *)of->row[2 * r];
        const int64_t stride = there ? p->key_row_stride : (int64_t)(2 * sizeof of->row[0]);
        float *out = b->m.weight + r * lanes;
        EACH_VECTOR(ZERO_SUM)
        for (int d = 0; d < p->key_dim; d += MANY_STEP) {
            TILE_LOAD(3, key + 2 * d, stride);
            const char *from = (const char *)(b->m.query + d / 2 * lanes);
            EACH_VECTOR(ADD_DOT)
            if (!b->two) continue;
            from = (const char *)(b->rest + d / 2 * lanes);
            EACH_VECTOR(ADD_DOT)
        }
        EACH_VECTOR(LEAVE_SUM)
    }
    TILES_ORDERED();
    for (int r = 0; r < rows; r++) {
        const VF by = vset1(dtype == HGCA_I8 ? p->scale * tile->key_scale[r] : p->scale);
        UNROLL
        for (int v = 0; v < vectors; v++) {
            float *score = b->m.weight + r * lanes + v * VW;
            vstore(score, vmul(vload(score), by));
        }
    }
}

/* out[number][lane] += sum_r value[r][number] * weight[r][lane], while `fetches` lines of the next tile are fetched for 16 numbers each. */
INLINE void add_many_by_tiles(const hgca_piece *p, const many_by_tiles *of, tiles_block *b, int rows, int vectors, int64_t fetches, line_cursor *next) {
    const int lanes = vectors * VW, pairs = (rows + 1) / 2, all = (rows + MANY_STEP - 1) / MANY_STEP * TILE_LINES;
    const size_t beyond = sizeof(float) * (size_t)((all - pairs) * lanes);
    memset(b->m.weight + pairs * lanes, 0, beyond), memset(b->left + pairs * lanes, 0, beyond);
    TILES_ORDERED();
    for (int d = 0; d < p->value_dim; d += TILE_LINES) {
        for (int64_t i = 0; i < fetches; i++) fetch_next_line(next);
        float *out = b->m.out + d * lanes;
        EACH_VECTOR(LOAD_SUM)
        for (int step = 0; step * MANY_STEP < rows; step++) {
            TILE_LOAD(3, of->value[d / TILE_LINES][step], TILE_LINE);
            const char *from = (const char *)(b->m.weight + step * TILE_LINES * lanes);
            EACH_VECTOR(ADD_DOT)
            from = (const char *)(b->left + step * TILE_LINES * lanes);
            EACH_VECTOR(ADD_DOT)
        }
        EACH_VECTOR(LEAVE_SUM)
    }
    TILES_ORDERED();
}

INLINE void block_over_tile(const hgca_piece *p, const many_by_tiles *of, tiles_block *b, many_tiles *t, int vectors, int64_t fetches, int dtype) {
    score_many_by_tiles(p, of, b, t->tile, t->rows, vectors, dtype);
    limit_many(p, &b->m, t->tile, t->rows, vectors * VW);
    weigh_pairs(p, &b->m, b->left, t->tile, t->rows, vectors, dtype);
    add_many_by_tiles(p, of, b, t->rows, vectors, fetches, &t->lines);
}

/* As leave_many. */
static void leave_by_tiles(const hgca_piece *p, const tiles_block *b, int first) {
    const many *m = &b->m;
    const int lanes = b->vectors * VW;
    const int64_t width = hgca_padded(p->value_dim);
    for (int lane = 0; lane < b->count; lane += 16)
        for (int d = 0; d < p->value_dim; d += 16) {
            __m512i x[16];
            UNROLL
            for (int i = 0; i < 16; i++) x[i] = _mm512_load_si512(m->out + (d + i) * lanes + lane);
            turn(x);
            UNROLL
            for (int i = 0; i < 16; i++)
                if (lane + i < b->count) _mm512_storeu_si512(p->out + (first + lane + i) * width + d, x[i]);
        }
    for (int i = 0; i < b->count; i++)
        if (leave_sums(p, m, first, i)) memset(p->out + (first + i) * width, 0, sizeof(float) * (size_t)width);
}

/* So many blocks from query `first` on. */
INLINE void blocks_over_rows(const hgca_piece *p, many_by_tiles *of, int first, int blocks, int dtype) {
    for (int i = 0; i < blocks; i++) {
        tiles_block *b = &of->block[i];
        const int from = first + i * MANY_LANES, left = p->heads - from;
        b->count = left < MANY_LANES ? left : MANY_LANES;
        b->vectors = (b->count + VW - 1) / VW;
        place_by_tiles(p, &of->query, b, from, dtype);
    }
    const tiles_block *last = &of->block[blocks - 1];
    const int passes = blocks * p->value_dim / TILE_LINES;
    many_tiles t;
    for (begin_tiles(p, &last->m, last->count, dtype, MANY_MOST, &t); next_tile(p, dtype, &t);) {
        const int64_t lines = t.lines.halves / 2 * (t.lines.bytes[0] + t.lines.bytes[1]) / LINE, fetches = (lines + passes - 1) / passes;
        rows_by_tiles(p, of, t.tile, t.rows, dtype);
        turn_values(p, of, t.rows);
        for (int i = 0; i < blocks; i++) {
            tiles_block *b = &of->block[i];
            if (b->vectors == 1) block_over_tile(p, of, b, &t, 1, fetches, dtype);
            else if (b->vectors == 2) block_over_tile(p, of, b, &t, 2, fetches, dtype);
            else block_over_tile(p, of, b, &t, MANY_VECTORS, fetches, dtype);
        }
    }
    for (int i = 0; i < blocks; i++) leave_by_tiles(p, &of->block[i], first + i * MANY_LANES);
}

INLINE void piece_many_by_tiles(const hgca_piece *p, int dtype) {
    many_by_tiles of;
    tiles_begin();
    for (int first = 0; first < p->heads; first += MANY_BLOCKS * MANY_LANES) {
        const int blocks = (p->heads - first + MANY_LANES - 1) / MANY_LANES;
        blocks_over_rows(p, &of, first, blocks < MANY_BLOCKS ? blocks : MANY_BLOCKS, dtype);
    }
    tiles_end();
}

static void piece_many_tiles_bf16(const hgca_piece *p) { piece_many_by_tiles(p, HGCA_BF16); }
static void piece_many_tiles_i8(const hgca_piece *p) { piece_many_by_tiles(p, HGCA_I8); }
#define MANY_BY_TILES {piece_many_tiles_bf16, place_as_it_is}, {piece_many_tiles_i8, place_as_it_is}
