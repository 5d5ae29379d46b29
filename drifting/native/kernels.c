/* Elementwise steps of the default drifting loss on the CPU, each fused into few passes over memory that stays in the
 * cache. Products of matrices are left to torch. Every function here has a plain PyTorch twin in the package, which is
 * its oracle in the tests and runs where this file cannot: other fields, other types, other devices, no compiler.
 *
 * Shapes: b problems, G generated, M references, D features; all arrays are float32 and contiguous unless a stride
 * (in floats, between problems) is given. Each function visits the problems from `first` to before `last`.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

/* exp(x) to 2 units in the last place for x <= 88; 0 below -87; NaN stays NaN. Written so that compilers vectorise it. */
static inline float exp_nonpositive(float x)
{
    const float log2e = 1.44269504089f, ln2_high = 0.693145751953125f, ln2_low = 1.42860677e-6f;
    float clipped = x < -87.0f ? -87.0f : x;
    float n = rintf(clipped * log2e);
    float r = fmaf(-n, ln2_low, fmaf(-n, ln2_high, clipped)); /* |r| <= ln 2 / 2 */
    float p = 1.0f / 5040;
    p = fmaf(p, r, 1.0f / 720);
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    union { int i; float f; } power = { ((int)n + 127) << 23 };
    return x < -87.0f ? 0.0f : p * power.f;
}

/* sum[b, :] += sum over samples of raw[b, :, :]. */
void add_samples(ptrdiff_t first, ptrdiff_t last, const float *raw, float *sum, ptrdiff_t count, ptrdiff_t width)
{
    for (ptrdiff_t b = first; b < last; b++) {
        float *s = sum + b * width;
        for (ptrdiff_t k = 0; k < count; k++) {
            const float *x = raw + (b * count + k) * width;
            for (ptrdiff_t d = 0; d < width; d++)
                s[d] += x[d];
        }
    }
}

/* refs = raw - centre, and |refs|^2. */
void centre_samples(ptrdiff_t first, ptrdiff_t last, const float *raw, const float *centre, float *refs, float *square,
                    ptrdiff_t count, ptrdiff_t width, ptrdiff_t refs_stride, ptrdiff_t square_stride)
{
    for (ptrdiff_t b = first; b < last; b++) {
        const float *c = centre + b * width;
        for (ptrdiff_t k = 0; k < count; k++) {
            const float *x = raw + (b * count + k) * width;
            float *y = refs + b * refs_stride + k * width;
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (ptrdiff_t d = 0; d < width; d++) {
                float v = x[d] - c[d];
                y[d] = v;
                sum += v * v;
            }
            square[b * square_stride + k] = sum;
        }
    }
}

/* distance = sqrt(max(|x|^2 + |y|^2 - 2 x.y, smallest)), self pairs exactly sqrt(smallest) where the first G references
 * are the generated samples; row_sum = sum_j w_j distance. `inner` may be `distance` itself. `weight` may be NULL. */
void distances(ptrdiff_t first, ptrdiff_t last, const float *inner, ptrdiff_t inner_stride, const float *own,
               ptrdiff_t own_stride, const float *square, ptrdiff_t square_stride, const float *weight, float *distance,
               float *row_sum, ptrdiff_t num_gen, ptrdiff_t num_refs, float smallest, int self_is_gen)
{
    for (ptrdiff_t b = first; b < last; b++) {
        const float *y2 = square + b * square_stride, *w = weight ? weight + b * num_refs : NULL;
        for (ptrdiff_t i = 0; i < num_gen; i++) {
            const float *xy = inner + b * inner_stride + i * num_refs;
            float *d = distance + (b * num_gen + i) * num_refs;
            float x2 = own[b * own_stride + i], sum = 0.0f;
            for (ptrdiff_t j = 0; j < num_refs; j++) {
                float squared = x2 + y2[j] - 2.0f * xy[j];
                d[j] = sqrtf(squared < smallest ? smallest : squared);
            }
            if (self_is_gen)
                d[i] = sqrtf(smallest);
            if (w) {
#pragma omp simd reduction(+ : sum)
                for (ptrdiff_t j = 0; j < num_refs; j++)
                    sum += w[j] * d[j];
            } else {
#pragma omp simd reduction(+ : sum)
                for (ptrdiff_t j = 0; j < num_refs; j++)
                    sum += d[j];
            }
            row_sum[b * num_gen + i] = sum;
        }
    }
}

/* Coefficients of the mean-shift field with the Laplacian kernel and the two-sided affinity (see fields/mean_shift.py).
 *
 * `columns` is working memory of [b, M]. mass[b, i, :] = (sum of affinities to positives, to negatives), on_floor[b] =
 * number of affinities on the floor. Returns 0 at the first problem whose sums underflow, 1 if there is none.
 */
