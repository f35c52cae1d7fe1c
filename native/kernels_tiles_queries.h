/* Queries as matrices of bf16 numbers, for kernels_tiles.h. A float is what three bf16 numbers add up to, so nothing is rounded: the
 * first of 8 queries are columns 0 to 7 of one matrix, the second ones 8 to 15, and what is left is another matrix, which queries that
 * are bf16 numbers do not have. */

enum { TILES_ROWS = 32 /* of a tile: with the next one they stay in the first level */, TILES_HEADS = 8, TILES_STEP = 32 /* bf16 numbers of a line */, TILES_AT_ONCE = 4 /* matrices of 16 numbers of 16 sums */ };

/* Of queries: [parts][steps of a key][pairs of numbers][columns]. */
typedef struct {
    uint32_t pair[2][HGCA_TILES_KEY / TILES_STEP][TILE_LINES][TILE_LINES];
    int rest; /* whether there is a second part */
} tiles_queries;

static void place_tiles(const float *query, float scale, int64_t dim, float *to) {
    (void)scale; /* scores are multiplied with it */
    memcpy(to, query, sizeof(float) * (size_t)dim);
}

static uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static float first_part(float number) {
    const uint32_t bits = bits_of(number) & 0xffff0000;
    float part;
    memcpy(&part, &bits, sizeof part);
    return part;
}

/* Of an infinite number, or of none, there is nothing left. */
static float what_is_left(float number) {
    const float left = number - first_part(number);
    return left == left ? left : 0.0f;
}

static void cut_queries(const hgca_piece *p, const float *query, int heads, tiles_queries *to) {
    const int64_t width = hgca_query_width(p->key_dim, HGCA_BF16);
    memset(to->pair[0], 0, sizeof to->pair[0]);
    to->rest = 0;
    if (hgca_are_bf16(query, heads * width)) { /* as a model of 16 bits gives them; keys are of whole steps, so nothing is between queries */
        for (int h = 0; h < heads; h++) {
            uint32_t *to_head = to->pair[0][0][0] + h;
            for (int d = 0; d < p->key_dim; d += 2, to_head += TILE_LINES)
                *to_head = bits_of(query[h * width + d]) >> 16 | bits_of(query[h * width + d + 1]);
        }
        return;
    }
    uint32_t any = 0;
    for (int h = 0; h < heads; h++) {
        uint32_t *first = to->pair[0][0][0] + h;
        for (int d = 0; d < p->key_dim; d += 2, first += TILE_LINES) {
            const float a = query[h * width + d], b = query[h * width + d + 1];
            const float left = what_is_left(a), next_left = what_is_left(b);
            first[0] = bits_of(a) >> 16 | (bits_of(b) & 0xffff0000);
            first[TILES_HEADS] = bits_of(left) >> 16 | (bits_of(next_left) & 0xffff0000);
            any |= (bits_of(left) | bits_of(next_left)) & 0xffff;
        }
    }
    to->rest = any != 0;
    if (!to->rest) return;
    memset(to->pair[1], 0, sizeof to->pair[1]);
    for (int h = 0; h < heads; h++)
        for (int d = 0; d < p->key_dim; d += 2) {
            const float a = what_is_left(what_is_left(query[h * width + d])), b = what_is_left(what_is_left(query[h * width + d + 1]));
            to->pair[1][d / TILES_STEP][d % TILES_STEP / 2][h] = bits_of(a) >> 16 | (bits_of(b) & 0xffff0000);
        }
}
