/* The ELSA operator on the CPU, for one floating type REAL (float or double) a build of this file.
 *
 *     out[p, c] = sum_j (attn[p, h(c), j] + add[j, c]) * v[p + offset(j), c]
 *
 * Layout: tokens before channels, as the blocks hold them. v [B, H, W, C] with `v_stride` elements from one token to the
 * next (a slice of the fused projection needs no copy); attn [B, H, W, heads, k*k]; add [k*k, C]; out and every gradient
 * contiguous. A tap outside the image is skipped. Sums run in REAL; gradients of add are summed over fixed chunks of rows
 * first, so that they do not depend on the number of threads.
 *
 * Threads are OpenMP's, those PyTorch has already loaded (see ops/c_kernels.py).
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 32 /* channels at a time: what every published ELSA-Swin has per head, two AVX-512 or four AVX2 registers */

typedef struct {
    int64_t batch, height, width, channels, heads, kernel_size, v_stride, threads;
} Shape;

/* The taps [first, last) along one axis that stay inside it. */
static inline void inside(int64_t at, int64_t size, const Shape *s, int64_t *first, int64_t *last)
{
    const int64_t half = s->kernel_size / 2;
    *first = 0;
    *last = s->kernel_size;
    while (*first < *last && at + *first - half < 0) ++*first;
    while (*last > *first && at + *last - 1 - half >= size) --*last;
}

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

