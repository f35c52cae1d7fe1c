/* hgca_linear, hgca_linear_several, hgca_gated and hgca_pack against double precision, every kind of weights, odd sizes. Buffers are allocated to the byte and
 * begin at odd addresses, tiles of a grid too. */
#include "check_linear.h"

#include <stdio.h>
#include <string.h>

#include "half.h"
#include "hgca.h"
#include "linear_layers.h"
#include "numbers.h"

static void multiply(const layer *l, const double *in, double *out, double *size) {
    for (int r = 0; r < l->w.outputs; r++) {
        out[r] = l->bias[r], size[r] = 1.0;
        for (int i = 0; i < l->w.inputs; i++) {
            const double x = l->exact[(int64_t)r * l->w.inputs + i] * in[i];
            out[r] += x, size[r] += fabs(x);
        }
    }
}

/* Errors are told in terms of `size`, what a row's terms add up to without their signs. */
static int wrong(const char *what, const layer *l, int status, const float *got, const double *want, const double *size, double most) {
    double worst = status == HGCA_OK ? 0.0 : INFINITY;
    for (int i = 0; i < l->w.outputs; i++) {
        const double error = fabs(got[i] - want[i]) / size[i];
        worst = error <= worst ? worst : error; /* a NaN stays */
    }
    if (worst <= most) return 0;
    fprintf(stderr, "FAILED: %s %s: kind %d, %d x %d, status %d: error %.2g\n", hgca_isa(), what, l->w.kind, l->w.outputs,
            l->w.inputs, status, worst);
    return 1;
}

enum { MOST = 320 };
static const double STEEPEST = 1.1; /* slope of x / (1 + exp(-x)) */

static int check_together(int inputs, const int *outputs, const int *kinds, int count, uint64_t *state) {
    layer l[HGCA_MOST_LAYERS];
    hgca_weights w[HGCA_MOST_LAYERS] = {0};
    int total = 0, failures = 0;
    for (int i = 0; i < count; i++) {
        l[i] = make_layer(outputs[i], inputs, kinds[i], i % 2, state);
        w[i] = l[i].w, total += outputs[i];
    }
    float *in = must(malloc(sizeof(float) * (size_t)inputs)), *out = must(malloc(sizeof(float) * (size_t)total));
    double exact[MOST], want[MOST], size[MOST];
    for (int i = 0; i < inputs; i++) exact[i] = in[i] = (float)uniform(state);
    const int status = hgca_linear(w, count, (uintptr_t)in, (uintptr_t)out);
    float *at = out;
    for (int i = 0; i < count; at += outputs[i++]) {
        multiply(&l[i], exact, want, size);
        failures += wrong("linear", &l[i], status, at, want, size, 2e-6);
        drop_layer(&l[i]);
    }
    free(in), free(out);
    return failures;
}

static int check_gated(int inputs, int hidden, int outputs, const int *kinds, uint64_t *state) {
    layer l[3] = {make_layer(hidden, inputs, kinds[0], 1, state), make_layer(hidden, inputs, kinds[1], 0, state),
                  make_layer(outputs, hidden, kinds[2], 1, state)};
    const hgca_weights w[] = {l[0].w, l[1].w, l[2].w};
    float *in = must(malloc(sizeof(float) * (size_t)inputs)), *out = must(malloc(sizeof(float) * (size_t)outputs));
    double exact[MOST], gate[MOST], up[MOST], want[MOST], size[MOST], gate_size[MOST], up_size[MOST];
    for (int i = 0; i < inputs; i++) exact[i] = in[i] = (float)uniform(state) / 8.0f;
    multiply(&l[0], exact, gate, gate_size);
    multiply(&l[1], exact, up, up_size);
    for (int i = 0; i < hidden; i++) { /* a small number may be what large terms left: its error is that of the terms */
        const double silu = gate[i] / (1.0 + exp(-gate[i]));
        gate_size[i] = STEEPEST * fabs(up[i]) * gate_size[i] + fabs(silu) * up_size[i];
        up[i] *= silu;
    }
    multiply(&l[2], up, want, size);
    for (int r = 0; r < outputs; r++)
        for (int i = 0; i < hidden; i++) size[r] += fabs(l[2].exact[(int64_t)r * hidden + i]) * gate_size[i];
    const int failures = wrong("gated", &l[2], hgca_gated(w, (uintptr_t)in, (uintptr_t)out), out, want, size, 2e-6);
    for (int i = 0; i < 3; i++) drop_layer(&l[i]);
    free(in), free(out);
    return failures;
}

