/* Int8 rows with VPDPBUSD (u8 times s8, four products added to an int32), included by the template.
 *
 * Only the rows are int8: a query is kept in 15 bits (two s8 levels, 128 * high + low), the weights of a tile in 16 (two u8
 * levels, 256 * high + low), relative to the largest. A level is one pass; between the two the sums are shifted. Keys are
 * s8 in memory and become u8 by a flip of the sign bit; the 128 times the query's sum this adds is taken off again. Sums
 * are exact: int32 arithmetic may wrap on the way, what comes out fits for rows of up to I8_MOST numbers. */
enum { I8_MOST = 1024, Q_MOST = 127 * 128 };

/* A placed query: s8 high [whole lines], s8 low [whole lines], then this. */
typedef struct {
    float scale;
    int32_t offset; /* minus 128 times the sum of its numbers */
} query_tail;

INLINE int64_t lines(int64_t dim) { return (dim + LINE - 1) / LINE * LINE; }

static void place_i8(const float *query, float scale, int64_t dim, float *to) {
    if (dim > I8_MOST) {
        place_floats(query, scale, dim, to);
        return;
    }
    int8_t *high = (int8_t *)to, *low = high + lines(dim);
    float largest = 0.0f, sum = 0.0f;
    for (int64_t d = 0; d < dim; d++) {
        float x = fabsf(query[d] * scale);
        largest = x > largest ? x : largest;
        sum += x;
    }
    query_tail tail = {largest / Q_MOST, 0};
    if (!(sum < INFINITY)) tail.scale = NAN; /* a query that is not finite: so are its scores */
    float by = tail.scale > 0.0f ? 1.0f / tail.scale : 0.0f;
    memset(high, 0, (size_t)(2 * lines(dim)));
    for (int64_t d = 0; d < dim && by < INFINITY; d++) {
        int32_t whole = (int32_t)lrintf(query[d] * scale * by);
        int32_t upper = (whole + Q_MOST + 128 + 64) / 128 - 128; /* nearest: the dividend is positive */
        high[d] = (int8_t)upper;
        low[d] = (int8_t)(whole - 128 * upper);
        tail.offset -= 128 * whole;
    }
    memcpy(low + lines(dim), &tail, sizeof tail);
}

INLINE __m512i load_bytes(const char *at, int64_t left) {
    if (left >= 64) return _mm512_loadu_si512(at);
    return _mm512_maskz_loadu_epi8(((__mmask64)1 << left) - 1, at);
}

