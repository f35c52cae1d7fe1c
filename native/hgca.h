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
    HGCA_FORKED = 4        /* the jobs were started before fork(): the parent process has them */
};

enum { HGCA_F32 = 0, HGCA_BF16 = 1, HGCA_F16 = 2 };

/* Softmax attention of each query head over rows of its KV head, one query token:
 *
 *     s_j = scale * q.k_j   (softcap > 0: softcap * tanh(s_j / softcap))
 *     lse = ln sum_j exp(s_j),   out = sum_j exp(s_j - lse) v_j
 *
 *   key      row r of KV head h starts key_head_stride * h + key_row_stride * r bytes after `key`; likewise value
 *   query    f32 [heads][key_dim]; query head i reads KV head i / (heads / kv_heads)
 *   lists    0: every row is read. Else a multiple of kv_heads that divides heads: list l serves
 *            heads / lists consecutive query heads and holds row[row_start[l]] .. row[row_start[l + 1] - 1],
 *            each in 0 .. rows - 1 (repeats count twice)
 *   out      f32 [heads][value_dim], zeros over no rows
 *   lse      f32 [heads], -inf over no rows
 *
 * Accumulation is in float32 for every dtype. Each row is read once for all query heads its list serves. */
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

/* Threads that work on a job, the waiting caller included: 1 .. 1024. The default is the number of processors the
 * process may use. Where the system refuses a thread there are fewer, and the waiting caller does their work. A child
 * process after fork() gets threads of its own at its first job; jobs started before the fork are the parent's. */
int hgca_set_threads(int32_t threads);
int32_t hgca_threads(void);

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
