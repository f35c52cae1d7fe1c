/* hgca: attention over rows in CPU memory.
 *
 * This header is the contract, the documentation and the cffi declaration, and so is hgca_model.h (what a model does around
 * its attention): native/build.py cuts what stands between the markers. Words: a *row* is one token of one KV head; a *list* is
 * the set of rows some query heads read.
 * Every function returns a status; nothing is printed, nothing aborts. Log-sum-exp is natural everywhere. */
#ifndef HGCA_H
#define HGCA_H

#include <stdint.h>

/* cffi:begin */
enum {
    HGCA_OK = 0,
    HGCA_BAD_ARGUMENT = 1, /* a null pointer, a negative size, a row out of range, heads that do not divide */
    HGCA_NO_MEMORY = 2,    /* malloc or mmap said no */
    HGCA_NO_ISA = 3,       /* no such instruction set here */
    HGCA_NO_OPENMP = 4,    /* this process has no GNU OpenMP to share */
    HGCA_NO_SPACE = 6,     /* the file system has no room for more of a file, or does not let it grow */
    HGCA_FORKED = 5,       /* the jobs were started before fork(): the parent process has them */
    HGCA_NO_ANSWER = 7     /* a device asked nothing for too long */
};

enum { HGCA_F32 = 0, HGCA_BF16 = 1, HGCA_F16 = 2, HGCA_I8 = 3 };

/* Softmax attention of each query head over rows of its KV head, for one query token or several:
 *
 *     s_j = scale * q.k_j   (softcap > 0: softcap * tanh(s_j / softcap))
 *     lse = ln sum_j exp(s_j),   out = sum_j exp(s_j - lse) v_j
 *
 *   key      row r of KV head h starts key_head_stride * h + key_row_stride * r bytes after `key`; likewise value
 *   scales   HGCA_I8 only (else ignored): row r of KV head h is its int8 numbers times the float scale_head_stride * h
 *            + scale_row_stride * r bytes after key_scale; likewise value_scale
 *   query    f32 [tokens][heads][key_dim]; query head i reads KV head i / (heads / kv_heads)
 *   causal   0: every token sees all rows. 1: the last `tokens` rows are the tokens' own, token t sees rows
 *            0 .. rows - tokens + t
 *   joins    1: its rows are more rows of the job before it, for the same tokens and heads and values as wide: when all is
 *            done, out and lse of that job (the nearest before it that joins none) are over the rows of both. Its own
 *            out and lse, which it needs all the same, then hold its part alone. 0: a job of its own
 *   only_read  1: its rows are read and nothing is computed, as over no rows: what the rest is measured by. 0: attention
 *   lists    0: every row is read. Else a multiple of kv_heads that divides heads: list l serves
 *            heads / lists consecutive query heads (and all tokens) and holds entries row_start[l] ..
 *            row_start[l + 1] - 1 of row, and of run if there is one: entry i is row[i] or, with run, the run[i] rows
 *            from row[i] on (run[i] >= 0). All within 0 .. rows - 1; repeats count twice
 *   out      f32 [tokens][heads][value_dim], zeros over no rows
 *   lse      f32 [tokens][heads], -inf over no rows
 *
 * Accumulation is in float32 (of int8 rows: exact integers within a few rows, then float32). Each row is read once for all
 * tokens and all query heads its list serves. */
typedef struct {
    const void *key;
    const void *value;
    int64_t key_head_stride;
    int64_t key_row_stride;
    int64_t value_head_stride;
    int64_t value_row_stride;
    int64_t rows;
    int32_t kv_heads;
    int32_t heads;
    int32_t key_dim;
    int32_t value_dim;
    int32_t dtype;
    int32_t lists;
    const int64_t *row_start;
    const int32_t *row;
    const int32_t *run;
    const float *key_scale;
    const float *value_scale;
    int64_t scale_head_stride;
    int64_t scale_row_stride;
    int32_t tokens;
    int32_t causal;
    int32_t joins;
    int32_t only_read;
    const float *query;
    float scale;
    float softcap;
    float *out;
    float *lse;
} hgca_attention;

