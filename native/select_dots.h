/* Dot products of 4-bit codes with 8-bit queries, for select_template.h, which includes this. */
/* So many chunks of a group fit sums of 16 bits: 2 numbers of each half, at most 15 x 127. */
enum { IN_WORDS = 4 };

/* dot[q][r] as of dot_lanes, of one group; `ahead` is fetched meanwhile, a line a chunk: all at once they would wait for each other. */
#if !defined(__AVX512BW__)
INLINE void dot_group(const uint8_t *codes, const uint8_t *ahead, int64_t width, const int8_t *query8, int queries,
                      int32_t dot[][HGCA_LANES]) {
#if defined(__AVX2__)
    const __m256i low_half = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
    for (int64_t d = 0; d < width; d += 8 * IN_WORDS) {
        __m256i sum[QUERIES][2]; /* of pairs, in 16 bits */
        UNROLL
        for (int q = 0; q < queries; q++) sum[q][0] = sum[q][1] = _mm256_setzero_si256();
        for (int64_t e = d; e < width && e < d + 8 * IN_WORDS; e += 8, codes += 64, ahead += 64) {
            __builtin_prefetch(ahead, 0, 2);
            __m256i low[2], high[2];
            UNROLL
            for (int k = 0; k < 2; k++) {
                __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)(codes + 32 * k));
                low[k] = _mm256_and_si256(both, low_half);
                high[k] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
            }
            UNROLL
            for (int q = 0; q < queries; q++) {
                const word_t *word = (const word_t *)(const void *)(query8 + q * MOST_WIDTH + e);
                const __m256i a = _mm256_set1_epi32(word[0]);
                UNROLL
                for (int k = 0; k < 2; k++) {
                    sum[q][k] = _mm256_add_epi16(sum[q][k], _mm256_maddubs_epi16(low[k], a));
                    NAMED(sum[q][k]);
                }
                const __m256i b = _mm256_set1_epi32(word[1]);
                UNROLL
                for (int k = 0; k < 2; k++) {
                    sum[q][k] = _mm256_add_epi16(sum[q][k], _mm256_maddubs_epi16(high[k], b));
                    NAMED(sum[q][k]);
                }
            }
        }
        UNROLL
        for (int q = 0; q < queries; q++)
            UNROLL
            for (int k = 0; k < 2; k++) {
                __m256i *to = (__m256i *)(void *)(dot[q] + 8 * k), whole = _mm256_madd_epi16(sum[q][k], one);
                _mm256_storeu_si256(to, d ? _mm256_add_epi32(_mm256_loadu_si256(to), whole) : whole);
            }
    }
#else
    for (int q = 0; q < queries; q++)
        for (int r = 0; r < HGCA_LANES; r++) dot[q][r] = 0;
    for (int64_t d = 0; d < width; d += 8, codes += 64, ahead += 64) {
        __builtin_prefetch(ahead, 0, 2);
        for (int q = 0; q < queries; q++)
            for (int r = 0; r < HGCA_LANES; r++)
                for (int j = 0; j < 4; j++)
                    dot[q][r] += (codes[4 * r + j] & 15) * query8[q * MOST_WIDTH + d + j] +
                                 (codes[4 * r + j] >> 4) * query8[q * MOST_WIDTH + d + 4 + j];
    }
#endif
}
#endif

/* dot[q][r] = sum over numbers of codes of position r times query8[q], for `queries` (a constant) queries; of two groups, each with
 * one that is fetched meanwhile. If both are the same, of one. */
INLINE void dot_lanes(const uint8_t *const codes[2], const uint8_t *const ahead[2], int64_t width, const int8_t *query8, int queries,
                      int32_t dot[2][QUERIES][HGCA_LANES]) {
#if defined(__AVX512BW__)
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512i sum[QUERIES], more[QUERIES];
    UNROLL
    for (int q = 0; q < queries; q++) sum[q] = more[q] = _mm512_setzero_si512();
    for (int64_t d = 0; d < width; d += 8) {
        __m512i a = _mm512_loadu_si512(codes[0] + 8 * d), b = _mm512_loadu_si512(codes[1] + 8 * d);
        __builtin_prefetch(ahead[0] + 8 * d, 0, 2);
        __builtin_prefetch(ahead[1] + 8 * d, 0, 2);
        __m512i a_low = _mm512_and_si512(a, low_half), a_high = _mm512_and_si512(_mm512_srli_epi16(a, 4), low_half);
        __m512i b_low = _mm512_and_si512(b, low_half), b_high = _mm512_and_si512(_mm512_srli_epi16(b, 4), low_half);
        UNROLL
        for (int q = 0; q < queries; q++) {
            const word_t *word = (const word_t *)(const void *)(query8 + q * MOST_WIDTH + d);
            __m512i low = _mm512_set1_epi32(word[0]), high = _mm512_set1_epi32(word[1]);
#if defined(__AVX512VNNI__)
            sum[q] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum[q], a_low, low), a_high, high);
            more[q] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(more[q], b_low, low), b_high, high);
#else
            const __m512i one = _mm512_set1_epi16(1);
            __m512i a_pairs = _mm512_add_epi16(_mm512_maddubs_epi16(a_low, low), _mm512_maddubs_epi16(a_high, high));
            __m512i b_pairs = _mm512_add_epi16(_mm512_maddubs_epi16(b_low, low), _mm512_maddubs_epi16(b_high, high));
            sum[q] = _mm512_add_epi32(sum[q], _mm512_madd_epi16(a_pairs, one));
            more[q] = _mm512_add_epi32(more[q], _mm512_madd_epi16(b_pairs, one));
#endif
        }
    }
    UNROLL
    for (int q = 0; q < queries; q++) {
        _mm512_storeu_si512(dot[0][q], sum[q]);
        _mm512_storeu_si512(dot[1][q], more[q]);
    }
#else
    dot_group(codes[0], ahead[0], width, query8, queries, dot[0]);
    if (codes[0] != codes[1]) dot_group(codes[1], ahead[1], width, query8, queries, dot[1]);
#endif
}
