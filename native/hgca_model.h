/* hgca: what a model does with one token around its attention. A part of hgca.h, which includes it. */
#ifndef HGCA_MODEL_H
#define HGCA_MODEL_H

#include "hgca.h"

/* cffi:begin */
/* Linear layers with one vector, as a token at a time needs them: out = weight in + bias, added up in float32, at the rate
 * memory is read. Several (1 .. HGCA_MOST_LAYERS) may share a vector, as a model's query, key and value projections do.
 *   weight   [outputs][inputs], rows row_bytes apart, of a `kind`: HGCA_F32, HGCA_BF16, HGCA_F16. Or a grid, where 32
 *            numbers of a row (inputs is a multiple of 32) share a scale s and a smallest number m:
 *            HGCA_GRID8  s * q, q int8;  HGCA_GRID4  s * q + m, q 0 .. 15;  HGCA_FLOAT4  s * v, v of a float of 4 bits (sign, two of an
 *            exponent, one of a fraction: MXFP4's, OCP Microscaling Formats) twice: 0 1 2 3 4 6 8 12, and from code 8 on less than 0
 *            in tiles of 16 rows (the last one filled up with zeros), [outputs / 16][inputs / 32] blocks of
 *            f16 [16] s, HGCA_GRID4 also f16 [16] m, then lines of 16 times 32 bits, for each row one:
 *            HGCA_GRID8  8 lines, byte k of line l is the row's number 4 l + k of the block
 *            HGCA_GRID4 and HGCA_FLOAT4  4 lines, the lower half of byte k is number 8 l + k, the upper half 8 l + 4 + k
 *            With a grid, `in` is rounded to 21 bits by blocks of 32: the product is that with numbers that differ by up to
 *            5e-7 of their block's largest; nothing else is rounded before sums of float32. Numbers below 1e-30 of a block without
 *            larger ones count as zeros. Where a number is not finite, nothing of out is
 *   dtype    of bias, in and out: HGCA_F32, HGCA_BF16 or HGCA_F16
 *   bias     [outputs], or null
 *   in, out  addresses of [inputs] and [outputs] numbers, of several layers one after the other: addresses as numbers, as
 *            Python would have to make objects of pointers
 * inputs and dtype of several are the same. Returns when all is written. */
enum { HGCA_GRID8 = 3, HGCA_GRID4 = 4, HGCA_FLOAT4 = 5, HGCA_MOST_LAYERS = 4 };

typedef struct {
    const void *weight;
    const void *bias;
    int64_t row_bytes;
    int32_t outputs;
    int32_t inputs;
    int32_t kind;
    int32_t dtype;
} hgca_weights;

int hgca_linear(const hgca_weights *weights, int32_t count, uintptr_t in, uintptr_t out);

/* As hgca_linear with several vectors of float32: in [vectors][inputs], out of each layer [vectors][outputs], one layer after the
 * other. For grids vectors are rounded to 16 bits by blocks of 32: the product is that with numbers that differ by up to 1.6e-5 of
 * their block's largest. Results do not depend on what other vectors there are. */
int hgca_linear_several(const hgca_weights *weights, int32_t count, int64_t vectors, uintptr_t in, uintptr_t out);
/* With so many vectors at most that is faster than a product of floats, by the instruction set in use. */
int64_t hgca_most_vectors(void);

/* Weights rounded onto a grid: `weights` of floats (HGCA_F32, HGCA_BF16, HGCA_F16; inputs a multiple of 32), whose bias and dtype
 * are not looked at, become the tiles at `to`, as hgca_linear reads them.
 *   kind   HGCA_GRID8: s is the smallest half float that is at least a 127th of a block's largest size, and no number is off by
 *          more than s / 2.
 *          HGCA_GRID4: of nine pairs of s and m per block the one with the least sum of squared errors, each the line that is
 *          nearest to the numbers over their codes; codes are the nearest to s and m as half floats. Numbers that are on such a
 *          grid, but for rounding to 16 bits, stay on it.
 *   lost   the largest share of the squares of 16 rows' numbers that rounding took; infinity where a number is not finite, or too
 *          large for half floats (beyond 65504 times its largest code): tiles mean nothing then
 * Worked on by the pool; returns when all is written. */
int hgca_pack(const hgca_weights *weights, int32_t kind, uintptr_t to, float *lost);
/* The system may take back the whole pages of memory that nobody needs any more: what is read there afterwards is anything. */
int hgca_forget(uintptr_t at, int64_t bytes);

/* A gated feed-forward block with one vector: out = down (silu(gate in) * (up in)), silu(x) = x / (1 + exp(-x)), each layer
 * with its bias. weights: of gate, up and down; between them nothing is rounded to `dtype`. Relative error of silu: below 1e-6
 * for |x| < 10, and then in proportion to |x|. */
int hgca_gated(const hgca_weights *weights, uintptr_t in, uintptr_t out);

