/* Where a tile's rows are, and fetching them ahead. Included by the template, in its words. */

INLINE void find_scales(const hgca_piece *p, int64_t row, tile_rows *tile, int r) {
    memcpy(&tile->key_scale[r], p->key_scale + row * p->scale_row_stride, sizeof(float));
    memcpy(&tile->value_scale[r], p->value_scale + row * p->scale_row_stride, sizeof(float));
}

/* `rows` rows one after the other. */
INLINE void follow_rows(const hgca_piece *p, int64_t first, int rows, int dtype, tile_rows *tile) {
    const char *key = p->key + first * p->key_row_stride, *value = p->value + first * p->value_row_stride;
    for (int r = 0; r < rows; r++) {
        tile->half[2 * r] = key + r * p->key_row_stride;
        tile->half[2 * r + 1] = value + r * p->value_row_stride;
    }
    if (p->unseen != INT64_MAX)
        for (int r = 0; r < rows; r++) tile->at[r] = first + r;
    if (dtype != HGCA_I8) return;
    for (int64_t at = 0; at < rows * p->scale_row_stride; at += LINE) /* of the tile after it: nobody else asks for them early */
        __builtin_prefetch((const char *)p->key_scale + (first + rows) * p->scale_row_stride + at, 0, AHEAD_LEVEL);
    if (p->scale_row_stride == sizeof(float)) {
        memcpy(tile->key_scale, p->key_scale + first * (int64_t)sizeof(float), sizeof(float) * (size_t)rows);
        memcpy(tile->value_scale, p->value_scale + first * (int64_t)sizeof(float), sizeof(float) * (size_t)rows);
    } else if (p->scale_row_stride == 2 * sizeof(float) && p->value_scale == p->key_scale + sizeof(float)) { /* as a store has them */
        float pair[2 * TILE];
        memcpy(pair, p->key_scale + first * p->scale_row_stride, 2 * sizeof(float) * (size_t)rows);
        for (int r = 0; r < rows; r++) tile->key_scale[r] = pair[2 * r], tile->value_scale[r] = pair[2 * r + 1];
    } else
        for (int r = 0; r < rows; r++) find_scales(p, first + r, tile, r);
}

/* The next `rows` rows of a list. */
INLINE void look_up_rows(const hgca_piece *p, row_cursor *at, int rows, int dtype, tile_rows *tile) {
    for (int r = 0; r < rows; r++) {
        int64_t row;
        if (at->run == NULL) row = *at->row++;
        else {
            while (at->first >= *at->run) at->first = 0, at->run++, at->row++; /* the first one may be used up, or empty */
            row = *at->row + at->first++;
        }
        tile->half[2 * r] = p->key + row * p->key_row_stride;
        tile->half[2 * r + 1] = p->value + row * p->value_row_stride;
        tile->at[r] = row;
        if (dtype == HGCA_I8) find_scales(p, row, tile, r);
    }
}

INLINE void find_rows(const hgca_piece *p, row_cursor *at, int rows, int dtype, tile_rows *tile) {
    if (at->row) look_up_rows(p, at, rows, dtype, tile);
    else {
        follow_rows(p, at->first, rows, dtype, tile);
        at->first += rows;
    }
    for (int r = rows; r < TILE && dtype == HGCA_I8; r++) tile->key_scale[r] = tile->value_scale[r] = 0.0f;
    for (int r = rows; r % 4 && dtype == HGCA_I8; r++) tile->half[2 * r] = tile->half[2 * rows - 2], tile->half[2 * r + 1] = tile->half[2 * rows - 1];
}

/* Half-row `half` of the next tile: its keys are even, its values odd. While keys are scored the first half of the tile is
 * fetched, while values are added up the second: in the order of memory, where a row is [key | value]. A width
 * that is KNOWN takes a few instructions, one that must be asked for three times as many. */
INLINE void prefetch_half(const hgca_piece *p, const tile_rows *next, int next_rows, int half, int64_t size, int known) {
    if (half / 2 >= next_rows) return;
    const char *row = next->half[half];
    const int64_t bytes = (known ? known : half % 2 ? p->value_dim : p->key_dim) * size;
    if (bytes > 0) __builtin_prefetch(row, 0, AHEAD_LEVEL);
    if (bytes > LINE) __builtin_prefetch(row + LINE, 0, AHEAD_LEVEL);
    if (bytes > 2 * LINE) __builtin_prefetch(row + 2 * LINE, 0, AHEAD_LEVEL);
    for (int64_t at = 3 * LINE; at < bytes; at += LINE) __builtin_prefetch(row + at, 0, AHEAD_LEVEL);
}