/* Queries over int8 rows are rounded to 15 bits, but for those of more than HGCA_FEW_TOKENS tokens over rows of at most HGCA_MANY_DIM
 * numbers. These, over rows of int8 or bf16, are rounded to bf16 where a processor is faster with it, as are weights: a result moves
 * by less than rounding its rows to bf16 did (kernels_many_pairs.h); with AMX they are two numbers of bf16 each. */
enum { HGCA_FEW_TOKENS = 64, HGCA_MANY_DIM = 256 };

/* Hand `count` jobs to the worker threads and return at once; hgca_wait(ticket) returns when all are done, the caller
 * helping meanwhile. The descriptions are copied, the buffers they point to must live until then. Jobs are checked
 * before anything is written: on an error no job was started and *ticket is not valid. Safe from several threads. */
int hgca_start(const hgca_attention *jobs, int32_t count, int64_t *ticket);
int hgca_wait(int64_t ticket);

/* A 4-bit index of rows, for policies that score every row before they read some. Positions of the index are rows in
 * their order, or in the order a clustering gave them. 128 positions are a block:
 *   bf16 [dim8]   scale of each number, bf16 [dim8] zero: number d of a row is about zero[d] + scale[d] * code
 *   codes         per 16 positions dim8 / 8 chunks of 64 bytes: byte 4 r + j of chunk i holds numbers 8 i + j (low half)
 *                 and 8 i + 4 + j (high half) of position r
 * with dim8 the width rounded up to a multiple of 8. A scale per number and block follows the channels in which keys are
 * large (KIVI, arXiv:2402.02750); zeros need no subtraction from queries, as they are the same for a whole block. A block
 * with a key that holds NaN or infinity has scales and zeros of NaN: no score hides it. */
enum { HGCA_BLOCK = 128, HGCA_LANES = 16 };

/* What an index is made of: rows of every head, or the rows a position stands for.
 *   rows ... scale_row_stride   the keys (or values), as in hgca_attention
 *   first, count   which: first .. first + count - 1 */
typedef struct {
    const void *rows;
    int64_t head_stride;
    int64_t row_stride;
    const float *scale;
    int64_t scale_head_stride;
    int64_t scale_row_stride;
    int64_t first;
    int64_t count;
    int32_t heads;
    int32_t dim;
    int32_t dtype;
} hgca_span;

/* Writes the blocks of positions first .. first + count - 1; `first` is a multiple of 128, what a last block lacks is filled
 * with zeros.
 *   order    i32, position p of head h is row order[order_head_stride * h + p]; null: position p is row p
 *   codes    block b of head h starts codes_head_stride * h + b * hgca_block_bytes(dim) bytes after it
 *   shared   from `first` on so many blocks at a time have the same scales and zeros, in each of them; 0: each has its own
 * Returns when all is written; large jobs use the worker threads. */
typedef struct {
    hgca_span of;
    const int32_t *order;
    int64_t order_head_stride;
    void *codes;
    int64_t codes_head_stride;
    int32_t shared;
} hgca_codes;

int hgca_encode(const hgca_codes *job);
int64_t hgca_block_bytes(int32_t dim);

/* Means of every `each` positions, or with `spread` their variances (the mean squared distance from the mean), bf16: those
 * of positions first .. first + count - 1, `first` a multiple of each; the last may have fewer positions.
 *   order    as in hgca_codes
 *   mean     group g of head h starts mean_head_stride * h + mean_row_stride * g bytes after it */
typedef struct {
    hgca_span of;
    const int32_t *order;
    int64_t order_head_stride;
    void *mean;
    int64_t mean_head_stride;
    int64_t mean_row_stride;
    int64_t each;
    int32_t spread;
} hgca_means;

int hgca_average(const hgca_means *job);

/* Rows first .. first + count - 1 of every head in groups of 16 of like keys: halved again and again, each half as large as
 * the other, along the line between the means of the halves (bisecting k-means, balanced). Rows that are far from the
 * mean of their group stand together behind the others: a mean says nothing about them.
 *   count    a multiple of 16, at most 65536
 *   apart    groups of rows that stand apart, at most half of all
 *   order    out: i32 [count], rows of head h from order_head_stride * h on: the groups one behind the other */
typedef struct {
    hgca_span of;
    int64_t apart;
    int32_t *order;
    int64_t order_head_stride;
} hgca_clustering;

