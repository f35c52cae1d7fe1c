/* Attention of many queries over one piece, included by the template: several tokens of a large group, a prompt. Queries are the
 * lanes here, a row's numbers are spread one by one. No sum goes across lanes then, scores stand as weights are wanted,
 * and a register of queries serves MANY_ROWS rows, one of a row's numbers MANY_VECTORS vectors of queries.
 *
 * The vocabulary has besides:
 *   MANY_ROWS, MANY_VECTORS    rows (of a value: numbers) and vectors of queries whose sums the registers hold
 *   vpair_dots(sum, a, b)      where BF16_DOTS: sum + the two products of a lane's bf16 numbers */
enum { MANY_TILE = 48, MANY_MOST = 64 /* rows of any tile */, MANY_DIM = HGCA_MANY_DIM, MANY_LANES = MANY_VECTORS * VW, MANY_LEAST = 12 };

/* What lanes begin with that have seen nothing: finite, so that no difference of two is NaN. No score of a sane model is below. */
#define NOTHING_SEEN -1e30f

/* Of a block of queries. [number][lane]: query (bf16 pairs of numbers with BF16_QUERY), out; [row][lane]: weight, scores before */
typedef struct {
    float query[MANY_DIM * MANY_LANES] __attribute__((aligned(64)));
    float out[MANY_DIM * MANY_LANES] __attribute__((aligned(64)));
    float weight[MANY_MOST * MANY_LANES] __attribute__((aligned(64)));
    float max[MANY_LANES] __attribute__((aligned(64)));
    float sum[MANY_LANES] __attribute__((aligned(64)));
    int64_t edge[MANY_LANES]; /* the first position a query does not see */
} many;

/* A tile's rows as floats, or as pairs of bf16 numbers. */
typedef struct {
    float key[MANY_TILE * MANY_DIM] __attribute__((aligned(64)));
    float value[MANY_TILE * MANY_DIM] __attribute__((aligned(64)));
    const char *key_row[MANY_TILE + MANY_ROWS], *value_row[MANY_TILE]; /* there, or in memory */
} many_rows;

/* A number of a row, which may begin anywhere. */
INLINE float number_of(const char *at) {
    float x;
    memcpy(&x, at, sizeof x);
    return x;
}

/* What a block begins with: nothing seen by any lane. */
INLINE void begin_many(const hgca_piece *p, many *m, int first, int count, int lanes) {
    memset(m->out, 0, sizeof(float) * (size_t)(hgca_padded(p->value_dim) * lanes));
    for (int i = 0; i < lanes; i++) m->max[i] = NOTHING_SEEN, m->sum[i] = 0.0f, m->edge[i] = INT64_MAX;
    for (int i = 0; i < count && p->unseen != INT64_MAX; i++) m->edge[i] = p->unseen + (first + i) / p->group;
}

/* Transposed, and zeros where there is no query. */
INLINE void place_many(const hgca_piece *p, many *m, int first, int count, int lanes, int dtype) {
    const int64_t width = hgca_query_width(p->key_dim, dtype), numbers = dtype == BF16_QUERY ? p->key_dim / 2 : p->key_dim;
    const float *from = p->query + first * width;
    memset(m->query, 0, sizeof(float) * (size_t)(numbers * lanes));
    for (int i = 0; i < count; i++, from += width)
        for (int64_t d = 0; d < numbers; d++) m->query[d * lanes + i] = from[d];
    begin_many(p, m, first, count, lanes);
}

/* A row as floats, in the order its query is placed in; zeros up to a padded width. `scale` counts for int8. */
INLINE void row_as_floats(const char *row, int dim, int dtype, float scale, float *to) {
    int d = 0;
    if (dtype == HGCA_BF16)
        for (; VW > 1 && d + 2 * VW <= dim; d += 2 * VW) {
            VF even, odd;
            vload_pair(row + 2 * d, &even, &odd);
            vstore(to + d, even), vstore(to + d + VW, odd);
        }
    for (; d + VW <= dim; d += VW) vstore(to + d, vload_rows(row + hgca_number_bytes(dtype) * d, dtype));
    if (d < dim) vstore(to + d, vtail_rows(row + hgca_number_bytes(dtype) * d, dtype, dim - d)), d += VW;
    for (; d < hgca_padded(dim); d += VW) vstore(to + d, vzero());
    for (d = 0; dtype == HGCA_I8 && d < dim; d += VW) vstore(to + d, vmul(vload(to + d), vset1(scale)));
}

