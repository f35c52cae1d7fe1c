/* Many queries over rows of bf16, or int8, by bf16 dots, beside the template: two numbers of a key, or one number of two values, are a
 * pair, so an operation adds two products where floats are one.
 *
 * Queries are rounded to bf16 for it. What is rounded off counts for the pairs of numbers where it moves scores most, an eighth of
 * them: a model's keys are large in few numbers, and what remains moves scores by some percent (in square) of what rounding keys to
 * bf16 did. Weights are rounded, too; those of bf16 rows are added up as rounded, so that a result is a mean of values still. */
enum { PAIRS_MENDED = 8 /* one of so many */, PAIRS_KEY = MANY_DIM / 2, PAIRS_MOST = PAIRS_KEY / PAIRS_MENDED };

typedef struct {
    uint16_t near[MANY_LANES][MANY_DIM] __attribute__((aligned(64)));
    uint16_t rest[MANY_LANES][MANY_DIM] __attribute__((aligned(64))); /* what was rounded off */
    float square[MANY_DIM] __attribute__((aligned(64)));              /* of that, over all queries */
} many_cut;

typedef struct {
    many m;                                                               /* whose query is [pair][lane] */
    many_rows rows;                                                       /* value: pairs of two rows' numbers */
    many_cut query;
    int mended, mend[PAIRS_MOST];                                         /* the pairs for which it counts */
    float mending[PAIRS_MOST * MANY_LANES] __attribute__((aligned(64)));  /* [one of these][lane] */
    uint16_t row[2 * MANY_TILE][MANY_DIM] __attribute__((aligned(64)));   /* keys and values of int8 as bf16 */
} many_pairs;

/* As it is: scores are multiplied by the scale. */
static void place_as_it_is(const float *query, float scale, int64_t dim, float *to) {
    (void)scale;
    memcpy(to, query, sizeof(float) * (size_t)dim);
}

/* Pair `d` of all lanes. */
INLINE void lanes_of_pair(const uint16_t from[MANY_LANES][MANY_DIM], int d, int lanes, float *to) {
    const __m512i apart = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(MANY_DIM / 2));
    for (int i = 0; i < lanes; i += VW) _mm512_storeu_si512(to + i, _mm512_i32gather_epi32(apart, (const int *)(const void *)from[i] + d, 4));
}

/* Zeros where there is no query. */
INLINE void cut_many(const hgca_piece *p, many_cut *of, int first, int count, int lanes, int dtype) {
    const int64_t width = hgca_query_width(p->key_dim, dtype);
    const float *from = p->query + first * width;
    memset(of->square, 0, sizeof of->square);
    for (int i = 0; i < lanes; i++, from += width)
        for (int d = 0; d < p->key_dim; d += VW) {
            const __mmask16 some = i >= count ? 0 : p->key_dim - d < VW ? (__mmask16)((1u << (p->key_dim - d)) - 1) : (__mmask16)0xffff;
            const VF number = _mm512_maskz_loadu_ps(some, from + d);
            const __m256i near = (__m256i)_mm512_cvtneps_pbh(number);
            VF rest = vsub(number, widen(near, HGCA_BF16));
            rest = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(rest, rest, _CMP_ORD_Q), rest); /* none of what is infinite */
            vstore(of->square + d, vfma(rest, rest, vload(of->square + d)));
            _mm256_storeu_si256((__m256i *)(void *)(of->near[i] + d), near);
            _mm256_storeu_si256((__m256i *)(void *)(of->rest[i] + d), (__m256i)_mm512_cvtneps_pbh(rest));
        }
}

INLINE void place_pairs(const hgca_piece *p, many_pairs *of, int first, int count, int lanes, int dtype) {
    cut_many(p, &of->query, first, count, lanes, dtype);
    for (int d = 0; d < p->key_dim / 2; d++) lanes_of_pair(of->query.near, d, lanes, of->m.query + d * lanes);
    begin_many(p, &of->m, first, count, lanes);
}

/* int8 as bf16, which has all of these numbers. */
INLINE void widen_i8(const char *from, int dim, uint16_t *to) {
    for (int d = 0; d < dim; d += 16) {
        const __mmask16 some = dim - d < 16 ? (__mmask16)((1u << (dim - d)) - 1) : (__mmask16)0xffff;
        const __m512 number = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(some, from + d)));
        _mm256_storeu_si256((__m256i *)(void *)(to + d), _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(number), 16)));
    }
}

