/* Window and grid attention on the CPU, for one floating type REAL (float or double) a build of this file.
 *
 *     out = softmax(scale * q @ k^T + bias + mask) @ v        in every window and head
 *
 * Maps stay as the layers hold them: qkv [B, H, W, 3 * C] with `qkv_stride` elements from one token to the next, out
 * and the gradients contiguous, all in the type `storage`, computed on in REAL. No window is ever cut out: `locate`
 * says where the tokens of a window lie in the map, and a thread fetches the rows of one (window, head), which then
 * stay in the first- and second-level cache. Tokens of the padding have `padding` as their q, k and v, or are hidden
 * without one; they are keys only. bias is [heads, N, wide], or [heads, 1, wide] with one row for all queries. Its
 * columns from N on hold -inf; `wide` and the rows of scratch matrices are multiples of STEP. MASKED parts the regions
 * of a shifted map. `cpu.py` defines both.
 *
 * The backward pass computes the probabilities again. Gradients of bias and padding are summed over fixed chunks of
 * windows first, so that they do not depend on the number of threads.
 *
 * Threads are OpenMP's, those PyTorch has already loaded (see ops/c_kernels.py).
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define QUERIES 84 /* at a time, a multiple of every ROWS below: a window of 7 x 7 or 8 x 8 is one such block */
#define HEADS 4    /* of a window at a time: their rows lie side by side in the map */
#define USUAL_KEYS 64     /* 7 x 7 or 8 x 8, padded */
#define USUAL_CHANNELS 32 /* of a head, in every published network */

/* A product keeps ROWS x COLUMNS vectors of sums in registers. */
#if defined(__AVX512F__)
#define VECTOR 64
#define ROWS 7
#define COLUMNS 4
#elif defined(__AVX__)
#define VECTOR 32
#define ROWS 6
#define COLUMNS 2
#elif defined(__aarch64__)
#define VECTOR 16
#define ROWS 6
#define COLUMNS 4
#else
#define VECTOR 16
#define ROWS 6
#define COLUMNS 2
#endif
#define LANES ((int)(VECTOR / sizeof(REAL)))

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef int32_t float_bits;
typedef int64_t double_bits;
#define JOIN(a, b) a##b
#define BITS(real) JOIN(real, _bits)
typedef REAL Vector __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));
typedef BITS(REAL) Bits __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));

typedef struct {
    int64_t batch, height, width, channels, heads, window_h, window_w, shift, grid, qkv_stride, storage, chunks;
    int64_t threads, bias_rows;
    double scale;
} Shape;

enum { SAME, BFLOAT16, FLOAT16 }; /* storage: REAL, or a half of a float */