/* The experts that a router chose for each of a few tokens: out = sum over c < count of share[c] * down (silu(gate in) * (up in)), of
 * expert chosen[c], each layer with its bias.
 *   first    [experts], of each gate and up one behind the other: outputs 2 * width;  last [experts], down: inputs width, a multiple
 *            of 32. dtype HGCA_F32; of one shape, and of one kind each
 *   chosen, share [tokens][count], 0 <= chosen < experts
 *   in, out  addresses of floats [tokens][inputs] and [tokens][outputs]
 * Silu as of hgca_gated. Where several tokens have four pairs for each thread, each expert is read once for up to 64 of them, and they are
 * rounded as of hgca_linear_several. How many tokens there are may matter so, what they are does not. */
int hgca_experts(const hgca_weights *first, const hgca_weights *last, int32_t experts, const int64_t *chosen, const float *share,
                 int32_t count, int32_t tokens, uintptr_t in, uintptr_t out);

/* A layer's experts and who chooses them: of each token the `chosen` largest of softmax(router in), which are their shares; `whole`: times
 * what makes these add up to one. Of equal ones the first come first. router: dtype HGCA_F32, outputs `experts`; first and last as of
 * hgca_experts. */
typedef struct {
    hgca_weights router;
    const hgca_weights *first;
    const hgca_weights *last;
    int32_t experts;
    int32_t chosen;
    int32_t whole;
} hgca_mixture;

int hgca_mixed(const hgca_mixture *mixture, int32_t tokens, uintptr_t in, uintptr_t out);

/* Root-mean-square norm of each of `rows` rows f32 [rows][width] one after the other (Zhang and Sennrich, arXiv:1910.07467):
 * out = in / sqrt(mean(in^2) + eps) * (weight + shift), weight f32 [width]. Not worked on by several threads. */
int hgca_rms_norm(uintptr_t in, uintptr_t weight, int64_t rows, int64_t width, float eps, float shift, uintptr_t out);

/* What a decoder layer does with one token before its attention and after it, floats:
 *   before   n = norm[0](in); query, key and value = projection(n); heads of query and key through head_norm, if its weight is
 *            not null; their first `rotated` numbers are turned: number d and number d + rotated / 2 of a head, a and b, become
 *            a cosine[d] - b sine[d] and b cosine[d + rotated / 2] + a sine[d + rotated / 2]. 0: none are
 *   after    h = in + out(attention); h + gated(norm[1](h)), as hgca_gated; with a mixture, as hgca_mixed, and `gated` is not looked at
 * norms as hgca_rms_norm. heads, kv_heads: of queries and of keys and values; dim: numbers of a query head.
 *   in       [inputs]: what the layer was given, for both
 *   out      before: query [heads][dim], key [kv_heads][dim] and value one after the other; after: [inputs]
 *   cosine, sine [rotated];  attention [heads][numbers of a value]. Addresses as numbers, as of hgca_linear. */
typedef struct {
    const float *weight;
    float eps;
    float shift;
} hgca_norm;

typedef struct {
    hgca_weights projection[3];
    hgca_weights out;
    hgca_weights gated[3];
    hgca_norm norm[2];
    hgca_norm head_norm[2];
    int32_t heads;
    int32_t kv_heads;
    int32_t dim;
    int32_t rotated;
    const hgca_mixture *mixture; /* or null */
} hgca_layer;

int hgca_before_attention(const hgca_layer *layer, uintptr_t in, uintptr_t cosine, uintptr_t sine, uintptr_t out);
int hgca_after_attention(const hgca_layer *layer, uintptr_t in, uintptr_t attention, uintptr_t out);

/* Both of several tokens: in and out of `after` [tokens][inputs], cosine and sine [tokens][rotated],
 * out of `before` the queries of all tokens, [tokens][heads][dim], then their keys, then their values; attention
 * [tokens][heads][numbers of a value]. Products as of hgca_linear_several. in and out of `after` must not be the same. */
int hgca_before_attention_several(const hgca_layer *layer, int64_t tokens, uintptr_t in, uintptr_t cosine, uintptr_t sine,
                                  uintptr_t out);
int hgca_after_attention_several(const hgca_layer *layer, int64_t tokens, uintptr_t in, uintptr_t attention, uintptr_t out);

/* What the attention of one token reads where all rows are in CPU memory, or that of several one behind the other.
 *   window   where the token's own key and value are put, as row `row`, by hgca_put_row
 *   tokens   1; or of a sequence so many, for hgca_decode_layer_several: their rows are put from `row` on, `near` is rows 0 .. row +
 *            tokens - 1 of the window, of which each sees those up to its own, and there are no chosen, far or query
 *   near     rows of the window that are read, the new one included: dense or lists of KV heads
 *   chosen   choice of rows of a store: its `near` and rows.query, out and lse are not looked at; null: none
 *   far      without a choice: more rows that are read; rows = 0: none
 *   scale, softcap   of scores, for all of these
 *   query    out: [heads][dim], the query that was attended with; null: not wanted
 *   took     out: nanoseconds from the query to the result of its attention; null: not wanted */