/* m->key_row: rows of bf16; m->value_row of an even row: its numbers beside those of the next one, in memory's order. */
INLINE void tile_as_pairs(const hgca_piece *p, many_pairs *of, const tile_rows *tile, int rows, int dtype) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const int64_t width = (p->value_dim + 31) / 32 * 32;
    many_rows *m = &of->rows;
    for (int half = 0; half < 2 * rows; half++) {
        const char *row = tile->half[half];
        if (dtype == HGCA_I8) widen_i8(row, half % 2 ? p->value_dim : p->key_dim, of->row[half]), row = (const char *)of->row[half];
        *(half % 2 ? &m->value_row[half / 2] : &m->key_row[half / 2]) = row;
    }
    for (int r = rows; r < rows + MANY_ROWS; r++) m->key_row[r] = m->key_row[rows - 1];
    for (int r = 0; r < rows; r += 2) {
        float *to = m->value + r / 2 * width;
        for (int64_t d = 0; d < p->value_dim; d += 32) {
            const __m512i a = (__m512i)load_numbers(m->value_row[r] + 2 * d, p->value_dim - d);
            const __m512i b = r + 1 < rows ? (__m512i)load_numbers(m->value_row[r + 1] + 2 * d, p->value_dim - d) : _mm512_setzero_si512();
            _mm512_storeu_si512(to + d, _mm512_permutex2var_epi16(a, low, b));
            _mm512_storeu_si512(to + d + 16, _mm512_permutex2var_epi16(a, high, b));
        }
        m->value_row[r] = (const char *)to;
    }
}

/* The pairs of numbers of which what was rounded off moves these rows' scores most. */
INLINE void mend_pairs(const hgca_piece *p, many_pairs *of, const tile_rows *tile, int rows, int lanes, int dtype) {
    const int most = (p->key_dim / 2 + PAIRS_MENDED - 1) / PAIRS_MENDED;
    float moved[MANY_DIM] __attribute__((aligned(64)));
    memset(moved, 0, sizeof moved);
    for (int r = 0; r < rows; r++)
        for (int d = 0; d < p->key_dim; d += VW) {
            const int left = p->key_dim - d;
            VF number = left < VW ? vtail_rows(of->rows.key_row[r] + 2 * d, HGCA_BF16, left) : vload_rows(of->rows.key_row[r] + 2 * d, HGCA_BF16);
            if (dtype == HGCA_I8) number = vmul(number, vset1(tile->key_scale[r]));
            vstore(moved + d, vfma(vmul(number, number), vload(of->query.square + d), vload(moved + d)));
        }
    for (of->mended = 0; of->mended < most; of->mended++) {
        int best = 0;
        for (int d = 2; d < p->key_dim; d += 2)
            if (moved[d] + moved[d + 1] > moved[best] + moved[best + 1]) best = d;
        if (!(moved[best] + moved[best + 1] > 0.0f)) break; /* queries that are numbers of bf16 */
        moved[best] = moved[best + 1] = 0.0f;
        of->mend[of->mended] = best / 2;
        lanes_of_pair(of->query.rest, best / 2, lanes, of->mending + of->mended * lanes);
    }
}

/* weight[row][lane] = the products of all rows and queries. */
INLINE void score_pairs(const hgca_piece *p, many_pairs *of, const tile_rows *tile, int rows, int vectors, int dtype) {
    const int lanes = vectors * VW, pairs = p->key_dim / 2;
    for (int r = 0; r < rows; r += MANY_ROWS) {
        const char *const *key = of->rows.key_row + r;
        VF sum[MANY_ROWS][MANY_VECTORS];
        UNROLL
        for (int j = 0; j < MANY_ROWS; j++) {
            UNROLL
            for (int v = 0; v < vectors; v++) sum[j][v] = vzero();
        }
        for (int i = 0; i < pairs + of->mended; i++) {
            const int d = i < pairs ? i : of->mend[i - pairs];
            const float *query = i < pairs ? of->m.query + i * lanes : of->mending + (i - pairs) * lanes;
            VF x[MANY_VECTORS];
            UNROLL
            for (int v = 0; v < vectors; v++) x[v] = vload(query + v * VW);
            UNROLL
            for (int j = 0; j < MANY_ROWS; j++) {
                const VF both = vset1(number_of(key[j] + 4 * d));
                UNROLL
                for (int v = 0; v < vectors; v++) sum[j][v] = add_product(sum[j][v], both, x[v], 1);
            }
        }
        UNROLL
        for (int j = 0; j < MANY_ROWS; j++) {
            if (r + j >= rows) break;
            const VF by = vset1(dtype == HGCA_I8 ? p->scale * tile->key_scale[r + j] : p->scale);
            UNROLL
            for (int v = 0; v < vectors; v++) vstore(of->m.weight + (r + j) * lanes + v * VW, vmul(sum[j][v], by));
        }
    }
}

