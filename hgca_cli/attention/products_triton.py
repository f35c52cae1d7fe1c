"""What attention/scores_triton.py has the matrix units of a GPU do: codes of rows by bytes of queries. Importing this needs Triton.

A product is of 16 rows, 32 numbers and 8 columns, which are both bytes of 4 query heads' numbers. It adds its numbers up in any
order, so words of codes are passed on by the thread that read them, low nibbles and high ones, and nothing is moved between threads.

A tile is 32 rows, of which thread 4 i + c of a warp has rows 4 i .. 4 i + 3 (of two products, rows i and 8 + i of each) and every
fourth word of each, from word c on. Of the result it has these rows' sums for query head c of 4. So element 16 i + 4 c + j of a
tensor of 128 is of row 4 i + j, and of word c or query head c; of queries it is of column i, word c, and word's half j % 2 of the
first product (j < 2) or the second. The units need a thread to have 4 elements in a row, which is how Triton lays out what is read
16 bytes at a time; `Scores` tries whether it did.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]

# Two words of each of 4 rows, a set's queries of both, what there is so far: $8 .. $11, $12 .. $15, $16 .. $19, $20 .. $27
MULTIPLY = tl.constexpr("""{
.reg .b32 l<8>, h<8>, c<8>;
and.b32 l0, $8, 0x0f0f0f0f; and.b32 l1, $9, 0x0f0f0f0f; and.b32 l2, $10, 0x0f0f0f0f; and.b32 l3, $11, 0x0f0f0f0f;
and.b32 l4, $12, 0x0f0f0f0f; and.b32 l5, $13, 0x0f0f0f0f; and.b32 l6, $14, 0x0f0f0f0f; and.b32 l7, $15, 0x0f0f0f0f;
shr.u32 h0, $8, 4; shr.u32 h1, $9, 4; shr.u32 h2, $10, 4; shr.u32 h3, $11, 4;
shr.u32 h4, $12, 4; shr.u32 h5, $13, 4; shr.u32 h6, $14, 4; shr.u32 h7, $15, 4;
and.b32 h0, h0, 0x0f0f0f0f; and.b32 h1, h1, 0x0f0f0f0f; and.b32 h2, h2, 0x0f0f0f0f; and.b32 h3, h3, 0x0f0f0f0f;
and.b32 h4, h4, 0x0f0f0f0f; and.b32 h5, h5, 0x0f0f0f0f; and.b32 h6, h6, 0x0f0f0f0f; and.b32 h7, h7, 0x0f0f0f0f;
mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {c0, c1, c2, c3}, {l0, l1, h0, h1}, {$16, $17}, {$20, $24, $21, $25};
mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {c4, c5, c6, c7}, {l2, l3, h2, h3}, {$16, $17}, {$22, $26, $23, $27};
mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$0, $4, $1, $5}, {l4, l5, h4, h5}, {$18, $19}, {c0, c1, c2, c3};
mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$2, $6, $3, $7}, {l6, l7, h6, h7}, {$18, $19}, {c4, c5, c6, c7};
}""")
REGISTERS = tl.constexpr(",".join(["=&r"] * 8 + ["r"] * 20))


@triton.jit
def multiply(words, more, queries, high, low, MATRIX: tl.constexpr):  # type: ignore[no-untyped-def]
    """What is added to sums of high and low bytes, i32 [blocks, sets, 128] as above.

    words [blocks, 1, 128] of the first product and `more` of the second; queries of both
    """
    if MATRIX:
        high, low = tl.inline_asm_elementwise(
            MULTIPLY, REGISTERS, [words, more, queries, high, low], dtype=(tl.int32, tl.int32), is_pure=True, pack=4
        )
    else:  # the same without matrix units
        BLOCKS: tl.constexpr = queries.shape[0]
        SETS: tl.constexpr = queries.shape[1]
        columns = tl.reshape(queries, [BLOCKS, SETS, 8, 4, 4])  # column, word, step and half
        which = tl.arange(0, 4)[None, None, None, None, :]
        both = tl.zeros([BLOCKS, SETS, 8, 4, 8], tl.int32)  # 4 i + j, column
        for part in tl.static_range(4):
            word = tl.permute(tl.reshape(words if part < 2 else more, [BLOCKS, 1, 8, 4, 4]), [0, 1, 2, 4, 3])
            column = tl.permute(tl.sum(tl.where(which == part, columns, 0), 4), [0, 1, 3, 2])
            for number in tl.static_range(4):
                code = (word >> (8 * number + 4 * (part % 2))) & 15
                byte = (column << (24 - 8 * number)) >> 24
                both += tl.sum(code[:, :, :, :, :, None] * byte[:, :, None, None, :, :], 4)
        bytes = tl.split(tl.permute(tl.reshape(both, [BLOCKS, SETS, 8, 4, 4, 2]), [0, 1, 2, 4, 3, 5]))
        high += tl.reshape(bytes[0], [BLOCKS, SETS, 128])
        low += tl.reshape(bytes[1], [BLOCKS, SETS, 128])
    return high, low
