/* A grouped 7 x 7 convolution of the product of two maps on the CPU, for one floating type REAL (float or double) a
 * build of this file.
 *
 *     out[y, x, c] = bias[c] + sum_(d, i, j) weight[c, d, i, j] * (q * k)[y + i - 3, x + j - 3, d of c's group]
 *
 * Layout: tokens before channels. q, k [B, H, W, C] with `q_stride` and `k_stride` elements from one token to the next
 * (slices of the fused projection need no copy); weight [C, group, 7, 7]; bias [C]; out and every gradient contiguous.
 * A group has 4 or 8 channels. Outside the map the product is 0. Sums run in REAL.
 *
 * A block of LANES channels at a time is taken through the rows of a part of the map, and a ring of as many rows as
 * ROWS of the output look at stays in the cache. The lanes of a vector are channels, group by group innermost: first
 * channel 0 of every group, then channel 1. Each vector lies there twice in sequence, so that a load which begins
 * `turn` channels further on has in each lane the channel (c + turn) mod group of that lane's group: no instruction but
 * loads and multiply-adds is left to the inner loops. Weights are packed to suit: [7, group turns, 7, LANES].
 *
 * The gradient of the product is the convolution of the output's gradient with mirrored weights whose channels are
 * exchanged. Gradients of weight and bias are summed over fixed chunks of the parts first, so that they do not depend
 * on the number of threads.
 *
 * Threads are OpenMP's, those PyTorch has already loaded (see compiled.py).
 */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define FLOATS 16
#else
#define FLOATS 8
#endif
#define LANES (sizeof(REAL) == sizeof(float) ? FLOATS : 8) /* at least 8, so that no group spans two vectors */
#define TAPS 7
#define HALF 3
#define ROWS 2 /* x WIDE tokens at a time, whose sums stay in registers; 7 divides the maps of images of 224 x 224 */
#define WIDE 7
#define RING (ROWS + TAPS - 1)
#define PART 32   /* rows of a part of a map, or a few more */
#define CHUNKS 32 /* of parts, at most, each with its own sums of the gradients of weight and bias */

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

typedef int32_t float_bits;
typedef int64_t double_bits;
#define JOIN(a, b) a##b
#define BITS(real) JOIN(real, _bits)
typedef REAL Vector __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef BITS(REAL) Lanes __attribute__((vector_size(LANES * sizeof(REAL))));

typedef struct {
    int64_t batch, height, width, channels, group, q_stride, k_stride, threads;
} Shape;

static inline int64_t parts_of(const Shape *s) { return s->height > PART ? s->height / PART : 1; }
static inline int64_t units_of(const Shape *s) { return s->batch * parts_of(s); }
static inline int64_t blocks_of(const Shape *s) { return (s->channels + LANES - 1) / LANES; }
static inline int64_t packed_size(const Shape *s) { return TAPS * s->group * TAPS * LANES; }
static inline int64_t pitch_of(const Shape *s) /* of a ring: whole tiles, and zeros around them */
{
    return ((s->width + WIDE - 1) / WIDE * WIDE + TAPS - 1) * 2 * LANES;
}
static inline REAL *ring_row(const Shape *s, REAL *ring, int64_t y) { return ring + (y + RING) % RING * pitch_of(s); }

static REAL *allocate(int64_t elements)
{
    void *memory = aligned_alloc(64, (elements * sizeof(REAL) + 63) / 64 * 64);
    if (memory == NULL) abort(); /* a few megabytes */
    return memory;
}

static REAL *ring_of(const Shape *s)
{
    const int64_t size = RING * pitch_of(s);
    return memset(allocate(size), 0, size * sizeof(REAL));
}

/* The rows [from, to) of a part of an image, whose first token is the one numbered `map`. */
typedef struct { int64_t map, from, to; } Unit;

static inline Unit unit_of(const Shape *s, int64_t number)
{
    const int64_t parts = parts_of(s), part = number % parts, H = s->height;
    return (Unit){number / parts * H * s->width, H * part / parts, H * (part + 1) / parts};
}

INLINE Vector load(const REAL *from) { return *(const Vector *)from; }
INLINE void store(REAL *to, Vector x) { *(Vector *)to = x; }

/* ---------------------------------------------------------------------------------------------------------------------
 * Between a map and the order of lanes
 */

/* Lane l takes lane (l % columns) * rows + l / columns: a matrix [columns, rows] transposed. */
INLINE Vector transposed(Vector x, const int rows, const int columns)
{
#if defined(__clang__)
    Vector out;
    UNROLL for (int l = 0; l < (int)LANES; ++l) out[l] = x[l % columns * rows + l / columns];
    return out;
#else
    Lanes from;
    UNROLL for (int l = 0; l < (int)LANES; ++l) from[l] = l % columns * rows + l / columns;
    return __builtin_shuffle(x, from);
#endif
}

