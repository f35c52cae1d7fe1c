/* hgca: attention over rows in CPU memory.
 *
 * This header is the contract, the documentation and the cffi declaration: native/build.py cuts what stands between
 * the markers. Words: a *row* is one token of one KV head; a *list* is the set of rows some query heads read.
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
    HGCA_FORKED = 5        /* the jobs were started before fork(): the parent process has them */
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
    const float *query;
    float scale;
    float softcap;
    float *out;
    float *lse;
} hgca_attention;

/* Hand `count` jobs to the worker threads and return at once; hgca_wait(ticket) returns when all are done, the caller
 * helping meanwhile. The descriptions are copied, the buffers they point to must live until then. Jobs are checked
 * before anything is written: on an error no job was started and *ticket is not valid. Safe from several threads. */
int hgca_start(const hgca_attention *jobs, int32_t count, int64_t *ticket);
int hgca_wait(int64_t ticket);

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

/* One line for a status, never null. */
const char *hgca_status_text(int status);
/* cffi:end */

#endif
