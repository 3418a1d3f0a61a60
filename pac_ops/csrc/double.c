/* Distances, convolution and its gradients in float64, for small maps, where calling matrix products costs more than they
 * do. Plain loops, by one thread: an image is padded, and pixels of a few rows are taken together. */
#include "window.h"

enum { TOGETHER = 256 }; /* pixels of a block, at least a row */

typedef struct {
    int64_t taps, in, out, depth; /* of a group: input and output channels, weights of an output */
    int64_t pixels, rows;         /* of the output; rows of a block */
    int64_t columns, plane;       /* of a padded channel */
} Sizes;

static Sizes sizes_of(const Window *w) {
    int64_t taps = w->kernel[0] * w->kernel[1], in = w->channels / w->groups, columns = w->width + 2 * w->padding[1];
    return (Sizes){taps, in, w->out_channels / w->groups, in * taps, w->out_height * w->out_width,
                   most(1, TOGETHER / most(1, w->out_width)), columns, (w->height + 2 * w->padding[0]) * columns};
}

/* The channels of an image into the middle of padded ones, or out of there. */
static void move_inside(const Window *w, Sizes s, double *image, double *padded, int out) {
    for (int64_t c = 0; c < w->channels; c++)
        for (int64_t y = 0; y < w->height; y++) {
            double *row = image + (c * w->height + y) * w->width;
            double *inside = padded + c * s.plane + (y + w->padding[0]) * s.columns + w->padding[1];
            memcpy(out ? row : inside, out ? inside : row, w->width * sizeof(double));
        }
}

/* Where tap t of the first window of row y is in a padded channel. */
INLINE int64_t place_of(const Window *w, Sizes s, int64_t t, int64_t y) {
    int64_t row = y * w->stride[0] + t / w->kernel[1] * w->dilation[0];
    return row * s.columns + t % w->kernel[1] * w->dilation[1];
}

/* guide [B, G, H, W] -> out [B, 1, kh, kw, Ho, Wo]. Returns 0, or 1 where memory ran out. */
FOR_EVERY_CPU
int pac_distance_double(const Window *w, double *guide, double *out, int64_t threads) {
    (void)threads;
    Sizes s = sizes_of(w);
    double *padded = calloc(most(1, w->channels * s.plane), sizeof(double));
    if (!padded) return 1;
    for (int64_t n = 0; n < w->batch; n++) {
        move_inside(w, s, guide + n * w->channels * w->height * w->width, padded, 0);
        for (int64_t t = 0; t < s.taps; t++)
            for (int64_t y = 0; y < w->out_height; y++) {
                double *restrict row = out + ((n * s.taps + t) * w->out_height + y) * w->out_width;
                memset(row, 0, w->out_width * sizeof(double));
                for (int64_t c = 0; c < w->channels; c++) {
                    const double *f_i = padded + c * s.plane + place_of(w, s, s.taps / 2, y);
                    const double *f_t = padded + c * s.plane + place_of(w, s, t, y);
                    for (int64_t x = 0; x < w->out_width; x++) {
                        double apart = f_i[x * w->stride[1]] - f_t[x * w->stride[1]];
                        row[x] += apart * apart;
                    }
                }
            }
    }
    free(padded);
    return 0;
}

/* to[e] += sum over the rows r of factors[r * apart] * from[r][e]. */
INLINE void add_rows(double *restrict to, const double *factors, int64_t apart, const double *from, int64_t rows, int64_t count) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4, from += 4 * count) {
        double a = factors[r * apart], b = factors[(r + 1) * apart], c = factors[(r + 2) * apart], d = factors[(r + 3) * apart];
        const double *from_b = from + count, *from_c = from + 2 * count, *from_d = from + 3 * count;
        for (int64_t e = 0; e < count; e++) to[e] += a * from[e] + b * from_b[e] + c * from_c[e] + d * from_d[e];
    }
    for (; r < rows; r++, from += count)
        for (int64_t e = 0; e < count; e++) to[e] += factors[r * apart] * from[e];
}

/* The taps of a group of channels times K, for the rows from `from` to `to`: [depth, pixels]. */
INLINE void adapt(const Window *w, Sizes s, const double *group, const double *kernel, int64_t from, int64_t to, double *adapted) {
    for (int64_t d = 0; d < s.depth; d++)
        for (int64_t y = from; y < to; y++) {
            const double *k = kernel + d % s.taps * s.pixels + y * w->out_width;
            const double *v = group + d / s.taps * s.plane + place_of(w, s, d % s.taps, y);
            for (int64_t x = 0; x < w->out_width; x++) *adapted++ = k[x] * v[x * w->stride[1]];
        }
}

/* input [B, C, H, W], kernel [B, 1, kh, kw, Ho, Wo], weight [O, C/groups, kh, kw], bias [O] or null, all contiguous -> out.
 * Returns 0, or 1 where memory ran out. */
