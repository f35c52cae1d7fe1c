/* What every instruction set provides to convert rows. */
#ifndef HGCA_CONVERT_H
#define HGCA_CONVERT_H

#include <stddef.h>
#include <stdint.h>

/* Rows of one head, described as in hgca_copy.
 *   stream  write past the caches where the instruction set can: for rows that are not read soon. A cache line that is
 *           written as usual is read first, which costs half as much again as the write */
typedef struct {
    const char *from;
    char *to;
    char *scale;
    int64_t from_row_stride;
    int64_t to_row_stride;
    int64_t scale_row_stride;
    int64_t rows;
    size_t dim;
    int stream;
} hgca_rows;

typedef void (*hgca_convert)(const hgca_rows *rows);

/* By dtype of the source (f32, bf16, f16) and of the result (f32, bf16, f16, i8). f32 to f32 copies any bytes; bf16 to
 * bf16 and f16 to f16 are NULL. */
typedef struct {
    hgca_convert rows[3][4];
} hgca_isa_converters;

extern const hgca_isa_converters hgca_convert_scalar, hgca_convert_avx2, hgca_convert_avx512, hgca_convert_neon;

/* Those of the instruction set in use. */
const hgca_isa_converters *hgca_converters(void);

#endif