INLINE __m512i rounded(VF x) {
    return _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000)), _mm512_set1_epi32((int)0xffff0000));
}

INLINE __m512i pair_of(const __m512i number[2]) { return _mm512_or_si512(_mm512_srli_epi32(number[0], 16), number[1]); }

/* Scores of rows r and r + 1 become the pair r / 2 of weights, and of `left`, if it is not NULL (a constant), of what rounding those
 * left. Where nothing is kept of that, those of bf16 rows are added up as rounded. */
INLINE void weigh_pairs(const hgca_piece *p, many *m, float *left, const tile_rows *tile, int rows, int vectors, int dtype) {
    const int lanes = vectors * VW;
    VF top[MANY_VECTORS], total[MANY_VECTORS];
    raise_many(m, rows, hgca_padded(p->value_dim), vectors, top, total);
    for (int r = 0; r < rows; r += 2)
        UNROLL
        for (int v = 0; v < vectors; v++) {
            const float *at = m->weight + r * lanes + v * VW;
            VF weight[2];
            weight[0] = vexp2(vsub(vload(at), top[v]));
            weight[1] = r + 1 < rows ? vexp2(vsub(vload(at + lanes), top[v])) : vzero();
            __m512i pair[2], rest[2];
            UNROLL
            for (int k = 0; k < 2; k++) {
                const VF scaled = dtype == HGCA_I8 ? vmul(weight[k], vset1(tile->value_scale[r + k])) : weight[k];
                pair[k] = rounded(scaled);
                total[v] = vadd(total[v], dtype == HGCA_I8 || left ? weight[k] : _mm512_castsi512_ps(pair[k]));
                if (left) rest[k] = rounded(vsub(scaled, _mm512_castsi512_ps(pair[k])));
            }
            _mm512_storeu_si512(m->weight + r / 2 * lanes + v * VW, pair_of(pair));
            if (left) _mm512_storeu_si512(left + r / 2 * lanes + v * VW, pair_of(rest));
        }
    UNROLL
    for (int v = 0; v < vectors; v++) vstore(m->sum + v * VW, total[v]);
}

INLINE void block_of_pairs(const hgca_piece *p, many_pairs *of, int first, int count, int vectors, int dtype) {
    many *m = &of->m;
    const int lanes = vectors * VW;
    place_pairs(p, of, first, count, lanes, dtype);
    many_tiles t;
    for (begin_tiles(p, m, count, dtype, MANY_TILE, &t); next_tile(p, dtype, &t);) {
        tile_as_pairs(p, of, t.tile, t.rows, dtype);
        if (t.turn == 0) mend_pairs(p, of, t.tile, t.rows, lanes, dtype);
        score_pairs(p, of, t.tile, t.rows, vectors, dtype);
        limit_many(p, m, t.tile, t.rows, lanes);
        weigh_pairs(p, m, NULL, t.tile, t.rows, vectors, dtype);
        add_many(m, &of->rows, t.rows, p->value_dim, vectors, 1, &t.lines);
    }
    leave_many(p, m, first, count, lanes);
}

INLINE void piece_of_pairs(const hgca_piece *p, int dtype) {
    many_pairs of;
    for (int first = 0; first < p->heads; first += MANY_LANES) {
        const int left = p->heads - first, count = left < MANY_LANES ? left : MANY_LANES;
        if (count <= VW) block_of_pairs(p, &of, first, count, 1, dtype);
        else if (count <= 2 * VW) block_of_pairs(p, &of, first, count, 2, dtype);
        else block_of_pairs(p, &of, first, count, MANY_VECTORS, dtype);
    }
}

static void piece_pairs_bf16(const hgca_piece *p) { piece_of_pairs(p, HGCA_BF16); }
static void piece_pairs_i8(const hgca_piece *p) { piece_of_pairs(p, HGCA_I8); }
#define MANY_PAIRS {piece_pairs_bf16, place_as_it_is}, {piece_pairs_i8, place_as_it_is}
