/* Random decoder layers of one token against double precision, their attention over rows of a window and of a store. Buffers are
 * allocated to the byte. */
#include <stdint.h>

#include "check_layer.h"

#include <stdio.h>
#include <string.h>

#include "hgca.h"
#include "numbers.h"

enum { MOST = 256, MOST_ROWS = 40, MOST_EXPERTS = 6 };

typedef struct {
    int width, hidden, heads, kv_heads, dim, value_dim, slots, near, far, rotated, head_norms;
    float softcap;
} sizes;

static float *random_floats(int64_t count, float by, uint64_t *state) {
    float *to = must(malloc(sizeof(float) * (size_t)(count ? count : 1)));
    for (int64_t i = 0; i < count; i++) to[i] = by * (float)uniform(state);
    return to;
}

static hgca_weights weights(int outputs, int inputs, uint64_t *state) {
    const float by = 1.0f / sqrtf((float)inputs);
    return (hgca_weights){.weight = random_floats((int64_t)outputs * inputs, by, state), .bias = random_floats(outputs, 0.1f, state),
                          .row_bytes = 4 * (int64_t)inputs, .outputs = outputs, .inputs = inputs, .kind = HGCA_F32, .dtype = HGCA_F32};
}

static hgca_norm norm(int width, uint64_t *state) {
    return (hgca_norm){random_floats(width, 1.0f, state), 1e-5f, 1.0f};
}

static hgca_attention rows(const sizes *s, int count, uint64_t *state) {
    hgca_attention to = {.rows = count, .kv_heads = s->kv_heads, .heads = s->heads, .key_dim = s->dim, .value_dim = s->value_dim,
                         .dtype = HGCA_F32, .tokens = 1};
    to.key = random_floats((int64_t)count * s->kv_heads * s->dim, 1.0f, state);
    to.value = random_floats((int64_t)count * s->kv_heads * s->value_dim, 1.0f, state);
    to.key_row_stride = 4 * s->dim, to.key_head_stride = count * to.key_row_stride;
    to.value_row_stride = 4 * s->value_dim, to.value_head_stride = count * to.value_row_stride;
    return to;
}

static void multiply(const hgca_weights *w, const double *in, double *out) {
    const float *weight = w->weight, *bias = w->bias;
    for (int r = 0; r < w->outputs; r++) {
        out[r] = bias[r];
        for (int i = 0; i < w->inputs; i++) out[r] += (double)weight[(int64_t)r * w->inputs + i] * in[i];
    }
}

static void normalise(const hgca_norm *n, const double *in, int width, double *out) {
    double sum = 0.0;
    for (int i = 0; i < width; i++) sum += in[i] * in[i];
    const double by = 1.0 / sqrt(sum / width + n->eps);
    for (int i = 0; i < width; i++) out[i] = in[i] * by * ((double)n->weight[i] + n->shift);
}

static void turn(const sizes *s, const hgca_norm *n, const float *cosine, const float *sine, double *head, int heads) {
    const int half = s->rotated / 2;
    for (int h = 0; h < heads; h++, head += s->dim) {
        if (n->weight) normalise(n, head, s->dim, head);
        for (int d = 0; d < half; d++) {
            const double a = head[d], b = head[d + half];
            head[d] = a * cosine[d] - b * sine[d];
            head[d + half] = b * cosine[d + half] + a * sine[d + half];
        }
    }
}

/* Adds what some rows hold, with weights that are not small for scores around 0. */
static void attend(const hgca_attention *r, const sizes *s, int head, const double *query, double scale, double *out, double *sum) {
    const int kv = head / (s->heads / s->kv_heads);
    for (int64_t i = 0; i < r->rows; i++) {
        const float *key = (const float *)r->key + kv * r->key_head_stride / 4 + i * s->dim;
        const float *value = (const float *)r->value + kv * r->value_head_stride / 4 + i * s->value_dim;
        double score = 0.0;
        for (int d = 0; d < s->dim; d++) score += query[d] * key[d] * scale;
        if (s->softcap > 0.0f) score = s->softcap * tanh(score / s->softcap);
        const double weight = exp(score);
        for (int d = 0; d < s->value_dim; d++) out[d] += weight * value[d];
        *sum += weight;
    }
}

