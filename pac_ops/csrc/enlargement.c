/* Guided enlargement. Fine rows with the same coarse neighbours make a band: what their neighbours hold is spread to
 * the fine width once for the band, into rows that stay in the first-level cache, and every fine row is then sums and
 * products of rows.
 */
#include <math.h>

#include "pairs.h"
#include "window.h"

typedef struct {
    int64_t batch, channels, height, width, out_height, out_width, taps; /* neighbours along each axis */
} Enlargement;

enum { MOST_TAPS = 8 };

typedef struct {
    int64_t first, last; /* fine rows */
    const int64_t *rows; /* their neighbours */
} Band;

/* Cuts the fine rows into bands of at most 16, so that there is work for every thread. NULL without memory. */
static Band *cut(const Enlargement *e, const int64_t *rows, int64_t *count) {
    Band *bands = malloc((size_t)most(e->out_height, 1) * sizeof(Band));
    *count = 0;
    for (int64_t y = 0; bands && y < e->out_height; y++) {
        const int64_t *here = rows + y * e->taps;
        Band *last = *count ? bands + *count - 1 : NULL;
        if (last && y - last->first < 16 && !memcmp(last->rows, here, e->taps * sizeof(int64_t)))
            last->last = y + 1;
        else
            bands[(*count)++] = (Band){y, y + 1, here};
    }
    return bands;
}

/* A whole factor: so many fine columns further on the first neighbour is what the second is here, all along the row.
 * Between two ends, from column `first` on, `count` coarse pixels from `column` on are the first neighbour of `factor`
 * columns each. */
typedef struct {
    int64_t factor, first, count, column; /* factor 0: none */
} Whole;

static Whole whole_factor(const Enlargement *e, const int64_t *columns) {
    int64_t n = e->taps, width = e->out_width, from = width / 2, factor = 1;
    while (from > 0 && columns[(from - 1) * n] == columns[from * n]) from--;
    while (from + factor < width && columns[(from + factor) * n] == columns[from * n]) factor++;
    if (factor >= width) return (Whole){0};
    for (int64_t x = 0; x + factor < width; x++)
        if (memcmp(columns + (x + factor) * n, columns + x * n + 1, (n - 1) * sizeof(int64_t))) return (Whole){0};
    int64_t end = from;
    for (; from > 0 && columns[(from - 1) * n] == columns[end * n] - (end - from) / factor - 1; from--) continue;
    from += (end - from) % factor;
    Whole whole = {factor, from, 0, columns[from * n]};
    for (int64_t x = from; x + factor <= width; x += factor, whole.count++)
        for (int64_t i = 0; i < factor; i++)
            if (columns[(x + i) * n] != whole.column + whole.count) return whole;
    return whole;
}

/* What a coarse row holds at the fine width, for each of the neighbours of the columns: taps rows. */
FOR_EVERY_CPU
static void spread_row(const Enlargement *e, const int64_t *columns, const float *row, float *seen) {
    for (int64_t b = 0; b < e->taps; b++, seen += e->out_width)
        for (int64_t x = 0; x < e->out_width; x++) seen[x] = row[columns[x * e->taps + b]];
}

/* Each pixel so many times. */
FOR_EVERY_CPU
static void repeat(const float *restrict row, int64_t count, int64_t times, float *restrict to) {
    if (times == 2)
        for (int64_t x = 0; x < count; x++) to[2 * x] = to[2 * x + 1] = row[x];
    else
        for (int64_t x = 0; x < count; x++, to += times)
            for (int64_t i = 0; i < times; i++) to[i] = row[x];
}

