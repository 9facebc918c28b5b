/* The recurrences of BiLSTM2D on the CPU, for one floating type REAL (float or double) a build of this file.
 *
 *     i, f, o = sigmoid(x_t + b + R h_{t-1})     c_t = f c_{t-1} + i g
 *     g       = tanh(x_t + b + R h_{t-1})        h_t = o tanh(c_t)
 *
 * along the columns of a map downwards and upwards, and along its rows rightwards and leftwards: the four directions,
 * in this order. x_t, the product of the input with the other matrix, is there already. Nothing is permuted: whichever
 * way a sequence runs, its tokens are those of the same map.
 *
 * Layout: gates [B, H, W, 4 directions, 4 gates, h], gates in the order i, f, g, o; everything else [B, H, W, 4, h];
 * all contiguous. Matrices are packed as each function says. A task walks a block of sequences of one direction and
 * touches no other's memory, so that no result depends on the number of threads.
 *
 * Threads are OpenMP's, those PyTorch has already loaded (see compiled.py).
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define BYTES 64
#define ROWS 6 /* sequences at a time: 24 sums of 32 registers */
#elif defined(__AVX__)
#define BYTES 32
#define ROWS 2
#else
#define BYTES 16
#define ROWS 2
#endif
#define LANES (BYTES / (int)sizeof(REAL))
#define TILE 3   /* vectors of a row of R that the backward product takes at a time */
#define BLOCK 24 /* sequences of a task: while they pass it, a part of R stays in the nearest cache */

typedef struct {
    int64_t batch, height, width, hidden, threads;
} Shape;

#define INLINE static inline __attribute__((always_inline))

/* Constants of REAL: SINGLE is 1 in a build for float. */
#define SINGLE_float 1
#define SINGLE_NAMED(type) SINGLE_##type
#define SINGLE_OF(type) SINGLE_NAMED(type)
#if SINGLE_OF(REAL)
typedef int32_t whole;
#define MANTISSA 23
#define ONE 127
#define TERMS 7 /* of the exponential series up to ln(2) / 2: the next is below the rounding */
#define LIMIT 80
#else
typedef int64_t whole;
#define MANTISSA 52
#define ONE 1023
#define TERMS 13
#define LIMIT 700
#endif
typedef REAL vec __attribute__((vector_size(BYTES)));
typedef whole ints __attribute__((vector_size(BYTES)));

INLINE vec all(REAL x) { return x - (vec){0}; }

/* The first `width` elements, a constant LANES but at the end of a row. */
INLINE vec load(const REAL *from, int width)
{
    vec x = {0};
    memcpy(&x, from, width * sizeof(REAL));
    return x;
}

INLINE void store(REAL *to, vec x, int width) { memcpy(to, &x, width * sizeof(REAL)); }

INLINE vec choose(ints where, vec x, vec y) { return (vec)((where & (ints)x) | (~where & (ints)y)); }

INLINE vec reciprocal(vec x)
{
#if defined(__AVX512F__) && SINGLE_OF(REAL)
    const vec y = (vec)_mm512_rcp14_ps((__m512)x); /* 14 bits; a step of Newton's doubles them */
    return y + y * (1 - x * y);
#else
    return 1 / x;
#endif
}

/* x between -LIMIT and LIMIT; what is no number stays so. */
INLINE vec clamp(vec x)
{
#if defined(__AVX512F__) && SINGLE_OF(REAL)
    return (vec)_mm512_max_ps((__m512)all(-LIMIT), _mm512_min_ps((__m512)all(LIMIT), (__m512)x));
#else
    x = choose(x > LIMIT, all(LIMIT), x);
    return choose(x < -LIMIT, all(-LIMIT), x);
#endif
}

/* exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1) with x = n ln(2) + r; *power is 2^n. Relative error of a few roundings. */
INLINE vec exp_minus_one(vec x, vec *power)
{
    static const REAL factorials[] = {1,      2,       6,        24,        120,       720,       5040, 40320,
                                      362880, 3628800, 39916800, 479001600, 6227020800};
    const REAL magic = (REAL)3 / 2 * ((whole)1 << MANTISSA); /* adding it rounds to a whole number, in the low bits */
    x = clamp(x);
    const vec shifted = x * (REAL)1.44269504088896340736 + magic, n = shifted - magic;
    const vec r = x - n * (REAL)0.693145751953125 - n * (REAL)1.42860682030941723212e-6; /* ln(2) in two parts */
    vec q = all(1 / factorials[TERMS - 1]);
    for (int i = TERMS - 2; i >= 0; --i) q = q * r + 1 / factorials[i];
    *power = (vec)(((ints)shifted + ONE) << MANTISSA);
    return *power * (q * r) + (*power - 1);
}

