/* Rows of one dtype become rows of another, written once. An instruction set's file defines a vocabulary and includes
 * this:
 *   VF, VU, VW             a vector of VW floats, of VW unsigned numbers
 *   vload_from(p, dtype)   VW numbers (f32, bf16, f16) as floats; a NaN of f16 becomes a quiet one
 *   vstore_to(p, dtype, x) rounded to the nearest even; a NaN keeps sign and leading digits and becomes a quiet one
 *   vstore_i8(p, x)        nearest even integers; |x| <= 127
 *   STREAMS                1: vstream_to and vstream_i8 write past the caches, to an address that is a multiple of what
 *                          they write; vfence makes it seen before what is written after it
 *   vmul vset1
 *   vabs_bits(x)           bits of |x|: as integers they are ordered as the floats are, infinity and NaN above all
 *   vumax vuzero vulargest
 *
 * Every instruction set gives the same bytes, whether or not the thread flushes denormals (workers do, callers do not):
 * what could depend on it is done in integers, or below a threshold that keeps denormals out. */
#include <string.h>

#include "convert.h"
#include "hgca.h"

#if !STREAMS
#define vstream_to vstore_to
#define vstream_i8 vstore_i8
#define vfence()
#endif

#define INLINE static inline __attribute__((always_inline))

enum { INFINITE = 0x7f800000, SMALLEST = 0x08800000 }; /* bits of infinity; of 2^-110 */
enum { LINE = 64 };

INLINE size_t size_of(int dtype) { return dtype == HGCA_F32 ? 4 : dtype == HGCA_I8 ? 1 : 2; }

/* The last n < VW numbers of a row, then zeros. */
INLINE VF load_tail(const char *from, int dtype, size_t n) {
    char whole[VW * 4];
    memset(whole, 0, sizeof whole);
    memcpy(whole, from, n * size_of(dtype));
    return vload_from(whole, dtype);
}

INLINE void convert_row(const char *from, char *to, size_t dim, int from_dtype, int to_dtype, int stream) {
    size_t rest = dim % VW, whole = dim - rest, size = size_of(from_dtype), to_size = size_of(to_dtype);
    for (size_t d = 0; d < whole; d += VW) {
        VF x = vload_from(from + d * size, from_dtype);
        if (stream) vstream_to(to + d * to_size, to_dtype, x);
        else vstore_to(to + d * to_size, to_dtype, x);
    }
    if (rest == 0) return;
    char last[VW * 4];
    vstore_to(last, to_dtype, load_tail(from + whole * size, from_dtype, rest));
    memcpy(to + whole * to_size, last, rest * to_size);
}

/* A row whose largest number is below 2^-110 counts as zeros: 127 over it, and the scale, then stay normal numbers. */
INLINE float quantise_row(const char *from, char *to, size_t dim, int from_dtype, int stream) {
    size_t rest = dim % VW, whole = dim - rest, size = size_of(from_dtype);
    VU top = vuzero();
    for (size_t d = 0; d < whole; d += VW) top = vumax(top, vabs_bits(vload_from(from + d * size, from_dtype)));
    VF tail = vset1(0.0f);
    if (rest) tail = load_tail(from + whole * size, from_dtype, rest);
    uint32_t bits = vulargest(vumax(top, vabs_bits(tail)));
    if (bits >= INFINITE || bits < SMALLEST) {
        memset(to, 0, dim);
        return bits >= INFINITE ? __builtin_nanf("") : 0.0f;
    }
    float largest;
    memcpy(&largest, &bits, 4);
    VF inverse = vset1(127.0f / largest);
    for (size_t d = 0; d < whole; d += VW) {
        VF x = vmul(vload_from(from + d * size, from_dtype), inverse);
        if (stream) vstream_i8(to + d, x);
        else vstore_i8(to + d, x);
    }
    if (rest) {
        char last[VW];
        vstore_i8(last, vmul(tail, inverse));
        memcpy(to + whole, last, rest);
    }
    return largest / 127.0f;
}

INLINE void convert_each(const hgca_rows *rows, int from_dtype, int to_dtype, int stream) {
    for (int64_t r = 0; r < rows->rows; r++) {
        const char *from = rows->from + r * rows->from_row_stride;
        char *to = rows->to + r * rows->to_row_stride;
        if (to_dtype == HGCA_I8) {
            float scale = quantise_row(from, to, rows->dim, from_dtype, stream);
            memcpy(rows->scale + r * rows->scale_row_stride, &scale, 4);
        } else {
            convert_row(from, to, rows->dim, from_dtype, to_dtype, stream);
        }
    }
}

INLINE void convert_rows(const hgca_rows *rows, int from_dtype, int to_dtype) {
    /* part of a line past the caches is a read and a write in memory: worse than through them */
    uintptr_t lines = (uintptr_t)rows->to | (uintptr_t)rows->to_row_stride | rows->dim * size_of(to_dtype);
    if (STREAMS && rows->stream && lines % LINE == 0) {
        convert_each(rows, from_dtype, to_dtype, 1);
        vfence();
    } else {
        convert_each(rows, from_dtype, to_dtype, 0);
    }
}

#define HGCA_CONVERT(from, to) \
    static void from##_to_##to(const hgca_rows *rows) { convert_rows(rows, HGCA_##from, HGCA_##to); }

HGCA_CONVERT(F32, F32)
HGCA_CONVERT(F32, BF16)
HGCA_CONVERT(F32, F16)
HGCA_CONVERT(F32, I8)
HGCA_CONVERT(BF16, F32)
HGCA_CONVERT(BF16, F16)
HGCA_CONVERT(BF16, I8)
HGCA_CONVERT(F16, F32)
HGCA_CONVERT(F16, BF16)
HGCA_CONVERT(F16, I8)

#define HGCA_TEMPLATE_CONVERTERS                                \
    {                                                           \
        {                                                       \
            {F32_to_F32, F32_to_BF16, F32_to_F16, F32_to_I8},   \
            {BF16_to_F32, 0, BF16_to_F16, BF16_to_I8},          \
            {F16_to_F32, F16_to_BF16, 0, F16_to_I8},            \
        }                                                       \
    }