static void block(const hgca_weights *gate, const hgca_weights *up, const hgca_weights *down, int hidden, const double *in, double *out) {
    double a[MOST], b[MOST];
    multiply(gate, in, a), multiply(up, in, b);
    for (int i = 0; i < hidden; i++) b[i] *= a[i] / (1.0 + exp(-a[i]));
    multiply(down, b, out);
}

static hgca_weights half(const hgca_weights *both, int hidden, int second) {
    hgca_weights one = *both;
    one.outputs = hidden;
    one.weight = (const char *)both->weight + second * hidden * both->row_bytes;
    one.bias = both->bias ? (const float *)both->bias + second * hidden : NULL;
    return one;
}

static void mix(const hgca_mixture *m, const sizes *s, const double *in, double *out) {
    double logit[MOST], one[MOST], all = 0.0, taken = 0.0;
    multiply(&m->router, in, logit);
    for (int e = 0; e < m->experts; e++) all += exp(logit[e]);
    for (int i = 0; i < s->width; i++) out[i] = 0.0;
    for (int c = 0; c < m->chosen; c++) {
        int best = 0;
        for (int e = 1; e < m->experts; e++) best = logit[e] > logit[best] ? e : best;
        const double share = exp(logit[best]);
        const hgca_weights gate = half(&m->first[best], s->hidden, 0), up = half(&m->first[best], s->hidden, 1);
        block(&gate, &up, &m->last[best], s->hidden, in, one);
        for (int i = 0; i < s->width; i++) out[i] += share * one[i];
        logit[best] = -INFINITY, taken += share;
    }
    for (int i = 0; i < s->width; i++) out[i] /= m->whole ? taken : all;
}

static void exactly(const hgca_layer *l, const sizes *s, const hgca_reading *r, const float *in, const float *cosine,
                    const float *sine, double *out) {
    double x[MOST], n[MOST], query[MOST], key[MOST], value[MOST], all[MOST] = {0};
    for (int i = 0; i < s->width; i++) x[i] = in[i];
    normalise(&l->norm[0], x, s->width, n);
    multiply(&l->projection[0], n, query), multiply(&l->projection[1], n, key), multiply(&l->projection[2], n, value);
    turn(s, &l->head_norm[0], cosine, sine, query, s->heads);
    turn(s, &l->head_norm[1], cosine, sine, key, s->kv_heads);
    for (int h = 0; h < s->kv_heads; h++) { /* where the call has to put them */
        float *to = (float *)(uintptr_t)r->window->key + h * r->window->key_head_stride / 4 + r->row * s->dim;
        for (int d = 0; d < s->dim; d++) to[d] = (float)key[h * s->dim + d];
        to = (float *)(uintptr_t)r->window->value + h * r->window->value_head_stride / 4 + r->row * s->value_dim;
        for (int d = 0; d < s->value_dim; d++) to[d] = (float)value[h * s->value_dim + d];
    }
    for (int h = 0; h < s->heads; h++) {
        double sum = 0.0;
        attend(&r->near, s, h, query + h * s->dim, r->scale, all + h * s->value_dim, &sum);
        attend(&r->far, s, h, query + h * s->dim, r->scale, all + h * s->value_dim, &sum);
        for (int d = 0; d < s->value_dim; d++) all[h * s->value_dim + d] /= sum;
    }
    multiply(&l->out, all, n);
    for (int i = 0; i < s->width; i++) x[i] += n[i];
    normalise(&l->norm[1], x, s->width, n);
    if (l->mixture) mix(l->mixture, s, n, out);
    else block(&l->gated[0], &l->gated[1], &l->gated[2], s->hidden, n, out);
    for (int i = 0; i < s->width; i++) out[i] += x[i];
}

static void drop_weights(const hgca_weights *w) {
    free((void *)(uintptr_t)w->weight);
    free((void *)(uintptr_t)w->bias);
}

static void drop_rows(const hgca_attention *r) {
    free((void *)(uintptr_t)r->key);
    free((void *)(uintptr_t)r->value);
}


