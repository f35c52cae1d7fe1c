/* The matrix units of AMX in words: eight tiles of 16 lines of 64 bytes. Where HGCA_EMULATE_TILES is set they are computed by plain
 * loops, so that what uses them can be checked on a machine that has none. */
#ifndef HGCA_TILES_H
#define HGCA_TILES_H

#include <stdint.h>
#include <string.h>

enum { TILE_LINES = 16, TILE_LINE = 64 };

/* Lines stored before are there when a tile is loaded: the compiler does not know that it reads memory. */
#define TILES_ORDERED() __asm__ volatile("" : : : "memory")

#ifdef HGCA_EMULATE_TILES

static _Thread_local char emulated_tile[8][TILE_LINES][TILE_LINE];

static inline void tiles_begin(void) {}
static inline void tiles_end(void) {}

static inline void emulate_load(int tile, const void *from, int64_t stride) {
    for (int i = 0; i < TILE_LINES; i++) memcpy(emulated_tile[tile][i], (const char *)from + i * stride, TILE_LINE);
}

static inline void emulate_store(int tile, void *to, int64_t stride) {
    for (int i = 0; i < TILE_LINES; i++) memcpy((char *)to + i * stride, emulated_tile[tile][i], TILE_LINE);
}

static inline float of_bf16(const char *at) {
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    const uint32_t wide = (uint32_t)bits << 16;
    float number;
    memcpy(&number, &wide, sizeof number);
    return number;
}

static inline void emulate_dot(int to, int a, int b) {
    for (int m = 0; m < TILE_LINES; m++)
        for (int n = 0; n < TILE_LINES; n++) {
            float sum;
            memcpy(&sum, emulated_tile[to][m] + 4 * n, sizeof sum);
            for (int k = 0; k < TILE_LINES; k++)
                for (int half = 0; half < 4; half += 2)
                    sum += of_bf16(emulated_tile[a][m] + 4 * k + half) * of_bf16(emulated_tile[b][k] + 4 * n + half);
            memcpy(emulated_tile[to][m] + 4 * n, &sum, sizeof sum);
        }
}

#define TILE_ZERO(tile) memset(emulated_tile[tile], 0, sizeof emulated_tile[tile])
#define TILE_LOAD(tile, from, stride) emulate_load(tile, from, stride)
#define TILE_STORE_AT(tile, to, stride) emulate_store(tile, to, stride)
#define TILE_DOT(to, a, b) emulate_dot(to, a, b)

#else

#include <immintrin.h>

static inline void tiles_begin(void) {
    struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t lines[16];
    } all = {.palette = 1};
    for (int i = 0; i < 8; i++) all.bytes[i] = TILE_LINE, all.lines[i] = TILE_LINES;
    __asm__ volatile("" : : "r"(&all) : "memory"); /* GCC believes that only the first 8 bytes are read */
    _tile_loadconfig(&all);
}

static inline void tiles_end(void) { _tile_release(); }

#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE_AT(tile, to, stride) _tile_stored(tile, to, stride)
#define TILE_DOT(to, a, b) _tile_dpbf16ps(to, a, b) /* to[m][n] += sum over k of a[m][k] * b[k / 2][n], pairs of k */

#endif

#define TILE_STORE(tile, to) TILE_STORE_AT(tile, to, TILE_LINE)

#endif
