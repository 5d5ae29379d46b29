/* Elementwise steps of the default drifting loss on the CPU, each fused into few passes over memory that stays in the
 * cache. Products of matrices are left to torch. Every function here has a plain PyTorch twin in the package, which is
 * its oracle in the tests and runs where this file cannot: other fields, other types, other devices, no compiler.
 *
 * Shapes: b problems, G generated, M references, D features; all arrays are float32 and contiguous unless a stride
 * (in floats, between problems) is given. Each function visits the problems from `first` to before `last`.
 */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
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

/* total = sum_t weights[b, t] parts[t][b, :], for `length` floats a row; `total` may be parts[0]. */
void superpose(ptrdiff_t first, ptrdiff_t last, const float *const *parts, const float *weights, float *total,
               ptrdiff_t num_parts, ptrdiff_t length)
{
    for (ptrdiff_t b = first; b < last; b++)
        for (ptrdiff_t begin = 0; begin < length; begin += 1024) { /* a stretch that stays in the cache */
            ptrdiff_t end = begin + 1024 < length ? begin + 1024 : length;
            float *out = total + b * length;
            const float *x = parts[0] + b * length;
            float w = weights[b * num_parts];
            for (ptrdiff_t k = begin; k < end; k++)
                out[k] = w * x[k];
            for (ptrdiff_t t = 1; t < num_parts; t++) {
                x = parts[t] + b * length;
                w = weights[b * num_parts + t];
                for (ptrdiff_t k = begin; k < end; k++)
                    out[k] += w * x[k];
            }
        }
}

/* The rest visits small problems, whose rows are too short to be vectorised: one problem lies in the first cache, and
 * loops run over problems or features. References are given as blocks [b, counts[k], D] one after another. */

#define LANES 8 /* floats of one vector */

/* `mean_shift` at all temperatures, for eight problems side by side: coefficients[t], mass[t] and on_floor[t] as there.
 * Returns 0 where a problem's sums underflow, or where there is no memory for 2 G M + 2 M + G vectors. */