INLINE vec sigmoid(vec x)
{
    vec power;
    return reciprocal(2 + exp_minus_one(-x, &power));
}

INLINE vec tanh_(vec x)
{
    vec power;
    const vec e = exp_minus_one(-2 * x, &power);
    return -e * reciprocal(2 + e);
}

/* Call KERNEL(n, ...) with n, from 1 to ROWS, as a constant. */
#if ROWS == 6
#define MORE_ROWS(KERNEL, ...)                                                                                         \
    case 3: KERNEL(3, __VA_ARGS__); break;                                                                             \
    case 4: KERNEL(4, __VA_ARGS__); break;                                                                             \
    case 5: KERNEL(5, __VA_ARGS__); break;                                                                             \
    case 6: KERNEL(6, __VA_ARGS__); break;
#else
#define MORE_ROWS(KERNEL, ...)
#endif
#define WITH_ROWS(n, KERNEL, ...)                                                                                      \
    switch (n) {                                                                                                       \
    case 1: KERNEL(1, __VA_ARGS__); break;                                                                             \
    case 2: KERNEL(2, __VA_ARGS__); break;                                                                             \
    MORE_ROWS(KERNEL, __VA_ARGS__)                                                                                     \
    }

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* A block of sequences of one direction and image. Token t of sequence s, in the order of the walk, is
 * first + s * across + t * along. */
typedef struct {
    int direction;
    int64_t first, across, along, steps, sequences;
    int64_t line; /* number of the first sequence among those of all directions and images */
} Task;

/* Sequences of a task: fewer than BLOCK where there would not be work for all threads. */
static int64_t block_size(const Shape *s)
{
    const int64_t share = 2 * s->batch * (s->height + s->width) / s->threads / ROWS * ROWS;
    return smaller(BLOCK, share < ROWS ? ROWS : share);
}

static int64_t count_tasks(const Shape *s)
{
    const int64_t block = block_size(s);
    return 2 * s->batch * ((s->width + block - 1) / block + (s->height + block - 1) / block);
}

static Task find_task(const Shape *s, int64_t index)
{
    const int64_t H = s->height, W = s->width, block = block_size(s);
    const int64_t columns = (W + block - 1) / block, rows = (H + block - 1) / block;
    const int64_t image = index / (2 * (columns + rows)), rest = index % (2 * (columns + rows));
    const int vertical = rest < 2 * columns;
    const int64_t inside = vertical ? rest : rest - 2 * columns, blocks = vertical ? columns : rows;
    const int backward = inside >= blocks;
    const int64_t lines = vertical ? W : H, at = inside % blocks * block;
    Task t = {.direction = (vertical ? 0 : 2) + backward,
              .across = vertical ? 1 : W,
              .along = vertical ? W : 1,
              .steps = vertical ? H : W,
              .sequences = smaller(block, lines - at)};
    t.first = image * H * W + at * t.across;
    t.line = image * 2 * (H + W) + (vertical ? 0 : 2 * W) + backward * lines + at;
    if (backward) {
        t.first += (t.steps - 1) * t.along;
        t.along = -t.along;
    }
    return t;
}

/* ------------------------------------------------------------------------------------------------------- forward */

/* The four matrices [4h, h] -> `packed` [4, blocks of LANES units, h, 4 gates, LANES], zeros after the last unit. */
static void pack_forward(const Shape *s, const REAL *const *matrices, REAL *packed)
{
    const int64_t h = s->hidden, padded = (h + LANES - 1) / LANES * LANES;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t d = 0; d < 4; ++d)
        for (int64_t unit = 0; unit < padded; ++unit)
            for (int64_t gate = 0; gate < 4; ++gate) {
                const REAL *from = matrices[d] + (gate * h + unit) * h;
                REAL *to = packed + d * 4 * h * padded + unit / LANES * LANES * 4 * h + gate * LANES + unit % LANES;
                for (int64_t k = 0; k < h; ++k) to[k * 4 * LANES] = unit < h ? from[k] : 0;
            }
}

/* One step: pointers to the first of the sequences, and the distances from one to the next. */
typedef struct {
    const REAL *matrix, *bias, *out_before, *cells_before; /* the last two NULL at the first step */
    REAL *gates, *cells, *out;
    int64_t hidden, gates_apart, cells_apart, out_apart, keep;
} Forward;