INLINE __m512i add_pairs_i32(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

/* As vsum_heads, of integers: sums [head][row] in one vector. */
INLINE __m512i sums_i32(__m512i sum[HEADS][4], int heads) {
    __m512i head[HEADS];
    UNROLL
    for (int h = 0; h < HEADS; h++) {
        if (h >= heads) {
            head[h] = _mm512_setzero_si512();
            continue;
        }
        __m512i ab = add_pairs_i32(sum[h][0], sum[h][1]), cd = add_pairs_i32(sum[h][2], sum[h][3]);
        head[h] = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(head[0], head[1], 0x88), _mm512_shuffle_i32x4(head[0], head[1], 0xdd));
    __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(head[2], head[3], 0x88), _mm512_shuffle_i32x4(head[2], head[3], 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

INLINE void shift_sums(__m512i sum[HEADS][4], int heads, int bits) {
    UNROLL
    for (int h = 0; h < heads; h++)
        UNROLL
        for (int j = 0; j < 4; j++) sum[h][j] = _mm512_slli_epi32(sum[h][j], (unsigned)bits);
}

/* Lines of a half-row that are fetched one by one; 0: a width that is not known. */
INLINE int lines_ahead_i8(int64_t dim) { return KNOWN(dim) % LINE == 0 ? KNOWN(dim) / LINE : 0; }

/* Whose lines are fetched, each by itself, between products: asked for in bursts they keep the rows at hand waiting. */
typedef struct {
    const tile_rows *next;
    int next_rows, half; /* of the half-rows from this one on */
    int lines;           /* a half-row; 0: nothing */
    int even;            /* 0: nothing, too */
    const char *otherwise;
} lines_ahead;

/* Lines at and at + 1, both in the same tile. */
INLINE void fetch_two(const lines_ahead *a, int at) {
    if (!a->lines || !a->even) return;
    const int lines = a->lines, first = a->half + at / lines, last = a->half + (at + 1) / lines;
    if (a->next->passes > 1) {
        for (int i = 0; i < 2; i++) fetch_share(a->next, a->next_rows, a->half, a->otherwise, a->lines, at + i, 1);
        return;
    }
    if (last < 2 * a->next_rows)
        UNROLL
        for (int i = 0; i < 2; i++) __builtin_prefetch(a->next->half[first + i / lines] + i % lines * LINE, 0, AHEAD_LEVEL);
    if (last < 2 * a->next->then_rows)
        UNROLL
        for (int i = 0; i < 2; i++) __builtin_prefetch(a->next->then->half[first + i / lines] + i % lines * LINE, 0, 2);
}

/* One level of the queries, `stride` bytes apart, times four rows. */
INLINE void score_level(const char *const key[4], int64_t dim, const char *q, int64_t stride, int heads,
                        __m512i sum[HEADS][4]) {
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64) {
        __m512i k[4];
        UNROLL
        for (int j = 0; j < 4; j++) k[j] = _mm512_xor_si512(_mm512_loadu_si512(key[j] + d), sign);
        UNROLL
        for (int h = 0; h < heads; h++) {
            __m512i n = _mm512_loadu_si512(q + h * stride + d);
            UNROLL
            for (int j = 0; j < 4; j++) sum[h][j] = _mm512_dpbusd_epi32(sum[h][j], k[j], n);
        }
    }
    UNROLL
    for (int h = 0; d < dim && h < heads; h++) {
        __m512i n = _mm512_loadu_si512(q + h * stride + d);
        UNROLL
        for (int j = 0; j < 4; j++)
            sum[h][j] = _mm512_dpbusd_epi32(sum[h][j], _mm512_xor_si512(load_bytes(key[j] + d, dim - d), sign), n);
    }
}

INLINE void score_tile_i8(const hgca_piece *p, const float *query, const tile_rows *tile, int rows, const tile_rows *next,
                          int next_rows, int heads, int64_t dim, float score[][TILE]) {
    const int64_t stride = hgca_query_width(dim, HGCA_I8) * 4, level = lines(dim);
    const int ahead = lines_ahead_i8(dim), even = ahead && !left_alone(p, heads);
    const char *q = (const char *)query;
    float scale[16] = {0};
    int32_t offset[16] = {0};
    UNROLL
    for (int h = 0; h < heads; h++) {
        query_tail tail;
        memcpy(&tail, q + h * stride + 2 * level, sizeof tail);
        UNROLL
        for (int j = 0; j < 4; j++) scale[4 * h + j] = tail.scale, offset[4 * h + j] = tail.offset;
    }
    for (int r = 0; r < rows; r += 4) {
        const char *key[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            key[j] = tile->half[2 * (r + j)];
            if (!even) prefetch_half(p, next, next_rows, r + j, 1, 0);
        }
        const lines_ahead fetched = {next, next_rows, r, ahead, even, tile->half[0]};
        __m512i sum[HEADS][4];
        UNROLL
        for (int h = 0; h < heads; h++)
            UNROLL
            for (int j = 0; j < 4; j++) sum[h][j] = _mm512_setzero_si512();
        for (int i = 0; i < ahead; i++) fetch_two(&fetched, 2 * i); /* half of them before each level */
        score_level(key, dim, q, stride, heads, sum);
        shift_sums(sum, heads, 7);
        for (int i = ahead; i < 2 * ahead; i++) fetch_two(&fetched, 2 * i);
        score_level(key, dim, q + level, stride, heads, sum);
        __m512i whole = _mm512_add_epi32(sums_i32(sum, heads), _mm512_loadu_si512(offset));
        vstore(&score[r / 4 % 4][r / 16 * 16], _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_loadu_ps(scale)));
    }
    vsettle(score, rows);
}

/* Weights of one head as two u8 levels [2][TILE]; returns what one unit is worth, NaN where a weight is not finite. */
INLINE float split_weights(const float *weight, int rows, uint8_t level[2][TILE]) {
    __m512 top = _mm512_setzero_ps(), sum = top;
    for (int r = 0; r < rows; r += 16) {
        __m512 w = _mm512_loadu_ps(weight + r);
        top = _mm512_max_ps(w, top);
        sum = _mm512_add_ps(sum, w);
    }
    float largest = vlargest(top);
    if (!(vsum(sum) < INFINITY)) return NAN;
    float by = largest > 1e-30f ? 65535.0f / largest : 0.0f;
    for (int r = 0; r < rows; r += 16) {
        __m512 w = _mm512_loadu_ps(weight + r);
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(w, _mm512_set1_ps(by)));
        _mm_storeu_si128((__m128i *)(void *)&level[0][r], _mm512_cvtepi32_epi8(_mm512_srli_epi32(whole, 8)));
        _mm_storeu_si128((__m128i *)(void *)&level[1][r], _mm512_cvtepi32_epi8(whole)); /* cuts the upper bits off */
    }
    return by > 0.0f ? largest / 65535.0f : 0.0f;
}