/* The same by a whole factor: one row, in which each neighbour begins `factor` further on. */
static void spread_by(const Enlargement *e, const Whole *whole, const int64_t *columns, const float *row, float *seen) {
    int64_t n = e->taps, width = e->out_width, factor = whole->factor, end = whole->first + whole->count * factor;
    for (int64_t x = 0; x < whole->first; x++) seen[x] = row[columns[x * n]];
    repeat(row + whole->column, whole->count, factor, seen + whole->first);
    for (int64_t x = end; x < width; x++) seen[x] = row[columns[x * n]];
    for (int64_t b = 1; b < n; b++)
        for (int64_t x = width - factor; x < width; x++) seen[x + b * factor] = row[columns[x * n + b]];
}

/* What the neighbours of a band hold, at the fine width: taps * taps rows. */
static void spread(const Enlargement *e, const Band *band, const int64_t *columns, const float *image, float *seen) {
    for (int64_t a = 0; a < e->taps; a++, seen += e->taps * e->out_width)
        spread_row(e, columns, image + band->rows[a] * e->width, seen);
}

/* The coarse rows of an image that were spread last: a band shares all but one of them with the band before. */
typedef struct {
    float *held;                   /* taps * taps rows */
    Whole whole;
    int64_t row[MOST_TAPS];        /* which row of the image each slot holds, -1 at first */
    const float *of[MOST_TAPS];    /* the slot of each neighbour of a band */
} Spread;

static void look(const Enlargement *e, const Band *band, const int64_t *columns, const float *image, Spread *seen) {
    for (int64_t a = 0; a < e->taps; a++) {
        int64_t row = band->rows[a], slot = row % e->taps;
        float *held = seen->held + slot * e->taps * e->out_width;
        if (seen->row[slot] != row) {
            if (seen->whole.factor)
                spread_by(e, &seen->whole, columns, image + row * e->width, held);
            else
                spread_row(e, columns, image + row * e->width, held);
        }
        seen->row[slot] = row;
        seen->of[a] = held;
    }
}

/* The transpose of `spread`: adds rows to the coarse image. */
static void gather(const Enlargement *e, const Band *band, const int64_t *columns, const float *seen, float *image) {
    for (int64_t a = 0; a < e->taps; a++)
        for (int64_t b = 0; b < e->taps; b++, seen += e->out_width) {
            float *row = image + band->rows[a] * e->width;
            for (int64_t x = 0; x < e->out_width; x++) row[columns[x * e->taps + b]] += seen[x];
        }
}

/* The loops over a row. `taps` is taps * taps; the planes of K or of its gradient are `plane` elements apart, the
 * neighbours in what is seen `apart`. Four neighbours at a time, so that a row of the output is read and written seldom. */

/* Of two rows of neighbours. */
FOR_EVERY_CPU
static void weighted_sum(const float *restrict k, int64_t plane, const float *restrict upper,
                         const float *restrict lower, int64_t apart, int64_t width, int64_t taps, int first,
                         float *restrict out) {
    const float *below = k + taps * plane;
    for (int64_t b = 0; b < taps; b += 2, k += 2 * plane, below += 2 * plane, upper += 2 * apart, lower += 2 * apart)
        for (int64_t x = 0; x < width; x++) {
            float sum = k[x] * upper[x] + k[plane + x] * upper[apart + x];
            sum += below[x] * lower[x] + below[plane + x] * lower[apart + x];
            out[x] = first && !b ? sum : out[x] + sum;
        }
}

FOR_EVERY_CPU
static void add_products(const float *restrict row, const float *restrict k, int64_t plane, int64_t width,
                         int64_t taps, float *restrict sums, int64_t sums_plane) {
    for (int64_t t = 0; t < taps; t++, k += plane, sums += sums_plane)
        for (int64_t x = 0; x < width; x++) sums[x] += row[x] * k[x];
}

FOR_EVERY_CPU
static void add_squares(const float *restrict row, const float *restrict seen, int64_t apart, int64_t width,
                        int64_t taps, int first, float *restrict distance, int64_t plane) {
    for (int64_t t = 0; t < taps; t++, seen += apart, distance += plane)
        for (int64_t x = 0; x < width; x++) {
            float away = row[x] - seen[x];
            distance[x] = first ? away * away : distance[x] + away * away;
        }
}

