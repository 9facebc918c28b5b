/* The ELSA operator on the CPU, for one floating type REAL (float or double) a build of this file.
 *
 *     out[p, c] = sum_j (mul[j, c] * attn[p, h(c), j] + add[j, c]) * v[p + offset(j), c]
 *
 * Layout: tokens before channels, as the blocks hold them. v [B, H, W, C] with `v_stride` elements from one token to the
 * next (a slice of the fused projection needs no copy); attn [B, H, W, heads, k*k]; mul (or NULL for ones) and add
 * [k*k, C]; out and every gradient contiguous. A tap outside the image is skipped. Sums run in REAL; gradients of mul and
 * add are summed over fixed chunks of rows first, so that they do not depend on the number of threads.
 *
 * Threads are OpenMP's, those PyTorch has already loaded (see elsa_compiled.py).
 */

#include <stddef.h>
#include <stdint.h>

#define LANES 32 /* channels at a time: what every published ELSA-Swin has per head, two AVX-512 or four AVX2 registers */

typedef struct {
    int64_t batch, height, width, channels, heads, kernel_size, dilation, v_stride, threads;
} Shape;

/* The taps [first, last) along one axis that stay inside it. */
static inline void inside(int64_t at, int64_t size, const Shape *s, int64_t *first, int64_t *last)
{
    const int64_t half = s->kernel_size / 2;
    *first = 0;
    *last = s->kernel_size;
    while (*first < *last && at + (*first - half) * s->dilation < 0) ++*first;
    while (*last > *first && at + (*last - 1 - half) * s->dilation >= size) --*last;
}

#define INLINE static inline __attribute__((always_inline))

/* `width` channels of one output token. `has_mul` and a `width` of LANES are constants where this is inlined. */
INLINE void forward_block(const Shape *s, const REAL *v, const REAL *attn, const REAL *mul, const REAL *add, REAL *out,
                          int64_t y, int64_t x, const int has_mul, const int width)
{
    const int64_t K = s->kernel_size, half = K / 2;
    int64_t y0, y1, x0, x1;
    REAL sum[LANES] = {0};
    inside(y, s->height, s, &y0, &y1);
    inside(x, s->width, s, &x0, &x1);
    for (int64_t i = y0; i < y1; ++i)
        for (int64_t j = x0; j < x1; ++j) {
            const int64_t tap = i * K + j, shift = (i - half) * s->dilation * s->width + (j - half) * s->dilation;
            const REAL *value = v + shift * s->v_stride, a = attn[tap];
            const REAL *m = has_mul ? mul + tap * s->channels : NULL, *b = add + tap * s->channels;
#pragma omp simd
            for (int c = 0; c < width; ++c) sum[c] += ((has_mul ? m[c] * a : a) + b[c]) * value[c];
        }
    for (int c = 0; c < width; ++c) out[c] = sum[c];
}

/* Gradients of attn, mul and add from `width` channels of one output token. */
INLINE void backward_filters_block(const Shape *s, const REAL *v, const REAL *attn, const REAL *mul, const REAL *grad,
                                   REAL *grad_attn, REAL *grad_mul, REAL *grad_add, int64_t y, int64_t x,
                                   const int has_mul, const int width)
{
    const int64_t K = s->kernel_size, half = K / 2;
    int64_t y0, y1, x0, x1;
    inside(y, s->height, s, &y0, &y1);
    inside(x, s->width, s, &x0, &x1);
    for (int64_t i = y0; i < y1; ++i)
        for (int64_t j = x0; j < x1; ++j) {
            const int64_t tap = i * K + j, shift = (i - half) * s->dilation * s->width + (j - half) * s->dilation;
            const REAL *value = v + shift * s->v_stride, a = attn[tap], *m = has_mul ? mul + tap * s->channels : NULL;
            REAL *gm = grad_mul + tap * s->channels, *gb = grad_add + tap * s->channels, sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int c = 0; c < width; ++c) {
                const REAL product = grad[c] * value[c];
                gb[c] += product;
                if (has_mul) gm[c] += product * a;
                sum += has_mul ? product * m[c] : product;
            }
            grad_attn[tap] += sum;
        }
}

