/* Rows become rows of a store: converted or quantised (hgca_copy_rows). Large copies are cut into pieces for the pool;
 * small ones the caller does itself, as waking a thread takes longer than they do. */
#include <stddef.h>
#include <string.h>

#include "convert.h"
#include "kernels.h"
#include "hgca.h"
#include "pool.h"

enum { PIECE_BYTES = 256 << 10, MOST_PIECES = 1 << 20 }; /* read and written, per piece */

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    const hgca_isa_converters *converters;
    const hgca_copy *copies;
    int64_t piece_bytes;
    int stream;
} cutting;

static int64_t row_bytes(const hgca_copy *copy) {
    return copy->dim * (hgca_number_bytes(copy->from_dtype) + hgca_number_bytes(copy->to_dtype));
}

static int64_t rows_per_piece(const hgca_copy *copy, int64_t piece_bytes) {
    int64_t rows = piece_bytes / row_bytes(copy);
    return rows > 0 ? rows : 1;
}

static int64_t pieces_per_head(const hgca_copy *copy, int64_t piece_bytes) {
    int64_t rows = rows_per_piece(copy, piece_bytes);
    return copy->rows / rows + (copy->rows % rows != 0);
}

static int fits(const hgca_copy *copy) {
    if (copy->rows < 0 || copy->heads < 1 || copy->dim < 1) return 0;
    if (copy->from_dtype < HGCA_F32 || copy->from_dtype > HGCA_F16) return 0;
    if (copy->to_dtype < HGCA_F32 || copy->to_dtype > HGCA_I8) return 0;
    if (copy->rows == 0) return 1;
    return copy->from != NULL && copy->to != NULL && (copy->to_dtype != HGCA_I8 || copy->scale != NULL);
}

/* The same dtype: whatever the numbers are, four bytes are copied as a float is. */
static void copy_bytes(const hgca_isa_converters *converters, hgca_rows *rows, int64_t bytes) {
    if (rows->stream && bytes % 4 == 0) {
        rows->dim = (size_t)bytes / 4;
        converters->rows[HGCA_F32][HGCA_F32](rows);
        return;
    }
    if (rows->from_row_stride == bytes && rows->to_row_stride == bytes) {
        memcpy(rows->to, rows->from, (size_t)(rows->rows * bytes));
        return;
    }
    for (int64_t r = 0; r < rows->rows; r++)
        memcpy(rows->to + r * rows->to_row_stride, rows->from + r * rows->from_row_stride, (size_t)bytes);
}

static void convert(const cutting *all, const hgca_copy *copy, int64_t head, int64_t first, int64_t rows) {
    hgca_rows piece = {
        .from = (const char *)copy->from + head * copy->from_head_stride + first * copy->from_row_stride,
        .to = (char *)copy->to + head * copy->to_head_stride + first * copy->to_row_stride,
        .from_row_stride = copy->from_row_stride,
        .to_row_stride = copy->to_row_stride,
        .scale_row_stride = copy->scale_row_stride,
        .rows = rows,
        .dim = (size_t)copy->dim,
        .stream = all->stream,
    };
    if (copy->to_dtype == HGCA_I8)
        piece.scale = (char *)copy->scale + head * copy->scale_head_stride + first * copy->scale_row_stride;
    if (copy->from_dtype == copy->to_dtype) copy_bytes(all->converters, &piece, copy->dim * hgca_number_bytes(copy->to_dtype));
    else all->converters->rows[copy->from_dtype][copy->to_dtype](&piece);
}

static void run_piece(hgca_batch *batch, int32_t number) {
    const cutting *all = (const cutting *)(const void *)batch;
    const hgca_copy *copy = all->copies;
    int64_t left = number, per_head;
    for (;; copy++) {
        per_head = pieces_per_head(copy, all->piece_bytes);
        if (left < per_head * copy->heads) break;
        left -= per_head * copy->heads;
    }
    int64_t rows = rows_per_piece(copy, all->piece_bytes), first = left % per_head * rows;
    if (rows > copy->rows - first) rows = copy->rows - first;
    convert(all, copy, left / per_head, first, rows);
}

int hgca_copy_rows(const hgca_copy *copies, int32_t count) {
    if (count < 0 || (copies == NULL && count > 0)) return HGCA_BAD_ARGUMENT;
    for (int32_t i = 0; i < count; i++)
        if (!fits(&copies[i])) return HGCA_BAD_ARGUMENT;

    cutting all = {.converters = hgca_converters(), .copies = copies, .piece_bytes = PIECE_BYTES};
    double bytes = 0.0;
    for (int32_t i = 0; i < count; i++) bytes += (double)row_bytes(&copies[i]) * (double)copies[i].rows * copies[i].heads;
    all.stream = bytes > 2 * PIECE_BYTES;
    if (!all.stream || hgca_threads() == 1) {
        for (int32_t i = 0; i < count; i++)
            for (int32_t head = 0; head < copies[i].heads; head++)
                convert(&all, &copies[i], head, 0, copies[i].rows);
        return HGCA_OK;
    }
    int64_t pieces;
    for (;; all.piece_bytes *= 2) {
        pieces = 0;
        for (int32_t i = 0; i < count; i++) pieces += pieces_per_head(&copies[i], all.piece_bytes) * copies[i].heads;
        if (pieces <= MOST_PIECES || all.piece_bytes > INT64_MAX / 4) break;
    }
    if (pieces > INT32_MAX) return HGCA_BAD_ARGUMENT; /* more heads than any machine could hold rows of */
    all.batch.run = run_piece;
    all.batch.pieces = (int32_t)pieces;
    hgca_pool_run(&all.batch, 0);
    return HGCA_OK;
}

int hgca_put_row(const hgca_attention *rows, int64_t row, int32_t dtype, uintptr_t key, int64_t key_head_stride, uintptr_t value,
                 int64_t value_head_stride) {
    if (!rows || row < 0 || row >= rows->rows || rows->dtype == HGCA_I8) return HGCA_BAD_ARGUMENT;
    const hgca_copy copies[2] = {
        {
            .from = (const void *)key,
            .from_head_stride = key_head_stride,
            .to = (char *)(uintptr_t)rows->key + row * rows->key_row_stride,
            .to_head_stride = rows->key_head_stride,
            .rows = 1,
            .heads = rows->kv_heads,
            .dim = rows->key_dim,
            .from_dtype = dtype,
            .to_dtype = rows->dtype,
        },
        {
            .from = (const void *)value,
            .from_head_stride = value_head_stride,
            .to = (char *)(uintptr_t)rows->value + row * rows->value_row_stride,
            .to_head_stride = rows->value_head_stride,
            .rows = 1,
            .heads = rows->kv_heads,
            .dim = rows->value_dim,
            .from_dtype = dtype,
            .to_dtype = rows->dtype,
        },
    };
    return hgca_copy_rows(copies, 2);
}