static inline int64_t at_least(int64_t size, int64_t step) { return (size + step - 1) / step * step; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---------------------------------------------------------------------------------------------------------------------
 * Vectors
 */

INLINE Vector load(const REAL *from) { return *(const Vector *)from; }
INLINE void store(REAL *to, Vector x) { *(Vector *)to = x; }
INLINE Vector splat(REAL x) { return x - (Vector){0}; }
INLINE Vector choose(Bits first, Vector a, Vector b) { return (Vector)(((Bits)a & first) | ((Bits)b & ~first)); }

/* All lanes in one: parts of 16 bytes first, which compilers turn into few instructions. */
typedef REAL Part __attribute__((vector_size(16), may_alias));
typedef BITS(REAL) PartBits __attribute__((vector_size(16), may_alias));
typedef union { Vector whole; Part part[VECTOR / 16]; } Parts;

INLINE REAL largest(Vector x)
{
    const Parts parts = {x};
    Part top = parts.part[0];
    UNROLL for (int i = 1; i < VECTOR / 16; ++i) {
        const PartBits more = parts.part[i] > top;
        top = (Part)(((PartBits)parts.part[i] & more) | ((PartBits)top & ~more));
    }
    REAL last = top[0];
    UNROLL for (int i = 1; i < (int)(16 / sizeof(REAL)); ++i) last = top[i] > last ? top[i] : last;
    return last;
}

INLINE REAL total(Vector x)
{
    const Parts parts = {x};
    Part sum = parts.part[0];
    UNROLL for (int i = 1; i < VECTOR / 16; ++i) sum += parts.part[i];
    REAL last = sum[0];
    UNROLL for (int i = 1; i < (int)(16 / sizeof(REAL)); ++i) last += sum[i];
    return last;
}

/* e^x for x <= 0, to the rounding of REAL: 2^n * e^r with |r| <= ln(2) / 2. e^r by a polynomial: in double its Taylor
 * series, in float the fit of least relative error (2e-8). What is below e^-80 (e^-700 in double) is 0, so that no
 * weight is ever subnormal; NaN stays NaN. */
INLINE Vector exponential(Vector x)
{
    static const float fit[] = {1, 1, 0.499999911f, 0.166664198f, 0.0416683629f, 0.00837481581f, 0.00138293649f};
    static const double taylor[] = {1,           1,           1. / 2,       1. / 6,       1. / 24,
                                    1. / 120,    1. / 720,    1. / 5040,    1. / 40320,   1. / 362880,
                                    1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
    const int single = sizeof(REAL) == sizeof(float), degree = single ? 6 : 13;
    const REAL magic = single ? 0x1.8p23 + 127 : 0x1.8p52 + 1023; /* the sum's last bits are the exponent of 2^n */
    const Vector shifted = x * (REAL)1.4426950408889634 + magic, n = shifted - magic;
    const Vector r = x - n * (REAL)0.6931471805599453;
    Vector sum = splat(single ? fit[degree % 7] : taylor[degree]);
    UNROLL for (int i = degree - 1; i >= 0; --i) sum = sum * r + (single ? (REAL)fit[i % 7] : (REAL)taylor[i]);
    const Vector power = (Vector)((Bits)shifted << (single ? 23 : 52));
    const Bits vanishes = x < (single ? (REAL)-80 : (REAL)-700);
    return (Vector)((Bits)(sum * power) & ~vanishes);
}

/* ---------------------------------------------------------------------------------------------------------------------
 * Rows between the map's type and REAL
 */

static inline float from_bfloat16(uint16_t half)
{
    const union { uint32_t bits; float value; } x = {(uint32_t)half << 16};
    return x.value;
}

static inline uint16_t to_bfloat16(float value) /* to the nearest, ties to even */
{
    const union { float value; uint32_t bits; } x = {value};
    return value != value ? 0x7fc0 : (uint16_t)((x.bits + 0x7fff + (x.bits >> 16 & 1)) >> 16);
}

#ifdef __FLT16_MAX__
typedef _Float16 float16;
#define FROM_FLOAT16(x) ((REAL)(x))
#define TO_FLOAT16(x) ((float16)(float)(x))
#else
typedef uint16_t float16;
static inline float FROM_FLOAT16(uint16_t half)
{
    union { uint32_t bits; float value; } x = {(uint32_t)(half & 0x7fff) << 13};
    x.value *= 0x1p112f; /* moves the exponent, subnormals too */
    if (x.value >= 65536.0f) x.bits |= 0x7f800000;
    x.bits |= (uint32_t)(half & 0x8000) << 16;
    return x.value;
}

static inline uint16_t TO_FLOAT16(float value)
{
    union { float value; uint32_t bits; } x = {value}, magic;
    const uint16_t sign = x.bits >> 16 & 0x8000;
    x.bits &= 0x7fffffff;
    if (x.value != x.value) return sign | 0x7e00;
    if (x.value >= 65520.0f) return sign | 0x7c00;
    /* a power of two whose last bit is that of the result rounds to the nearest, ties to even */
    magic.bits = ((x.value < 0x1p-14f ? 113 : x.bits >> 23) + 13) << 23;
    const int exponent = (int)(magic.bits >> 23) - 126;
    x.value += magic.value;
    return sign | (uint16_t)(((uint32_t)exponent << 10) + (x.bits - magic.bits));
}
#endif

/* Blocks of STEP are constant loops for the compiler's vectors. */
#define EACH_CHANNEL(CONVERT)                                                                                          \
    do {                                                                                                               \
        int64_t c = 0;                                                                                                 \
        for (; c + STEP <= channels; c += STEP) {                                                                      \
            _Pragma("omp simd") for (int i = 0; i < STEP; ++i) CONVERT(c + i);                                         \
        }                                                                                                              \
        for (; c < channels; ++c) CONVERT(c);                                                                          \
    } while (0)

INLINE void fetch_channels(REAL *restrict to, const void *restrict map, int64_t at, const int64_t channels, REAL factor,
                           int64_t storage)
{
    if (storage == BFLOAT16) {
        const uint16_t *from = (const uint16_t *)map + at;
#define CONVERT(c) to[c] = factor * (REAL)from_bfloat16(from[c])
        EACH_CHANNEL(CONVERT);
#undef CONVERT
    } else if (storage == FLOAT16) {
        const float16 *from = (const float16 *)map + at;
#define CONVERT(c) to[c] = factor * (REAL)FROM_FLOAT16(from[c])
        EACH_CHANNEL(CONVERT);
#undef CONVERT
    } else {
        const REAL *from = (const REAL *)map + at;
#define CONVERT(c) to[c] = factor * from[c]
        EACH_CHANNEL(CONVERT);
#undef CONVERT
    }
}

INLINE void put_channels(void *restrict map, int64_t at, const REAL *restrict from, const int64_t channels, REAL factor,
                         int64_t storage)
{
    if (storage == BFLOAT16) {
        uint16_t *to = (uint16_t *)map + at;
#define CONVERT(c) to[c] = to_bfloat16((float)(factor * from[c]))
        EACH_CHANNEL(CONVERT);
#undef CONVERT
    } else if (storage == FLOAT16) {
        float16 *to = (float16 *)map + at;
#define CONVERT(c) to[c] = TO_FLOAT16((float)(factor * from[c]))
        EACH_CHANNEL(CONVERT);
#undef CONVERT
    } else {
        REAL *to = (REAL *)map + at;
#define CONVERT(c) to[c] = factor * from[c]
        EACH_CHANNEL(CONVERT);
#undef CONVERT
    }
}

INLINE void fetch_row(REAL *to, const void *map, int64_t at, int64_t channels, REAL factor, int64_t storage)
{
    if (channels == USUAL_CHANNELS) fetch_channels(to, map, at, USUAL_CHANNELS, factor, storage);
    else fetch_channels(to, map, at, channels, factor, storage);
}

INLINE void put_row(void *map, int64_t at, const REAL *from, int64_t channels, REAL factor, int64_t storage)
{
    if (channels == USUAL_CHANNELS) put_channels(map, at, from, USUAL_CHANNELS, factor, storage);
    else put_channels(map, at, from, channels, factor, storage);
}

/* ---------------------------------------------------------------------------------------------------------------------
 * Small matrix products
 */

/* ROWS rows of out (+)= a @ b, for `vectors` (a constant where this is inlined) vectors of columns. */
INLINE void product_block(const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t b_row, REAL *out,
                          int64_t out_row, int64_t steps, int add, const int vectors)
{
    Vector sum[ROWS][COLUMNS];
    UNROLL for (int r = 0; r < ROWS; ++r) UNROLL for (int c = 0; c < vectors; ++c)
        sum[r][c] = add ? load(out + r * out_row + c * LANES) : (Vector){0};
    for (int64_t k = 0; k < steps; ++k, a += a_step, b += b_row) {
        Vector right[COLUMNS];
        UNROLL for (int c = 0; c < vectors; ++c) right[c] = load(b + c * LANES);
        UNROLL for (int r = 0; r < ROWS; ++r) {
            const Vector left = splat(a[r * a_row]);
            UNROLL for (int c = 0; c < vectors; ++c) sum[r][c] += left * right[c];
        }
    }
    UNROLL for (int r = 0; r < ROWS; ++r) UNROLL for (int c = 0; c < vectors; ++c)
        store(out + r * out_row + c * LANES, sum[r][c]);
}

/* out [rows, columns] (+)= a [rows, steps] @ b [steps, columns], the element (m, k) of `a` at m * a_row + k * a_step.
 * Whole blocks of ROWS are computed: `out` has room for them. `columns` is a multiple of STEP. */
static void product(const REAL *a, int64_t a_row, int64_t a_step, const REAL *b, int64_t b_row, REAL *out,
                    int64_t out_row, int64_t rows, int64_t steps, int64_t columns, int add)
{
    for (int64_t c = 0; c < columns; c += COLUMNS * LANES)
        for (int64_t r = 0; r < rows; r += ROWS) {
#define CALL(vectors)                                                                                                  \
    product_block(a + r * a_row, a_row, a_step, b + c, b_row, out + r * out_row + c, out_row, steps, add, vectors)
            switch (smaller((columns - c) / LANES, COLUMNS)) {
            case 1: CALL(1); break;
            case 2: CALL(2); break;
#if COLUMNS == 4
            case 3: CALL(3); break;
#endif
            default: CALL(COLUMNS);
            }
#undef CALL
        }
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (FourBits){__VA_ARGS__})
#endif
typedef REAL Four __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef BITS(REAL) FourBits __attribute__((vector_size(4 * sizeof(REAL))));

/* from [rows, width] to to [width, to_row], in squares of 4 x 4; `width` is a multiple of 4, `rows` is rounded up. */
static void transpose(const REAL *from, int64_t width, REAL *to, int64_t to_row, int64_t rows)
{
    for (int64_t r = 0; r < rows; r += 4)
        for (int64_t c = 0; c < width; c += 4) {
            const REAL *in = from + r * width + c;
            REAL *out = to + c * to_row + r;
            const Four r0 = *(const Four *)in, r1 = *(const Four *)(in + width);
            const Four r2 = *(const Four *)(in + 2 * width), r3 = *(const Four *)(in + 3 * width);
            const Four low01 = SHUFFLE(r0, r1, 0, 4, 1, 5), high01 = SHUFFLE(r0, r1, 2, 6, 3, 7);
            const Four low23 = SHUFFLE(r2, r3, 0, 4, 1, 5), high23 = SHUFFLE(r2, r3, 2, 6, 3, 7);
            *(Four *)out = SHUFFLE(low01, low23, 0, 1, 4, 5);
            *(Four *)(out + to_row) = SHUFFLE(low01, low23, 2, 3, 6, 7);
            *(Four *)(out + 2 * to_row) = SHUFFLE(high01, high23, 0, 1, 4, 5);
            *(Four *)(out + 3 * to_row) = SHUFFLE(high01, high23, 2, 3, 6, 7);
        }
}

/* ---------------------------------------------------------------------------------------------------------------------
 * One window of one head
 */

/* What a thread works on: where the tokens of a window lie, and matrices whose rows have `deep` (channels of a head) or
 * `wide` (keys of a window) elements, padded with zeros. */
typedef struct {
    int64_t tokens, wide, head_dim, deep, queries;
    int64_t *place, *query; /* [tokens]: pixel of the token in the batch of maps, or -1; the queries among the tokens */
    int masked;             /* whether region and hidden count in this window */
    REAL *region, *hidden;  /* [wide]: number of the token's region; -inf for a key that is hidden, else 0 */
    REAL *k, *v, *k_t, *v_t;
    REAL *q, *weights, *out;                       /* of a block of queries */
    REAL *grad_out, *grad_weights, *grad_k, *grad_v; /* backward only */
    void *memory;
} Scratch;

static Scratch scratch(const Shape *s, int backward)
{
    Scratch w = {.tokens = s->window_h * s->window_w, .head_dim = s->channels / s->heads};
    w.wide = at_least(w.tokens, STEP), w.deep = at_least(w.head_dim, STEP);
    const int64_t block = smaller(at_least(w.tokens, ROWS), QUERIES);
    const int64_t rows = at_least(w.tokens, ROWS) + 4, slack = ROWS * STEP; /* whole blocks are read */
    const int64_t flat = w.wide, deep = rows * w.deep, turned = w.deep * w.wide + slack;
    const int64_t logits = block * w.wide + slack, part = block * w.deep + slack;
    struct { REAL **matrix; int64_t size; int needed; } parts[] = {
        {&w.region, flat, 1},   {&w.hidden, flat, 1},
        {&w.k, deep, 1},        {&w.v, deep, 1},
        {&w.k_t, turned, 1},    {&w.v_t, turned, backward},
        {&w.q, part, 1},        {&w.weights, logits, 1},
        {&w.out, part, 1},      {&w.grad_out, part, backward},
        {&w.grad_weights, logits, backward}, {&w.grad_k, deep, backward},
        {&w.grad_v, deep, backward},
    };
    const int number = sizeof(parts) / sizeof(*parts);
    int64_t bytes = at_least(2 * w.tokens * sizeof(int64_t), 64), size = bytes;
    for (int i = 0; i < number; ++i) size += parts[i].needed * at_least(parts[i].size * sizeof(REAL), 64);
    w.memory = aligned_alloc(64, size);
    if (w.memory == NULL) abort(); /* a few hundred kilobytes */
    memset(w.memory, 0, size);
    w.place = w.memory, w.query = w.place + w.tokens;
    for (int i = 0; i < number; ++i) {
        *parts[i].matrix = (REAL *)((char *)w.memory + bytes);
        bytes += parts[i].needed * at_least(parts[i].size * sizeof(REAL), 64);
    }
    return w;
}

static int64_t windows_of(const Shape *s)
{
    const int64_t rows = at_least(s->height, s->window_h) / s->window_h;
    const int64_t cols = at_least(s->width, s->window_w) / s->window_w;
    return s->batch * rows * cols;
}

/* Fill in the places, queries and masks of a window, or of a group of the grid. */
static void locate(const Shape *s, int64_t window, int hide, Scratch *w)
{
    const int64_t padded_h = at_least(s->height, s->window_h), padded_w = at_least(s->width, s->window_w);
    const int64_t rows = padded_h / s->window_h, cols = padded_w / s->window_w;
    const int64_t col = window % cols, row = window / cols % rows, image = window / cols / rows;
    const int last_row = s->shift && row == rows - 1, last_col = s->shift && col == cols - 1;
    w->queries = 0;
    for (int64_t i = 0, n = 0; i < s->window_h; ++i) {
        int64_t y = s->grid ? i * rows + row : row * s->window_h + i + s->shift;
        if (y >= padded_h) y -= padded_h;
        for (int64_t j = 0; j < s->window_w; ++j, ++n) {
            int64_t x = s->grid ? j * cols + col : col * s->window_w + j + s->shift;
            if (x >= padded_w) x -= padded_w;
            const int inside = y < s->height && x < s->width;
            w->place[n] = inside ? (image * s->height + y) * s->width + x : -1;
            w->query[w->queries] = n;
            w->queries += inside;
        }
    }
    w->masked = last_row || last_col || (hide && w->queries < w->tokens);
    if (!w->masked) return;
    for (int64_t n = 0; n < w->tokens; ++n) { /* what the roll brought in is beyond window - shift of a last window */
        const int64_t i = n / s->window_w, j = n % s->window_w;
        w->region[n] = (last_row && i >= s->window_h - s->shift) + 2 * (last_col && j >= s->window_w - s->shift);
        w->hidden[n] = hide && w->place[n] < 0 ? -INFINITY : 0;
    }
}

/* The keys or values of all tokens of the window; `first` is their first channel in qkv. */
static void fetch_tokens(const Shape *s, const Scratch *w, const void *qkv, const REAL *padding, int64_t first,
                         REAL *to)
{
    for (int64_t n = 0; n < w->tokens; ++n) {
        REAL *row = to + n * w->deep;
        if (w->place[n] >= 0) fetch_row(row, qkv, w->place[n] * s->qkv_stride + first, w->head_dim, 1, s->storage);
        else if (padding) memcpy(row, padding + first, w->head_dim * sizeof(REAL));
        else memset(row, 0, w->head_dim * sizeof(REAL));
    }
}

/* Rows of a map for the queries from `query` on; `stride` elements a token. */
static void fetch_queries(const Shape *s, const Scratch *w, const int64_t *query, int64_t rows, const void *map,
                          int64_t stride, int64_t first, REAL factor, REAL *to)
{
    for (int64_t i = 0; i < rows; ++i)
        fetch_row(to + i * w->deep, map, w->place[query[i]] * stride + first, w->head_dim, factor, s->storage);
}

static void put_queries(const Shape *s, const Scratch *w, const int64_t *query, int64_t rows, void *map, int64_t stride,
                        int64_t first, REAL factor, const REAL *from)
{
    for (int64_t i = 0; i < rows; ++i)
        put_row(map, w->place[query[i]] * stride + first, from + i * w->deep, w->head_dim, factor, s->storage);
}

/* row = softmax(row + bias + mask) of `wide` keys; `masked` is a constant where this is inlined, and `wide` may be. */
INLINE void softmax_row(REAL *restrict row, const REAL *restrict bias, const Scratch *w, REAL region, const int masked,
                        const int64_t wide)
{
    Vector top = splat(-INFINITY), sum = {0};
    UNROLL for (int64_t j = 0; j < wide; j += LANES) {
        Vector x = load(row + j) + load(bias + j);
        if (masked) {
            const Bits apart = load(w->region + j) != region;
            x += load(w->hidden + j) + (Vector)((Bits)splat(MASKED) & apart);
        }
        store(row + j, x);
        top = choose(x > top, x, top);
    }
    const REAL shift = largest(top);
    UNROLL for (int64_t j = 0; j < wide; j += LANES) {
        const Vector x = exponential(load(row + j) - shift);
        store(row + j, x);
        sum += x;
    }
    const REAL factor = 1 / total(sum);
    UNROLL for (int64_t j = 0; j < wide; j += LANES) store(row + j, load(row + j) * factor);
}

/* From the gradient of a row of weights to that of its logits, which is added to that of the bias. */
INLINE void softmax_backward_row(const REAL *restrict weights, REAL *restrict row, REAL *restrict grad_bias,
                                 const int64_t wide)
{
    Vector sum = {0};
    UNROLL for (int64_t j = 0; j < wide; j += LANES) sum += load(weights + j) * load(row + j);
    const REAL mean = total(sum);
    UNROLL for (int64_t j = 0; j < wide; j += LANES) {
        const Vector x = load(weights + j) * (load(row + j) - mean);
        store(row + j, x);
        store(grad_bias + j, load(grad_bias + j) + x);
    }
}

/* w->weights of `rows` queries, whose scaled q is in w->q. */
static void attend(const Scratch *w, const int64_t *query, int64_t rows, const REAL *bias, int64_t bias_rows)
{
    product(w->q, w->deep, 1, w->k_t, w->wide, w->weights, w->wide, rows, w->head_dim, w->wide, 0);
    for (int64_t i = 0; i < rows; ++i) {
        REAL *row = w->weights + i * w->wide;
        const REAL *row_bias = bias + (bias_rows > 1 ? query[i] : 0) * w->wide;
        if (w->masked) softmax_row(row, row_bias, w, w->region[query[i]], 1, w->wide);
        else if (w->wide == USUAL_KEYS) softmax_row(row, row_bias, w, 0, 0, USUAL_KEYS);
        else softmax_row(row, row_bias, w, 0, 0, w->wide);
    }
}

/* Ask for the rows of the gradient that this window and head will write, long before they are. Inlined: a function that
 * only asks has no effect, and a call of it would go. */
INLINE void expect_rows(const Shape *s, const Scratch *w, const void *grad_qkv, int64_t first)
{
    const int64_t bytes = s->storage == SAME ? sizeof(REAL) : 2;
    for (int64_t n = 0; n < w->tokens; ++n)
        for (int64_t part = 0; part < 3 && w->place[n] >= 0; ++part) {
            const int64_t at = (w->place[n] * 3 + part) * s->channels + first;
            const char *row = (const char *)grad_qkv + at * bytes;
            for (int64_t line = 0; line < w->head_dim * bytes; line += 64) __builtin_prefetch(row + line, 1);
        }
}

static void forward_window(const Shape *s, const Scratch *w, int64_t head, const void *qkv, const REAL *bias,
                           const REAL *padding, void *out)
{
    const int64_t C = s->channels, first = head * w->head_dim;
    fetch_tokens(s, w, qkv, padding, C + first, w->k);
    fetch_tokens(s, w, qkv, padding, 2 * C + first, w->v);
    transpose(w->k, w->deep, w->k_t, w->wide, w->tokens);
    for (int64_t done = 0; done < w->queries; done += QUERIES) {
        const int64_t *query = w->query + done, rows = smaller(w->queries - done, QUERIES);
        fetch_queries(s, w, query, rows, qkv, s->qkv_stride, first, s->scale, w->q);
        attend(w, query, rows, bias, s->bias_rows);
        product(w->weights, w->wide, 1, w->v, w->deep, w->out, w->deep, rows, w->tokens, w->deep, 0);
        put_queries(s, w, query, rows, out, C, first, 1, w->out);
    }
}

static void backward_window(const Shape *s, const Scratch *w, int64_t head, const void *grad, const void *qkv,
                            const REAL *bias, const REAL *padding, void *grad_qkv, REAL *grad_bias, REAL *grad_padding)
{
    const int64_t C = s->channels, first = head * w->head_dim, N = w->tokens, wide = w->wide, deep = w->deep;
    fetch_tokens(s, w, qkv, padding, C + first, w->k);
    fetch_tokens(s, w, qkv, padding, 2 * C + first, w->v);
    transpose(w->k, deep, w->k_t, wide, N);
    transpose(w->v, deep, w->v_t, wide, N);
    expect_rows(s, w, grad_qkv, first);
    for (int64_t done = 0; done < w->queries; done += QUERIES) {
        const int64_t *query = w->query + done, rows = smaller(w->queries - done, QUERIES);
        fetch_queries(s, w, query, rows, qkv, s->qkv_stride, first, s->scale, w->q);
        fetch_queries(s, w, query, rows, grad, C, first, 1, w->grad_out);
        attend(w, query, rows, bias, s->bias_rows);
        product(w->weights, 1, wide, w->grad_out, deep, w->grad_v, deep, N, rows, deep, done > 0);
        product(w->grad_out, deep, 1, w->v_t, wide, w->grad_weights, wide, rows, w->head_dim, wide, 0);
        for (int64_t i = 0; i < rows; ++i) {
            const REAL *weights = w->weights + i * wide;
            REAL *row = w->grad_weights + i * wide;
            REAL *row_bias = grad_bias + (s->bias_rows > 1 ? query[i] : 0) * wide;
            if (wide == USUAL_KEYS) softmax_backward_row(weights, row, row_bias, USUAL_KEYS);
            else softmax_backward_row(weights, row, row_bias, wide);
        }
        product(w->grad_weights, 1, wide, w->q, deep, w->grad_k, deep, N, rows, deep, done > 0);
        product(w->grad_weights, wide, 1, w->k, deep, w->out, deep, rows, N, deep, 0);
        put_queries(s, w, query, rows, grad_qkv, 3 * C, first, s->scale, w->out);
    }
    for (int64_t n = 0; n < N; ++n)
        for (int part = 1; part <= 2; ++part) {
            const REAL *row = (part == 1 ? w->grad_k : w->grad_v) + n * deep;
            const int64_t channel = part * C + first;
            if (w->place[n] >= 0) put_row(grad_qkv, w->place[n] * 3 * C + channel, row, w->head_dim, 1, s->storage);
            else if (padding)
                for (int64_t c = 0; c < w->head_dim; ++c) grad_padding[channel + c] += row[c];
        }
}

/* ------------------------------------------------------------------------------------------------------------------ */

/* Run STATEMENT for each window of each head; those of one chunk and a few heads by one thread, in order. */
#define EACH_WINDOW(s, chunks, padding, backward, STATEMENT)                                                           \
    _Pragma("omp parallel num_threads((int)(s)->threads)")                                                             \
    {                                                                                                                  \
        Scratch w = scratch(s, backward);                                                                              \
        const int64_t windows = windows_of(s), groups = at_least((s)->heads, HEADS) / HEADS;                           \
        _Pragma("omp for schedule(static)") for (int64_t task = 0; task < (chunks) * groups; ++task)                   \
        {                                                                                                              \
            const int64_t chunk = task / groups, first = task % groups * HEADS;                                        \
            const int64_t window_end = windows * (chunk + 1) / (chunks), end = smaller(first + HEADS, (s)->heads);     \
            for (int64_t window = windows * chunk / (chunks); window < window_end; ++window) {                         \
                locate(s, window, (padding) == NULL, &w);                                                              \
                for (int64_t head = first; head < end; ++head) STATEMENT;                                              \
            }                                                                                                          \
        }                                                                                                              \
        free(w.memory);                                                                                                \
    }

void window_attention_forward(const Shape *s, const void *qkv, const REAL *bias, const REAL *padding, void *out)
{
    EACH_WINDOW(s, windows_of(s), padding, 0,
                forward_window(s, &w, head, qkv, bias + head * s->bias_rows * w.wide, padding, out))
}

/* grad_bias holds `chunks` zeroed sums, each as bias is, grad_padding (unused without padding) as many [3 * C]. */
void window_attention_backward(const Shape *s, const void *grad, const void *qkv, const REAL *bias, const REAL *padding,
                               void *grad_qkv, REAL *grad_bias, REAL *grad_padding)
{
    EACH_WINDOW(s, s->chunks, padding, 1,
                backward_window(s, &w, head, grad, qkv, bias + head * s->bias_rows * w.wide, padding, grad_qkv,
                                grad_bias + (chunk * s->heads + head) * s->bias_rows * w.wide,
                                grad_padding + (padding ? chunk * 3 * s->channels : 0)))
}