int hgca_cluster(const hgca_clustering *job);

/* What is known of pages, 16 rows one behind the other, to score them: 16 pages are a block, and per number of a row it holds
 *   HGCA_PAGE_BOX     bf16 [16] the smallest, then bf16 [16] the largest of each page's keys, rounded outwards: no row's
 *                     score is above the page's (Quest, arXiv:2406.10774, section 3)
 *   HGCA_PAGE_CENTRE  bf16 [16] the middle of these (the cuboid-mean of ArkVale, NeurIPS 2024)
 *   HGCA_PAGE_MEAN    bf16 [16] the mean
 * A number of which a page has a NaN or an infinity is NaN there: such a page is not hidden. */
enum { HGCA_PAGE_BOX = 0, HGCA_PAGE_CENTRE = 1, HGCA_PAGE_MEAN = 2 };

/* Writes the pages of rows first .. first + count - 1; `first` is a multiple of 16, and the last page may have fewer rows.
 *   pages    block b of head h starts pages_head_stride * h + b * hgca_page_bytes(dim, kind) bytes after it
 * Returns when all is written; large jobs use the worker threads. */
typedef struct {
    hgca_span of;
    void *pages;
    int64_t pages_head_stride;
    int32_t kind;
} hgca_pages;

int hgca_page(const hgca_pages *job);
int64_t hgca_page_bytes(int32_t dim, int32_t kind); /* of a block */

/* Attention over the rows that matter for this query, chosen per KV head from approximate scores.
 *   rows      as for hgca_start: one token, no lists; rows `indexed` and later have no codes and are all read
 *   codes     4-bit codes of the keys by position (hgca_codes); rows are read exactly, codes only choose
 *   mass      share of a KV head's attention mass to be kept. A row's weight is the largest that a query head of its group gives it,
 *             and rows are taken in order of it until what is left holds no more than 1 - mass of everything. With block_mean
 *             what is left is estimated, and may hold more the more rows hold it: until the sum S and the sum of squares Q of
 *             its weights have 50 Q + (S / 8)^2 <= (1 - mass)^2
 *   near      more rows that are all read, for the same query: dense or lists of KV heads, with any dtype and as many KV heads
 *             and numbers; out and lse are over these too. null: none. Its query, out and lse are not looked at
 *   beside    f32 [heads], natural log-sum-exp of rows attended elsewhere. What they and `near` hold counts as kept; null:
 *             nothing
 *   block_mean    bf16 [kv_heads], mean value of each block of 128 positions, block b of head h starts block_mean_head_stride * h
 *             + 2 value_dim b bytes after it: positions that were scored and are not read enter with the weight their code
 *             gives them and the mean value of their block, but half of it with the values of rows just heavy enough to be
 *             read; null: they leave no trace
 *   least, most   rows a KV head chooses at least and at most, `most` ahead of mass (rows so light that all of them would be half of
 *             what may be left are never chosen; with a score that is no number all are read). Rows behind the index come on
 *             top; HGCA_GATE_READ looks at neither
 * Positions 0 .. clustered - 1 stand in groups of 16 that were clustered; null pointers if clustered is 0:
 *   order     i32 [kv_heads], row of a position;  positions from `clustered` on are rows in their order
 *   group_codes   codes of the groups' mean keys
 *   spread_codes  codes of the variances of each group's keys, likewise: a group is judged by its mean score and by how far
 *             its scores reach, so that one row that matters is not hidden by 15 others; null: by its mean score
 *   mean      mean key and mean value of a group, dtype mean_dtype, group g of head h starts mean_head_stride * h +
 *             mean_row_stride * g bytes after it (the mean value behind the mean key)
 *   apart     u8, 1: a group of rows that fit nowhere, always scanned
 *   span, shared  every `span` blocks of their codes, a power of two, begin with `shared` that have the same scales (hgca_codes), which
 *             are looked up once; 0: each has its own
 *   gate      HGCA_GATE_NONE: every code is read. HGCA_GATE_SCAN: groups are taken by what their mean keys say they may hold, until for
 *             the others 8 Q + (S / 4)^2 <= (1 - gate_mass)^2, with pages S <= 1 - gate_mass (at most gate_most
 *             groups, beside those apart), and only their codes are read. HGCA_GATE_READ: and all rows
 *             of these are read, without codes. The groups not taken enter as an estimate: 16 rows with the mean key and the
 *             mean value (RetroInfer, arXiv:2505.02922); those of little weight, with block_mean, by their mean key's code and their
 *             block's mean value
 *   block_codes   codes of the mean keys of blocks of 128 positions, i.e. of 8 groups, position b of these codes block b; and
 *             block_spread_codes of the variances of their keys: blocks are opened until for those that stay closed 8 Q + (S / 4)^2 <=
 *             (1 - open_mass)^2, and only an open block's groups are looked at; the other blocks enter as 128 rows with their mean
 *             key and block_mean, but for those that hold next to nothing together. Groups stand apart block by block then (that of a block's first group counts). null: all groups
 *             are looked at
 *   pages     groups are pages of page_kind, rows in their own order: there are no codes, no order, no means, and no estimate;
 *             clustered is `indexed`, any number, and gate HGCA_GATE_READ. Scores of pages are taken for those of their 16
 *             rows, so that masses are about right with means and too large with bounds
 *   read_lse  f32 [heads], log-sum-exp of the rows of the store read, without estimates; null: not wanted
 *   rows_read i64 [kv_heads], null: not wanted
 *   stats     null: not wanted */