typedef REAL Vector __attribute__((vector_size(16 * sizeof(float)), aligned(sizeof(REAL)), may_alias));
typedef REAL Eight __attribute__((vector_size(8 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
#define VECTORS ((int)(LANES * sizeof(REAL) / sizeof(Vector))) /* in a block of channels */
#define EIGHTS (LANES / 8)
#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector) /* GCC 12 and newer, clang */
#define SHUFFLES
#endif
#endif
#define USUAL 7 /* kernel_size of every published ELSA-Swin */
#if defined(__AVX512F__)
#define TILE 4 /* tokens of a row at a time, whose sums stay in registers */
#else
#define TILE 2
#endif

/* `width` channels of one output token. A `width` of LANES is a constant where this is inlined. */
INLINE void forward_block(const Shape *s, const REAL *v, const REAL *attn, const REAL *add, REAL *out, int64_t y,
                          int64_t x, const int width)
{
    const int64_t K = s->kernel_size, half = K / 2;
    int64_t y0, y1, x0, x1;
    REAL sum[LANES] = {0};
    inside(y, s->height, s, &y0, &y1);
    inside(x, s->width, s, &x0, &x1);
    for (int64_t i = y0; i < y1; ++i)
        for (int64_t j = x0; j < x1; ++j) {
            const int64_t tap = i * K + j, shift = (i - half) * s->width + j - half;
            const REAL *value = v + shift * s->v_stride, a = attn[tap], *b = add + tap * s->channels;
#pragma omp simd
            for (int c = 0; c < width; ++c) sum[c] += (a + b[c]) * value[c];
        }
    for (int c = 0; c < width; ++c) out[c] = sum[c];
}

/* Gradients of attn and add from `width` channels of one output token. */
INLINE void backward_filters_block(const Shape *s, const REAL *v, const REAL *grad, REAL *grad_attn, REAL *grad_add,
                                   int64_t y, int64_t x, const int width)
{
    const int64_t K = s->kernel_size, half = K / 2;
    int64_t y0, y1, x0, x1;
    inside(y, s->height, s, &y0, &y1);
    inside(x, s->width, s, &x0, &x1);
    for (int64_t i = y0; i < y1; ++i)
        for (int64_t j = x0; j < x1; ++j) {
            const int64_t tap = i * K + j, shift = (i - half) * s->width + j - half;
            const REAL *value = v + shift * s->v_stride;
            REAL *gb = grad_add + tap * s->channels, sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int c = 0; c < width; ++c) {
                const REAL product = grad[c] * value[c];
                gb[c] += product;
                sum += product;
            }
            grad_attn[tap] += sum;
        }
}

/* Gradient of v at `width` channels of one token: the outputs that read it. */
INLINE void backward_value_block(const Shape *s, const REAL *grad, const REAL *attn, const REAL *add, REAL *grad_v,
                                 int64_t y, int64_t x, const int width)
{
    const int64_t K = s->kernel_size, half = K / 2;
    int64_t y0, y1, x0, x1;
    REAL sum[LANES] = {0};
    inside(y, s->height, s, &y0, &y1);
    inside(x, s->width, s, &x0, &x1);
    for (int64_t i = y0; i < y1; ++i)
        for (int64_t j = x0; j < x1; ++j) { /* the reader at +shift saw this token through the mirrored tap */
            const int64_t tap = (K - 1 - i) * K + (K - 1 - j);
            const int64_t shift = (i - half) * s->width + j - half;
            const REAL *g = grad + shift * s->channels, a = attn[shift * s->heads * K * K + tap];
            const REAL *b = add + tap * s->channels;
#pragma omp simd
            for (int c = 0; c < width; ++c) sum[c] += (a + b[c]) * g[c];
        }
    for (int c = 0; c < width; ++c) grad_v[c] = sum[c];
}

/* The tokens [*first, *last) of a row whose taps all lie within it, as whole tiles. */
static inline void interior(const Shape *s, int64_t *first, int64_t *last)
{
    const int64_t reach = s->kernel_size / 2, tokens = s->width - 2 * reach;
    *first = tokens > 0 ? reach : s->width;
    *last = *first + (tokens > 0 ? tokens / TILE * TILE : 0);
}

/* LANES channels of TILE output tokens, or where `mirrored` of their gradients of v: the sum over the taps of
 * (attn + add) * value, where value is that of the token at the tap, or the gradient of the output that read this one
 * through the mirrored tap, with the filters of that output. */
INLINE void tile(const Shape *s, const REAL *value, int64_t stride, const REAL *attn, const REAL *add, REAL *out,
                 int64_t y, const int mirrored)
{
    const int64_t K = s->kernel_size, half = K / 2, filters = s->heads * K * K;
    int64_t y0, y1;
    inside(y, s->height, s, &y0, &y1);
    Vector sum[TILE][VECTORS];
    UNROLL for (int t = 0; t < TILE; ++t) UNROLL for (int i = 0; i < VECTORS; ++i) sum[t][i] = (Vector){0};
    for (int64_t i = y0; i < y1; ++i)
        for (int64_t j = 0; j < K; ++j) {
            const int64_t shift = (i - half) * s->width + j - half;
            const int64_t tap = mirrored ? K * K - 1 - (i * K + j) : i * K + j;
            const REAL *from = value + shift * stride, *a = attn + (mirrored ? shift * filters : 0) + tap;
            Vector fixed[VECTORS];
            UNROLL for (int k = 0; k < VECTORS; ++k) fixed[k] = ((const Vector *)(add + tap * s->channels))[k];
            UNROLL for (int t = 0; t < TILE; ++t) UNROLL for (int k = 0; k < VECTORS; ++k)
                sum[t][k] += (fixed[k] + a[t * filters]) * ((const Vector *)(from + t * stride))[k];
        }
    UNROLL for (int t = 0; t < TILE; ++t) UNROLL for (int k = 0; k < VECTORS; ++k)
        ((Vector *)(out + t * s->channels))[k] = sum[t][k];
}

/* Element i: the sum of the elements of vector i. */
INLINE Eight sums_of_eight(const Eight x[8])
{
#ifndef SHUFFLES
    Eight sums = {0};
    for (int i = 0; i < 8; ++i)
        for (int k = 0; k < 8; ++k) sums[i] += x[i][k];
    return sums;
#else
    Eight four[4], two[2];
    UNROLL for (int i = 0; i < 4; ++i)
        four[i] = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
                  __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    UNROLL for (int i = 0; i < 2; ++i)
        two[i] = __builtin_shufflevector(four[i], four[i + 2], 0, 1, 8, 9, 4, 5, 12, 13) +
                 __builtin_shufflevector(four[i], four[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(two[0], two[1], 0, 8, 2, 10, 4, 12, 6, 14) +
           __builtin_shufflevector(two[0], two[1], 1, 9, 3, 11, 5, 13, 7, 15);
#endif
}

/* Gradient of the filters of one head at one token, from LANES of its channels, for USUAL taps a row. */
INLINE void grad_filters(const Shape *s, const REAL *v, const REAL *grad, REAL *grad_attn, int64_t y, int64_t x,
                         const int first)
{
    const int64_t half = USUAL / 2;
    int64_t y0, y1, x0, x1;
    inside(y, s->height, s, &y0, &y1);
    inside(x, s->width, s, &x0, &x1);
    Eight g[EIGHTS];
    UNROLL for (int k = 0; k < EIGHTS; ++k) g[k] = ((const Eight *)grad)[k];
    if (first) memset(grad_attn, 0, USUAL * USUAL * sizeof(REAL));
    for (int64_t i = y0; i < y1; ++i) {
        const REAL *row = v + (i - half) * s->width * s->v_stride;
        REAL *to = grad_attn + i * USUAL;
        Eight products[8] = {{0}};
#define TAP(j)                                                                                                         \
    do {                                                                                                               \
        const REAL *value = row + ((j) - half) * s->v_stride;                                                          \
        UNROLL for (int k = 0; k < EIGHTS; ++k) products[j] += g[k] * ((const Eight *)value)[k];                       \
    } while (0)
        if (x0 == 0 && x1 == USUAL) {
            UNROLL for (int j = 0; j < USUAL; ++j) TAP(j);
        } else
            for (int64_t j = x0; j < x1; ++j) TAP(j);
#undef TAP
        const Eight sums = sums_of_eight(products);
        if (first) memcpy(to, &sums, USUAL * sizeof(REAL));
        else
            for (int j = 0; j < USUAL; ++j) to[j] += sums[j];
    }
}

/* Adds to LANES channels of grad_add what the tokens [from, to) of a row give for `taps` taps from (i, j) on, all of
 * which they have. v and grad are those of the row's first token. */
INLINE void grad_static(const Shape *s, const REAL *v, const REAL *grad, REAL *grad_add, int64_t i, int64_t j,
                        int64_t from, int64_t to, const int taps)
{
    const int64_t half = s->kernel_size / 2, step = s->v_stride;
    const REAL *row = v + (i - half) * s->width * step + (j - half) * step;
    Vector sum[USUAL][VECTORS];
    UNROLL for (int t = 0; t < taps; ++t) UNROLL for (int k = 0; k < VECTORS; ++k) sum[t][k] = (Vector){0};
    for (int64_t x = from; x < to; ++x) {
        Vector g[VECTORS];
        UNROLL for (int k = 0; k < VECTORS; ++k) g[k] = ((const Vector *)(grad + x * s->channels))[k];
        UNROLL for (int t = 0; t < taps; ++t) UNROLL for (int k = 0; k < VECTORS; ++k)
            sum[t][k] += g[k] * ((const Vector *)(row + (x + t) * step))[k];
    }
    UNROLL for (int t = 0; t < taps; ++t) UNROLL for (int k = 0; k < VECTORS; ++k)
        ((Vector *)(grad_add + (i * s->kernel_size + j + t) * s->channels))[k] += sum[t][k];
}

/* The gradients of filters and static summands from LANES channels of a row of USUAL taps. Pointers are to its first
 * token. */
static void backward_filters_row(const Shape *s, const REAL *v, const REAL *grad, REAL *grad_attn, REAL *grad_add,
                                 int64_t y, const int first)
{
    const int64_t half = USUAL / 2, W = s->width;
    const int64_t from = half < W - half ? half : W, to = from < W ? W - half : W;
    int64_t y0, y1;
    inside(y, s->height, s, &y0, &y1);
    for (int64_t x = 0; x < W; ++x)
        grad_filters(s, v + x * s->v_stride, grad + x * s->channels, grad_attn + x * s->heads * USUAL * USUAL, y, x,
                     first);
    for (int64_t i = y0; i < y1; ++i) {
        grad_static(s, v, grad, grad_add, i, 0, from, to, USUAL);
        for (int64_t j = 0; j < USUAL; ++j) { /* the tokens near the ends, as far as they have this tap */
            const int64_t shift = j - half;
            const int64_t low = shift < 0 ? -shift : 0, high = shift > 0 ? W - shift : W;
            grad_static(s, v, grad, grad_add, i, j, low, from < high ? from : high, 1);
            grad_static(s, v, grad, grad_add, i, j, to > low ? to : low, high, 1);
        }
    }
}

/* Call a block with its width as a constant, for each block of LANES channels of each head of the token at (y, x). */
#define EACH_BLOCK(s, CALL)                                                                                            \
    do {                                                                                                               \
        const int64_t per_head = (s)->channels / (s)->heads;                                                           \
        for (int64_t head = 0; head < (s)->heads; ++head)                                                              \
            for (int64_t done = 0; done < per_head; done += LANES) {                                                   \
                const int64_t c0 = head * per_head + done;                                                             \
                const int left = (int)(per_head - done);                                                               \
                if (left >= LANES) CALL(LANES);                                                                        \
                else CALL(left);                                                                                       \
            }                                                                                                          \
    } while (0)

/* out, or where `mirrored` the gradient of v: rows of tiles, and near the ends of a row token after token. */
INLINE void aggregate(const Shape *s, const REAL *value, int64_t stride, const REAL *attn, const REAL *add, REAL *out,
                      const int mirrored)
{
    const int64_t rows = s->batch * s->height, taps = s->kernel_size * s->kernel_size, C = s->channels;
    int64_t first, last;
    interior(s, &first, &last);
    if (C / s->heads % LANES) first = last = s->width;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t y = row % s->height;
        for (int64_t x = 0; x < s->width; ++x) {
            const int64_t at = row * s->width + x;
            const REAL *from = value + at * stride, *a = attn + at * s->heads * taps;
            if (x >= first && x < last) {
                for (int64_t c0 = 0; c0 < C; c0 += LANES)
                    tile(s, from + c0, stride, a + c0 / (C / s->heads) * taps, add + c0, out + at * C + c0, y,
                         mirrored);
                x += TILE - 1;
                continue;
            }
#define CALL(width)                                                                                                    \
    do {                                                                                                               \
        if (mirrored)                                                                                                  \
            backward_value_block(s, from + c0, a + head * taps, add + c0, out + at * C + c0, y, x, width);             \
        else forward_block(s, from + c0, a + head * taps, add + c0, out + at * C + c0, y, x, width);                   \
    } while (0)
            EACH_BLOCK(s, CALL);
#undef CALL
        }
    }
}

void elsa_forward(const Shape *s, const REAL *v, const REAL *attn, const REAL *add, REAL *out)
{
    aggregate(s, v, s->v_stride, attn, add, out, 0);
}

void elsa_backward_value(const Shape *s, const REAL *grad, const REAL *attn, const REAL *add, REAL *grad_v)
{
    aggregate(s, grad, s->channels, attn, add, grad_v, 1);
}

/* grad_add holds `chunks` zeroed sums [k*k, C]. */
void elsa_backward_filters(const Shape *s, const REAL *v, const REAL *grad, REAL *grad_attn, REAL *grad_add,
                           int64_t chunks)
{
    const int64_t rows = s->batch * s->height, taps = s->kernel_size * s->kernel_size, C = s->channels;
    const int64_t per_head = C / s->heads;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        REAL *gb = grad_add + chunk * taps * C;
        for (int64_t row = rows * chunk / chunks; row < rows * (chunk + 1) / chunks; ++row) {
            const int64_t y = row % s->height, start = row * s->width;
            if (s->kernel_size == USUAL && per_head % LANES == 0) {
                for (int64_t c0 = 0; c0 < C; c0 += LANES)
                    backward_filters_row(s, v + start * s->v_stride + c0, grad + start * C + c0,
                                         grad_attn + (start * s->heads + c0 / per_head) * taps, gb + c0, y,
                                         c0 % per_head == 0);
                continue;
            }
            for (int64_t x = 0; x < s->width; ++x) {
                const int64_t at = start + x;
                REAL *ga = grad_attn + at * s->heads * taps;
                memset(ga, 0, s->heads * taps * sizeof(REAL));
#define CALL(width)                                                                                                    \
    backward_filters_block(s, v + at * s->v_stride + c0, grad + at * C + c0, ga + head * taps, gb + c0, y, x, width)
                EACH_BLOCK(s, CALL);
#undef CALL
            }
        }
    }
}
