/* Scores of a tile with few registers: two rows at a time, their sums put away until there are eight rows. Included by the template,
 * in its words; beside them it needs
 *   vload_half(p, half, before)  the even (0) or odd (1) ones of vload_pair; `before` (a constant): the number before may be read, too
 *   vload_once(p)              vload that stays in its register
 *   vsum_eight(x, h)           horizontal sums of x[0 .. 7][h], in one vector */

/* VW numbers of ROWS keys from d on, or the `tail` ones. */
INLINE void score_vector(const char *const key[ROWS], int d, int tail, const float *query, int64_t stride, int heads, int dtype,
                         VF sum[HEADS][ROWS]) {
    VF k[ROWS];
    UNROLL
    for (int j = 0; j < ROWS; j++) {
        const char *at = key[j] + d * hgca_number_bytes(dtype);
        k[j] = tail ? vtail_rows(at, dtype, tail) : vload_rows(at, dtype);
    }
    UNROLL
    for (int h = 0; h < heads; h++) {
        VF q = vload_once(query + h * stride + d);
        UNROLL
        for (int j = 0; j < ROWS; j++) sum[h][j] = vfma(q, k[j], sum[h][j]);
    }
}

/* 2 * VW bf16 numbers of ROWS keys from d on. A row is loaded twice: sums stay where they are. */
INLINE void score_pair(const char *const key[ROWS], int d, const float *query, int64_t stride, int heads, int before,
                       VF sum[HEADS][ROWS]) {
    UNROLL
    for (int half = 0; half < 2; half++) {
        VF k[ROWS];
        UNROLL
        for (int j = 0; j < ROWS; j++) k[j] = vload_half(key[j] + d * 2, half, before);
        UNROLL
        for (int h = 0; h < heads; h++) {
            VF q = vload_once(query + h * stride + d + half * VW);
            UNROLL
            for (int j = 0; j < ROWS; j++) sum[h][j] = vfma(q, k[j], sum[h][j]);
        }
        __asm__ volatile("" ::: "memory");
    }
}

/* All numbers of ROWS keys of a KNOWN width, without a loop, as a line of the next rows is fetched now and then; and only the
 * first bf16 numbers have none before them. */
INLINE void score_known(const char *const key[ROWS], const char *const ahead[ROWS], int even, const float *query,
                        int64_t stride, int heads, int dtype, int dim, VF sum[HEADS][ROWS]) {
    const int step = dtype == HGCA_BF16 ? 2 * VW : VW, line = LINE / ROWS / (int)hgca_number_bytes(dtype);
    UNROLL
    for (int d = 0; d < dim; d += step) {
        if (even && d % line == 0) __builtin_prefetch(ahead[ROWS * d / dim] + d % (dim / ROWS) / line * LINE, 0, 2);
        if (dtype == HGCA_BF16) score_pair(key, d, query, stride, heads, d > 0, sum);
        else score_vector(key, d, 0, query, stride, heads, dtype, sum);
    }
}

/* score[h][r] for `heads` (a constant) queries over `rows` rows; some beyond are written, too. */
INLINE void score_tile(const hgca_piece *p, const float *query, const tile_rows *tile, int rows, const tile_rows *next,
                       int next_rows, int heads, int dtype, int dim, float score[][TILE]) {
#ifdef I8_PAIRS
    if (dtype == HGCA_I8 && dim <= I8_MOST) {
        score_tile_i8(p, query, tile, rows, next, next_rows, heads, dim, score);
        return;
    }
#endif
    const int64_t stride = hgca_query_width(dim, dtype), size = hgca_number_bytes(dtype);
    const int lines = lines_of_half(dim, dtype);
    const int even = lines && !left_alone(p, heads);
    VF kept[8][HEADS]; /* added up two by two they would take more, and stand in another order */
    memset(kept, 0, rows % 8 ? sizeof kept : 0);
    for (int r = 0; r < rows; r += ROWS) {
        const char *key[ROWS], *ahead[ROWS];
        UNROLL
        for (int j = 0; j < ROWS; j++) {
            key[j] = tile->half[2 * (r + j < rows ? r + j : rows - 1)];
            ahead[j] = half_ahead(next, next_rows, r + j, key[j]);
            if (!even) prefetch_half(p, next, next_rows, r + j, size, KNOWN(dim));
            if (dtype == HGCA_F32 || (left_alone(p, heads) && p->heads <= 2)) prefetch_value(p, tile, r + j < rows ? r + j : rows - 1, size);
        }
        VF sum[HEADS][ROWS];
        UNROLL
        for (int h = 0; h < heads; h++)
            UNROLL
            for (int j = 0; j < ROWS; j++) sum[h][j] = vzero();
        if (KNOWN(dim) > 0) score_known(key, ahead, even, query, stride, heads, dtype, dim, sum);
        else {
            int d = 0;
            for (; dtype == HGCA_BF16 && d + 2 * VW <= dim; d += 2 * VW) score_pair(key, d, query, stride, heads, 0, sum);
            for (; d + VW <= dim; d += VW) score_vector(key, d, 0, query, stride, heads, dtype, sum);
            if (d < dim) score_vector(key, d, dim - d, query, stride, heads, dtype, sum);
        }
        VF(*keep)[HEADS] = &kept[r % 8];
        UNROLL
        for (int j = 0; j < ROWS; j++)
            UNROLL
            for (int h = 0; h < heads; h++) keep[j][h] = sum[h][j];
        if (r % 8 + ROWS < 8 && r + ROWS < rows) continue;
        UNROLL
        for (int h = 0; h < heads; h++) vstore(&score[h][r / 8 * 8], vsum_eight(kept, h));
    }
}
