/* Attention over some of the rows, and how several become one. */
#ifndef HGCA_PARTIAL_H
#define HGCA_PARTIAL_H

#include <stddef.h>
#include <stdint.h>

#include "hgca.h"
#include "kernels.h"

/* As a kernel leaves it (hgca_piece), for some queries. */
typedef struct {
    float *out; /* [queries][padded value_dim] */
    float *max;
    float *sum;
} hgca_partial;

/* One query's parts become row `to` of the job's out and lse. Parts stand `stride` bytes apart. */
void hgca_merge(const hgca_partial *parts, size_t stride, int32_t count, int32_t query, const hgca_attention *job,
                int64_t to);

/* Natural log-sum-exp of one query over parts. */
float hgca_merged_lse(const hgca_partial *parts, size_t stride, int32_t count, int32_t query);

/* What brings scores into base 2, but for a softcap, which wants natural scores first. */
float hgca_score_scale(const hgca_attention *job);

/* A kernel's piece over rows of a KV head, for `queries` of them that are placed; which rows is left to the caller. */
hgca_piece hgca_piece_over(const hgca_attention *job, int64_t kv_head, int32_t queries, const float *query, hgca_partial to);

/* HGCA_OK or HGCA_BAD_ARGUMENT. */
int hgca_check(const hgca_attention *job);

#endif