/* Where the tile's rows are as floats: in memory, or here. */
INLINE void tile_as_floats(const hgca_piece *p, many_rows *m, const tile_rows *tile, int rows, int dtype) {
    const int64_t key_width = hgca_padded(p->key_dim), value_width = hgca_padded(p->value_dim);
    const int stored = dtype == BF16_QUERY ? HGCA_BF16 : dtype;
    for (int r = 0; r < rows; r++) {
        const char *key = tile->half[2 * r], *value = tile->half[2 * r + 1];
        m->key_row[r] = key;
        m->value_row[r] = value;
        if (dtype != HGCA_F32 && dtype != BF16_QUERY) {
            m->key_row[r] = (const char *)(m->key + r * key_width);
            row_as_floats(key, p->key_dim, stored, tile->key_scale[r], m->key + r * key_width);
        }
        if (dtype != HGCA_F32 || p->value_dim % MANY_ROWS) {
            m->value_row[r] = (const char *)(m->value + r * value_width);
            row_as_floats(value, p->value_dim, stored, tile->value_scale[r], m->value + r * value_width);
        }
    }
    for (int r = rows; r < rows + MANY_ROWS; r++) m->key_row[r] = m->key_row[rows - 1];
}

/* sum + what a lane's number, or pair of bf16 numbers, gives: of a row, in all lanes, and of a query. */
INLINE VF add_product(VF sum, VF number, VF x, int pairs) {
#ifdef BF16_DOTS
    if (pairs) return vpair_dots(sum, number, x);
#endif
    (void)pairs;
    return vfma(number, x, sum);
}

/* weight[row][lane] = the products of all rows and queries. */
INLINE void score_many(const hgca_piece *p, many *m, const many_rows *of, int rows, int vectors, int dtype) {
    const int lanes = vectors * VW, numbers = dtype == BF16_QUERY ? p->key_dim / 2 : p->key_dim;
    for (int r = 0; r < rows; r += MANY_ROWS) {
        const char *const *key = of->key_row + r;
        VF sum[MANY_ROWS][MANY_VECTORS];
        UNROLL
        for (int j = 0; j < MANY_ROWS; j++) {
            UNROLL
            for (int v = 0; v < vectors; v++) sum[j][v] = vzero();
        }
        const float *query = m->query;
        for (int d = 0; d < numbers; d++, query += lanes) {
            VF x[MANY_VECTORS];
            UNROLL
            for (int v = 0; v < vectors; v++) x[v] = vload(query + v * VW);
            UNROLL
            for (int j = 0; j < MANY_ROWS; j++) {
                const VF number = vset1(number_of(key[j] + 4 * d));
                UNROLL
                for (int v = 0; v < vectors; v++) sum[j][v] = add_product(sum[j][v], number, x[v], dtype == BF16_QUERY);
            }
        }
        const VF by = vset1(dtype == BF16_QUERY ? p->scale : 1.0f);
        UNROLL
        for (int j = 0; j < MANY_ROWS; j++)
            UNROLL
            for (int v = 0; v < vectors; v++)
                if (r + j < MANY_TILE) vstore(m->weight + (r + j) * lanes + v * VW, dtype == BF16_QUERY ? vmul(sum[j][v], by) : sum[j][v]);
    }
}

/* The largest scores there are now, to `top`; where these are larger than before, sums shrink: those of weights to `total`. */
INLINE void raise_many(many *m, int rows, int64_t value_width, int vectors, VF *top, VF *total) {
    const int lanes = vectors * VW;
    VF shift[MANY_VECTORS];
    UNROLL
    for (int v = 0; v < vectors; v++) top[v] = shift[v] = vload(m->max + v * VW);
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < vectors; v++) top[v] = vmax(vload(m->weight + r * lanes + v * VW), top[v]);
    UNROLL
    for (int v = 0; v < vectors; v++) {
        total[v] = vload(m->sum + v * VW);
        if (!vexceeds(top[v], shift[v])) continue;
        const VF factor = vexp2(vsub(shift[v], top[v]));
        for (int64_t d = 0; d < value_width; d++) {
            float *out = m->out + d * lanes + v * VW;
            vstore(out, vmul(vload(out), factor));
        }
        total[v] = vmul(total[v], factor);
        vstore(m->max + v * VW, top[v]);
    }
}

