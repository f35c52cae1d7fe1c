/* AVX-512 with VNNI and bf16 dot products (Cooper Lake, Sapphire Rapids, Zen 4 and later), and with AMX beside them. */
#include "vocabulary_avx512.h"

#include <time.h>

#define I8_DOTS
#define BF16_DOTS
#include "kernels_template.h"
#include "kernels_many_pairs.h"

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Seconds of the same number of instructions, of which as many are on their way at once as the latency needs. */
INLINE double time_instruction(int dots) {
    VF sum[12];
    __m512i one = _mm512_set1_epi16(0x3f80);
    for (int i = 0; i < 12; i++) sum[i] = vset1((float)i);
    double began = seconds();
    for (int turn = 0; turn < 500; turn++) { /* in registers, or what is timed is memory */
        UNROLL
        for (int i = 0; i < 12; i++)
            sum[i] = dots ? _mm512_dpbf16_ps(sum[i], (__m512bh)one, (__m512bh)one)
                          : vfma(sum[i], vset1(0.999f), _mm512_castsi512_ps(one));
        UNROLL
        for (int i = 0; i < 12; i++) __asm__ volatile("" : "+v"(sum[i]));
    }
    return seconds() - began;
}

/* One dot product replaces two FMAs and two operations that widen. Xeons up to Granite Rapids issue it at a quarter of the rate of an
 * FMA: a few microseconds tell. */
int hgca_bf16_dots_pay(void) {
    double dots = 1.0, fma = 1.0;
    for (int turn = 0; turn < 7; turn++) {
        double d = time_instruction(1), f = time_instruction(0);
        dots = d < dots ? d : dots;
        fma = f < fma ? f : fma;
    }
    return dots < 1.6 * fma;
}

const hgca_isa_kernels hgca_avx512bf16 = {"avx512bf16", HGCA_TEMPLATE_KERNELS, {piece_bf16_dots, place_bf16_dots}, MANY_I8, {0}, MANY_PAIRS, {0}, {0}};

#ifdef HGCA_TILES
#include "kernels_tiles.h"
#include "kernels_many_tiles.h"

/* Seconds of the fastest of a few turns over rows that are in cache; its results stay. */
static double time_piece(const hgca_kernel *kernel, hgca_piece *p, const float *query, float *placed, float *results) {
    const int64_t width = hgca_query_width(p->key_dim, HGCA_BF16);
    for (int h = 0; h < p->heads; h++) kernel->place(query + h * p->key_dim, p->scale, p->key_dim, placed + h * width);
    p->query = placed, p->out = results, p->max = results + p->heads * p->value_dim, p->sum = p->max + p->heads;
    double least = 1.0;
    for (int turn = 0; turn < 7; turn++) {
        const double began = seconds();
        kernel->piece(p);
        const double took = seconds() - began;
        least = took < least ? took : least;
    }
    return least;
}

/* Whether results are nearly those. */
static int are_alike(const float *found, const float *expected, int count) {
    for (int i = 0; i < count; i++)
        if (!(fabsf(found[i] - expected[i]) <= 1e-3f * (1.0f + fabsf(expected[i])))) return 0;
    return 1;
}

/* Of many queries the time tells: matrices are twice as fast there. Few must be right. */
int hgca_tiles_pay(void) {
    enum { COUNT = 128, DIM = 128, FEW = 8, QUERIES = 32, RESULTS = QUERIES * (DIM + 2) };
    static const hgca_kernel plain = {piece_bf16, place_bf16}, few = {piece_tiles, place_tiles}, many = {piece_many_tiles_bf16, place_as_it_is};
    uint16_t rows[COUNT * 2 * DIM];
    int32_t list[COUNT];
    float query[QUERIES * DIM], placed[QUERIES * DIM], expected[RESULTS], found[RESULTS];
    uint32_t state = 1;
    for (int i = 0; i < COUNT * 2 * DIM; i++) state = state * 1664525u + 1013904223u, rows[i] = (uint16_t)(0x3e80 + (state >> 25) + (state >> 9 & 0x8000));
    for (int i = 0; i < QUERIES * DIM; i++) state = state * 1664525u + 1013904223u, query[i] = (float)(state >> 8) / (1 << 23) - 1.0f;
    for (int i = 0; i < COUNT; i++) list[i] = i * 37 % COUNT;
    hgca_piece p = {.key = (const char *)rows, .value = (const char *)(rows + DIM), .key_row_stride = 4 * DIM,
                    .value_row_stride = 4 * DIM, .row = list, .count = COUNT, .unseen = INT64_MAX, .group = QUERIES,
                    .key_dim = DIM, .value_dim = DIM, .heads = QUERIES, .scale = 0.1f};
    const double usual = time_piece(&plain, &p, query, placed, expected), by_tiles = time_piece(&many, &p, query, placed, found);
    if (!are_alike(found, expected, RESULTS)) return 0;
    p.heads = FEW;
    if (time_piece(&few, &p, query, placed, found) <= 0.0 || !are_alike(found, expected, FEW * DIM)) return 0;
#ifdef HGCA_EMULATE_TILES
    return by_tiles > 0.0 && usual > 0.0;
#else
    return by_tiles < usual;
#endif
}

const hgca_isa_kernels hgca_amx = {"avx512amx", HGCA_TEMPLATE_KERNELS, {piece_bf16_dots, place_bf16_dots}, MANY_I8, {piece_tiles, place_tiles}, MANY_PAIRS, MANY_BY_TILES};
#endif