FOR_EVERY_CPU
static void pull(const float *restrict row, const float *restrict seen, const float *restrict grad, int64_t plane,
                 int64_t width, int64_t taps, float *restrict to_row, float *restrict to_seen) {
    for (int64_t t = 0; t < taps; t++, seen += width, grad += plane, to_seen += width)
        for (int64_t x = 0; x < width; x++) {
            float force = 2 * grad[x] * (row[x] - seen[x]);
            to_row[x] = t ? to_row[x] + force : force;
            to_seen[x] -= force;
        }
}

/* The weights of a row and of the columns: [n] and [n, whole vectors]. Three of each: tents, plain and smooth weights. */
typedef struct {
    const float *down[3], *across[3];
} Tables;

/* From squared distances to weights, in place, for a row of fine pixels, in whole vectors: tent * exp(-half d) over their
 * sum; with `residual`, the plain weights are added and the smooth ones taken off. The smallest distance under a tent is
 * taken off first, so that the sum is not 0. */
FOR_EVERY_CPU
static void softmax(float *restrict k, const Tables *tables, int64_t n, int64_t width, float half, int residual) {
    for (int64_t x = 0; x < width; x += LANES) {
        vec nearest = (vec){0} + INFINITY, sum = {0};
        float *at = k + x;
        for (int64_t a = 0; a < n; a++)
            for (int64_t b = 0; b < n; b++, at += width) {
                vec d = get(at), tent = get(tables->across[0] + b * width + x) * tables->down[0][a];
                nearest = (vec)(((whole_vec)d & ((tent > 0) & (d < nearest))) |
                                ((whole_vec)nearest & ~((tent > 0) & (d < nearest))));
            }
        at = k + x;
        for (int64_t a = 0; a < n; a++)
            for (int64_t b = 0; b < n; b++, at += width) {
                vec away = get(at) - nearest, tent = get(tables->across[0] + b * width + x) * tables->down[0][a];
                away = (vec)((whole_vec)away & (away > 0)); /* a pixel under no tent may be nearer */
                vec weight = tent * gaussian(away * (2 * half));
                sum += weight;
                put(at, weight);
            }
        sum = 1 / sum;
        at = k + x;
        for (int64_t a = 0; a < n; a++)
            for (int64_t b = 0; b < n; b++, at += width) {
                vec weight = get(at) * sum;
                if (residual) {
                    weight += get(tables->across[1] + b * width + x) * tables->down[1][a];
                    weight -= get(tables->across[2] + b * width + x) * tables->down[2][a];
                }
                put(at, weight);
            }
    }
}

/* --- the operators: all tensors contiguous -------------------------------------------------------------------- */

/* n * n numbers of each fine pixel of an image, and the elements from one row, and one of the n * n, to the next. */
typedef struct {
    float *at;
    int64_t row, plane;
} Taps;

enum { SUM, KERNEL_GRADIENT, DISTANCE };

/* What some bands make from all channels of an image: the enlargement, from K in `taps`; or into `taps` K's gradient (of
 * `fine`, the output's), or the distances (of `fine`, the guide). */
static void of_bands(const Enlargement *e, int what, int64_t channels, const Band *first, const Band *end,
                     const int64_t *columns, const float *coarse, const float *fine, Taps taps, Spread *seen,
                     float *out) {
    int64_t n = e->taps, width = e->out_width, plane = e->out_height * width, apart = seen->whole.factor;
    if (!apart) apart = width;
    for (int64_t c = 0; c < channels; c++, coarse += e->height * e->width, fine += plane, out += plane) {
        memset(seen->row, -1, sizeof seen->row);
        for (const Band *band = first; band < end; band++) {
            look(e, band, columns, coarse, seen);
            for (int64_t y = band->first; y < band->last; y++) {
                float *at = taps.at + y * taps.row;
                if (what == SUM)
                    for (int64_t a = 0; a < n; a += 2)
                        weighted_sum(at + a * n * taps.plane, taps.plane, seen->of[a], seen->of[a + 1], apart, width, n,
                                     !a, out + y * width);
                else
                    for (int64_t a = 0; a < n; a++, at += n * taps.plane) {
                        if (what == DISTANCE)
                            add_squares(fine + y * width, seen->of[a], apart, width, n, !c, at, taps.plane);
                        else
                            add_products(fine + y * width, seen->of[a], apart, width, n, at, taps.plane);
                    }
            }
        }
    }
}

