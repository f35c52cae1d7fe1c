/* Int8 rows with VPMADDWD (products of 16-bit numbers, each pair added to an int32), included by the template.
 *
 * Only the rows are int8: a query and the weights of a tile are kept in 16 bits, relative to the largest. Weights have no sign, so they
 * are moved down by W_MOVED, and the sum of the values makes up for that. An instruction makes 16 products, of floats 8. Sums are
 * exact: what comes out fits for rows of up to I8_MOST numbers. */
enum { I8_MOST = 512, Q_MOST = 32767, W_MOST = 65535, W_MOVED = 32768 };

/* A placed query: i16 [whole lines], then the scale as f32. */
INLINE int64_t whole_lines(int64_t dim) { return (dim + LINE - 1) / LINE * LINE; }

static void place_i8(const float *query, float scale, int64_t dim, float *to) {
    if (dim > I8_MOST) {
        place_floats(query, scale, dim, to);
        return;
    }
    int16_t *number = (int16_t *)to;
    float largest = 0.0f, sum = 0.0f;
    for (int64_t d = 0; d < dim; d++) {
        float x = fabsf(query[d] * scale);
        largest = x > largest ? x : largest;
        sum += x;
    }
    float unit = largest / Q_MOST;
    if (!(sum < INFINITY)) unit = NAN; /* a query that is not finite: so are its scores */
    const float by = unit > 0.0f ? 1.0f / unit : 0.0f;
    memset(number, 0, sizeof *number * (size_t)whole_lines(dim));
    for (int64_t d = 0; d < dim && by < INFINITY; d++) number[d] = (int16_t)lrintf(query[d] * scale * by);
    memcpy(number + whole_lines(dim), &unit, sizeof unit);
}

INLINE __m128i load_bytes(const char *at, int64_t left) {
    if (left >= 16) return _mm_loadu_si128((const __m128i *)(const void *)at);
    char whole[16] = {0};
    memcpy(whole, at, (size_t)left);
    return _mm_loadu_si128((const __m128i *)(const void *)whole);
}

/* sum + the products of a lane, in this order and in place: GCC would add up all products first, and run out of registers. */
INLINE __m256i add_products(__m256i sum, __m256i a, __m256i b) {
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(a, b)));
    return sum;
}

/* 16 numbers, or the `left` ones, of two rows. */
INLINE void score_block(const char *const key[2], int64_t d, int64_t left, const int16_t *q, int64_t stride, int heads,
                        __m256i sum[HEADS][2]) {
    __m256i k[2];
    UNROLL
    for (int j = 0; j < 2; j++) k[j] = _mm256_cvtepi8_epi16(load_bytes(key[j] + d, left));
    UNROLL
    for (int h = 0; h < heads; h++) {
        __m256i n = _mm256_loadu_si256((const __m256i *)(const void *)(q + h * stride + d));
        __asm__("" : "+x"(n));
        UNROLL
        for (int j = 0; j < 2; j++) sum[h][j] = add_products(sum[h][j], n, k[j]);
    }
}

INLINE void score_tile_i8(const hgca_piece *p, const float *query, const tile_rows *tile, int rows, const tile_rows *next,
                          int next_rows, int heads, int64_t dim, float score[][TILE]) {
    const int64_t stride = hgca_query_width(dim, HGCA_I8) * 2;
    const int16_t *q = (const int16_t *)query;
    float unit[HEADS];
    UNROLL
    for (int h = 0; h < heads; h++) memcpy(&unit[h], q + h * stride + whole_lines(dim), sizeof(float));
    __m256i kept[8][HEADS];
    memset(kept, 0, rows % 8 ? sizeof kept : 0);
    for (int r = 0; r < rows; r += 2) {
        const char *key[2];
        UNROLL
        for (int j = 0; j < 2; j++) {
            key[j] = tile->half[2 * (r + j < rows ? r + j : rows - 1)];
            prefetch_half(p, next, next_rows, r + j, 1, KNOWN(dim));
        }
        __m256i sum[HEADS][2];
        UNROLL
        for (int h = 0; h < heads; h++)
            UNROLL
            for (int j = 0; j < 2; j++) sum[h][j] = _mm256_setzero_si256();
        int64_t d = 0;
        for (; d + 16 <= dim; d += 16) score_block(key, d, 16, q, stride, heads, sum);
        if (d < dim) score_block(key, d, dim - d, q, stride, heads, sum);
        __m256i(*keep)[HEADS] = &kept[r % 8];
        UNROLL
        for (int j = 0; j < 2; j++)
            UNROLL
            for (int h = 0; h < heads; h++) keep[j][h] = sum[h][j];
        if (r % 8 + 2 < 8 && r + 2 < rows) continue;
        UNROLL
        for (int h = 0; h < heads; h++)
            vstore(&score[h][r / 8 * 8], vmul(_mm256_cvtepi32_ps(sum_eight_i32(kept, h)), vset1(unit[h])));
    }
}

