/* Outlook attention on the CPU, for one floating type REAL (float or double) a build of this file.
 *
 *     out[p, c] = sum_{n, i: place i of window n is p} sum_j attn[n, h(c), i, j] * v[place j of n, c]
 *
 * Layout: tokens before channels, as the blocks hold them. v [B, H, W, C] with `v_stride` elements from one token to the
 * next; attn [B, h, w, heads, K*K, K*K]; out and every gradient contiguous. Window (y, x) has the token (stride * y,
 * stride * x) in its middle; places outside the map are skipped.
 *
 * Every token gathers from the few windows that hold it, so that no two threads write to one, and nothing is unfolded.
 * The gradient of v is the same sum with attn transposed, that of attn a product of two tokens for each pair of places.
 *
 * Threads are OpenMP's, those PyTorch has already loaded (see ops/c_kernels.py).
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 32 /* channels at a time: what nearly every published VOLO has per head in its first stage */
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    int64_t batch, height, width, channels, heads, kernel_size, stride, v_stride, threads;
} Shape;

static inline int64_t windows_along(const Shape *s, int64_t size) { return (size + s->stride - 1) / s->stride; }

/* The windows [first, last) along one axis that hold a token. */
static inline void holding(const Shape *s, int64_t at, int64_t size, int64_t *first, int64_t *last)
{
    const int64_t half = s->kernel_size / 2, windows = windows_along(s, size);
    *first = at > half ? (at - half + s->stride - 1) / s->stride : 0;
    *last = (at + half) / s->stride + 1;
    if (*last > windows) *last = windows;
}

/* The places [first, last) along one axis of a window that lie on the map. */
static inline void inside(const Shape *s, int64_t window, int64_t size, int64_t *first, int64_t *last)
{
    const int64_t begin = window * s->stride - s->kernel_size / 2;
    *first = begin < 0 ? -begin : 0;
    *last = size - begin < s->kernel_size ? size - begin : s->kernel_size;
}

/* `width` channels of one token: from `value`, the first token of the image at these channels, with `step` elements a
 * token, by the weights of their head. A `width` of LANES is a constant where this is inlined. */
INLINE void gather_block(const Shape *s, const REAL *value, int64_t step, const REAL *attn, REAL *out, int64_t y,
                         int64_t x, const int transposed, const int width)
{
    const int64_t K = s->kernel_size, places = K * K, half = K / 2, columns = windows_along(s, s->width);
    int64_t y0, y1, x0, x1;
    REAL sum[LANES] = {0};
    holding(s, y, s->height, &y0, &y1);
    holding(s, x, s->width, &x0, &x1);
    for (int64_t row = y0; row < y1; ++row)
        for (int64_t column = x0; column < x1; ++column) {
            int64_t a0, a1, b0, b1;
            inside(s, row, s->height, &a0, &a1);
            inside(s, column, s->width, &b0, &b1);
            const int64_t top = row * s->stride - half, left = column * s->stride - half;
            const int64_t i = (y - top) * K + x - left;
            const REAL *weights = attn + (row * columns + column) * s->heads * places * places;
            for (int64_t a = a0; a < a1; ++a)
                for (int64_t b = b0; b < b1; ++b) {
                    const int64_t j = a * K + b;
                    const REAL weight = transposed ? weights[j * places + i] : weights[i * places + j];
                    const REAL *from = value + ((top + a) * s->width + left + b) * step;
#pragma omp simd
                    for (int c = 0; c < width; ++c) sum[c] += weight * from[c];
                }
        }
    for (int c = 0; c < width; ++c) out[c] = sum[c];
}

INLINE void gather(const Shape *s, const REAL *value, int64_t step, const REAL *attn, REAL *out, const int transposed)
{
    const int64_t H = s->height, W = s->width, C = s->channels, rows = s->batch * H, per_head = C / s->heads;
    const int64_t places = s->kernel_size * s->kernel_size;
    const int64_t of_image = windows_along(s, H) * windows_along(s, W) * s->heads * places * places;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t image = row / H, y = row % H;
        for (int64_t x = 0; x < W; ++x)
            for (int64_t head = 0; head < s->heads; ++head)
                for (int64_t done = 0; done < per_head; done += LANES) {
                    const int64_t c0 = head * per_head + done;
                    const REAL *from = value + image * H * W * step + c0;
                    const REAL *weights = attn + image * of_image + head * places * places;
                    REAL *to = out + (row * W + x) * C + c0;
                    const int left = (int)(per_head - done);
                    if (left >= LANES) gather_block(s, from, step, weights, to, y, x, transposed, LANES);
                    else gather_block(s, from, step, weights, to, y, x, transposed, left);
                }
    }
}

void outlook_forward(const Shape *s, const REAL *v, const REAL *attn, REAL *out)
{
    gather(s, v, s->v_stride, attn, out, 0);
}

void outlook_backward_value(const Shape *s, const REAL *grad, const REAL *attn, REAL *grad_v)
{
    gather(s, grad, s->channels, attn, grad_v, 1);
}

/* Products of `width` channels of a token with another's. */
INLINE REAL product(const REAL *restrict a, const REAL *restrict b, const int64_t width)
{
    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < width; ++c) sum += a[c] * b[c];
    return sum;
}

void outlook_backward_weights(const Shape *s, const REAL *grad, const REAL *v, REAL *grad_attn)
{
    const int64_t H = s->height, W = s->width, C = s->channels, K = s->kernel_size, places = K * K, half = K / 2;
    const int64_t rows = windows_along(s, H), columns = windows_along(s, W), per_head = C / s->heads;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t at = 0; at < s->batch * rows; ++at) {
        const int64_t image = at / rows, row = at % rows, top = row * s->stride - half;
        int64_t a0, a1, b0, b1;
        inside(s, row, H, &a0, &a1);
        for (int64_t column = 0; column < columns; ++column) {
            const int64_t left = column * s->stride - half, first = (image * H + top) * W + left;
            inside(s, column, W, &b0, &b1);
            REAL *to = grad_attn + (at * columns + column) * s->heads * places * places;
            if (b1 - b0 < K || a1 - a0 < K) memset(to, 0, s->heads * places * places * sizeof(REAL));
            for (int64_t head = 0; head < s->heads; ++head, to += places * places)
                for (int64_t i = a0 * K; i < a1 * K; ++i) {
                    if (i % K < b0 || i % K >= b1) continue;
                    const REAL *g = grad + (first + i / K * W + i % K) * C + head * per_head;
                    for (int64_t a = a0; a < a1; ++a)
                        for (int64_t b = b0; b < b1; ++b) {
                            const REAL *value = v + (first + a * W + b) * s->v_stride + head * per_head;
                            REAL *sum = to + i * places + a * K + b;
                            *sum = per_head == LANES ? product(g, value, LANES) : product(g, value, per_head);
                        }
                }
        }
    }
}
