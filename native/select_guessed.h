/* What enters as an estimate: positions, groups and blocks with the mean value of their block (select_read.c). Included by
 * select_template.h, in its words. */

INLINE void add_set(lanes_f part[PARTS], const uint16_t *score, uint32_t bits) {
    UNROLL
    for (int p = 0; p < PARTS; p++) part[p] += where_set(load_bf16(score + p * LANES), bits >> p * LANES);
}

INLINE void add_some(float *out, int64_t width, const uint16_t *mean, int64_t dim, const float *weight, int queries) {
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) {
        const lanes_f x = load_bf16(mean + d);
        UNROLL
        for (int q = 0; q < queries; q++) store_f(out + q * width + d, load_f(out + q * width + d) + x * weight[q]);
    }
    for (; d < dim; d++)
        for (int q = 0; q < queries; q++) out[q * width + d] += weight[q] * hgca_from_bf16(mean[d]);
}

/* sum[q] += weight[q], out[q][..] += weight[q] * mean, for at most QUERIES queries. */
static void add_mean(float *out, float *sum, int64_t width, const uint16_t *mean, int64_t dim, const float *weight, int queries) {
    for (int q = 0; q < queries; q++) sum[q] += weight[q];
    switch (queries) { /* a constant number is no loop */
    case 1: add_some(out, width, mean, dim, weight, 1); break;
    case 2: add_some(out, width, mean, dim, weight, 2); break;
    case 3: add_some(out, width, mean, dim, weight, 3); break;
    default: add_some(out, width, mean, dim, weight, 4);
    }
}

INLINE int fewer(int32_t queries) { return queries < QUERIES ? queries : QUERIES; }

/* The sum of those of 16 scores whose bit is set. */
INLINE float sum_set(const uint16_t *score, uint32_t bits) {
    lanes_f part[PARTS] = {{0}};
    add_set(part, score, bits);
    return sum_f(part);
}

static void pass_by(hgca_passing *p) {
    const int64_t width = hgca_padded(p->dim);
    for (int64_t i = 0; i < p->count; i += HGCA_LANES)
        for (int half = 0; half < HGCA_LANES; half += HGCA_GROUPS) {
            const uint32_t passed = p->passed[i / HGCA_LANES] & (0xffu << half);
            if (!passed) continue;
            const int64_t block = 2 * (int64_t)p->open[i / HGCA_LANES] + half / HGCA_GROUPS;
            const uint16_t *mean = (const uint16_t *)(const void *)(p->mean + 2 * p->dim * block);
            p->blocks++;
            for (int32_t q = 0; q < p->queries; q += QUERIES) {
                const int some = fewer(p->queries - q);
                float weight[QUERIES];
                for (int k = 0; k < some; k++) weight[k] = sum_set(p->score + (q + k) * p->count + i, passed);
                add_mean(p->out + q * width, p->sum + q, width, mean, p->dim, weight, some);
            }
        }
}

static void close_blocks(const hgca_closing *c) {
    const int64_t width = hgca_padded(c->dim);
    for (int64_t i = 0; i < c->count; i += HGCA_LANES)
        for (uint32_t some = c->closed[i / HGCA_LANES]; some; some &= some - 1) {
            const int64_t block = i + __builtin_ctz(some);
            const uint16_t *mean = (const uint16_t *)(const void *)(c->mean + 2 * c->dim * block);
            for (int32_t q = 0; q < c->queries; q += QUERIES) {
                const int some = fewer(c->queries - q);
                float weight[QUERIES];
                for (int k = 0; k < some; k++) weight[k] = hgca_from_bf16(c->score[(q + k) * c->count + block]);
                add_mean(c->out + q * width, c->sum + q, width, mean, c->dim, weight, some);
            }
        }
}

static float hold(const uint16_t *score, const uint16_t *bits, int64_t count) {
    lanes_f sum[PARTS] = {{0}};
    for (int64_t i = 0; i < count; i += HGCA_LANES) add_set(sum, score + i, bits[i / HGCA_LANES]);
    return sum_f(sum);
}

static void leave(hgca_leaving *l) {
    const int64_t dim = l->dim, width = hgca_padded(dim);
    for (int64_t i = 0, end; i < l->count; i = end, l->blocks++) {
        const int64_t block = l->groups[i] / HGCA_GROUPS;
        const uint16_t *mean = (const uint16_t *)(const void *)(l->mean + 2 * dim * block);
        uint32_t read = 0;
        for (end = i; end < l->count && l->groups[end] / HGCA_GROUPS == block;) read |= l->chosen[end++];
        for (int32_t q = 0; q < l->queries; q += QUERIES) {
            const int some = fewer(l->queries - q);
            float weight[QUERIES];
            for (int k = 0; k < some; k++) {
                lanes_f part[PARTS] = {{0}};
                const uint16_t *score = l->score + (q + k) * l->count * HGCA_LANES;
                if (read) for (int64_t g = i; g < end; g++) add_set(part, score + g * HGCA_LANES, ~(uint32_t)l->chosen[g]);
                else
                    for (int64_t g = i; g < end; g++)
                        UNROLL
                        for (int p = 0; p < PARTS; p++) part[p] += load_bf16(score + g * HGCA_LANES + p * LANES);
                weight[k] = sum_f(part);
            }
            add_mean(l->out + q * width, l->sum + q, width, mean, dim, weight, some);
        }
    }
}