int mean_shift(ptrdiff_t first, ptrdiff_t last, const float *distance, const float *weight, float *coefficients,
               float *mass, float *on_floor, float *columns, ptrdiff_t num_gen, ptrdiff_t num_refs,
               ptrdiff_t num_negative, float temperature, float floor_value, float attraction, float repulsion,
               int mask_self, float smallest_sum)
{
    const float inverse = 1.0f / temperature;
    for (ptrdiff_t b = first; b < last; b++) {
        const float *d = distance + b * num_gen * num_refs, *w = weight ? weight + b * num_refs : NULL;
        float *c = coefficients + b * num_gen * num_refs, *m = mass + b * num_gen * 2, *column = columns + b * num_refs;
        float nearest = INFINITY;
        for (ptrdiff_t i = 0; i < num_gen; i++) {
            const float *di = d + i * num_refs;
            float row = INFINITY;
            ptrdiff_t own = mask_self ? i : num_refs;
#pragma omp simd reduction(min : row)
            for (ptrdiff_t j = 0; j < own; j++)
                row = di[j] < row ? di[j] : row;
#pragma omp simd reduction(min : row)
            for (ptrdiff_t j = own + 1; j < num_refs; j++)
                row = di[j] < row ? di[j] : row;
            nearest = row < nearest ? row : nearest;
        }
        for (ptrdiff_t j = 0; j < num_refs; j++)
            column[j] = 0.0f;
        for (ptrdiff_t k = 0; k < num_gen * num_refs; k++) /* one long loop: rows may be short */
            c[k] = exp_nonpositive((nearest - d[k]) * inverse);
        for (ptrdiff_t i = 0; i < num_gen; i++) {
            float *ci = c + i * num_refs, sum = 0.0f;
            if (mask_self)
                ci[i] = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (ptrdiff_t j = 0; j < num_refs; j++) {
                sum += ci[j];
                column[j] += ci[j];
            }
            if (!(sum >= smallest_sum))
                return 0;
            m[2 * i] = 1.0f / sqrtf(sum);
        }
        for (ptrdiff_t j = 0; j < num_refs; j++) {
            if (!(column[j] >= smallest_sum))
                return 0;
            column[j] = 1.0f / sqrtf(column[j]);
        }
        float floored = 0.0f;
        for (ptrdiff_t i = 0; i < num_gen; i++) {
            float *ci = c + i * num_refs, row = m[2 * i], negative = 0.0f, positive = 0.0f, count = 0.0f;
#pragma omp simd reduction(+ : count)
            for (ptrdiff_t j = 0; j < num_refs; j++) {
                float a = ci[j] * row * column[j];
                count += a <= floor_value ? 1.0f : 0.0f;
                ci[j] = a < floor_value ? floor_value : a;
            }
            floored += count;
            if (w)
                for (ptrdiff_t j = 0; j < num_refs; j++)
                    ci[j] *= w[j];
#pragma omp simd reduction(+ : negative)
            for (ptrdiff_t j = 0; j < num_negative; j++)
                negative += ci[j];
#pragma omp simd reduction(+ : positive)
            for (ptrdiff_t j = num_negative; j < num_refs; j++)
                positive += ci[j];
            m[2 * i] = positive;
            m[2 * i + 1] = negative;
            float push = -repulsion * positive, pull = attraction * negative;
            for (ptrdiff_t j = 0; j < num_negative; j++)
                ci[j] *= push;
            for (ptrdiff_t j = num_negative; j < num_refs; j++)
                ci[j] *= pull;
        }
        on_floor[b] = floored;
    }
    return 1;
}

/* total = sum_t weights[t, b] parts[t][b, :], for `length` floats a problem; `total` may be parts[0]. */
void superpose(ptrdiff_t first, ptrdiff_t last, const float *const *parts, const float *weights, float *total,
               ptrdiff_t num_parts, ptrdiff_t problems, ptrdiff_t length)
{
    for (ptrdiff_t b = first; b < last; b++)
        for (ptrdiff_t begin = 0; begin < length; begin += 1024) { /* a stretch that stays in the cache */
            ptrdiff_t end = begin + 1024 < length ? begin + 1024 : length;
            float *out = total + b * length;
            const float *x = parts[0] + b * length;
            float w = weights[b];
            for (ptrdiff_t k = begin; k < end; k++)
                out[k] = w * x[k];
            for (ptrdiff_t t = 1; t < num_parts; t++) {
                x = parts[t] + b * length;
                w = weights[t * problems + b];
                for (ptrdiff_t k = begin; k < end; k++)
                    out[k] += w * x[k];
            }
        }
}

/* The next two visit small problems as they are given, without a centred copy and without products of matrices: all of
 * a problem lies in the first cache, and differences of coordinates need no centring. References are given as blocks
 * [b, counts[k], D] one after another. */