int mean_shift_of_small(ptrdiff_t first, ptrdiff_t last, const float *distance, const float *weight,
                        const float *temperatures, ptrdiff_t num_temperatures, float *const *coefficients,
                        float *const *mass, float *const *on_floor, ptrdiff_t num_gen, ptrdiff_t num_refs,
                        ptrdiff_t num_negative, float floor_value, float attraction, float repulsion, int mask_self,
                        float smallest_sum)
{
    typedef float lanes[LANES];
    const ptrdiff_t pairs = num_gen * num_refs;
    lanes *memory = malloc((2 * pairs + 2 * num_refs + num_gen) * sizeof(lanes));
    if (!memory)
        return 0;
    lanes *d = memory, *c = d + pairs, *w = c + pairs, *column = w + num_refs, *row = column + num_refs;
    int fine = 1;
    for (ptrdiff_t b = first; b < last && fine; b += LANES) {
        const ptrdiff_t count = last - b < LANES ? last - b : LANES;
        lanes nearest;
        for (ptrdiff_t l = 0; l < LANES; l++) { /* lanes beyond the last problem repeat it */
            const ptrdiff_t problem = b + (l < count ? l : count - 1);
            for (ptrdiff_t k = 0; k < pairs; k++)
                d[k][l] = distance[problem * pairs + k];
            for (ptrdiff_t j = 0; j < num_refs; j++)
                w[j][l] = weight ? weight[problem * num_refs + j] : 1.0f;
            nearest[l] = INFINITY;
        }
        for (ptrdiff_t i = 0; i < num_gen; i++)
            for (ptrdiff_t j = 0; j < num_refs; j++)
                if (!mask_self || i != j)
                    for (ptrdiff_t l = 0; l < LANES; l++)
                        nearest[l] = d[i * num_refs + j][l] < nearest[l] ? d[i * num_refs + j][l] : nearest[l];
        for (ptrdiff_t t = 0; t < num_temperatures && fine; t++) {
            const float inverse = 1.0f / temperatures[t];
            lanes floored = { 0 };
            memset(column, 0, num_refs * sizeof(lanes));
            for (ptrdiff_t i = 0; i < num_gen; i++) {
                lanes sum = { 0 };
                for (ptrdiff_t j = 0; j < num_refs; j++) {
                    float *e = c[i * num_refs + j];
                    const float *de = d[i * num_refs + j];
                    const float seen = mask_self && i == j ? 0.0f : 1.0f;
#pragma omp simd
                    for (ptrdiff_t l = 0; l < LANES; l++) {
                        e[l] = seen * exp_nonpositive((nearest[l] - de[l]) * inverse);
                        sum[l] += e[l];
                        column[j][l] += e[l];
                    }
                }
                for (ptrdiff_t l = 0; l < LANES; l++) {
                    fine &= sum[l] >= smallest_sum;
                    row[i][l] = 1.0f / sqrtf(sum[l]);
                }
            }
            for (ptrdiff_t j = 0; j < num_refs; j++)
                for (ptrdiff_t l = 0; l < LANES; l++) {
                    fine &= column[j][l] >= smallest_sum;
                    column[j][l] = 1.0f / sqrtf(column[j][l]);
                }
            for (ptrdiff_t i = 0; i < num_gen; i++) {
                lanes sums[2] = { { 0 } }, factor[2]; /* of positives, of negatives */
                for (ptrdiff_t j = 0; j < num_refs; j++) {
                    float *a = c[i * num_refs + j], *sum = sums[j < num_negative];
#pragma omp simd
                    for (ptrdiff_t l = 0; l < LANES; l++) {
                        float affinity = a[l] * row[i][l] * column[j][l];
                        floored[l] += affinity <= floor_value ? 1.0f : 0.0f;
                        a[l] = (affinity < floor_value ? floor_value : affinity) * w[j][l];
                        sum[l] += a[l];
                    }
                }
                for (ptrdiff_t l = 0; l < LANES; l++) {
                    factor[0][l] = attraction * sums[1][l];
                    factor[1][l] = -repulsion * sums[0][l];
                }
                for (ptrdiff_t j = 0; j < num_refs; j++)
                    for (ptrdiff_t l = 0; l < LANES; l++)
                        c[i * num_refs + j][l] *= factor[j < num_negative][l];
                for (ptrdiff_t l = 0; l < count; l++)
                    for (ptrdiff_t side = 0; side < 2; side++)
                        mass[t][((b + l) * num_gen + i) * 2 + side] = sums[side][l];
            }
            for (ptrdiff_t l = 0; l < count; l++) {
                for (ptrdiff_t k = 0; k < pairs; k++)
                    coefficients[t][(b + l) * pairs + k] = c[k][l];
                on_floor[t][b + l] = floored[l];
            }
        }
    }
    free(memory);
    return fine;
}

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
void distances_of_small(ptrdiff_t first, ptrdiff_t last, const float *gen, const float *const *blocks,
                        const ptrdiff_t *counts, ptrdiff_t num_blocks, const float *weight, float *distance,
                        float *row_sum, ptrdiff_t num_gen, ptrdiff_t num_refs, ptrdiff_t width, float smallest)
{
    const int self_is_gen = blocks[0] == gen;
    for (ptrdiff_t b = first; b < last; b++)
        for (ptrdiff_t i = 0; i < num_gen; i++) {
            const float *x = gen + (b * num_gen + i) * width, *w = weight ? weight + b * num_refs : NULL;
            float *tile = distance + b * num_gen * num_refs, *d = tile + i * num_refs, sum = 0.0f;
            ptrdiff_t j = 0;
            for (ptrdiff_t k = 0; k < num_blocks; k++)
                for (ptrdiff_t n = 0; n < counts[k]; n++, j++) {
                    if (self_is_gen && j < i) {
                        d[j] = tile[j * num_refs + i];
                    } else {
                        float squared = squared_difference(x, blocks[k] + (b * counts[k] + n) * width, width);
                        d[j] = sqrtf(squared < smallest ? smallest : squared);
                    }
                    sum += w ? w[j] * d[j] : d[j];
                }
            row_sum[b * num_gen + i] = sum;
        }
}

typedef float vector __attribute__((vector_size(4 * LANES))); /* of GCC and Clang, on any processor */
enum { ROWS = 4, VECTORS = 2, STRETCH = VECTORS * LANES };     /* of one product in registers */