/* A thread some bands of an image at a time. */
static int by_band(const Enlargement *e, int what, const float *coarse, float *kernel, const float *fine,
                   const int64_t *rows, const int64_t *columns, float *out, int64_t threads) {
    int64_t n = e->taps, width = e->out_width, plane = e->out_height * width, count;
    int64_t of_coarse = e->channels * e->height * e->width, of_fine = e->channels * plane;
    Band *bands = cut(e, rows, &count);
    int64_t together = most(1, least(count / (2 * threads), 16)); /* bands, by which rows are shared */
    int failed = !bands;
#pragma omp parallel num_threads(threads)
    {
        Spread seen = {.held = buffer(n * n * width), .whole = width ? whole_factor(e, columns) : (Whole){0}};
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t i = 0; i < e->batch; i++)
            for (int64_t m = 0; m < count; m += together) {
                if (!seen.held) {
#pragma omp atomic write
                    failed = 1;
                    continue;
                }
                Taps taps = {kernel + i * n * n * plane, width, plane};
                of_bands(e, what, e->channels, bands + m, bands + least(m + together, count), columns,
                         coarse + i * of_coarse, fine + i * of_fine, taps, &seen, out + i * of_fine);
            }
        free(seen.held);
    }
    free(bands);
    return failed;
}

int pac_enlarge(const Enlargement *e, const float *input, float *kernel, const int64_t *rows, const int64_t *columns,
                float *out, int64_t threads) {
    return by_band(e, SUM, input, kernel, out, rows, columns, out, threads);
}

/* `out` must be 0. */
int pac_enlarge_kernel_gradient(const Enlargement *e, const float *grad, const float *input, const int64_t *rows,
                                const int64_t *columns, float *out, int64_t threads) {
    return by_band(e, KERNEL_GRADIENT, input, out, grad, rows, columns, out, threads);
}

int pac_enlarge_distance(const Enlargement *e, const float *guide, const float *coarse, const int64_t *rows,
                         const int64_t *columns, float *out, int64_t threads) {
    return by_band(e, DISTANCE, coarse, out, guide, rows, columns, out, threads);
}

enum { NEAR = 1 << 16 }; /* weights that stay in the second-level cache */

/* A guided enlargement of an input [B, C, h, w]: distances, weights and sums of some rows at a time, so that weights are
 * never in memory whole. `e` says the guide's shapes. `down` and `across` hold 3 tables each, [out_height, n] and [n,
 * `pitch`], out_width in whole vectors: the tents, and the plain and the smooth weights, which count with `residual`. */