static inline float squared_difference(const float *x, const float *y, ptrdiff_t width)
{
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (ptrdiff_t d = 0; d < width; d++) {
        float v = y[d] - x[d];
        sum += v * v;
    }
    return sum;
}

/* distance[b, i, j] = sqrt(max(|y_j - x_i|^2, smallest)); row_sum as in `distances`. */
void direct_distances(ptrdiff_t first, ptrdiff_t last, const float *gen, const float *const *blocks,
                      const ptrdiff_t *counts, ptrdiff_t num_blocks, const float *weight, float *distance,
                      float *row_sum, ptrdiff_t num_gen, ptrdiff_t num_refs, ptrdiff_t width, float smallest)
{
    for (ptrdiff_t b = first; b < last; b++)
        for (ptrdiff_t i = 0; i < num_gen; i++) {
            const float *x = gen + (b * num_gen + i) * width, *w = weight ? weight + b * num_refs : NULL;
            float *d = distance + (b * num_gen + i) * num_refs, sum = 0.0f;
            ptrdiff_t j = 0;
            for (ptrdiff_t k = 0; k < num_blocks; k++)
                for (ptrdiff_t n = 0; n < counts[k]; n++, j++) {
                    float squared = squared_difference(x, blocks[k] + (b * counts[k] + n) * width, width);
                    d[j] = sqrtf(squared < smallest ? smallest : squared);
                    sum += w ? w[j] * d[j] : d[j];
                }
            row_sum[b * num_gen + i] = sum;
        }
}

typedef float vector __attribute__((vector_size(32))); /* of GCC and Clang, on any processor */

static inline vector load_vector(const float *x)
{
    vector v;
    memcpy(&v, x, sizeof v);
    return v;
}

/* v[d] = sum_j c_j (y_j[d] - x[d]) for the features [begin, begin + 32) or [begin, begin + 8) of one sample, in registers;
 * adds v * v to `squares`. `v` may be NULL. */
#define PULL(vectors)                                                                                                  \
    do {                                                                                                               \
        vector own[vectors], sum[vectors];                                                                             \
        for (int r = 0; r < vectors; r++) {                                                                            \
            own[r] = load_vector(x + begin + 8 * r);                                                                   \
            sum[r] = (vector){ 0 };                                                                                    \
        }                                                                                                              \
        const float *cj = c;                                                                                           \
        for (ptrdiff_t k = 0; k < num_blocks; k++) {                                                                   \
            const float *y = blocks[k] + b * counts[k] * width + begin;                                                \
            for (ptrdiff_t n = 0; n < counts[k]; n++, y += width, cj++)                                                \
                for (int r = 0; r < vectors; r++)                                                                      \
                    sum[r] += *cj * (load_vector(y + 8 * r) - own[r]);                                                 \
        }                                                                                                              \
        for (int r = 0; r < vectors; r++) {                                                                            \
            squares += sum[r] * sum[r];                                                                                 \
            if (v)                                                                                                     \
                memcpy(v + begin + 8 * r, &sum[r], sizeof sum[r]);                                                     \
        }                                                                                                              \
        begin += 8 * vectors;                                                                                          \
    } while (0)

/* drift[b, i, :] = sum_j c_ij (y_j - x_i), where `drift` is given; square[b, i] = |drift|^2. */
void direct_displacement(ptrdiff_t first, ptrdiff_t last, const float *coefficients, const float *gen,
                         const float *const *blocks, const ptrdiff_t *counts, ptrdiff_t num_blocks, float *drift,
                         float *square, ptrdiff_t num_gen, ptrdiff_t num_refs, ptrdiff_t width)
{
    for (ptrdiff_t b = first; b < last; b++)
        for (ptrdiff_t i = 0; i < num_gen; i++) {
            const float *x = gen + (b * num_gen + i) * width, *c = coefficients + (b * num_gen + i) * num_refs;
            float *v = drift ? drift + (b * num_gen + i) * width : NULL;
            vector squares = { 0 };
            ptrdiff_t begin = 0;
            while (begin + 32 <= width)
                PULL(4);
            while (begin + 8 <= width)
                PULL(1);
            float sum = 0.0f;
            for (int r = 0; r < 8; r++)
                sum += squares[r];
            for (; begin < width; begin++) {
                const float *cj = c;
                float one = 0.0f;
                for (ptrdiff_t k = 0; k < num_blocks; k++)
                    for (ptrdiff_t n = 0; n < counts[k]; n++)
                        one += *cj++ * (blocks[k][(b * counts[k] + n) * width + begin] - x[begin]);
                sum += one * one;
                if (v)
                    v[begin] = one;
            }
            square[b * num_gen + i] = sum;
        }
}
