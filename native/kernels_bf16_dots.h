/* Scores of bf16 rows with VDPBF16PS (two products of bf16 numbers added to a float), included by the template. Only for
 * queries that are bf16 numbers, as a bf16 model's are: nothing is rounded then. The scale, which is none, is multiplied
 * in afterwards. */

/* A placed query: bf16 [whole lines]. */
static void place_bf16_dots(const float *query, float scale, int64_t dim, float *to) {
    (void)scale;
    uint16_t *at = (uint16_t *)to;
    memset(to, 0, sizeof(float) * (size_t)hgca_padded(dim));
    for (int64_t d = 0; d < dim; d++) {
        uint32_t bits;
        memcpy(&bits, query + d, 4);
        at[d] = (uint16_t)(bits >> 16);
    }
}

INLINE __m512bh load_numbers(const char *at, int64_t left) {
    if (left >= 32) return (__m512bh)_mm512_loadu_si512(at);
    return (__m512bh)_mm512_maskz_loadu_epi16(((__mmask32)1 << left) - 1, at);
}

INLINE void score_tile_bf16(const hgca_piece *p, const float *query, const tile_rows *tile, int rows,
                            const tile_rows *next, int next_rows, int heads, int width, float score[][TILE]) {
    const int64_t dim = width, stride = hgca_query_width(dim, HGCA_BF16) * 4;
    const char *q = (const char *)query;
    const int lines = lines_of_half(width, HGCA_BF16), steps = width / 32;
    const int share = steps > 2 ? 4 * lines / steps : lines; /* of narrow rows' lines some are asked for around the sums: evenly */
    const int even = lines && !left_alone(p, heads);
    for (int r = 0; r < rows; r += 4) {
        const char *key[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            key[j] = tile->half[2 * (r + j < rows ? r + j : rows - 1)];
            if (!even) prefetch_half(p, next, next_rows, r + j, 2, 0);
            if (left_alone(p, heads) && p->heads <= 2) prefetch_value(p, tile, r + j < rows ? r + j : rows - 1, 2);
        }
        VF sum[HEADS][4];
        UNROLL
        for (int h = 0; h < heads; h++)
            UNROLL
            for (int j = 0; j < 4; j++) sum[h][j] = vzero();
        int64_t d = 0;
        for (; d + 32 <= dim; d += 32) {
            if (even) fetch_share(next, next_rows, r, tile->half[0], lines, (int)d / 32 * share, share);
            __m512bh k[4];
            UNROLL
            for (int j = 0; j < 4; j++) k[j] = (__m512bh)_mm512_loadu_si512(key[j] + d * 2);
            UNROLL
            for (int h = 0; h < heads; h++) {
                __m512bh n = (__m512bh)_mm512_loadu_si512(q + h * stride + d * 2);
                UNROLL
                for (int j = 0; j < 4; j++) sum[h][j] = _mm512_dpbf16_ps(sum[h][j], k[j], n);
            }
        }
        UNROLL
        for (int h = 0; d < dim && h < heads; h++) {
            __m512bh n = (__m512bh)_mm512_loadu_si512(q + h * stride + d * 2);
            UNROLL
            for (int j = 0; j < 4; j++) sum[h][j] = _mm512_dpbf16_ps(sum[h][j], load_numbers(key[j] + d * 2, dim - d), n);
        }
        if (even && steps * share < 4 * lines) fetch_share(next, next_rows, r, tile->half[0], lines, steps * share, share);
        vsum_heads(sum, heads, score, r);
        if (even && steps * share < 4 * lines) fetch_share(next, next_rows, r, tile->half[0], lines, (steps + 1) * share, share);
    }
    vsettle(score, rows);
    UNROLL
    for (int h = 0; h < heads; h++)
        for (int r = 0; r < rows; r += VW) vstore(&score[h][r], vmul(vload(&score[h][r]), vset1(p->scale)));
}

/* What kernels_many.h wants. */
INLINE VF vpair_dots(VF sum, VF a, VF b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}
