/* Random attention jobs and what they should give, in double precision. Buffers are allocated to the byte: reading past a
 * row is what AddressSanitizer sees. */
#ifndef HGCA_TESTS_PROBLEM_H
#define HGCA_TESTS_PROBLEM_H

#include "numbers.h"

typedef struct {
    int kv_heads, group, rows, key_dim, value_dim, dtype;
    int lists; /* 0 all rows, 1 a list per KV head, 2 a list per query head */
    int runs;  /* 1: the lists hold runs */
    int tokens, causal;
    int exact; /* 1: the query is bf16 numbers */
    int gap;   /* numbers between rows; odd ones leave rows unaligned */
    float softcap;
} shape;

typedef struct {
    hgca_attention job;
    float *keys, *values; /* exact copies, scales included */
} problem;

static int size_of(int dtype) { return dtype == HGCA_F32 ? 4 : dtype == HGCA_I8 ? 1 : 2; }

static void fill(char *to, float *copy, const float *scale, int64_t head_stride, int64_t row_stride, const shape *s, int dim,
                 uint64_t *state) {
    int size = size_of(s->dtype);
    for (int h = 0; h < s->kv_heads; h++)
        for (int r = 0; r < s->rows; r++)
            for (int d = 0; d < dim; d++)
                copy[((int64_t)h * s->rows + r) * dim + d] =
                    put(to + h * head_stride + r * row_stride + (int64_t)d * size, s->dtype, state) *
                    (s->dtype == HGCA_I8 ? scale[2 * (h * s->rows + r)] : 1.0f);
}

static int64_t bytes_of(const shape *s, int dim, int64_t *head_stride, int64_t *row_stride) {
    int64_t size = size_of(s->dtype);
    *row_stride = (dim + s->gap) * size;
    *head_stride = s->rows * *row_stride;
    int64_t rows = (int64_t)s->kv_heads * s->rows;
    return rows ? (rows - 1) * *row_stride + dim * size : 0; /* nothing after the last row */
}

static problem make(const shape *s, uint64_t seed) {
    uint64_t state = seed * 2 + 1;
    int heads = s->kv_heads * s->group, lists = s->lists == 2 ? heads : s->lists ? s->kv_heads : 0;
    problem p = {.job = {.rows = s->rows, .kv_heads = s->kv_heads, .heads = heads, .key_dim = s->key_dim,
                         .tokens = s->tokens, .causal = s->causal, .value_dim = s->value_dim, .dtype = s->dtype, .lists = lists,
                         .scale = 1.0f / sqrtf((float)s->key_dim), .softcap = s->softcap}};
    hgca_attention *job = &p.job;
    char *key = must(malloc((size_t)bytes_of(s, s->key_dim, &job->key_head_stride, &job->key_row_stride) + 1));
    char *value = must(malloc((size_t)bytes_of(s, s->value_dim, &job->value_head_stride, &job->value_row_stride) + 1));
    /* malloc aligns the start: shifting by one byte leaves nothing aligned and the end exact */
    job->key = key + 1, job->value = value + 1;
    p.keys = must(malloc(sizeof(float) * (size_t)(s->kv_heads * s->rows * s->key_dim + 1)));
    p.values = must(malloc(sizeof(float) * (size_t)(s->kv_heads * s->rows * s->value_dim + 1)));
    float *scale = must(malloc(sizeof(float) * (size_t)(2 * s->kv_heads * s->rows + 2))); /* [key, value] of each row */
    for (int i = 0; i < 2 * s->kv_heads * s->rows; i++) scale[i] = 0.0625f * (float)(1 + (int)(fabs(uniform(&state)) * 3.0));
    job->key_scale = scale, job->value_scale = scale + 1;
    job->scale_head_stride = 8 * s->rows, job->scale_row_stride = 8;
    fill(key + 1, p.keys, scale, job->key_head_stride, job->key_row_stride, s, s->key_dim, &state);
    fill(value + 1, p.values, scale + 1, job->value_head_stride, job->value_row_stride, s, s->value_dim, &state);
    int numbers = s->tokens * heads * s->key_dim;
    float *query = must(malloc(sizeof(float) * (size_t)numbers));
    for (int i = 0; i < numbers; i++) {
        query[i] = (float)uniform(&state) * 2.0f;
        if (s->exact) query[i] = floorf(query[i] * 32.0f) / 32.0f;
    }
    job->query = query;
    job->out = must(malloc(sizeof(float) * (size_t)(s->tokens * heads * s->value_dim)));
    job->lse = must(malloc(sizeof(float) * (size_t)(s->tokens * heads)));
    if (lists) { /* every third list is empty; repeats and any order otherwise */
        int64_t *start = must(malloc(sizeof(int64_t) * (size_t)(lists + 1)));
        int32_t *row = must(malloc(sizeof(int32_t) * (size_t)(lists * s->rows + 1)));
        start[0] = 0;
        for (int l = 0; l < lists; l++) {
            int n = s->rows == 0 || l % 3 == 1 ? 0 : 1 + (int)(fabs(uniform(&state)) * (s->rows - 1));
            for (int i = 0; i < n; i++) row[start[l] + i] = (int32_t)(fabs(uniform(&state)) * (s->rows - 1));
            start[l + 1] = start[l] + n;
        }
        job->row_start = start, job->row = row;
        if (s->runs) { /* of 0 to 5 rows */
            int32_t *run = must(malloc(sizeof(int32_t) * (size_t)(start[lists] + 1)));
            for (int64_t i = 0; i < start[lists]; i++) {
                int most = s->rows - row[i] < 5 ? s->rows - row[i] : 5;
                run[i] = (int32_t)(fabs(uniform(&state)) * (most + 1));
            }
            job->run = run;
        }
    }
    return p;
}

