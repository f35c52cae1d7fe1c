/* Which rows are read, and fetching them. Included by select_template.h, in its words. */

/* Rows of the set bits of a group's 16, one after the other: numbers of `order`, or first, first + 1, ... Up to sixteen are written. */
INLINE int64_t keep_rows(int32_t *to, const int32_t *order, int32_t first, uint32_t bits) {
#if defined(__AVX512F__)
    const __m512i each = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i all = order ? _mm512_loadu_si512(order) : _mm512_add_epi32(_mm512_set1_epi32(first), each);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16)bits, all));
#else
    for (uint32_t some = bits; some; some &= some - 1) {
        const int r = __builtin_ctz(some);
        *to++ = order ? order[r] : first + r;
    }
#endif
    return __builtin_popcount(bits);
}

/* Only the first `room` of the bits. */
INLINE uint32_t first_bits(uint32_t bits, int64_t room) {
    uint32_t kept = bits;
    for (int64_t more = __builtin_popcount(bits) - room; more > 0 && kept; more--) kept &= ~(0x80000000u >> __builtin_clz(kept));
    return kept;
}

INLINE void fetch_rows(const hgca_listing *l, const int32_t *row, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        hgca_fetch(l->key + row[i] * l->key_row_stride, l->key_bytes, 2);
        hgca_fetch(l->value + row[i] * l->value_row_stride, l->value_bytes, 2);
    }
}

static int64_t list(hgca_listing *l) {
    int64_t count = 0, light = 0, fetched = 0, room = l->room;
    for (int64_t i = 0; i < l->count; i++) {
        const int64_t first = (int64_t)l->groups[i] * HGCA_LANES, left = l->end - first;
        const int32_t *order = first < l->clustered ? l->order + first : NULL;
        uint32_t bits = left < HGCA_LANES ? (1u << (left > 0 ? left : 0)) - 1 : 0xffff, heavy = bits;
        if (l->weight) {
            const uint32_t some = lanes_from(l->weight + i * HGCA_LANES, l->least) & bits;
            const uint32_t sure = some & lanes_from(l->weight + i * HGCA_LANES, l->above), edge = some & ~sure;
            bits = sure | first_bits(edge, room);
            room -= __builtin_popcount(edge);
            heavy = bits & lanes_from(l->weight + i * HGCA_LANES, l->light);
        }
        count += keep_rows(l->rows + count, order, (int32_t)first, heavy);
        light += keep_rows(l->behind + light, order, (int32_t)first, bits & ~heavy);
        l->chosen[i] = (uint16_t)bits;
        if (order) l->looked_up += __builtin_popcount(bits);
        if (count - fetched >= AT_ONCE && fetched < l->fetched) { /* a few at a time: no branch more a group */
            fetch_rows(l, l->rows + fetched, AT_ONCE);
            fetched += AT_ONCE;
        }
    }
    memcpy(l->rows + count, l->behind, sizeof *l->rows * (size_t)light);
    l->light_rows = light;
    count += light;
    if (fetched < l->fetched) fetch_rows(l, l->rows + fetched, count < l->fetched ? count - fetched : l->fetched - fetched);
    return count;
}