/* 64 columns of four rows: 32-bit lane e of 128-bit lane L of four[j] holds column 16 L + 4 j + e. */
INLINE void interleave_four(const char *const row[4], int64_t left, __m512i four[4]) {
    __m512i r[4];
    UNROLL
    for (int j = 0; j < 4; j++) r[j] = load_bytes(row[j], left);
    __m512i ab = _mm512_unpacklo_epi8(r[0], r[1]), cd = _mm512_unpacklo_epi8(r[2], r[3]);
    four[0] = _mm512_unpacklo_epi16(ab, cd);
    four[1] = _mm512_unpackhi_epi16(ab, cd);
    ab = _mm512_unpackhi_epi8(r[0], r[1]), cd = _mm512_unpackhi_epi8(r[2], r[3]);
    four[2] = _mm512_unpacklo_epi16(ab, cd);
    four[3] = _mm512_unpackhi_epi16(ab, cd);
}

INLINE __m512 lanes(__m512i a, __m512i b, int which) { /* two lanes of each */
    __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return which ? _mm512_shuffle_f32x4(x, y, 0xee) : _mm512_shuffle_f32x4(x, y, 0x44);
}

/* out += sum * unit for 64 columns that stand as interleave_four leaves them. */
INLINE void add_sums(float *out, int64_t left, const __m512i sum[4], float unit) {
    __m512 low[2] = {lanes(sum[0], sum[1], 0), lanes(sum[2], sum[3], 0)};
    __m512 high[2] = {lanes(sum[0], sum[1], 1), lanes(sum[2], sum[3], 1)};
    for (int i = 0; i < 4 && 16 * i < left; i++) {
        const __m512 *pair = i < 2 ? low : high;
        __m512 whole = i % 2 ? _mm512_shuffle_f32x4(pair[0], pair[1], 0xdd) : _mm512_shuffle_f32x4(pair[0], pair[1], 0x88);
        vstore(out + 16 * i, vfma(_mm512_cvtepi32_ps(_mm512_castps_si512(whole)), vset1(unit), vload(out + 16 * i)));
    }
}

INLINE void weigh_level(__m512i value[TILE / 4][4], int groups, uint8_t level[HEADS][2][TILE], int which, int heads,
                        __m512i sum[HEADS][4], const lines_ahead *ahead, int at) {
    NO_UNROLL
    for (int g = 0; g < groups; g++) {
        fetch_two(ahead, at + 4 * g + 2 * which);
        UNROLL
        for (int h = 0; h < heads; h++) {
            int32_t four;
            memcpy(&four, &level[h][which][4 * g], 4);
            __m512i w = _mm512_set1_epi32(four);
            UNROLL
            for (int j = 0; j < 4; j++) {
                sum[h][j] = _mm512_dpbusd_epi32(sum[h][j], w, value[g][j]);
                NAMED(sum[h][j]);
            }
        }
    }
}

/* As add_values. Returns 0, with nothing done but prefetching, where a weight is not finite. */
INLINE int add_values_i8(const hgca_piece *p, float *out, const tile_rows *tile, int rows, const tile_rows *next,
                         int next_rows, int heads, int64_t dim, float weight[][TILE]) {
    const int64_t stride = hgca_padded(dim);
    uint8_t level[HEADS][2][TILE];
    float unit[HEADS];
    UNROLL
    for (int h = 0; h < heads; h++) {
        unit[h] = split_weights(weight[h], rows, level[h]);
        if (!(unit[h] == unit[h])) return 0;
    }
    const int groups = (rows + 3) / 4, ahead = lines_ahead_i8(dim), even = ahead && !left_alone(p, heads);
    const lines_ahead fetched = {next, next_rows, rows, ahead, even, tile->half[1]};
    for (int64_t c = 0; c < dim; c += 64) {
        __m512i value[TILE / 4][4];
        NO_UNROLL
        for (int g = 0; g < groups; g++) {
            const char *row[4];
            UNROLL
            for (int j = 0; j < 4; j++) row[j] = tile->half[8 * g + 2 * j + 1] + c; /* beyond the last row: weights of zero */
            if (!even && c == 0)
                for (int j = 0; j < 4; j++) prefetch_half(p, next, next_rows, rows + 4 * g + j, 1, 0);
            interleave_four(row, dim - c, value[g]);
        }
        __m512i sum[HEADS][4];
        UNROLL
        for (int h = 0; h < heads; h++)
            UNROLL
            for (int j = 0; j < 4; j++) sum[h][j] = _mm512_setzero_si512();
        weigh_level(value, groups, level, 0, heads, sum, &fetched, (int)c / LINE * rows);
        shift_sums(sum, heads, 8);
        weigh_level(value, groups, level, 1, heads, sum, &fetched, (int)c / LINE * rows);
        UNROLL
        for (int h = 0; h < heads; h++) add_sums(out + h * stride + c, dim - c, sum[h], unit[h]);
    }
    return 1;
}