static void drop(problem *p) {
    free((char *)(uintptr_t)p->job.key - 1);
    free((char *)(uintptr_t)p->job.value - 1);
    free((void *)(uintptr_t)p->job.query);
    free((void *)(uintptr_t)p->job.row_start);
    free((void *)(uintptr_t)p->job.row);
    free((void *)(uintptr_t)p->job.run);
    free((void *)(uintptr_t)p->job.key_scale);
    free(p->job.out);
    free(p->job.lse);
    free(p->keys);
    free(p->values);
}

/* Rows a list holds, runs written out; the caller frees them. */
static int32_t *listed(const hgca_attention *job, int list, int64_t *count) {
    int64_t first = job->row_start[list], last = job->row_start[list + 1], n = 0;
    for (int64_t i = first; i < last; i++) n += job->run ? job->run[i] : 1;
    int32_t *row = must(malloc(sizeof(int32_t) * (size_t)(n + 1)));
    *count = 0;
    for (int64_t i = first; i < last; i++)
        for (int32_t k = 0; k < (job->run ? job->run[i] : 1); k++) row[(*count)++] = job->row[i] + k;
    return row;
}

/* Whether queries and weights may be rounded to bf16: kernels_many_pairs.h. With AMX only where its matrices do not serve; elsewhere that
 * instruction set takes FMAs, as its dots are slow. */
static int of_pairs(const hgca_attention *job) {
    const int amx = strcmp(hgca_isa(), "avx512amx") == 0, dots = strcmp(hgca_isa(), "avx512bf16") == 0 || amx;
    if (amx && job->key_dim % 32 == 0 && job->value_dim % 32 == 0) return 0;
    return dots && job->tokens > HGCA_FEW_TOKENS && (job->dtype == HGCA_BF16 || job->dtype == HGCA_I8) && job->key_dim % 2 == 0 &&
           job->key_dim <= HGCA_MANY_DIM && job->value_dim <= HGCA_MANY_DIM;
}

/* What rounding a query may move a score by: over int8 rows kernels keep 15 bits of it, so each number is off by up to half a step,
 * and a sum of as many errors hardly ever by six times its standard deviation; likewise where it is made bf16. 0 for other rows. */