/* Gradient of v at `width` channels of one token: the outputs that read it. */
INLINE void backward_value_block(const Shape *s, const REAL *grad, const REAL *attn, const REAL *mul, const REAL *add,
                                 REAL *grad_v, int64_t y, int64_t x, const int has_mul, const int width)
{
    const int64_t K = s->kernel_size, half = K / 2;
    int64_t y0, y1, x0, x1;
    REAL sum[LANES] = {0};
    inside(y, s->height, s, &y0, &y1);
    inside(x, s->width, s, &x0, &x1);
    for (int64_t i = y0; i < y1; ++i)
        for (int64_t j = x0; j < x1; ++j) { /* the reader at +shift saw this token through the mirrored tap */
            const int64_t tap = (K - 1 - i) * K + (K - 1 - j);
            const int64_t shift = (i - half) * s->dilation * s->width + (j - half) * s->dilation;
            const REAL *g = grad + shift * s->channels, a = attn[shift * s->heads * K * K + tap];
            const REAL *m = has_mul ? mul + tap * s->channels : NULL, *b = add + tap * s->channels;
#pragma omp simd
            for (int c = 0; c < width; ++c) sum[c] += ((has_mul ? m[c] * a : a) + b[c]) * g[c];
        }
    for (int c = 0; c < width; ++c) grad_v[c] = sum[c];
}

/* Call a block with its flags as constants, for each block of LANES channels of each head of the token at (y, x). */
#define EACH_BLOCK(s, mul, CALL)                                                                                       \
    do {                                                                                                               \
        const int64_t per_head = (s)->channels / (s)->heads;                                                           \
        for (int64_t head = 0; head < (s)->heads; ++head)                                                              \
            for (int64_t done = 0; done < per_head; done += LANES) {                                                   \
                const int64_t c0 = head * per_head + done;                                                             \
                const int left = (int)(per_head - done);                                                               \
                if (left >= LANES && !(mul)) CALL(0, LANES);                                                           \
                else if (left >= LANES) CALL(1, LANES);                                                                \
                else if (!(mul)) CALL(0, left);                                                                        \
                else CALL(1, left);                                                                                    \
            }                                                                                                          \
    } while (0)

void elsa_forward(const Shape *s, const REAL *v, const REAL *attn, const REAL *mul, const REAL *add, REAL *out)
{
    const int64_t rows = s->batch * s->height, taps = s->kernel_size * s->kernel_size;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t x = 0; x < s->width; ++x) {
            const int64_t y = row % s->height, at = row * s->width + x;
            const REAL *a = attn + at * s->heads * taps;
#define CALL(has_mul, width)                                                                                           \
    forward_block(s, v + at * s->v_stride + c0, a + head * taps, has_mul ? mul + c0 : NULL, add + c0,                  \
                  out + at * s->channels + c0, y, x, has_mul, width)
            EACH_BLOCK(s, mul, CALL);
#undef CALL
        }
}

/* grad_attn is zero on entry; grad_mul (unused without mul) and grad_add hold `chunks` zeroed sums [k*k, C] each. */
void elsa_backward_filters(const Shape *s, const REAL *v, const REAL *attn, const REAL *mul, const REAL *grad,
                           REAL *grad_attn, REAL *grad_mul, REAL *grad_add, int64_t chunks)
{
    const int64_t rows = s->batch * s->height, taps = s->kernel_size * s->kernel_size;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        REAL *gm = grad_mul ? grad_mul + chunk * taps * s->channels : NULL;
        REAL *gb = grad_add + chunk * taps * s->channels;
        for (int64_t row = rows * chunk / chunks; row < rows * (chunk + 1) / chunks; ++row)
            for (int64_t x = 0; x < s->width; ++x) {
                const int64_t y = row % s->height, at = row * s->width + x;
                const REAL *a = attn + at * s->heads * taps;
                REAL *ga = grad_attn + at * s->heads * taps;
#define CALL(has_mul, width)                                                                                           \
    backward_filters_block(s, v + at * s->v_stride + c0, a + head * taps, has_mul ? mul + c0 : NULL,                   \
                           grad + at * s->channels + c0, ga + head * taps, has_mul ? gm + c0 : NULL, gb + c0, y, x,    \
                           has_mul, width)
                EACH_BLOCK(s, mul, CALL);
#undef CALL
            }
    }
}

void elsa_backward_value(const Shape *s, const REAL *grad, const REAL *attn, const REAL *mul, const REAL *add,
                         REAL *grad_v)
{
    const int64_t rows = s->batch * s->height, taps = s->kernel_size * s->kernel_size;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t x = 0; x < s->width; ++x) {
            const int64_t y = row % s->height, at = row * s->width + x;
            const REAL *a = attn + at * s->heads * taps;
#define CALL(has_mul, width)                                                                                           \
    backward_value_block(s, grad + at * s->channels + c0, a + head * taps, has_mul ? mul + c0 : NULL, add + c0,        \
                         grad_v + at * s->channels + c0, y, x, has_mul, width)
            EACH_BLOCK(s, mul, CALL);
#undef CALL
        }
}
