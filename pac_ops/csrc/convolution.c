/* Convolution: K is applied to the taps while they are packed for the matrix product, or by lines to their sums. */
#ifdef BFLOAT16
#include "panels.h"
#else
#include "lines.h"
#endif

enum {
    LEAST_PIXELS = 4 * PIXELS, /* of a band */
    MOST_PIXELS = 256,
    FEW = 2,                   /* input channels packed at a time; an even number, for pairs */
};

/* The weights of `rows` output channels from `weight` on, in the order in which a tile reads them: [steps, rows]. */
FOR_EVERY_CPU
static void pack_weights(const Window *w, const float *weight, int64_t rows, element *elements, float *spare) {
    float *packed = lines_of(elements, spare);
    const int64_t *step = w->weight_step, taps = w->kernel[0] * w->kernel[1], in = w->channels / w->groups;
    int64_t depth = in * taps, d = 0;
    int64_t whole = (rows + 7) / 8 * 8;
    /* Vectors of 8 that go beyond a line of `rows` spoil the next line, which is written after them. */
    if (step[4] == 1 && step[3] == w->kernel[1] && step[2] == taps) /* a channel's taps lie side by side */
        for (; (d + 7) * rows + whole <= depth * rows; d += 8)
            for (int64_t r = whole - 8; r >= 0; r -= 8)
                turn8(weight + r * step[1] + d, step[1], rows - r, packed + d * rows + r, rows);
    for (; d < depth; d++) {
        int64_t c = d / taps, i = d % taps / w->kernel[1], j = d % taps % w->kernel[1];
        for (int64_t r = 0; r < rows; r++)
            packed[d * rows + r] = weight[r * step[1] + c * step[2] + i * step[3] + j * step[4]];
    }
    as_elements(packed, depth, rows, elements);
}

/* What a thread works with: the pixels of a band, where they find their taps, and these times K. */
typedef struct {
    Panel *panels;
    Tap *found;
    element *packed;
    float *spare; /* what is to be elements, which is not float32; or null */
} Band;

/* Input channels whose products are summed in a tile at a time. Of an even number they are whole elements deep. */
INLINE int64_t sliced_channels(int64_t taps) { return most(2, STEPS * DEPTHS / most(1, taps) / 2 * 2); }

/* Have the last row of taps of some pixels come near, from memory perhaps; the rows before it were in bands before. */
INLINE void fetch(const float *channel, int64_t channels, int64_t plane, const Tap *last) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t q = 0; q < PIXELS; q += 16) __builtin_prefetch(channel + c * plane + last->offset + q);
}

/* One band of output pixels of one image, all groups and output channels. */
FOR_EVERY_CPU
static void convolve_band(const Window *w, const float *image, const float *kernel, const element *weights,
                          const float *bias, float *out, int64_t from, int64_t to, Band band) {
    int64_t taps = w->kernel[0] * w->kernel[1], plane = w->height * w->width;
    int64_t in = w->channels / w->groups, rows = w->out_channels / w->groups, depth = steps_of(in * taps);
    int64_t tall = tile_rows(rows), row_tiles = (rows + tall - 1) / tall;
    int64_t panels = (to - from + PIXELS - 1) / PIXELS, step = sliced_channels(taps);
    for (int64_t p = 0; p < panels; p++) {
        find_pixels(w, from + p * PIXELS, least(PIXELS, to - from - p * PIXELS), band.panels + p);
        find_taps(w, kernel, band.panels + p, band.found + p * taps);
    }
    for (int64_t g = 0; g < w->groups; g++)
        for (int64_t first = 0; first < in; first += step) {
            int64_t last = least(in, first + step), slice = steps_of((last - first) * taps);
            /* A few channels at a time: planes of a power of two share cache lines, and would push each other out. */
            for (int64_t c = first; c < last; c += FEW)
                for (int64_t p = 0; p < panels; p++) {
                    element *to = band.packed + (p * slice + (c - first) * taps / DEPTHS) * PIXELS;
                    float *lines = lines_of(to, band.spare);
                    const float *channel = image + (g * in + c) * plane;
                    const Tap *found = band.found + p * taps;
                    int64_t few = least(FEW, last - c);
                    fetch(channel + FEW * plane, least(FEW, last - c - FEW), plane, found + taps - 1);
                    pack_panel(found, taps, channel, few, plane, lines);
                    as_elements(lines, few * taps, PIXELS, to);
                }
            for (int64_t slab = 0; slab < row_tiles; slab += SLAB)
                for (int64_t p = 0; p < panels; p++)
                    for (int64_t r = slab; r < least(row_tiles, slab + SLAB); r++) {
                        int64_t channel = g * rows + r * tall, real = least(tall, rows - r * tall);
                        const element *factors = weights + channel * depth + first * taps / DEPTHS * real;
                        const element *adapted = band.packed + p * slice * PIXELS;
                        const Panel *panel = band.panels + p;
                        float *to_out = out + channel * w->out_step[1], starts[ROWS] = {0};
                        if (bias && first == 0)
                            for (int64_t i = 0; i < real; i++) starts[i] = bias[channel + i];
                        const float *start = first == 0 ? starts : NULL;
                        tile(real, slice, factors, adapted, to_out, w->out_step[1], panel, start);
                    }
        }
}

/* One of the convolutions of one input that share K, weight and output, and which of their elements are its first. */
typedef struct {
    Window window;
    int64_t kernel, weight, out;
} Part;

