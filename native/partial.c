#include "partial.h"

#include <math.h>
#include <string.h>

static const float LN2 = 0.69314718055994531f, LOG2E = 1.44269504088896341f;

float hgca_score_scale(const hgca_attention *job) { return job->softcap > 0.0f ? job->scale : job->scale * LOG2E; }

static const char *offset(const void *base, int64_t bytes) { return base ? (const char *)base + bytes : NULL; }

hgca_piece hgca_piece_over(const hgca_attention *job, int64_t kv_head, int32_t queries, const float *query, hgca_partial to) {
    return (hgca_piece){
        .key = offset(job->key, kv_head * job->key_head_stride),
        .value = offset(job->value, kv_head * job->value_head_stride),
        .key_scale = offset(job->key_scale, kv_head * job->scale_head_stride),
        .value_scale = offset(job->value_scale, kv_head * job->scale_head_stride),
        .key_row_stride = job->key_row_stride,
        .value_row_stride = job->value_row_stride,
        .scale_row_stride = job->scale_row_stride,
        .unseen = INT64_MAX,
        .group = queries,
        .key_dim = job->key_dim,
        .value_dim = job->value_dim,
        .heads = queries,
        .by_line = hgca_by_line(),
        .softcap = job->softcap,
        .scale = hgca_score_scale(job),
        .query = query,
        .out = to.out,
        .max = to.max,
        .sum = to.sum,
    };
}

static const hgca_partial *at(const hgca_partial *parts, size_t stride, int32_t i) {
    return (const hgca_partial *)(const void *)((const char *)parts + stride * (size_t)i);
}

static float largest(const hgca_partial *parts, size_t stride, int32_t count, int32_t query) {
    float top = -INFINITY;
    for (int32_t i = 0; i < count; i++)
        if (at(parts, stride, i)->max[query] > top) top = at(parts, stride, i)->max[query];
    return top;
}

static float share_of(const hgca_partial *part, int32_t query, float top) {
    return part->max[query] == top ? 1.0f : exp2f(part->max[query] - top);
}

static float natural(float top, float sum) { return sum == 0.0f ? -INFINITY : (top + log2f(sum)) * LN2; }

float hgca_merged_lse(const hgca_partial *parts, size_t stride, int32_t count, int32_t query) {
    float top = largest(parts, stride, count, query), sum = 0.0f;
    for (int32_t i = 0; i < count; i++) {
        const hgca_partial *part = at(parts, stride, i);
        if (part->sum[query] != 0.0f) sum += share_of(part, query, top) * part->sum[query];
    }
    return natural(top, sum);
}

void hgca_merge(const hgca_partial *parts, size_t stride, int32_t count, int32_t query, const hgca_attention *job,
                int64_t to) {
    int64_t width = hgca_padded(job->value_dim);
    float *out = job->out + to * job->value_dim;
    float top = largest(parts, stride, count, query), sum = 0.0f;
    memset(out, 0, sizeof(float) * (size_t)job->value_dim);
    for (int32_t i = 0; i < count; i++) {
        const hgca_partial *part = at(parts, stride, i);
        if (part->sum[query] == 0.0f) continue; /* saw nothing */
        float share = share_of(part, query, top);
        const float *from = part->out + query * width;
        sum += share * part->sum[query];
        for (int32_t d = 0; d < job->value_dim; d++) out[d] += share * from[d];
    }
    if (sum != 0.0f)
        for (int32_t d = 0; d < job->value_dim; d++) out[d] /= sum;
    job->lse[to] = natural(top, sum);
}