static double score_error(const problem *p, int64_t query, int64_t row) {
    const hgca_attention *job = &p->job;
    const int pairs = of_pairs(job);
    double most = 0.0, square = 0.0, rounded = 0.0;
    if (job->dtype != HGCA_I8 && !pairs) return 0.0;
    for (int d = 0; d < job->key_dim; d++) {
        const float number = job->query[query * job->key_dim + d];
        const double key = p->keys[row * job->key_dim + d], off = pairs ? number - as_bf16(number) : 0.0;
        most = fmax(most, fabs(number));
        square += key * key;
        rounded += off * off * key * key;
    }
    const double of_levels = job->dtype == HGCA_I8 ? sqrt(square) * most / (127 * 128) / sqrt(12.0) : 0.0;
    return 6.0 * job->scale * (of_levels + sqrt(rounded));
}

/* The larger error; what is no number stays. */
static double worse(double a, double b) { return a != a || a > b ? a : b; }

static double beyond(double error, double allowed) { return error <= allowed ? 0.0 : error - allowed; }

/* The standard deviation of what rounding to bf16 changes a number by, of the number. */
static const double BF16_ERROR = 1.0 / 256 / 1.7320508;

/* Largest error of a head's output and lse against the textbook formula, over all tokens, beyond what rounding the query explains;
 * lists as they are. */
static double error_of(const problem *p, int head) {
    const hgca_attention *job = &p->job;
    int kv_head = head / (job->heads / job->kv_heads), list = job->lists ? head / (job->heads / job->lists) : 0;
    const int pairs = of_pairs(job);
    int64_t n = job->rows;
    int32_t *rows = job->lists ? listed(job, list, &n) : NULL;
    double *score = must(malloc(sizeof(double) * (size_t)(2 * n + 1))), *error = score + n, worst = 0.0;
    for (int t = 0; t < job->tokens; t++) {
        int64_t query = (int64_t)t * job->heads + head, last = job->causal ? job->rows - job->tokens + t : job->rows;
        double top = -INFINITY, sum = 0.0;
        for (int64_t i = 0; i < n; i++) {
            int64_t at = rows ? rows[i] : i, row = kv_head * job->rows + at;
            score[i] = 0.0;
            for (int d = 0; d < job->key_dim; d++)
                score[i] += (double)job->query[query * job->key_dim + d] * p->keys[row * job->key_dim + d];
            score[i] *= job->scale;
            if (job->softcap > 0.0f) score[i] = job->softcap * tanh(score[i] / job->softcap);
            if (at > last) score[i] = -INFINITY;
            top = score[i] > top ? score[i] : top;
        }
        for (int64_t i = 0; i < n && top > -INFINITY; i++) sum += exp(score[i] - top);
        double weights = 0.0, moved = 0.0; /* what rounding makes of the sum, and below of each number */
        for (int64_t i = 0; i < n && top > -INFINITY; i++) {
            int64_t row = kv_head * job->rows + (rows ? rows[i] : i);
            score[i] = exp(score[i] - top) / sum;
            if (score[i] > 0.0) moved += score[i] * (error[i] = score_error(p, query, row));
            weights += score[i] * score[i];
        }
        if (pairs && job->dtype == HGCA_BF16) moved += 6.0 * BF16_ERROR * sqrt(weights);
        for (int d = 0; d < job->value_dim; d++) {
            double want = 0.0, allowed = 0.0;
            for (int64_t i = 0; i < n && top > -INFINITY; i++) {
                int64_t row = kv_head * job->rows + (rows ? rows[i] : i);
                want += score[i] * p->values[row * job->value_dim + d];
            }
            double square = 0.0;
            for (int64_t i = 0; i < n && (job->dtype == HGCA_I8 || pairs) && top > -INFINITY; i++) {
                int64_t row = kv_head * job->rows + (rows ? rows[i] : i);
                const double value = p->values[row * job->value_dim + d], off = fabs(value - want);
                if (score[i] > 0.0) allowed += score[i] * error[i] * off;
                square += pow(score[i] * (job->dtype == HGCA_I8 ? fmax(off, fabs(value)) : off), 2.0);
            }
            if (pairs) allowed += 6.0 * BF16_ERROR * sqrt(square);
            worst = worse(worst, beyond(fabs(want - job->out[query * job->value_dim + d]), allowed));
        }
        double lse = job->lse[query];
        worst = worse(worst, top == -INFINITY ? (lse == -INFINITY ? 0.0 : 1.0) : beyond(fabs(top + log(sum) - lse), moved));
    }
    free(score);
    free(rows);
    return worst;
}

#endif