/* Scores become weights 2^(s - max). */
INLINE void weigh_many(many *m, int rows, int64_t value_width, int vectors) {
    const int lanes = vectors * VW;
    VF top[MANY_VECTORS], total[MANY_VECTORS];
    raise_many(m, rows, value_width, vectors, top, total);
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < vectors; v++) {
            float *at = m->weight + r * lanes + v * VW;
            const VF weight = vexp2(vsub(vload(at), top[v]));
            vstore(at, weight);
            total[v] = vadd(total[v], weight);
        }
    UNROLL
    for (int v = 0; v < vectors; v++) vstore(m->sum + v * VW, total[v]);
}

/* out[number][lane] += sum_r value[r][number] * weight[r][lane], while the next tile is fetched, some lines with a row (two rows, where
 * values and weights are pairs) of every `each`-th numbers: all at once is more than a processor has room for. */
INLINE void add_many(many *m, const many_rows *of, int rows, int dim, int vectors, int pairs, line_cursor *next) {
    const int lanes = vectors * VW, blocks = (dim + MANY_ROWS - 1) / MANY_ROWS, step = pairs ? 2 : 1;
    const int64_t lines = step * ((next->bytes[0] + next->bytes[1]) / LINE), each = lines && blocks > lines ? blocks / lines : 1;
    const int64_t at_once = pairs ? (lines * each + blocks - 1) / blocks : 1;
    for (int d = 0; d < dim; d += MANY_ROWS) {
        const int64_t fetches = d / MANY_ROWS % each == 0 ? at_once : 0;
        float *out = m->out + d * lanes;
        const float *weight = m->weight;
        VF sum[MANY_ROWS][MANY_VECTORS];
        UNROLL
        for (int j = 0; j < MANY_ROWS; j++)
            UNROLL
            for (int v = 0; v < vectors; v++) sum[j][v] = vload(out + j * lanes + v * VW);
        for (int r = 0; r < rows; r += step, weight += lanes) {
            const char *value = of->value_row[r] + 4 * d;
            for (int64_t i = 0; i < fetches; i++) fetch_next_line(next);
            VF x[MANY_VECTORS];
            UNROLL
            for (int v = 0; v < vectors; v++) x[v] = vload(weight + v * VW);
            UNROLL
            for (int j = 0; j < MANY_ROWS; j++) {
                const VF number = vset1(number_of(value + 4 * j));
                UNROLL
                for (int v = 0; v < vectors; v++) sum[j][v] = add_product(sum[j][v], number, x[v], pairs);
            }
        }
        UNROLL
        for (int j = 0; j < MANY_ROWS; j++)
            UNROLL
            for (int v = 0; v < vectors; v++) vstore(out + j * lanes + v * VW, sum[j][v]);
    }
}

/* Rows that a token of this block does not see yet. */
static void hide_from_many(const many *m, const tile_rows *tile, int rows, int lanes, float *score) {
    for (int r = 0; r < rows; r++, score += lanes)
        for (int i = 0; i < lanes; i++)
            if (tile->at[r] >= m->edge[i]) score[i] = -INFINITY;
}

/* A query of which no row was seen has no maximum, and its sums, of weights below 2^-126, are none; NaN stays. Returns whether it is
 * such a one. */
INLINE int leave_sums(const hgca_piece *p, const many *m, int first, int i) {
    const int none = m->max[i] == NOTHING_SEEN, empty = none && m->sum[i] == m->sum[i];
    p->max[first + i] = none ? -INFINITY : m->max[i];
    p->sum[first + i] = empty ? 0.0f : m->sum[i];
    return empty;
}

static void leave_many(const hgca_piece *p, const many *m, int first, int count, int lanes) {
    const int64_t width = hgca_padded(p->value_dim);
    for (int i = 0; i < count; i++) {
        const int empty = leave_sums(p, m, first, i);
        float *out = p->out + (first + i) * width;
        for (int64_t d = 0; d < width; d++) out[d] = empty || d >= p->value_dim ? 0.0f : m->out[d * lanes + i];
    }
}

/* The tiles of a block, one after the other: this one's rows, and the next one's, which are fetched meanwhile. */
typedef struct {
    tile_rows tiles[2];
    const tile_rows *tile;
    line_cursor lines; /* of the next one */
    row_cursor at;
    int64_t left;
    int most, turn, rows, next_rows; /* most: of a tile */
} many_tiles;