/* Weights in 16 bits, less W_MOVED, zeros beyond `rows` up to whole vectors, and what one unit of each head is worth. All heads side
 * by side, as one's largest number, its division and its products wait for each other. Returns 0 where a weight is not finite. */
INLINE int round_weights(float weight[][TILE], int heads, int rows, int16_t number[HEADS][TILE], float unit[HEADS]) {
    const int padded = (rows + VW - 1) / VW * VW; /* weights beyond the rows are 0 */
    VF top[HEADS], infinite = vzero();
    UNROLL
    for (int h = 0; h < heads; h++) top[h] = vzero();
    for (int r = 0; r < padded; r += VW)
        UNROLL
        for (int h = 0; h < heads; h++) {
            VF w = vload(&weight[h][r]);
            top[h] = vmax(w, top[h]);
            infinite = _mm256_or_ps(infinite, _mm256_cmp_ps(w, vset1(INFINITY), _CMP_NLT_UQ));
        }
    if (_mm256_movemask_ps(infinite)) return 0;
    VF by[HEADS];
    UNROLL
    for (int h = 0; h < heads; h++) {
        const float largest = vlargest(top[h]);
        by[h] = vset1(largest > 1e-30f ? W_MOST / largest : 0.0f);
        unit[h] = largest > 1e-30f ? largest * (1.0f / W_MOST) : 0.0f;
    }
    for (int r = 0; r < padded; r += VW)
        UNROLL
        for (int h = 0; h < heads; h++) {
            __m256i whole = _mm256_sub_epi32(_mm256_cvtps_epi32(vmul(vload(&weight[h][r]), by[h])), _mm256_set1_epi32(W_MOVED));
            __m128i low = _mm256_castsi256_si128(whole), high = _mm256_extracti128_si256(whole, 1);
            _mm_storeu_si128((__m128i *)(void *)&number[h][r], _mm_packs_epi32(low, high));
        }
    return 1;
}

/* 16 columns, or the `left` ones, of two rows with weights number[h][r], number[h][r + 1]; `all` has what all rows add up to. */
INLINE void add_rows(const char *even, const char *odd, int64_t left, int heads, int r, int16_t number[HEADS][TILE],
                     __m256i sum[HEADS][2], __m256i all[2]) {
    const __m128i a = load_bytes(even, left), b = load_bytes(odd, left);
    const __m256i v[2] = {_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b))};
    UNROLL
    for (int j = 0; j < 2; j++) all[j] = add_products(all[j], _mm256_set1_epi16(1), v[j]);
    UNROLL
    for (int h = 0; h < heads; h++) {
        int32_t both;
        memcpy(&both, &number[h][r], sizeof both);
        const __m256i w = _mm256_set1_epi32(both);
        UNROLL
        for (int j = 0; j < 2; j++) sum[h][j] = add_products(sum[h][j], w, v[j]);
    }
}

/* 16 columns from c on, or the `left` ones: out += sum * unit. */
INLINE void add_block(float *out, const tile_rows *tile, int rows, int heads, int64_t dim, int64_t c, int64_t left,
                      int16_t number[HEADS][TILE], const float *unit) {
    const int64_t stride = hgca_padded(dim);
    __m256i sum[HEADS][2], all[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    UNROLL
    for (int h = 0; h < heads; h++)
        UNROLL
        for (int j = 0; j < 2; j++) sum[h][j] = _mm256_setzero_si256();
    for (int r = 0; r < rows; r += 2) {
        const char *value = tile->half[2 * r + 1] + c, *beside = r + 1 < rows ? tile->half[2 * r + 3] + c : value;
        add_rows(value, beside, left, heads, r, number, sum, all); /* a row that is not there has a weight of 0 */
    }
    UNROLL
    for (int j = 0; j < 2; j++) all[j] = _mm256_slli_epi32(all[j], 15); /* W_MOVED of each */
    UNROLL
    for (int h = 0; h < heads; h++)
        UNROLL
        for (int j = 0; j < 2; j++) {
            float *at = out + h * stride + c + j * VW;
            const VF whole = _mm256_cvtepi32_ps(_mm256_add_epi32(sum[h][j], all[j]));
            vstore(at, vfma(whole, vset1(unit[h]), vload(at)));
        }
}

/* As add_values. Returns 0, with nothing done, where a weight is not finite. */
INLINE int add_values_i8(const hgca_piece *p, float *out, const tile_rows *tile, int rows, const tile_rows *next,
                         int next_rows, int heads, int64_t dim, float weight[][TILE]) {
    int16_t number[HEADS][TILE];
    float unit[HEADS];
    if (!round_weights(weight, heads, rows, number, unit)) return 0;
    int64_t c = 0;
    for (; c + 16 <= dim; c += 16) {
        prefetch_slice(p, next, next_rows, rows, (int)c / VW, 2, 1, KNOWN(dim));
        add_block(out, tile, rows, heads, dim, c, 16, number, unit);
    }
    if (c < dim) {
        prefetch_slice(p, next, next_rows, rows, (int)c / VW, 2, 1, 0);
        add_block(out, tile, rows, heads, dim, c, dim - c, number, unit);
    }
    return 1;
}
