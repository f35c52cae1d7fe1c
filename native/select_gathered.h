/* What clustering asks of rows, as vectors (cluster.c). Included by select_template.h, in its words. */

/* The product of two rows, or with `difference` of what one is farther than the other, with itself. */
INLINE float multiply(const float *a, const float *b, int64_t width, int difference) {
    lanes_f part[PARTS] = {{0}};
    for (int64_t d = 0; d < width; d += HGCA_LANES)
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            const lanes_f x = load_f(a + d + p * LANES), y = load_f(b + d + p * LANES);
            part[p] += difference ? (x - y) * (x - y) : x * y;
        }
    return sum_f(part);
}

static void along(const hgca_gathered *g, const float *line, float *to) {
    for (int64_t i = 0; i < g->count; i++) to[g->index[i]] = multiply(g->row + g->index[i] * g->width, line, g->width, 0);
}

static void apart(const hgca_gathered *g, const float *point, float *to) {
    for (int64_t i = 0; i < g->count; i++) to[g->index[i]] = multiply(g->row + g->index[i] * g->width, point, g->width, 1);
}

static void middle(const hgca_gathered *g, float *to) {
    for (int64_t d = 0; d < g->width; d += HGCA_LANES) {
        lanes_f sum[PARTS] = {{0}};
        for (int64_t i = 0; i < g->count; i++)
            UNROLL
            for (int p = 0; p < PARTS; p++) sum[p] += load_f(g->row + g->index[i] * g->width + d + p * LANES);
        UNROLL
        for (int p = 0; p < PARTS; p++) store_f(to + d + p * LANES, sum[p] * (1.0f / (float)g->count));
    }
}