enum { HGCA_GATE_NONE = 0, HGCA_GATE_SCAN = 1, HGCA_GATE_READ = 2 };

/* Sums over KV heads: positions scored by code, groups scored, rows read, groups that entered as an estimate, bytes of the store
 * and of its index that were touched for all that (rows with their int8 scales, codes with the scales looked
 * up for them, means, and order where a row's number was looked up there; not `near` rows), and nanoseconds of threads: scoring groups, scoring codes,
 * choosing, attending. */
typedef struct {
    int64_t scanned;
    int64_t groups;
    int64_t read;
    int64_t estimated;
    int64_t bytes;
    int64_t group_ns;
    int64_t scan_ns;
    int64_t choose_ns;
    int64_t read_ns;
} hgca_selection_stats;

typedef struct {
    hgca_attention rows;
    int64_t indexed;
    const void *codes;
    int64_t codes_head_stride;
    float mass;
    const hgca_attention *near;
    const float *beside;
    const void *block_mean;
    int64_t block_mean_head_stride;
    int64_t least;
    int64_t most;
    int64_t clustered;
    const int32_t *order;
    int64_t order_head_stride;
    const void *group_codes;
    int64_t group_codes_head_stride;
    const void *spread_codes;
    int64_t spread_codes_head_stride;
    const void *mean;
    int64_t mean_head_stride;
    int64_t mean_row_stride;
    int32_t mean_dtype;
    const uint8_t *apart;
    int64_t apart_head_stride;
    int32_t span;
    int32_t shared;
    int32_t gate;
    float gate_mass;
    int64_t gate_most;
    const void *block_codes;
    int64_t block_codes_head_stride;
    const void *block_spread_codes;
    int64_t block_spread_codes_head_stride;
    float open_mass;
    const void *pages;
    int64_t pages_head_stride;
    int32_t page_kind;
    float *read_lse;
    int64_t *rows_read;
    hgca_selection_stats *stats;
} hgca_selection;

/* As hgca_start, and waited for by hgca_wait. */
int hgca_start_selected(const hgca_selection *jobs, int32_t count, int64_t *ticket);

/* Rows as a model computes them become rows of a store: converted to `to_dtype`, rounded to the nearest even, or for
 * HGCA_I8 divided by a scale per row, max |x| / 127, that is written beside them (a row of zeros: scale 0).
 *   from     f32, bf16 or f16: row r of head h starts from_head_stride * h + from_row_stride * r bytes after `from`
 *   to       likewise; scale likewise, HGCA_I8 only
 * Numbers of a row lie next to each other. Returns when all is written; large copies use the worker threads. */
typedef struct {
    const void *from;
    int64_t from_head_stride;
    int64_t from_row_stride;
    void *to;
    int64_t to_head_stride;
    int64_t to_row_stride;
    float *scale;
    int64_t scale_head_stride;
    int64_t scale_row_stride;
    int64_t rows;
    int32_t heads;
    int32_t dim;
    int32_t from_dtype;
    int32_t to_dtype;
} hgca_copy;