int pac_enlarge_guided(const Enlargement *e, const float *guide, const float *coarse, const int64_t *rows,
                       const int64_t *columns, const float *down, const float *across, int64_t pitch, float half,
                       int64_t residual, const float *input, int64_t channels, float *out, int64_t threads) {
    int64_t n = e->taps, width = e->out_width, plane = e->out_height * width, image = e->height * e->width, count;
    int64_t of_row = n * n * pitch, high = 1;
    Band *bands = cut(e, rows, &count);
    for (int64_t m = 0; m < count; m++) high = most(high, bands[m].last - bands[m].first);
    int64_t together = most(1, least(count / (2 * threads), least(16, NEAR / most(1, high * of_row))));
    int failed = !bands;
#pragma omp parallel num_threads(threads)
    {
        Spread seen = {.held = buffer(of_row), .whole = width ? whole_factor(e, columns) : (Whole){0}};
        float *weights = buffer(together * high * of_row);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t i = 0; i < e->batch; i++)
            for (int64_t m = 0; m < count; m += together) {
                if (!seen.held || !weights) {
#pragma omp atomic write
                    failed = 1;
                    continue;
                }
                const Band *first = bands + m, *end = bands + least(m + together, count);
                Taps taps = {weights - first->first * of_row, of_row, pitch};
                if (!e->channels) memset(weights, 0, (end[-1].last - first->first) * of_row * sizeof(float));
                of_bands(e, DISTANCE, e->channels, first, end, columns, coarse + i * e->channels * image,
                         guide + i * e->channels * plane, taps, &seen, out);
                for (int64_t y = first->first; y < end[-1].last; y++) {
                    Tables tables;
                    for (int64_t t = 0; t < 3; t++) {
                        tables.down[t] = down + (t * e->out_height + y) * n;
                        tables.across[t] = across + t * n * pitch;
                    }
                    softmax(taps.at + y * of_row, &tables, n, pitch, half, (int)residual);
                }
                of_bands(e, SUM, channels, first, end, columns, input + i * channels * image, out, taps, &seen,
                         out + i * channels * plane);
            }
        free(seen.held);
        free(weights);
    }
    free(bands);
    return failed;
}

/* What every channel makes by itself, a thread a channel: sums into its coarse image, which must be 0. Where there is
 * a coarse guide, those and the fine guide's gradient, for distances; else the input's gradient. */
static int by_channel(const Enlargement *e, const float *fine, const float *kernel, const float *coarse,
                      const int64_t *rows, const int64_t *columns, float *to_fine, float *to_coarse, int64_t threads) {
    int64_t taps = e->taps * e->taps, image = e->height * e->width, plane = e->out_height * e->out_width, count;
    Band *bands = cut(e, rows, &count);
    int failed = !bands;
#pragma omp parallel num_threads(threads)
    {
        float *seen = buffer(taps * e->out_width), *sums = buffer(taps * e->out_width);
#pragma omp for schedule(dynamic)
        for (int64_t nc = 0; nc < e->batch * e->channels; nc++) {
            if (!seen || !sums) {
#pragma omp atomic write
                failed = 1;
                continue;
            }
            for (const Band *band = bands; band < bands + count; band++) {
                memset(sums, 0, taps * e->out_width * sizeof(float));
                if (coarse) spread(e, band, columns, coarse + nc * image, seen);
                for (int64_t y = band->first; y < band->last; y++) {
                    int64_t in_plane = y * e->out_width, on_channel = nc * plane + in_plane;
                    const float *k = kernel + nc / e->channels * taps * plane + in_plane;
                    if (coarse)
                        pull(fine + on_channel, seen, k, plane, e->out_width, taps, to_fine + on_channel, sums);
                    else
                        add_products(fine + on_channel, k, plane, e->out_width, taps, sums, e->out_width);
                }
                gather(e, band, columns, sums, to_coarse + nc * image);
            }
        }
        free(seen);
        free(sums);
    }
    free(bands);
    return failed;
}

/* `out` must be 0. */
int pac_enlarge_input_gradient(const Enlargement *e, const float *grad, const float *kernel, const int64_t *rows,
                               const int64_t *columns, float *out, int64_t threads) {
    return by_channel(e, grad, kernel, NULL, rows, columns, NULL, out, threads);
}

/* `to_coarse` must be 0. */
int pac_enlarge_distance_gradients(const Enlargement *e, const float *grad, const float *guide, const float *coarse,
                                   const int64_t *rows, const int64_t *columns, float *to_guide, float *to_coarse,
                                   int64_t threads) {
    return by_channel(e, guide, grad, coarse, rows, columns, to_guide, to_coarse, threads);
}
