/* hgca_copy_rows: every instruction set and number of threads gives the bytes that plain C gives, which the Python tests
 * compare with torch. Buffers are allocated to the byte, and odd addresses and strides are used. */
#include "check_convert.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hgca.h"

static const int sizes[] = {4, 2, 2, 1};

static uint32_t next(uint64_t *state) { /* xorshift64* */
    *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27;
    return (uint32_t)(*state * 0x2545F4914F6CDD1DULL >> 32);
}

static char *memory(size_t bytes) {
    void *at;
    if (posix_memalign(&at, 64, bytes) != 0) exit(2);
    return memset(at, 0, bytes);
}

typedef struct {
    char *from, *to, *scale;
    size_t to_bytes, scale_bytes;
    hgca_copy copy;
} example;

/* Every second row has any bits at all (NaN, infinities, denormals), the others numbers of one size. */
static example make(int from_dtype, int to_dtype, int heads, int rows, int dim, int gap) {
    uint64_t state = 88172645463325252ULL + (uint64_t)dim;
    int64_t count = (int64_t)heads * rows, from_row = (dim + gap) * sizes[from_dtype], to_row = (dim + gap) * sizes[to_dtype];
    int64_t from_bytes = (count - 1) * from_row + dim * sizes[from_dtype] + gap;
    example e = {.to_bytes = (size_t)((count - 1) * to_row + dim * sizes[to_dtype] + gap), .scale_bytes = (size_t)count * 4};
    e.from = memory((size_t)from_bytes), e.to = memory(e.to_bytes), e.scale = memory(e.scale_bytes);
    for (int64_t r = 0; r < count; r++)
        for (int64_t d = 0; d < dim; d++) {
            uint32_t bits = next(&state);
            if (r % 2) bits = (bits & 0x807fffff) | 0x3f800000;
            if (r % 2 && from_dtype == HGCA_F16) bits = (bits & 0x83ff0000) | 0x3c000000;
            char *at = e.from + gap + r * from_row + d * sizes[from_dtype];
            memcpy(at, (char *)&bits + 4 - sizes[from_dtype], (size_t)sizes[from_dtype]);
        }
    e.copy = (hgca_copy){
        .from = e.from + gap, .from_head_stride = rows * from_row, .from_row_stride = from_row,
        .to = e.to + gap, .to_head_stride = rows * to_row, .to_row_stride = to_row,
        .scale = (float *)(void *)e.scale, .scale_head_stride = rows * 4, .scale_row_stride = 4,
        .rows = rows, .heads = heads, .dim = dim, .from_dtype = from_dtype, .to_dtype = to_dtype,
    };
    return e;
}

static int same(example *e, const example *wanted) {
    return memcmp(e->to, wanted->to, e->to_bytes) == 0 && memcmp(e->scale, wanted->scale, e->scale_bytes) == 0;
}

static void drop(example *e) { free(e->from), free(e->to), free(e->scale); }

static int check_pair(const char *isa, int from_dtype, int to_dtype) {
    static const int dims[] = {1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 80, 127};
    int failures = 0;
    int small = (int)(sizeof dims / sizeof *dims);
    for (int i = 0; i < small + 2; i++) { /* the last two are cut into pieces; rows of 192 numbers fill whole lines */
        int large = i >= small, dim = !large ? dims[i] : i == small ? 72 : 192;
        example wanted = make(from_dtype, to_dtype, 2, large ? 4000 : 6, dim, dim % 3);
        example got = make(from_dtype, to_dtype, 2, large ? 4000 : 6, dim, dim % 3);
        int bad = hgca_use_isa("scalar") != HGCA_OK || hgca_set_threads(1) != HGCA_OK;
        bad |= hgca_copy_rows(&wanted.copy, 1) != HGCA_OK;
        bad |= hgca_use_isa(isa) != HGCA_OK || hgca_set_threads(3) != HGCA_OK;
        bad |= hgca_copy_rows(&got.copy, 1) != HGCA_OK;
        if (bad || !same(&got, &wanted)) {
            failures++;
            fprintf(stderr, "FAILED: convert %s %d to %d, dim %d\n", isa, from_dtype, to_dtype, dim);
        }
        drop(&wanted), drop(&got);
    }
    return failures;
}

static int check_refusals(void) {
    example e = make(HGCA_F32, HGCA_I8, 1, 2, 5, 0), untouched = make(HGCA_F32, HGCA_I8, 1, 2, 5, 0);
    hgca_copy wrong[8];
    for (int i = 0; i < 8; i++) wrong[i] = e.copy;
    wrong[0].from = NULL, wrong[1].to = NULL, wrong[2].scale = NULL, wrong[3].rows = -1;
    wrong[4].heads = 0, wrong[5].dim = 0, wrong[6].from_dtype = HGCA_I8, wrong[7].to_dtype = 4;
    int accepted = 0;
    for (int i = 0; i < 8; i++) {
        hgca_copy both[2] = {e.copy, wrong[i]};
        accepted += hgca_copy_rows(both, 2) != HGCA_BAD_ARGUMENT;
    }
    accepted += hgca_copy_rows(NULL, 1) != HGCA_BAD_ARGUMENT || hgca_copy_rows(&e.copy, -1) != HGCA_BAD_ARGUMENT;
    accepted += !same(&e, &untouched) || hgca_copy_rows(NULL, 0) != HGCA_OK;
    if (accepted) fprintf(stderr, "FAILED: convert refusals\n");
    drop(&e), drop(&untouched);
    return accepted;
}

int check_convert(void) {
    char names[64], *rest = names, *isa, before[64];
    int failures = check_refusals();
    int32_t threads = hgca_threads();
    snprintf(before, sizeof before, "%s", hgca_isa());
    snprintf(names, sizeof names, "%s", hgca_isas());
    while ((isa = strsep(&rest, ",")) != NULL)
        for (int from = HGCA_F32; from <= HGCA_F16; from++)
            for (int to = HGCA_F32; to <= HGCA_I8; to++) failures += check_pair(isa, from, to);
    hgca_use_isa(before);
    hgca_set_threads(threads);
    return failures;
}
