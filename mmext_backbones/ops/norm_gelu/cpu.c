/* GELU by tanh, alone or behind a norm of each channel, on the CPU, for one floating type REAL a build of this file.
 *
 *     y = gelu(z) = z / (1 + exp(-t)),    t = 2 sqrt(2/pi) (z + 0.044715 z^3),    z = (x - mean) * rstd * weight + bias
 *
 * mean, rstd, weight and bias hold a number a channel, or are NULL together: then z = x. Where `gelu` is 0, y = z. Maps
 * are [rows, channels], contiguous. Sums over rows are made for fixed chunks of rows first, so that they do not depend
 * on the number of threads. Threads are OpenMP's, those PyTorch has already loaded (see compiled.py).
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t rows, channels, chunks, gelu, threads;
} Shape;

typedef struct {
    const REAL *mean, *rstd, *weight, *bias;
} Norm;

#define INLINE static inline __attribute__((always_inline))

#define IS_FLOAT (sizeof(REAL) == 4)

typedef __typeof__(__builtin_choose_expr(IS_FLOAT, (uint32_t)0, (uint64_t)0)) Bits;
typedef union {
    REAL value;
    Bits bits;
} Word;

/* x, or the bound of its sign. In whole numbers: of a comparison of floats compilers make branches. */
INLINE REAL clamp(REAL x, REAL bound)
{
    const Bits sign = (Bits)1 << (8 * sizeof(REAL) - 1);
    const Word limit = {.value = bound}, in = {.value = x};
    const Bits size = in.bits & ~sign;
    const Word out = {.bits = (size < limit.bits ? size : limit.bits) | (in.bits & sign)};
    return out.value;
}

/* exp(x) = 2^n exp(r), |r| <= ln(2) / 2, by its series. Adding `magic` rounds to whole n and leaves it in the last
 * bits. */
INLINE REAL exponential(REAL x)
{
    x = clamp(x, IS_FLOAT ? 87 : 708);
    const REAL magic = IS_FLOAT ? 0x1.8p23 : 0x1.8p52;
    const Word rounded = {.value = x * (REAL)1.4426950408889634 + magic};
    const REAL n = rounded.value - magic;
    const REAL high = IS_FLOAT ? 0x1.63p-1 : 0x1.62e42feep-1;
    const REAL low = IS_FLOAT ? -0x1.bd0105c6p-13 : 0x1.a39ef35793c76p-33;
    const REAL r = (x - n * high) - n * low; /* high + low = ln(2); n * high is exact */
    REAL sum = IS_FLOAT ? 0 : (REAL)(1.0 / 6227020800); /* 1 / 13! */
#define TERM(factorial) sum = sum * r + (REAL)(1.0 / factorial)
    if (!IS_FLOAT) {
        TERM(479001600);
        TERM(39916800);
        TERM(3628800);
        TERM(362880);
        TERM(40320);
    }
    TERM(5040);
    TERM(720);
    TERM(120);
    TERM(24);
    TERM(6);
    TERM(2);
    TERM(1);
    TERM(1);
#undef TERM
    Word result = {.value = sum};
    result.bits += rounded.bits << (IS_FLOAT ? 23 : 52);
    return result.value;
}

#define SLOPE ((REAL)1.5957691216057308) /* 2 sqrt(2 / pi) */
#define CUBIC ((REAL)0.044715)

/* 1 / (1 + exp(-t)), and in `rest` what is left of 1. */
INLINE REAL sigmoid(REAL z, REAL *rest)
{
    const REAL e = exponential(-SLOPE * z * (1 + CUBIC * z * z)), s = 1 / (1 + e);
    *rest = e * s;
    return s;
}

/* The rows of a chunk. */
#define EACH_ROW(s, chunk, row)                                                                                        \
    for (int64_t row = (s)->rows * (chunk) / (s)->chunks; row < (s)->rows * ((chunk) + 1) / (s)->chunks; ++row)

INLINE void forward_chunk(const Shape *s, int64_t chunk, const REAL *x, const Norm n, REAL *y, const int has_norm,
                          const int has_gelu)
{
    const int64_t C = s->channels;
    EACH_ROW(s, chunk, row)
    {
        const REAL *in = x + row * C;
        REAL *out = y + row * C;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const REAL z = has_norm ? (in[c] - n.mean[c]) * (n.rstd[c] * n.weight[c]) + n.bias[c] : in[c];
            REAL rest;
            out[c] = has_gelu ? z * sigmoid(z, &rest) : z;
        }
    }
}

/* y, which may be x. */
void norm_gelu(const Shape *s, const REAL *x, const REAL *mean, const REAL *rstd, const REAL *weight, const REAL *bias,
               REAL *y)
{
    const Norm n = {mean, rstd, weight, bias};
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t chunk = 0; chunk < s->chunks; ++chunk) {
        if (mean && s->gelu) forward_chunk(s, chunk, x, n, y, 1, 1);
        else if (mean) forward_chunk(s, chunk, x, n, y, 1, 0);
        else forward_chunk(s, chunk, x, n, y, 0, 1);
    }
}