/* How a part is carried out. */
typedef struct {
    int64_t taps, depth, pixels; /* `depth` in elements; `pixels` of a band */
    int64_t packed;              /* where its packed weights begin */
} Plan;

INLINE int64_t all_pixels(const Window *w) { return w->out_height * w->out_width; }
INLINE int64_t sliced_depth(const Window *w, int64_t taps) {
    return steps_of(least(w->channels / w->groups, sliced_channels(taps)) * taps);
}

/* How to carry out each part; returns the number of bands, which is that of all. */
static int64_t plan_parts(const Part *parts, int64_t count, int64_t threads, Plan *plans) {
    int64_t bands = (threads + parts->window.batch - 1) / most(1, parts->window.batch), packed = 0;
    for (int64_t p = 0; p < count; p++) {
        const Window *w = &parts[p].window;
        Plan *plan = plans + p;
        plan->taps = w->kernel[0] * w->kernel[1];
        plan->depth = steps_of(w->channels / w->groups * plan->taps);
        plan->packed = packed;
        packed += w->out_channels * plan->depth;
        int64_t wanted = most(LEAST_PIXELS, least(MOST_PIXELS, NEAR / most(1, sliced_depth(w, plan->taps))));
        bands = most(bands, (all_pixels(w) + wanted - 1) / wanted);
    }
    for (int64_t p = 0; p < count; p++) {
        int64_t pixels = (all_pixels(&parts[p].window) + bands - 1) / bands;
        plans[p].pixels = (pixels + PIXELS - 1) / PIXELS * PIXELS;
    }
    return bands;
}

/* The weights of a part, by all threads. */
static void pack_part(const Window *w, const float *weight, int64_t depth, element *packed, float *spare) {
    int64_t rows = w->out_channels / w->groups, tall = tile_rows(rows), row_tiles = (rows + tall - 1) / tall;
#pragma omp for nowait
    for (int64_t n = 0; n < w->groups * row_tiles; n++) {
        int64_t group = n / row_tiles, row = n % row_tiles * tall;
        pack_weights(w, weight + group * w->weight_step[0] + row * w->weight_step[1], least(tall, rows - row),
                     packed + (group * rows + row) * depth, spare);
    }
}

/* input [B, C, H, W], contiguous; K, weight and output at the steps that the parts name; bias [O] or null. A band is that
 * of all parts, so that pixels beside each other are written while they are near. Returns 0, or 1 where memory ran out. */
int pac_convolution(const Part *parts, int64_t count, const float *input, const float *kernel, const float *weight,
                    const float *bias, float *out, int64_t threads) {
    const Window *any = &parts->window;
#ifndef BFLOAT16
    Strip strip = count == 1 ? strip_of(any, threads) : (Strip){0};
    if (strip.high)
        return convolve_lines(any, &strip, input, kernel + parts->kernel, weight + parts->weight, bias, out + parts->out,
                              threads);
#endif
    Plan *plans = malloc((size_t)count * sizeof(Plan));
    if (!plans) return 1;
    int64_t bands = plan_parts(parts, count, threads, plans), panels = 0, found = 0, taps_times_k = 0, spare = 0;
    for (int64_t p = 0; p < count; p++) {
        panels = most(panels, plans[p].pixels / PIXELS);
        found = most(found, plans[p].pixels / PIXELS * plans[p].taps);
        taps_times_k = most(taps_times_k, plans[p].pixels * sliced_depth(&parts[p].window, plans[p].taps));
        spare = most(spare, most(FEW * plans[p].taps * PIXELS, DEPTHS * plans[p].depth * ROWS));
    }
    element *packed = (element *)buffer(plans[count - 1].packed + any->out_channels * plans[count - 1].depth);
    if (!packed) {
        free(plans);
        return 1;
    }
    int64_t together = most(1, any->batch * bands / (8 * threads));
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Band band = {malloc((size_t)most(1, panels) * sizeof(Panel)), malloc((size_t)most(1, found) * sizeof(Tap)),
                     (element *)buffer(taps_times_k), DEPTHS > 1 ? buffer(spare) : NULL};
        if (!band.panels || !band.found || !band.packed || (DEPTHS > 1 && !band.spare)) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        for (int64_t p = 0; p < count && !failed; p++)
            pack_part(&parts[p].window, weight + parts[p].weight, plans[p].depth, packed + plans[p].packed, band.spare);
#pragma omp barrier
        /* Bands beside each other write to the same pages of memory, for which threads would wait for each other. */
#pragma omp for collapse(2) schedule(dynamic, together)
        for (int64_t n = 0; n < any->batch; n++)
            for (int64_t b = 0; b < bands; b++)
                for (int64_t p = 0; p < count && !failed; p++) {
                    const Window *w = &parts[p].window;
                    int64_t from = b * plans[p].pixels, to = least(all_pixels(w), from + plans[p].pixels);
                    if (from < to)
                        convolve_band(w, input + n * w->channels * w->height * w->width,
                                      kernel + parts[p].kernel + n * w->kernel_step[0], packed + plans[p].packed, bias,
                                      out + parts[p].out + n * w->out_step[0], from, to, band);
                }
        free(band.panels);
        free(band.found);
        free(band.packed);
        free(band.spare);
    }
    free(packed);
    free(plans);
    return failed;
}