typedef struct {
    const hgca_attention *window;
    int64_t row;
    int32_t tokens;
    hgca_attention near;
    hgca_attention far;
    const hgca_selection *chosen;
    float scale;
    float softcap;
    float *query;
    int64_t *took;
} hgca_reading;

/* A whole decoder layer: hgca_before_attention, the attention of its query, hgca_after_attention. On an error the new row may have
 * been put, and out may have been written. */
int hgca_decode_layer(const hgca_layer *layer, const hgca_reading *reading, uintptr_t in, uintptr_t cosine, uintptr_t sine,
                      uintptr_t out);

/* `count` layers, each of what the one before it made: `in` of the first, `out` of the last. Where one fails, those before it have put
 * their rows. */
int hgca_decode_layers(const hgca_layer *const *layers, const hgca_reading *const *readings, int32_t count, uintptr_t in,
                       uintptr_t cosine, uintptr_t sine, uintptr_t out);
/* As hgca_decode_layer of the tokens of `count` sequences, one sequence's after another's: in and out [tokens
 * of all][inputs], cosine and sine [tokens of all][rotated]; products as of hgca_linear_several, the attention of all in one job. */
int hgca_decode_layer_several(const hgca_layer *layer, const hgca_reading *const *readings, int32_t count, uintptr_t in,
                              uintptr_t cosine, uintptr_t sine, uintptr_t out);
/* `depth` layers so, each of what the one before it made: of each the readings of all sequences, one layer's after another's. */
int hgca_decode_layers_several(const hgca_layer *const *layers, int32_t depth, const hgca_reading *const *readings, int32_t count,
                               uintptr_t in, uintptr_t cosine, uintptr_t sine, uintptr_t out);

/* The attention of one token to a layer's store where a device has the token and the window. It is prepared before the device's
 * step begins and run in the middle of it, by hgca_run_relay, from whatever thread.
 *   chosen   choice of rows of the store: its near, beside and rows.query, out and lse are not looked at; null: none
 *   far      without a choice: heads, and rows that are all read; rows = 0: none, and the result is nothing
 *   query    [heads][key_dim], there when it is run; out [heads][value_dim] and lse [heads] are written
 *   beside   [heads], lse of rows that the device attends to, which count as kept; null: of none
 *   told     a choice that the device makes in place of the library, as lists in `far`: its rows_read, read_lse and stats are written;
 *            scored_bytes: of its index that the device reads, row_bytes: of a row of a KV head
 *   scale, softcap   of scores
 *   ns, status       out: what it took, and whether it went well
 *   steps, rows_read, bytes   in and out: where choices are told, how many were, and what they read, added up (a step that fails
 *                    in a later layer, too) */
typedef struct {
    const hgca_selection *chosen;
    hgca_attention far;
    const float *query;
    float *out;
    float *lse;
    const float *beside;
    const hgca_selection *told;
    int64_t scored_bytes;
    int64_t row_bytes;
    float scale;
    float softcap;
    int64_t ns;
    int64_t steps;
    int64_t rows_read;
    int64_t bytes;
    int32_t status;
} hgca_relay;

/* The first status of these that is not HGCA_OK, or that. */
int hgca_relays_status(const hgca_relay *const *relays, int32_t count);

void hgca_run_relay(void *relay);

/* Several at once, of one layer of several sequences: one job for the workers. `ns` is shared out among those that read rows. */
void hgca_run_relays(hgca_relay *const *relays, int32_t count);

/* The relays of one step, layer after layer, each of `parts` parts of `each` relays, where the device says itself what is there, by
 * writing `token` into memory that device and CPU see: to asked[HGCA_FLAGS * l] once the queries of layer l are; to named[HGCA_FLAGS *
 * (l * parts + p)] once lists of rows that it names (`told`) are. It may go on when answered[HGCA_FLAGS * l] is `token`. Rows that are
 * known before the queries are fetched into the caches meanwhile, and `ns` counts from the queries on. Parts that are known together
 * run together. Returns when all were answered; HGCA_NO_ANSWER if the device said nothing for `patience` seconds: all are then
 * answered, so that it does not wait for ever. */
enum { HGCA_FLAGS = 16 };

int hgca_serve_relays(hgca_relay *const *relays, int32_t layers, int32_t parts, int32_t each, const volatile int32_t *asked,
                      const volatile int32_t *named, volatile int32_t *answered, int32_t token, double patience);

/* Whether two addresses have the same bytes behind them: 1 or 0. */
int hgca_same(uintptr_t a, uintptr_t b, int64_t bytes);
/* cffi:end */

#endif
