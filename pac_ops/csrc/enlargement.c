/* Guided enlargement. Fine rows with the same coarse neighbours make a band: what their neighbours hold is spread to
 * the fine width once for the band, into rows that stay in the first-level cache, and every fine row is then sums and
 * products of rows.
 */
#include "window.h"

typedef struct {
    int64_t batch, channels, height, width, out_height, out_width, taps; /* neighbours along each axis */
} Enlargement;

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

/* What the neighbours of a band hold, at the fine width: taps * taps rows. */
static void spread(const Enlargement *e, const Band *band, const int64_t *columns, const float *image, float *seen) {
    for (int64_t a = 0; a < e->taps; a++)
        for (int64_t b = 0; b < e->taps; b++, seen += e->out_width) {
            const float *row = image + band->rows[a] * e->width;
            for (int64_t x = 0; x < e->out_width; x++) seen[x] = row[columns[x * e->taps + b]];
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

/* The loops over a row. `taps` is taps * taps; the planes of K or of its gradient are `plane` elements apart, the rows
 * of what is seen `width`. Four neighbours at a time, so that a row of the output is read and written seldom. */

FOR_EVERY_CPU
static void weighted_sum(const float *restrict k, int64_t plane, const float *restrict seen, int64_t width,
                         int64_t taps, float *restrict out) {
    for (int64_t t = 0; t < taps; t += 4, k += 4 * plane, seen += 4 * width)
        for (int64_t x = 0; x < width; x++) {
            float sum = k[x] * seen[x] + k[plane + x] * seen[width + x];
            sum += k[2 * plane + x] * seen[2 * width + x] + k[3 * plane + x] * seen[3 * width + x];
            out[x] = t ? out[x] + sum : sum;
        }
}

FOR_EVERY_CPU
static void add_products(const float *restrict row, const float *restrict k, int64_t plane, int64_t width,
                         int64_t taps, float *restrict sums, int64_t sums_plane) {
    for (int64_t t = 0; t < taps; t++, k += plane, sums += sums_plane)
        for (int64_t x = 0; x < width; x++) sums[x] += row[x] * k[x];
}

FOR_EVERY_CPU
static void add_squares(const float *restrict row, const float *restrict seen, int64_t width, int64_t taps, int first,
                        float *restrict distance, int64_t plane) {
    for (int64_t t = 0; t < taps; t++, seen += width, distance += plane)
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

/* --- the operators: all tensors contiguous -------------------------------------------------------------------- */

enum { SUM, KERNEL_GRADIENT, DISTANCE };

/* What a band makes from all channels of an image, a thread a band: the enlargement, its kernel's gradient (of `fine`,
 * the output's), or the distances (of `fine`, the guide). */
static int by_band(const Enlargement *e, int what, const float *coarse, const float *kernel, const float *fine,
                   const int64_t *rows, const int64_t *columns, float *out, int64_t threads) {
    int64_t taps = e->taps * e->taps, image = e->height * e->width, plane = e->out_height * e->out_width, count;
    Band *bands = cut(e, rows, &count);
    int failed = !bands;
#pragma omp parallel num_threads(threads)
    {
        float *seen = buffer(taps * e->out_width);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t n = 0; n < e->batch; n++)
            for (int64_t m = 0; m < count; m++) {
                const Band *band = bands + m;
                if (!seen) {
#pragma omp atomic write
                    failed = 1;
                    continue;
                }
                for (int64_t c = 0; c < e->channels; c++) {
                    int64_t nc = n * e->channels + c;
                    spread(e, band, columns, coarse + nc * image, seen);
                    for (int64_t y = band->first; y < band->last; y++) {
                        int64_t in_plane = y * e->out_width, on_taps = n * taps * plane + in_plane;
                        int64_t on_channel = nc * plane + in_plane;
                        if (what == SUM)
                            weighted_sum(kernel + on_taps, plane, seen, e->out_width, taps, out + on_channel);
                        else if (what == DISTANCE)
                            add_squares(fine + on_channel, seen, e->out_width, taps, !c, out + on_taps, plane);
                        else
                            add_products(fine + on_channel, seen, e->out_width, e->out_width, taps, out + on_taps,
                                         plane);
                    }
                }
            }
        free(seen);
    }
    free(bands);
    return failed;
}

int pac_enlarge(const Enlargement *e, const float *input, const float *kernel, const int64_t *rows,
                const int64_t *columns, float *out, int64_t threads) {
    return by_band(e, SUM, input, kernel, NULL, rows, columns, out, threads);
}

/* `out` must be 0. */
int pac_enlarge_kernel_gradient(const Enlargement *e, const float *grad, const float *input, const int64_t *rows,
                                const int64_t *columns, float *out, int64_t threads) {
    return by_band(e, KERNEL_GRADIENT, input, NULL, grad, rows, columns, out, threads);
}

int pac_enlarge_distance(const Enlargement *e, const float *guide, const float *coarse, const int64_t *rows,
                         const int64_t *columns, float *out, int64_t threads) {
    return by_band(e, DISTANCE, coarse, NULL, guide, rows, columns, out, threads);
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
