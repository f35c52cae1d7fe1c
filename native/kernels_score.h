/* Scores of a tile, where ROWS keys, a query and HEADS * ROWS sums have registers. Included by the template, in its words. */

/* score[h][r] for `heads` (a constant) queries over `rows` rows; rows beyond are left alone. */
INLINE void score_tile(const hgca_piece *p, const float *query, const tile_rows *tile, int rows, const tile_rows *next,
                       int next_rows, int heads, int dtype, int dim, float score[][TILE]) {
    const int64_t stride = hgca_query_width(dim, dtype), size = hgca_number_bytes(dtype);
#ifdef BF16_DOTS
    if (dtype == BF16_QUERY) {
        score_tile_bf16(p, query, tile, rows, next, next_rows, heads, dim, score);
        return;
    }
#endif
#ifdef I8_DOTS
    if (dtype == HGCA_I8 && dim <= I8_MOST) {
        score_tile_i8(p, query, tile, rows, next, next_rows, heads, dim, score);
        return;
    }
#endif
    const int lines = COLUMNS == 4 && VW > 4 ? lines_of_half(dim, dtype) : 0;
    const int mine = lines ? lines * ROWS * (dtype == HGCA_BF16 ? 2 * VW : VW) / dim : 0; /* of them with every vector */
    const int even = lines && !left_alone(p, heads);
    for (int r = 0; r < rows; r += ROWS) {
        const char *key[ROWS];
        UNROLL
        for (int j = 0; j < ROWS; j++) {
            key[j] = tile->half[2 * (r + j < rows ? r + j : rows - 1)];
            if (!even) prefetch_half(p, next, next_rows, r + j, size, 0);
            if (left_alone(p, heads) && p->heads <= 2) prefetch_value(p, tile, r + j < rows ? r + j : rows - 1, size);
        }
        VF sum[HEADS][ROWS];
        UNROLL
        for (int h = 0; h < heads; h++)
            UNROLL
            for (int j = 0; j < ROWS; j++) sum[h][j] = vzero();
        int d = 0;
        for (; dtype == HGCA_BF16 && d + 2 * VW <= dim; d += 2 * VW) {
            if (even) fetch_share(next, next_rows, r, tile->half[0], lines, d / (2 * VW) * mine, mine);
            VF even[ROWS], odd[ROWS];
            UNROLL
            for (int j = 0; j < ROWS; j++) vload_pair(key[j] + d * size, &even[j], &odd[j]);
            UNROLL
            for (int h = 0; h < heads; h++) {
                VF q = vload(query + h * stride + d), next_q = vload(query + h * stride + d + VW);
                UNROLL
                for (int j = 0; j < ROWS; j++) sum[h][j] = vfma(q, even[j], sum[h][j]);
                UNROLL
                for (int j = 0; j < ROWS; j++) sum[h][j] = vfma(next_q, odd[j], sum[h][j]);
            }
        }
        for (; d + VW <= dim; d += VW) {
            if (even && dtype != HGCA_BF16) fetch_share(next, next_rows, r, tile->half[0], lines, d / VW * mine, mine);
            VF k[ROWS];
            UNROLL
            for (int j = 0; j < ROWS; j++) k[j] = vload_rows(key[j] + d * size, dtype);
            UNROLL
            for (int h = 0; h < heads; h++) {
                VF q = vload(query + h * stride + d);
                UNROLL
                for (int j = 0; j < ROWS; j++) sum[h][j] = vfma(q, k[j], sum[h][j]);
            }
        }
        if (d < dim) {
            UNROLL
            for (int j = 0; j < ROWS; j++) {
                VF k = vtail_rows(key[j] + d * size, dtype, dim - d);
                UNROLL
                for (int h = 0; h < heads; h++) sum[h][j] = vfma(vload(query + h * stride + d), k, sum[h][j]);
            }
        }
        vsum_heads(sum, heads, score, r);
    }
    vsettle(score, rows);
}