static int check_several(int inputs, const int *outputs, int count, int vectors, uint64_t *state) {
    layer l[HGCA_MOST_LAYERS];
    hgca_weights w[HGCA_MOST_LAYERS] = {0};
    int total = 0, failures = 0;
    for (int i = 0; i < count; i++) {
        l[i] = make_layer(outputs[i], inputs, inputs % BLOCK ? (vectors + i) % 3 : (vectors + i) % 6, i % 2, state);
        w[i] = l[i].w, total += outputs[i];
    }
    const size_t numbers = (size_t)vectors * (size_t)inputs;
    float *in = must(malloc(sizeof(float) * numbers)), *out = must(malloc(sizeof(float) * (size_t)(vectors * total)));
    double *exact = must(malloc(sizeof(double) * numbers)), want[MOST], size[MOST];
    for (size_t i = 0; i < numbers; i++) exact[i] = in[i] = (float)uniform(state);
    const int status = hgca_linear_several(w, count, vectors, (uintptr_t)in, (uintptr_t)out);
    const float *at = out;
    for (int i = 0; i < count; i++) {
        for (int v = 0; v < vectors; v++, at += outputs[i]) {
            multiply(&l[i], exact + (size_t)v * (size_t)inputs, want, size);
            failures += wrong("several", &l[i], status, at, want, size, 4e-5);
        }
        drop_layer(&l[i]);
    }
    free(in), free(out), free(exact);
    return failures;
}

/* What becomes of a vector is the same to the last bit, whoever is multiplied beside it. */
static int check_company(int inputs, int outputs, int kind, uint64_t *state) {
    enum { TOGETHER = 20 };
    layer l = make_layer(outputs, inputs, kind, 1, state);
    const size_t numbers = (size_t)TOGETHER * (size_t)inputs, all = (size_t)TOGETHER * (size_t)outputs;
    float *in = must(malloc(sizeof(float) * numbers)), *out = must(malloc(sizeof(float) * 2 * all)), *some = out + all;
    for (size_t i = 0; i < numbers; i++) in[i] = (float)uniform(state);
    int failures = hgca_linear_several(&l.w, 1, TOGETHER, (uintptr_t)in, (uintptr_t)out) != HGCA_OK;
    for (int count = 1; count < TOGETHER; count++) {
        const int status = hgca_linear_several(&l.w, 1, count, (uintptr_t)in, (uintptr_t)some);
        if (status == HGCA_OK && !memcmp(out, some, sizeof(float) * (size_t)count * (size_t)outputs)) continue;
        printf("%d of %d vectors differ: kind %d, %d x %d\n", count, TOGETHER, kind, outputs, inputs);
        failures++;
    }
    drop_layer(&l);
    free(in), free(out);
    return failures;
}

/* In place of a layer's floats, blocks of 16 numbers that lie evenly, from the lowest of them to the top or less, rounded to 16 bits. */
static void put_onto_grid(layer *l, uint64_t *state) {
    const int size = l->w.kind == HGCA_F32 ? 4 : 2;
    for (int r = 0; r < l->w.outputs; r++)
        for (int b = 0; b < l->w.inputs; b += BLOCK) {
            const int codes = 9 + pick(state, 8);
            const double step = ldexp(1.0 + fabs(uniform(state)), -6), least = -step * 15.0 * fabs(uniform(state));
            for (int i = b; i < b + BLOCK; i++) {
                const int code = i == b ? 0 : i == b + 1 ? codes - 1 : pick(state, codes);
                const float x = (float)(step * code + least);
                uint32_t bits;
                memcpy(&bits, &x, 4);
                bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
                const uint16_t half = l->w.kind == HGCA_F16 ? float_to_half(x) : (uint16_t)(bits >> 16);
                float held;
                memcpy(&held, &bits, 4);
                if (l->w.kind == HGCA_F16) held = half_to_float(half);
                char *at = l->memory + 1 + r * l->w.row_bytes + (int64_t)i * size;
                memcpy(at, size == 4 ? (const void *)&held : &half, (size_t)size);
                l->exact[(int64_t)r * l->w.inputs + i] = held;
            }
        }
}