/* What of the next tile is fetched while `columns` vectors of this one's values, from vector c on, are added up: its second
 * half, in even shares. */
INLINE void prefetch_slice(const hgca_piece *p, const tile_rows *next, int next_rows, int rows, int c, int columns, int64_t size,
                           int known) {
    if (next_rows == 0) return;
    const int vectors = ((known ? known : p->value_dim) + VW - 1) / VW, share = (rows + vectors - 1) / vectors;
    const int until = (c + columns) * share < rows ? (c + columns) * share : rows;
    for (int half = c * share; half < until; half++) prefetch_half(p, next, next_rows, rows + half, size, known);
}

/* In loops compiled for a width of whole lines one line at a time, as often as there are lines: a processor has room for some 24
 * that are on their way (Zen 3), and what is asked for in bursts is forgotten, or keeps others waiting. */
INLINE int lines_of_half(int dim, int dtype) {
    const int bytes = dim * (int)hgca_number_bytes(dtype);
    return KNOWN(dim) > 0 && dtype != HGCA_I8 && bytes % LINE == 0 ? bytes / LINE : 0;
}

/* Whether these queries wait for memory alone, on a processor whose own prefetcher is faster then: see prefetch_value. `heads`: of this
 * pass, a constant. */
INLINE int left_alone(const hgca_piece *p, int heads) { return heads <= 2 && !p->by_line; }

/* Half-row `half` of the next tile, to be fetched; where there is none, one that is in cache already. */
INLINE const char *half_ahead(const tile_rows *next, int next_rows, int half, const char *otherwise) {
    return half < 2 * next_rows ? next->half[half] : otherwise;
}

/* Lines first .. first + lines - 1 of a half-row of the next tile, and of the tile after that into the second level: a processor has
 * room for few lines on their way into the first one, and waits longer for each the more others read. */
INLINE void fetch_lines(const tile_rows *next, int next_rows, int half, const char *otherwise, int first, int lines) {
    const char *near = half_ahead(next, next_rows, half, otherwise);
    const char *far = next_rows ? half_ahead(next->then, next->then_rows, half, otherwise) : otherwise;
    UNROLL
    for (int i = first; i < first + lines; i++) {
        __builtin_prefetch(near + i * LINE, 0, AHEAD_LEVEL);
        __builtin_prefetch(far + i * LINE, 0, 2);
    }
}

/* Lines at .. at + count - 1 of the half-rows from `half` on, of `lines` each: what is fetched one share after the other comes in the
 * order of memory. (Every other pair of lines first, the others a pass later, was a sixth slower.) None if `lines` is 0. */
INLINE void fetch_share(const tile_rows *next, int next_rows, int half, const char *otherwise, int lines, int at, int count) {
    const int each = lines ? lines : 1;
    if (lines && (next->passes < 2 || (count ? at / count : 0) % 2 == next->pass)) fetch_lines(next, next_rows, half + at / each, otherwise, at % each, count);
}

/* Into the first level, beside its key: the processor's own prefetcher then sees rows in the order of memory. For what waits for
 * memory alone. */
INLINE void prefetch_value(const hgca_piece *p, const tile_rows *tile, int r, int64_t size) {
    for (int64_t at = 0; at < p->value_dim * size; at += LINE) __builtin_prefetch(tile->half[2 * r + 1] + at, 0, 3);
}

/* Lines of a tile, in the order of memory. */
typedef struct {
    const tile_rows *tile;
    int halves, half;
    int64_t at, bytes[2]; /* of a key, of a value */
} line_cursor;

INLINE void fetch_next_line(line_cursor *c) {
    if (c->half >= c->halves) return;
    __builtin_prefetch(c->tile->half[c->half] + c->at, 0, AHEAD_LEVEL);
    c->at += LINE;
    if (c->at >= c->bytes[c->half & 1]) c->at = 0, c->half++;
}