/* square[b, i, t] = |V|^2 of V[b, i, :] = sum_j c_ij (y_j - x_i) for coefficients[t], c [b, G, M] each; V is written to
 * `drift` where that is given, for one part only. Coordinates are taken from the first generated sample. Returns 0 where
 * there is no memory for a copy of one problem, 1 otherwise. */
int displacement_of_small(ptrdiff_t first, ptrdiff_t last, const float *const *coefficients, ptrdiff_t num_parts,
                          const float *gen, const float *const *blocks, const ptrdiff_t *counts, ptrdiff_t num_blocks,
                          float *drift, float *square, ptrdiff_t num_gen, ptrdiff_t num_refs, ptrdiff_t width)
{
    const ptrdiff_t stretches = (width + STRETCH - 1) / STRETCH;
    typedef vector stretch[VECTORS];
    const size_t size = (num_refs + num_gen) * stretches * sizeof(stretch);
    stretch *memory = aligned_alloc(sizeof(vector), size);
    if (!memory)
        return 0;
    memset(memory, 0, size);
    for (ptrdiff_t b = first; b < last; b++) {
        const float *origin = gen + b * num_gen * width;
        stretch *y = memory;
        for (ptrdiff_t k = 0; k <= num_blocks; k++) { /* the last: the generated samples themselves */
            const ptrdiff_t count = k < num_blocks ? counts[k] : num_gen;
            const float *raw = (k < num_blocks ? blocks[k] : gen) + b * count * width;
            for (ptrdiff_t n = 0; n < count; n++, raw += width, y += stretches)
                for (ptrdiff_t d = 0; d < width; d++)
                    ((float *)y)[d] = raw[d] - origin[d];
        }
        const stretch *own = memory + num_refs * stretches;
        const ptrdiff_t turns = num_parts * num_gen; /* samples of one part, then of the next */
        for (ptrdiff_t begin = 0; begin < turns; begin += ROWS) {
            const float *c[ROWS];
            ptrdiff_t row[ROWS], part[ROWS];
            float total[ROWS], squares[ROWS];
            vector norm[ROWS] = { { 0 } };
            for (ptrdiff_t r = 0; r < ROWS; r++) { /* turns beyond the last repeat it */
                const ptrdiff_t turn = begin + r < turns ? begin + r : turns - 1;
                part[r] = turn / num_gen;
                row[r] = turn % num_gen;
                c[r] = coefficients[part[r]] + (b * num_gen + row[r]) * num_refs;
                total[r] = squares[r] = 0.0f;
                for (ptrdiff_t j = 0; j < num_refs; j++)
                    total[r] += c[r][j];
            }
            for (ptrdiff_t s = 0; s < stretches; s++) {
                vector sum[ROWS][VECTORS];
                for (ptrdiff_t r = 0; r < ROWS; r++)
                    for (ptrdiff_t v = 0; v < VECTORS; v++)
                        sum[r][v] = -total[r] * own[row[r] * stretches + s][v];
                for (ptrdiff_t j = 0; j < num_refs; j++)
                    for (ptrdiff_t r = 0; r < ROWS; r++)
                        for (ptrdiff_t v = 0; v < VECTORS; v++)
                            sum[r][v] += c[r][j] * memory[j * stretches + s][v];
                const ptrdiff_t rest = width - s * STRETCH, filled = rest < STRETCH ? rest : STRETCH;
                for (ptrdiff_t r = 0; r < ROWS; r++) {
                    for (ptrdiff_t v = 0; v < VECTORS; v++)
                        norm[r] += sum[r][v] * sum[r][v];
                    if (drift)
                        memcpy(drift + (b * num_gen + row[r]) * width + s * STRETCH, sum[r], filled * sizeof(float));
                }
            }
            for (ptrdiff_t r = 0; r < ROWS; r++) {
                for (ptrdiff_t l = 0; l < LANES; l++)
                    squares[r] += norm[r][l];
                square[(b * num_gen + row[r]) * num_parts + part[r]] = squares[r];
            }
        }
    }
    free(memory);
    return 1;
}