/* `channels` channels of a token; zeros follow them. */
INLINE Vector fetch(const REAL *from, int64_t channels)
{
    if (channels >= (int64_t)LANES) return load(from);
    Vector x = {0};
    memcpy(&x, from, channels * sizeof(REAL));
    return x;
}

INLINE void put(REAL *to, Vector x, int64_t channels)
{
    if (channels >= (int64_t)LANES) store(to, x);
    else memcpy(to, &x, channels * sizeof(REAL));
}


/* Row y of a * b, or of a where b is NULL, as it lies in the ring; zeros where it is outside the map. */
INLINE void fill(const Shape *s, REAL *ring, int64_t y, const REAL *a, int64_t a_stride, const REAL *b,
                 int64_t b_stride, int64_t channels, const int group)
{
    REAL *to = ring_row(s, ring, y);
    if (y < 0 || y >= s->height) {
        memset(to, 0, pitch_of(s) * sizeof(REAL));
        return;
    }
    to += HALF * 2 * LANES;
    a += y * s->width * a_stride;
    b += b ? y * s->width * b_stride : 0;
    for (int64_t x = 0; x < s->width; ++x, to += 2 * LANES) {
        Vector value = fetch(a + x * a_stride, channels);
        if (b) value *= fetch(b + x * b_stride, channels);
        value = transposed(value, group, LANES / group);
        store(to, value);
        store(to + LANES, value);
    }
}