INLINE void backward_chunk(const Shape *s, int64_t chunk, const REAL *grad, const REAL *x, const Norm n, REAL *y,
                           REAL *grad_z, REAL *sums, const int has_norm, const int has_gelu)
{
    const int64_t C = s->channels;
    REAL *sum = sums + chunk * 2 * C, *sum_x = sum + C;
    if (has_norm) memset(sum, 0, 2 * C * sizeof(REAL));
    EACH_ROW(s, chunk, row)
    {
        const REAL *in = x + row * C, *g = grad + row * C;
        REAL *out = y + row * C, *out_grad = grad_z + row * C;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const REAL centred = has_norm ? in[c] - n.mean[c] : in[c];
            const REAL z = has_norm ? centred * (n.rstd[c] * n.weight[c]) + n.bias[c] : in[c];
            REAL dz = g[c], rest = 0;
            const REAL share = has_gelu ? sigmoid(z, &rest) : 1;
            out[c] = z * share;
            if (has_gelu) dz *= share + z * rest * share * (SLOPE * (1 + 3 * CUBIC * z * z));
            out_grad[c] = dz;
            if (has_norm) {
                sum[c] += dz;
                sum_x[c] += dz * centred;
            }
        }
    }
}

/* y again, and grad_z, which may be grad. Under a norm also the sums [chunks, 2, channels] of grad_z and
 * grad_z * (x - mean), the total of which replaces the first chunk's. */
void norm_gelu_backward(const Shape *s, const REAL *grad, const REAL *x, const REAL *mean, const REAL *rstd,
                        const REAL *weight, const REAL *bias, REAL *y, REAL *grad_z, REAL *sums)
{
    const Norm n = {mean, rstd, weight, bias};
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t chunk = 0; chunk < s->chunks; ++chunk) {
        if (mean && s->gelu) backward_chunk(s, chunk, grad, x, n, y, grad_z, sums, 1, 1);
        else if (mean) backward_chunk(s, chunk, grad, x, n, y, grad_z, sums, 1, 0);
        else backward_chunk(s, chunk, grad, x, n, y, grad_z, sums, 0, 1);
    }
    for (int64_t i = 0; mean && i < 2 * s->channels; ++i) {
        double total = 0;
        for (int64_t chunk = 0; chunk < s->chunks; ++chunk) total += sums[chunk * 2 * s->channels + i];
        sums[i] = (REAL)total;
    }
}

/* The gradient of x where mean and rstd are those of its rows; out may be grad_z. */
void norm_backward_input(const Shape *s, const REAL *grad_z, const REAL *x, const REAL *mean, const REAL *rstd,
                         const REAL *weight, const REAL *sums, REAL *out)
{
    const int64_t C = s->channels;
    const REAL each = (REAL)1 / (REAL)s->rows, *sum = sums, *sum_x = sums + C;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t chunk = 0; chunk < s->chunks; ++chunk)
        EACH_ROW(s, chunk, row)
        {
            const REAL *in = x + row * C, *g = grad_z + row * C;
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) {
                const REAL shared = sum[c] + (in[c] - mean[c]) * (rstd[c] * rstd[c] * sum_x[c]);
                out[row * C + c] = (g[c] - shared * each) * (rstd[c] * weight[c]);
            }
        }
}

/* Mean and variance of the rows, the latter over their number; sums [chunks, 2, channels] is room to work in. */
void moments(const Shape *s, const REAL *x, REAL *sums, REAL *mean, REAL *var)
{
    const int64_t C = s->channels;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t chunk = 0; chunk < s->chunks; ++chunk) { /* of the distances from the first row: small numbers */
        const REAL *first = x + s->rows * chunk / s->chunks * C;
        REAL *sum = sums + chunk * 2 * C, *square = sum + C;
        memset(sum, 0, 2 * C * sizeof(REAL));
        EACH_ROW(s, chunk, row)
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) {
                const REAL shifted = x[row * C + c] - first[c];
                sum[c] += shifted;
                square[c] += shifted * shifted;
            }
    }
    for (int64_t c = 0; c < C; ++c) { /* chunks joined in turn: Chan et al., "Updating formulae ..." (1979) */
        double rows = 0, m = 0, squares = 0;
        for (int64_t chunk = 0; chunk < s->chunks; ++chunk) {
            const int64_t from = s->rows * chunk / s->chunks, to = s->rows * (chunk + 1) / s->chunks;
            const double n = (double)(to - from), sum = sums[chunk * 2 * C + c];
            const double apart = x[from * C + c] + sum / n - m;
            squares += sums[(chunk * 2 + 1) * C + c] - sum * sum / n + apart * apart * rows * n / (rows + n);
            rows += n;
            m += apart * n / rows;
        }
        mean[c] = (REAL)m;
        var[c] = (REAL)(squares > 0 ? squares / rows : 0);
    }
}