/* Units j to j + width of n sequences. */
INLINE void forward_rows(const int n, const Forward *p, int64_t j, const int width)
{
    const int64_t h = p->hidden;
    vec sum[ROWS][4];
    for (int s = 0; s < n; ++s)
        for (int g = 0; g < 4; ++g)
            sum[s][g] = load(p->gates + s * p->gates_apart + g * h + j, width) + load(p->bias + g * h + j, width);
    if (p->out_before) {
        const REAL *r = p->matrix + j * 4 * h;
        for (int64_t k = 0; k < h; ++k, r += 4 * LANES)
            for (int s = 0; s < n; ++s) {
                const REAL x = p->out_before[s * p->out_apart + k];
                for (int g = 0; g < 4; ++g) sum[s][g] += load(r + g * LANES, LANES) * x;
            }
    }
    for (int s = 0; s < n; ++s) {
        REAL *gates = p->gates + s * p->gates_apart + j;
        const vec i = sigmoid(sum[s][0]), f = sigmoid(sum[s][1]), g = tanh_(sum[s][2]), o = sigmoid(sum[s][3]);
        vec c = i * g;
        if (p->cells_before) c += f * load(p->cells_before + s * p->cells_apart + j, width);
        if (p->keep) {
            store(gates, i, width);
            store(gates + h, f, width);
            store(gates + 2 * h, g, width);
            store(gates + 3 * h, o, width);
        }
        store(p->cells + s * p->cells_apart + j, c, width);
        store(p->out + s * p->out_apart + j, o * tanh_(c), width);
    }
}

/* `gates` holds the products with the input, and in the end the gates where they are kept (`keep`). `cells` is
 * [B, H, W, 4, h] then, else room for 2B(H + W) h. `matrices` are the four R [4h, h], `bias` [4, 4h]. `packed` is room
 * for as many elements as the matrices have, h in one place rounded up to a multiple of 16. */
void bilstm2d_forward(const Shape *s, const REAL *const *matrices, const REAL *bias, REAL *gates, REAL *cells,
                      REAL *out, REAL *packed, int64_t keep)
{
    const int64_t h = s->hidden, padded = (h + LANES - 1) / LANES * LANES, tasks = count_tasks(s);
    pack_forward(s, matrices, packed);
#pragma omp parallel for num_threads((int)s->threads) schedule(dynamic)
    for (int64_t index = 0; index < tasks; ++index) {
        const Task t = find_task(s, index);
        for (int64_t step = 0; step < t.steps; ++step)
            for (int64_t j = 0; j < h; j += LANES)
                for (int64_t row = 0; row < t.sequences; row += ROWS) {
                    const int64_t token = t.first + row * t.across + step * t.along;
                    const int64_t kept = keep ? (token * 4 + t.direction) * h : (t.line + row) * h;
                    Forward p = {.matrix = packed + t.direction * 4 * h * padded,
                                 .bias = bias + t.direction * 4 * h,
                                 .gates = gates + (token * 4 + t.direction) * 4 * h,
                                 .cells = cells + kept,
                                 .out = out + (token * 4 + t.direction) * h,
                                 .hidden = h,
                                 .gates_apart = t.across * 16 * h,
                                 .cells_apart = keep ? t.across * 4 * h : h,
                                 .out_apart = t.across * 4 * h,
                                 .keep = keep};
                    if (step) {
                        p.out_before = p.out - t.along * 4 * h;
                        p.cells_before = keep ? p.cells - t.along * 4 * h : p.cells;
                    }
                    const int n = (int)smaller(ROWS, t.sequences - row);
                    if (h - j >= LANES) WITH_ROWS(n, forward_rows, &p, j, LANES)
                    else WITH_ROWS(n, forward_rows, &p, j, (int)(h - j))
                }
    }
}

/* ------------------------------------------------------------------------------------------------------ backward */

/* The four matrices [4h, h] -> `packed` [4, tiles of TILE vectors, 4h, the tile], zeros after the last unit. */
static void pack_backward(const Shape *s, const REAL *const *matrices, REAL *packed)
{
    const int64_t h = s->hidden, padded = (h + LANES - 1) / LANES * LANES;
#pragma omp parallel for num_threads((int)s->threads) schedule(static)
    for (int64_t d = 0; d < 4; ++d)
        for (int64_t first = 0; first < padded; first += TILE * LANES) {
            const int64_t wide = smaller(TILE * LANES, padded - first);
            for (int64_t r = 0; r < 4 * h; ++r)
                for (int64_t k = 0; k < wide; ++k)
                    packed[(d * padded + first) * 4 * h + r * wide + k] =
                        first + k < h ? matrices[d][r * h + first + k] : 0;
        }
}

typedef struct {
    const REAL *matrix, *gates, *cells, *cells_before, *grad_out; /* cells_before NULL at the first step */
    REAL *grad_gates;      /* before the activations */
    REAL *grad_h, *grad_c; /* what the step after asks of this one's h and c, and this one of the step before */
    int64_t hidden, padded, apart; /* apart: between sequences in a tensor of h a token and direction */
} Backward;