FOR_EVERY_CPU
int pac_convolution_double(const Window *w, double *input, const double *kernel, const double *weight, const double *bias,
                           double *out, int64_t threads) {
    (void)threads;
    Sizes s = sizes_of(w);
    double *padded = calloc(most(1, w->channels * s.plane), sizeof(double));
    double *adapted = malloc(most(1, s.depth * s.rows * w->out_width) * sizeof(double));
    for (int64_t n = 0; padded && adapted && n < w->batch; n++) {
        move_inside(w, s, input + n * w->channels * w->height * w->width, padded, 0);
        for (int64_t from = 0; from < w->out_height; from += s.rows) {
            int64_t to = least(w->out_height, from + s.rows), count = (to - from) * w->out_width;
            for (int64_t g = 0; g < w->groups; g++) {
                adapt(w, s, padded + g * s.in * s.plane, kernel + n * s.taps * s.pixels, from, to, adapted);
                for (int64_t o = g * s.out; o < (g + 1) * s.out; o++) {
                    double *block = out + (n * w->out_channels + o) * s.pixels + from * w->out_width;
                    for (int64_t e = 0; e < count; e++) block[e] = bias ? bias[o] : 0;
                    add_rows(block, weight + o * s.depth, 1, adapted, s.depth, count);
                }
            }
        }
    }
    int failed = !padded || !adapted;
    free(padded);
    free(adapted);
    return failed;
}

/* What a backward pass works with. */
typedef struct {
    double *padded, *grad_padded; /* [C, padded rows, columns] */
    double *adapted;              /* taps * K of a block: [depth, pixels] */
    double *product;              /* W^T g of a block, of one input channel and tap: [pixels] */
    double *grad;                 /* g of a block: [out, pixels] */
} Work;

/* The gradients of a block of rows of one group; `grad` is that of the group's outputs. */
INLINE void block_backward(const Window *w, Sizes s, const double *kernel, const double *weight, const double *grad, int needs_input,
                           double *grad_kernel, double *grad_weight, int64_t from, int64_t to, int64_t group, Work work) {
    int64_t wide = w->out_width, count = (to - from) * wide, step = w->stride[1];
    for (int64_t o = 0; o < s.out; o++) memcpy(work.grad + o * count, grad + o * s.pixels + from * wide, count * sizeof(double));
    if (grad_weight) {
        adapt(w, s, work.padded + group * s.in * s.plane, kernel, from, to, work.adapted);
        for (int64_t o = 0; o < s.out; o++)
            for (int64_t d = 0; d < s.depth; d++) {
                const double *g = work.grad + o * count, *a = work.adapted + d * count;
                double sums[8] = {0}, sum = 0;
                int64_t e = 0;
                for (; e + 8 <= count; e += 8)
                    for (int lane = 0; lane < 8; lane++) sums[lane] += g[e + lane] * a[e + lane];
                for (; e < count; e++) sum += g[e] * a[e];
                for (int lane = 0; lane < 8; lane++) sum += sums[lane];
                grad_weight[o * s.depth + d] += sum;
            }
    }
    for (int64_t d = 0; (needs_input || grad_kernel) && d < s.depth; d++) {
        memset(work.product, 0, count * sizeof(double));
        add_rows(work.product, weight + d, s.depth, work.grad, s.out, count);
        for (int64_t y = from; y < to; y++) {
            int64_t at = (group * s.in + d / s.taps) * s.plane + place_of(w, s, d % s.taps, y);
            int64_t of_kernel = d % s.taps * s.pixels + y * wide;
            const double *q = work.product + (y - from) * wide, *k = kernel + of_kernel, *v = work.padded + at;
            double *restrict to_input = work.grad_padded + at;
            double *restrict to_kernel = grad_kernel ? grad_kernel + of_kernel : NULL;
            for (int64_t x = 0; needs_input && x < wide; x++) to_input[x * step] += q[x] * k[x];
            for (int64_t x = 0; grad_kernel && x < wide; x++) to_kernel[x] += q[x] * v[x * step];
        }
    }
}

/* As `pac_convolution_double`; gradients of zeros, contiguous, any of which may be null, are added to. Returns 0, or 1 where
 * memory ran out. */
FOR_EVERY_CPU
int pac_convolution_backward_double(const Window *w, double *input, const double *kernel, const double *weight, const double *grad,
                                    double *grad_input, double *grad_kernel, double *grad_weight, int64_t threads) {
    (void)threads;
    Sizes s = sizes_of(w);
    int64_t image = w->channels * w->height * w->width, padded = most(1, w->channels * s.plane), block = s.rows * w->out_width;
    double *room = calloc(2 * padded + (s.depth + 1 + s.out) * block, sizeof(double));
    if (!room) return 1;
    double *adapted = room + 2 * padded;
    Work work = {room, room + padded, adapted, adapted + s.depth * block, adapted + (s.depth + 1) * block};
    for (int64_t n = 0; n < w->batch; n++) {
        move_inside(w, s, input + n * image, work.padded, 0);
        memset(work.grad_padded, 0, padded * sizeof(double));
        for (int64_t from = 0; from < w->out_height; from += s.rows)
            for (int64_t g = 0; g < w->groups; g++)
                block_backward(w, s, kernel + n * s.taps * s.pixels, weight + g * s.out * s.depth,
                               grad + (n * w->out_channels + g * s.out) * s.pixels, grad_input != NULL,
                               grad_kernel ? grad_kernel + n * s.taps * s.pixels : NULL,
                               grad_weight ? grad_weight + g * s.out * s.depth : NULL, from, least(w->out_height, from + s.rows),
                               g, work);
        if (grad_input) move_inside(w, s, grad_input + n * image, work.grad_padded, 1);
    }
    free(room);
    return 0;
}