/* A layer's floats rounded onto a grid: numbers are off by half a step of 8 bits, by one and a half of 4 bits at most. */
static int check_packing(int outputs, int inputs, int from, int kind, int onto_grid, uint64_t *state) {
    layer l = make_layer(outputs, inputs, from, 0, state);
    if (onto_grid) put_onto_grid(&l, state);
    const int64_t row = kind == HGCA_GRID4 ? 20 : 34, bytes = (int64_t)(outputs + TILE - 1) / TILE * TILE * (inputs / BLOCK) * row;
    char *tiles = must(malloc((size_t)bytes + 1));
    float lost = INFINITY;
    const int status = hgca_pack(&l.w, kind, (uintptr_t)(tiles + 1), &lost);
    hgca_weights grid = {.weight = tiles + 1, .outputs = outputs, .inputs = inputs, .kind = kind, .dtype = HGCA_F32};
    float in[MOST] = {0}, out[MOST];
    double squares[MOST / TILE + 1] = {0}, off[MOST / TILE + 1] = {0}, most_lost = 0.0; /* by tile */
    int failures = status != HGCA_OK || !(lost < INFINITY);
    for (int i = 0; i < inputs && !failures; i++) { /* one number of each row at a time */
        in[i] = 1.0f;
        failures += hgca_linear(&grid, 1, (uintptr_t)in, (uintptr_t)out) != HGCA_OK;
        in[i] = 0.0f;
        for (int r = 0; r < outputs; r++) {
            const double *block = l.exact + (int64_t)r * inputs + i / BLOCK * BLOCK;
            double low = block[0], top = block[0];
            for (int j = 0; j < BLOCK; j++) low = fmin(low, block[j]), top = fmax(top, block[j]);
            const double most = kind == HGCA_GRID4 ? (top - low) / 10.0 : fmax(top, -low) / 127.0 * 0.501;
            failures += !(fabs(out[r] - block[i % BLOCK]) <= most + 1e-3 * fmax(top, -low));
            squares[r / TILE] += block[i % BLOCK] * block[i % BLOCK];
            off[r / TILE] += (out[r] - block[i % BLOCK]) * (out[r] - block[i % BLOCK]);
        }
    }
    for (int t = 0; t < (outputs + TILE - 1) / TILE; t++) most_lost = fmax(most_lost, squares[t] > 0.0 ? off[t] / squares[t] : 0.0);
    failures += !(fabs(sqrt(most_lost) - sqrt(lost)) <= 0.02 * sqrt(most_lost) + 1e-5);
    if (onto_grid) failures += !(sqrt(lost) <= 0x1p-8); /* what 16 bits rounded, and no more */
    if (failures) fprintf(stderr, "FAILED: %s packing: kind %d of %d, %d x %d, status %d\n", hgca_isa(), kind, from, outputs, inputs, status);
    free(tiles), drop_layer(&l);
    return failures;
}

int check_linear(void) {
    static const int outputs[] = {1, 3, 4, 15, 16, 17, 33, 70, 300}, inputs[] = {1, 7, 16, 33, 100, 32, 64, 96, 128, 288};
    enum { OUTPUTS = sizeof outputs / sizeof *outputs, INPUTS = sizeof inputs / sizeof *inputs };
    uint64_t state = 77, own = 78;
    int failures = 0, turn = 0;
    for (int o = 0; o < OUTPUTS; o++)
        for (int i = 0; i < INPUTS; i++, turn++) {
            const int several[] = {outputs[o], outputs[(o + 1) % OUTPUTS], outputs[(o + 4) % OUTPUTS], 5};
            const int kinds = inputs[i] % BLOCK ? 3 : 6, hidden = inputs[INPUTS - 1 - i];
            const int kind[] = {turn % kinds, (turn + 1) % kinds, (turn + turn / 3) % (hidden % BLOCK ? 3 : 6), turn / 2 % kinds};
            const int alike[] = {kind[0], kind[1], (turn + 2) % kinds, kind[3]};
            failures += check_together(inputs[i], several, alike, 1 + turn % HGCA_MOST_LAYERS, &state);
            failures += check_several(inputs[i], several, 1 + turn % HGCA_MOST_LAYERS, 1 + turn * 7 % 140, &own);
            failures += check_company(inputs[i], outputs[o], turn % kinds, &own);
            failures += check_gated(inputs[i], hidden, outputs[o], kind, &state);
            if (kinds == 6) failures += check_packing(outputs[o], inputs[i], turn % 3, HGCA_GRID8 + turn % 2, 0, &own);
            if (kinds == 6) failures += check_packing(outputs[o], inputs[i], turn % 3, HGCA_GRID4, 1, &own);
        }
    hgca_weights none = {0};
    if (hgca_linear(&none, 1, 8, 8) != HGCA_BAD_ARGUMENT || hgca_linear(NULL, 1, 8, 8) != HGCA_BAD_ARGUMENT) failures++;
    float lost;
    if (hgca_pack(&none, HGCA_GRID8, 8, &lost) != HGCA_BAD_ARGUMENT || hgca_forget(0, 8) != HGCA_BAD_ARGUMENT) failures++;
    return failures;
}