/* Weights of the block of channels from c0 on, or where `mirrored` those of the gradient of the product. */
static void pack(const Shape *s, const REAL *weight, REAL *packed, int64_t c0, int mirrored)
{
    const int group = (int)s->group, groups = LANES / group;
    memset(packed, 0, packed_size(s) * sizeof(REAL));
    for (int lane = 0; lane < (int)LANES; ++lane) {
        const int64_t first = c0 + lane % groups * group;
        const int own = lane / groups;
        if (first >= s->channels) continue;
        for (int turn = 0; turn < group; ++turn) {
            const int other = (own + turn) % group;
            const int64_t out = first + (mirrored ? other : own), in = mirrored ? own : other;
            const REAL *from = weight + (out * group + in) * TAPS * TAPS;
            REAL *to = packed + turn * TAPS * LANES + lane;
            for (int i = 0; i < TAPS; ++i)
                for (int j = 0; j < TAPS; ++j) {
                    const int tap = i * TAPS + j;
                    to[(i * group * TAPS + j) * LANES] = from[mirrored ? TAPS * TAPS - 1 - tap : tap];
                }
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------------------
 * Convolution
 */

/* Adds to the rows [first, last] of a tile what the row `r` of those they look at gives. */
INLINE void add_row(Vector sum[ROWS][WIDE], const REAL *row, const REAL *weight, int64_t r, const int first,
                    const int last, const int group)
{
    for (int turn = 0; turn < group; ++turn) {
        const REAL *from = row + turn * (LANES / group);
        Vector w[ROWS][TAPS];
        UNROLL for (int a = first; a <= last; ++a) UNROLL for (int j = 0; j < TAPS; ++j)
            w[a][j] = load(weight + (((r - a) * group + turn) * TAPS + j) * LANES);
        UNROLL for (int p = 0; p < WIDE + TAPS - 1; ++p) {
            const Vector value = load(from + p * 2 * LANES);
            UNROLL for (int t = 0; t < WIDE; ++t) UNROLL for (int a = first; a <= last; ++a)
                if (p - t >= 0 && p - t < TAPS) sum[a][t] += value * w[a][p - t];
        }
    }
}

/* The tile at (y, x). */
INLINE void convolve(const Shape *s, REAL *ring, const REAL *weight, Vector start, int64_t y, int64_t x,
                     REAL *to, const int group)
{
    const int64_t at = x * 2 * LANES;
    Vector sum[ROWS][WIDE];
    UNROLL for (int a = 0; a < ROWS; ++a) UNROLL for (int t = 0; t < WIDE; ++t) sum[a][t] = start;
    add_row(sum, ring_row(s, ring, y - HALF) + at, weight, 0, 0, 0, group);
    for (int64_t r = 1; r < TAPS; ++r)
        add_row(sum, ring_row(s, ring, y - HALF + r) + at, weight, r, 0, 1, group);
    add_row(sum, ring_row(s, ring, y - HALF + TAPS) + at, weight, TAPS, 1, 1, group);
    UNROLL for (int a = 0; a < ROWS; ++a) UNROLL for (int t = 0; t < WIDE; ++t)
        store(to + (a * WIDE + t) * LANES, transposed(sum[a][t], LANES / group, group));
}

INLINE void forward(const Shape *s, const REAL *q, const REAL *k, const REAL *packed, const REAL *bias, REAL *out,
                    const Unit unit, int64_t c0, REAL *ring, const int group)
{
    const int64_t W = s->width, C = s->channels, channels = C - c0;
    const Vector start = bias ? transposed(fetch(bias + c0, channels), group, LANES / group) : (Vector){0};
    REAL tile[ROWS * WIDE * LANES];
    q += unit.map * s->q_stride + c0;
    k += unit.map * s->k_stride + c0;
    out += unit.map * C + c0;
    for (int64_t y = unit.from - HALF; y < unit.from + HALF; ++y)
        fill(s, ring, y, q, s->q_stride, k, s->k_stride, channels, group);
    for (int64_t y = unit.from; y < unit.to; y += ROWS) {
        for (int a = 0; a < ROWS; ++a) fill(s, ring, y + HALF + a, q, s->q_stride, k, s->k_stride, channels, group);
        for (int64_t x = 0; x < W; x += WIDE) {
            convolve(s, ring, packed, start, y, x, tile, group);
            for (int a = 0; a < ROWS && y + a < unit.to; ++a)
                for (int t = 0; t < WIDE && x + t < W; ++t)
                    put(out + ((y + a) * W + x + t) * C, load(tile + (a * WIDE + t) * LANES), channels);
        }
    }
}

void product_conv(const Shape *s, const REAL *q, const REAL *k, const REAL *weight, const REAL *bias, REAL *out)
{
    const int64_t blocks = blocks_of(s);
#pragma omp parallel num_threads((int)s->threads)
    {
        REAL *ring = ring_of(s), *packed = allocate(packed_size(s));
#pragma omp for schedule(static)
        for (int64_t item = 0; item < units_of(s) * blocks; ++item) {
            const int64_t c0 = item % blocks * LANES;
            const Unit unit = unit_of(s, item / blocks);
            pack(s, weight, packed, c0, 0);
            if (s->group == 4) forward(s, q, k, packed, bias, out, unit, c0, ring, 4);
            else forward(s, q, k, packed, bias, out, unit, c0, ring, 8);
        }
        free(ring);
        free(packed);
    }
}

/* ---------------------------------------------------------------------------------------------------------------------
 * Gradients
 */

/* Adds to sums[turn][j] of one i what a row of the output's gradient and a row of the product give. */
INLINE void add_weights(REAL *sums, const REAL *grad, const REAL *row, int64_t width, const int group)
{
    for (int turn = 0; turn < group; turn += 2) {
        const REAL *from = row + turn * (LANES / group);
        Vector sum[2][TAPS];
        UNROLL for (int n = 0; n < 2; ++n) UNROLL for (int j = 0; j < TAPS; ++j) sum[n][j] = (Vector){0};
        for (int64_t x = HALF; x < HALF + width; ++x) {
            const Vector one = load(from + x * 2 * LANES), two = load(from + x * 2 * LANES + LANES / group);
            UNROLL for (int j = 0; j < TAPS; ++j) {
                const Vector g = load(grad + (x + HALF - j) * 2 * LANES);
                sum[0][j] += g * one;
                sum[1][j] += g * two;
            }
        }
        UNROLL for (int n = 0; n < 2; ++n) UNROLL for (int j = 0; j < TAPS; ++j) {
            REAL *to = sums + ((turn + n) * TAPS + j) * LANES;
            store(to, load(to) + sum[n][j]);
        }
    }
}

/* The tokens of a row of a ring in one. */
INLINE Vector total(const REAL *row, int64_t width)
{
    Vector sum[4] = {{0}};
    for (int64_t x = 0; x < width; x += 4) /* zeros follow */
        UNROLL for (int n = 0; n < 4; ++n) sum[n] += load(row + (HALF + x + n) * 2 * LANES);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* What a thread works on. */
typedef struct { REAL *grads, *products, *packed; } Scratch;

INLINE void backward(const Shape *s, const REAL *grad, const REAL *q, const REAL *k, REAL *grad_q, REAL *grad_k,
                     REAL *sums, REAL *sums_bias, const Unit unit, int64_t c0, const Scratch *w, const int group)
{
    const int64_t H = s->height, W = s->width, C = s->channels, channels = C - c0;
    REAL tile[ROWS * WIDE * LANES];
    grad += unit.map * C + c0;
    q += unit.map * s->q_stride + c0;
    k += unit.map * s->k_stride + c0;
    grad_q += unit.map * C + c0;
    grad_k += unit.map * C + c0;
    for (int64_t y = unit.from - HALF; y < unit.from + HALF; ++y) {
        fill(s, w->grads, y, grad, C, NULL, 0, channels, group);
        fill(s, w->products, y, q, s->q_stride, k, s->k_stride, channels, group);
    }
    for (int64_t y = unit.from; y < unit.to; y += ROWS) {
        for (int a = 0; a < ROWS; ++a) {
            fill(s, w->grads, y + HALF + a, grad, C, NULL, 0, channels, group);
            fill(s, w->products, y + HALF + a, q, s->q_stride, k, s->k_stride, channels, group);
        }
        for (int64_t x = 0; x < W; x += WIDE) {
            convolve(s, w->grads, w->packed, (Vector){0}, y, x, tile, group);
            for (int a = 0; a < ROWS && y + a < unit.to; ++a)
                for (int t = 0; t < WIDE && x + t < W; ++t) {
                    const int64_t at = (y + a) * W + x + t;
                    const Vector product = load(tile + (a * WIDE + t) * LANES);
                    put(grad_q + at * C, product * fetch(k + at * s->k_stride, channels), channels);
                    put(grad_k + at * C, product * fetch(q + at * s->q_stride, channels), channels);
                }
        }
        for (int64_t a = y; a < y + ROWS && a < unit.to; ++a) {
            const REAL *row = ring_row(s, w->grads, a);
            store(sums_bias, load(sums_bias) + total(row, W));
            for (int i = 0; i < TAPS; ++i) {
                const int64_t from = a + i - HALF;
                if (from < 0 || from >= H) continue;
                add_weights(sums + i * group * TAPS * LANES, row, ring_row(s, w->products, from), W, group);
            }
        }
    }
}

/* The sums of a block over the chunks, as weight and bias have them. */
static void unpack(const Shape *s, REAL *sums, REAL *sums_bias, REAL *grad_weight, REAL *grad_bias, int64_t block,
                   int64_t chunks)
{
    const int group = (int)s->group, groups = LANES / group;
    const int64_t blocks = blocks_of(s), size = packed_size(s);
    sums += block * size;
    sums_bias += block * LANES;
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        for (int64_t n = 0; n < size; ++n) sums[n] += sums[chunk * blocks * size + n];
        for (int lane = 0; lane < (int)LANES; ++lane) sums_bias[lane] += sums_bias[chunk * blocks * LANES + lane];
    }
    for (int lane = 0; lane < (int)LANES; ++lane) {
        const int64_t first = block * LANES + lane % groups * group;
        const int own = lane / groups;
        if (first >= s->channels) continue;
        grad_bias[first + own] = sums_bias[lane];
        for (int turn = 0; turn < group; ++turn) {
            const REAL *from = sums + turn * TAPS * LANES + lane;
            REAL *to = grad_weight + ((first + own) * group + (own + turn) % group) * TAPS * TAPS;
            for (int i = 0; i < TAPS; ++i)
                for (int j = 0; j < TAPS; ++j) to[i * TAPS + j] = from[(i * group * TAPS + j) * LANES];
        }
    }
}

void product_conv_backward(const Shape *s, const REAL *grad, const REAL *q, const REAL *k, const REAL *weight,
                           REAL *grad_q, REAL *grad_k, REAL *grad_weight, REAL *grad_bias)
{
    const int64_t blocks = blocks_of(s), units = units_of(s), size = packed_size(s);
    const int64_t chunks = units < CHUNKS ? units : CHUNKS;
    REAL *all_sums = allocate(chunks * blocks * size), *all_sums_bias = allocate(chunks * blocks * LANES);
#pragma omp parallel num_threads((int)s->threads)
    {
        const Scratch w = {ring_of(s), ring_of(s), allocate(size)};
#pragma omp for schedule(static)
        for (int64_t item = 0; item < chunks * blocks; ++item) {
            const int64_t c0 = item % blocks * LANES, chunk = item / blocks;
            REAL *sums = all_sums + item * size, *sums_bias = all_sums_bias + item * LANES;
            memset(sums, 0, size * sizeof(REAL));
            memset(sums_bias, 0, LANES * sizeof(REAL));
            pack(s, weight, w.packed, c0, 1);
            for (int64_t number = units * chunk / chunks; number < units * (chunk + 1) / chunks; ++number) {
                const Unit unit = unit_of(s, number);
                if (s->group == 4) backward(s, grad, q, k, grad_q, grad_k, sums, sums_bias, unit, c0, &w, 4);
                else backward(s, grad, q, k, grad_q, grad_k, sums, sums_bias, unit, c0, &w, 8);
            }
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block)
            unpack(s, all_sums, all_sums_bias, grad_weight, grad_bias, block, chunks);
        free(w.grads);
        free(w.products);
        free(w.packed);
    }
    free(all_sums);
    free(all_sums_bias);
}