/* Gradients before the activations: units j to j + width of n sequences. */
INLINE void backward_rows(const int n, const Backward *p, int64_t j, const int width)
{
    const int64_t h = p->hidden;
    for (int s = 0; s < n; ++s) {
        const REAL *gates = p->gates + s * p->apart * 4 + j;
        REAL *to = p->grad_gates + s * p->apart * 4 + j, *next_c = p->grad_c + s * p->padded + j;
        const vec i = load(gates, width), f = load(gates + h, width), g = load(gates + 2 * h, width);
        const vec o = load(gates + 3 * h, width), tanh_c = tanh_(load(p->cells + s * p->apart + j, width));
        const vec grad_h = load(p->grad_out + s * p->apart + j, width) + load(p->grad_h + s * p->padded + j, LANES);
        const vec grad_c = load(next_c, LANES) + grad_h * o * (1 - tanh_c * tanh_c);
        store(to, grad_c * g * i * (1 - i), width);
        if (p->cells_before) {
            store(to + h, grad_c * load(p->cells_before + s * p->apart + j, width) * f * (1 - f), width);
            store(next_c, grad_c * f, LANES);
        } else
            store(to + h, all(0), width);
        store(to + 2 * h, grad_c * i * (1 - g * g), width);
        store(to + 3 * h, grad_h * tanh_c * o * (1 - o), width);
    }
}

/* Their product with R: `wide` vectors of n sequences' gradients of the h before. */
INLINE void backward_product(const int n, const Backward *p, int64_t first, const int wide)
{
    const REAL *r = p->matrix + first * 4 * p->hidden;
    vec sum[ROWS][TILE] = {{{0}}};
    for (int64_t k = 0; k < 4 * p->hidden; ++k, r += wide * LANES)
        for (int s = 0; s < n; ++s) {
            const REAL x = p->grad_gates[s * p->apart * 4 + k];
            for (int v = 0; v < wide; ++v) sum[s][v] += load(r + v * LANES, LANES) * x;
        }
    for (int s = 0; s < n; ++s)
        for (int v = 0; v < wide; ++v) store(p->grad_h + s * p->padded + first + v * LANES, sum[s][v], LANES);
}

/* `gates` and `cells` as kept, `grad_gates` like `gates`, `packed` as above; `states` is zeroed room for
 * 2 * 2B(H + W) h, h rounded up likewise. */
void bilstm2d_backward(const Shape *s, const REAL *const *matrices, const REAL *gates, const REAL *cells,
                       const REAL *grad_out, REAL *grad_gates, REAL *packed, REAL *states)
{
    const int64_t h = s->hidden, padded = (h + LANES - 1) / LANES * LANES, tasks = count_tasks(s);
    const int64_t lines = 2 * s->batch * (s->height + s->width);
    pack_backward(s, matrices, packed);
#pragma omp parallel for num_threads((int)s->threads) schedule(dynamic)
    for (int64_t index = 0; index < tasks; ++index) {
        const Task t = find_task(s, index);
        for (int64_t step = t.steps - 1; step >= 0; --step)
            for (int64_t row = 0; row < t.sequences; row += ROWS) {
                const int64_t at = (t.first + row * t.across + step * t.along) * 4 + t.direction;
                const Backward p = {.matrix = packed + t.direction * 4 * h * padded,
                                    .gates = gates + at * 4 * h,
                                    .cells = cells + at * h,
                                    .cells_before = step ? cells + (at - t.along * 4) * h : NULL,
                                    .grad_out = grad_out + at * h,
                                    .grad_gates = grad_gates + at * 4 * h,
                                    .grad_h = states + (t.line + row) * padded,
                                    .grad_c = states + (lines + t.line + row) * padded,
                                    .hidden = h,
                                    .padded = padded,
                                    .apart = t.across * 4 * h};
                const int n = (int)smaller(ROWS, t.sequences - row);
                int64_t j = 0;
                for (; j + LANES <= h; j += LANES) WITH_ROWS(n, backward_rows, &p, j, LANES)
                if (j < h) WITH_ROWS(n, backward_rows, &p, j, (int)(h - j))
                if (!step) continue;
                for (j = 0; j + TILE * LANES <= padded; j += TILE * LANES) WITH_ROWS(n, backward_product, &p, j, TILE)
                if (padded - j == 2 * LANES) WITH_ROWS(n, backward_product, &p, j, 2)
                if (padded - j == LANES) WITH_ROWS(n, backward_product, &p, j, 1)
            }
    }
}