static int one(uint64_t seed) {
    uint64_t state = seed * 40503 + 7;
    sizes s = {.width = 1 + pick(&state, 90), .hidden = 1 + pick(&state, 90), .kv_heads = 1 + pick(&state, 3), .dim = 2 + pick(&state, 20),
               .value_dim = 1 + pick(&state, 20), .slots = 1 + pick(&state, MOST_ROWS), .far = pick(&state, MOST_ROWS),
               .head_norms = pick(&state, 2), .softcap = pick(&state, 3) ? 0.0f : 2.0f};
    s.heads = s.kv_heads * (1 + pick(&state, 3)), s.rotated = pick(&state, s.dim / 2 + 1) * 2, s.near = 1 + pick(&state, s.slots);
    hgca_layer l = {.heads = s.heads, .kv_heads = s.kv_heads, .dim = s.dim, .rotated = s.rotated};
    l.projection[0] = weights(s.heads * s.dim, s.width, &state), l.projection[1] = weights(s.kv_heads * s.dim, s.width, &state);
    l.projection[2] = weights(s.kv_heads * s.value_dim, s.width, &state), l.out = weights(s.width, s.heads * s.value_dim, &state);
    hgca_weights first[MOST_EXPERTS], last[MOST_EXPERTS];
    hgca_mixture mixture = {.first = first, .last = last, .experts = pick(&state, 2) ? 1 + pick(&state, MOST_EXPERTS) : 0};
    if (mixture.experts) s.hidden = 32 * (1 + pick(&state, 2)), l.mixture = &mixture;
    for (int e = 0; e < mixture.experts; e++)
        first[e] = weights(2 * s.hidden, s.width, &state), last[e] = weights(s.width, s.hidden, &state);
    if (mixture.experts) mixture.router = weights(mixture.experts, s.width, &state);
    mixture.chosen = 1 + pick(&state, mixture.experts), mixture.whole = pick(&state, 2);
    for (int i = 0; i < 3 && !l.mixture; i++) l.gated[i] = i < 2 ? weights(s.hidden, s.width, &state) : weights(s.width, s.hidden, &state);
    for (int i = 0; i < 2; i++) {
        l.norm[i] = norm(s.width, &state);
        if (s.head_norms) l.head_norm[i] = norm(s.dim, &state);
    }
    const hgca_attention window = rows(&s, s.slots, &state);
    hgca_reading r = {.window = &window, .tokens = 1, .row = pick(&state, s.near), .near = window, .far = rows(&s, s.far, &state),
                      .scale = 1.0f / sqrtf((float)s.dim), .softcap = s.softcap};
    r.near.rows = s.near;
    float *in = random_floats(s.width, 1.0f, &state), *out = random_floats(s.width, 0.0f, &state);
    float *cosine = random_floats(s.rotated, 1.0f, &state), *sine = random_floats(s.rotated, 1.0f, &state);
    float *query = random_floats(s.heads * s.dim, 0.0f, &state);
    r.query = pick(&state, 2) ? query : NULL;
    int64_t took = -1;
    r.took = pick(&state, 2) ? &took : NULL;
    const int timed = r.took != NULL;
    double want[MOST], worst = 0.0;
    const int status = hgca_decode_layer(&l, &r, (uintptr_t)in, (uintptr_t)cosine, (uintptr_t)sine, (uintptr_t)out);
    exactly(&l, &s, &r, in, cosine, sine, want);
    for (int i = 0; i < s.width; i++) worst = fmax(worst, isfinite(out[i]) ? fabs(out[i] - want[i]) : INFINITY);
    r.row = s.slots;
    const int refused = hgca_decode_layer(&l, &r, (uintptr_t)in, (uintptr_t)cosine, (uintptr_t)sine, (uintptr_t)out);
    for (int i = 0; i < 3; i++) drop_weights(&l.projection[i]), drop_weights(&l.gated[i]);
    for (int e = 0; e < mixture.experts; e++) drop_weights(&first[e]), drop_weights(&last[e]);
    drop_weights(&mixture.router);
    for (int i = 0; i < 2; i++) free((void *)(uintptr_t)l.norm[i].weight), free((void *)(uintptr_t)l.head_norm[i].weight);
    drop_weights(&l.out), drop_rows(&window), drop_rows(&r.far);
    free(in), free(out), free(cosine), free(sine), free(query);
    if (status == HGCA_OK && worst <= 2e-5 && refused == HGCA_BAD_ARGUMENT && timed == (took >= 0)) return 0;
    fprintf(stderr, "FAILED: a layer, %s: status %d, error %.2g, no slot: %d (seed %llu, %d threads)\n", hgca_isa(), status, worst,
            refused, (unsigned long long)seed, hgca_threads());
    return 1;
}

int check_layer(int count, uint64_t seed) {
    int failures = 0;
    for (int i = 0; i < count; i++) failures += one(seed + (uint64_t)i);
    return failures;
}