INLINE int some_of_many(const many_tiles *t) { return t->left < t->most ? (int)t->left : t->most; }

/* A block's rows: such as lie one behind the other end with the last one a query sees. */
INLINE void begin_tiles(const hgca_piece *p, const many *m, int count, int dtype, int most, many_tiles *t) {
    const int64_t seen = p->row == NULL && p->unseen != INT64_MAX ? m->edge[count - 1] - p->first : p->count;
    t->at = (row_cursor){p->row, p->run, p->first};
    t->left = seen < p->count ? seen : p->count;
    t->most = most, t->turn = -1, t->next_rows = some_of_many(t);
    if (t->next_rows > 0) find_rows(p, &t->at, t->next_rows, dtype, &t->tiles[0]);
}

/* Whether there is another tile. */
INLINE int next_tile(const hgca_piece *p, int dtype, many_tiles *t) {
    const int64_t size = hgca_number_bytes(dtype == BF16_QUERY ? HGCA_BF16 : dtype);
    t->rows = t->next_rows;
    if (t->rows <= 0) return 0;
    t->turn++, t->left -= t->rows;
    tile_rows *next = &t->tiles[(t->turn + 1) % 2];
    t->tile = &t->tiles[t->turn % 2], t->next_rows = some_of_many(t);
    find_rows(p, &t->at, t->next_rows, dtype, next);
    t->lines = (line_cursor){next, 2 * t->next_rows, 0, 0, {p->key_dim * size, p->value_dim * size}};
    return 1;
}

/* Scores that were made, capped and hidden as they are to be. */
INLINE void limit_many(const hgca_piece *p, many *m, const tile_rows *tile, int rows, int lanes) {
    if (p->softcap > 0.0f)
        for (int r = 0; r < rows; r++) cap_scores(m->weight + r * lanes, lanes, p->softcap);
    if (p->unseen != INT64_MAX && (p->row != NULL || tile->at[rows - 1] >= m->edge[0])) hide_from_many(m, tile, rows, lanes, m->weight);
}

INLINE void block_of_many(const hgca_piece *p, many *m, many_rows *of, int first, int count, int vectors, int dtype) {
    const int lanes = vectors * VW;
    place_many(p, m, first, count, lanes, dtype);
    many_tiles t;
    for (begin_tiles(p, m, count, dtype, MANY_TILE, &t); next_tile(p, dtype, &t);) {
        tile_as_floats(p, of, t.tile, t.rows, dtype);
        score_many(p, m, of, t.rows, vectors, dtype);
        limit_many(p, m, t.tile, t.rows, lanes);
        weigh_many(m, t.rows, hgca_padded(p->value_dim), vectors);
        add_many(m, of, t.rows, p->value_dim, vectors, 0, &t.lines);
    }
    leave_many(p, m, first, count, lanes);
}

INLINE void piece_of_many(const hgca_piece *p, int dtype) {
    many m;
    many_rows of;
    for (int first = 0; first < p->heads; first += MANY_LANES) { /* later blocks find the rows in cache */
        const int left = p->heads - first, count = left < MANY_LANES ? left : MANY_LANES;
        if (MANY_VECTORS > 1 && count <= VW) block_of_many(p, &m, &of, first, count, 1, dtype);
        else if (MANY_VECTORS > 2 && count <= 2 * VW) block_of_many(p, &m, &of, first, count, 2, dtype);
        else block_of_many(p, &m, &of, first, count, MANY_VECTORS, dtype);
    }
    if (dtype == HGCA_BF16 || dtype == BF16_QUERY) in_memory_order(p);
}

INLINE int takes_many(const hgca_piece *p, int dtype) {
    return p->heads >= MANY_LEAST && p->key_dim <= MANY_DIM && p->value_dim <= MANY_DIM && (dtype != BF16_QUERY || p->key_dim % 2 == 0);
}

/* A function of its own, for its room on the stack; 0 where nothing was done. Few queries of int8 rows are placed in another way. */
#define MANY(name, dtype)                                                     \
    static __attribute__((noinline)) int many_##name(const hgca_piece *p) {   \
        if ((int)(dtype) == (int)HGCA_I8 || !takes_many(p, dtype)) return 0;  \
        piece_of_many(p, dtype);                                              \
        return 1;                                                             \
    }

static void piece_many_i8(const hgca_piece *p) { piece_of_many(p, HGCA_I8); }