int hgca_copy_rows(const hgca_copy *copies, int32_t count);

/* By hgca_copy_rows, a row of every KV head: key and value, of `dtype`, whose heads are so many bytes apart, become row `row` of
 * what is described (not HGCA_I8). Numbers for addresses, as of hgca_linear. */
int hgca_put_row(const hgca_attention *rows, int64_t row, int32_t dtype, uintptr_t key, int64_t key_head_stride, uintptr_t value,
                 int64_t value_head_stride);

/* Threads that work on a job, the waiting caller included: 1 .. 1024. The default is hgca_usable_processors, asked
 * once, at the first call that needs it. Where the system refuses a thread there are fewer, and the waiting caller does
 * their work. A child process after fork() gets threads of its own at its first job; jobs started before the fork are
 * the parent's. A thread without work stays awake for 2 ms and then sleeps; where there are more threads than
 * processors it sleeps at once. */
int hgca_set_threads(int32_t threads);
int32_t hgca_threads(void);

/* Threads this process can keep busy: one per physical core that the calling thread's affinity mask allows, no more
 * than its cgroups' CPU quota (version 1 or 2, of the process's own cgroup and those above it) rounded up, at least 1.
 * `root` is put before the paths of /proc and /sys, the mask is then read there too (tests do that); null or empty: the
 * system's own. */
int32_t hgca_usable_processors(const char *root);

/* on: jobs are worked on in hgca_wait, by the OpenMP threads the process already has (GNU OpenMP, found at run time),
 * and no thread of our own is woken. Where torch computes on the same processors this is faster: its threads spin
 * between two layers, and ours would have to push them off a core first. HGCA_NO_OPENMP if there is none. */
int hgca_share_openmp(int32_t on);

/* Instruction sets this machine has, fastest first, as one comma-separated list that ends in "scalar"; the one in use;
 * and a way to choose (tests compare them all). Not while jobs run. */
const char *hgca_isas(void);
const char *hgca_isa(void);
int hgca_use_isa(const char *name);

/* Address space that costs nothing until it is committed: a store grows without moving what it holds.
 * Offsets and sizes are bytes and are rounded outwards to pages. Committed memory reads as zeros. */
int hgca_reserve(int64_t bytes, void **base);
int hgca_commit(void *base, int64_t offset, int64_t bytes);
int hgca_release(void *base, int64_t bytes);

/* One huge page in place of small ones under the 2 MiB from `offset` on, which are committed if they are not yet: for memory that is
 * nearly full. The page is a wish, and what is there is copied (Linux 6.1; elsewhere the system may do so later, or not). */
int hgca_join_pages(void *base, int64_t offset);

/* The same with a file for memory, from its beginning: `file` is a descriptor, `bytes` the file's length (it may be sparse). What is
 * committed has its room on the disk from then on (posix_fallocate): a full disk is HGCA_NO_SPACE here, and not a signal when
 * memory is touched. Released by hgca_release; the descriptor stays the caller's, and is needed for hgca_commit_file only. */
int hgca_reserve_file(int64_t bytes, int file, void **base);
int hgca_commit_file(void *base, int file, int64_t offset, int64_t bytes);

/* Bytes offset .. offset + bytes - 1 of reserved memory are those of a file from `at` on, multiples of pages all, until somebody writes
 * there: whoever maps the same file shares its pages, and a page that is written to becomes the writer's own. What was there
 * before is gone; the file must be as long, and may not change any more. The descriptor is not needed afterwards. */
int hgca_map(void *base, int64_t offset, int64_t bytes, int file, int64_t at);

/* How a file's bytes will be read next, in order (1) or here and there (0): a wish. */
int hgca_advise(void *base, int64_t bytes, int32_t in_order);

/* The system gets back what malloc keeps of memory that was freed (glibc; elsewhere nothing happens). Some 10 ms. */
void hgca_trim(void);

/* One line for a status, never null. */
const char *hgca_status_text(int status);
/* cffi:end */

#include "hgca_model.h"

#endif
