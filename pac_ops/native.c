/* The fast CPU kernels, float32: see native.py for the calls, reference.py for what they compute.
 *
 * Plain C with GCC/Clang vector types; the loops that matter are compiled for several instruction sets and picked
 * when the library is loaded. Threads are OpenMP's, resolved from the runtime that PyTorch has loaded, so that both
 * share one pool.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float v8 __attribute__((vector_size(32), aligned(4)));

typedef struct {
    int64_t batch, channels, height, width;
    int64_t out_channels, out_height, out_width, groups;
    int64_t kernel[2], stride[2], padding[2], dilation[2];
} Window;

enum {
    ROWS = 6,    /* of a tile of the matrix product: output channels. 6 x 16 fills the registers of AVX2 */
    PIXELS = 16, /* of a tile: output pixels */
    DEPTH = 384, /* products summed in a tile at a time: a panel of 16 pixels then stays in the first-level cache */
    BAND = 512,  /* output pixels whose panels are packed at a time: 768 KiB, near the core */
    SLAB = 12,   /* tiles of rows that share a panel before the next one: their weights stay in the second level */
};

INLINE v8 load(const float *p) { return *(const v8 *)p; }
INLINE void store(float *p, v8 x) { *(v8 *)p = x; }
INLINE v8 even(v8 a, v8 b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static float *buffer(int64_t elements) { return aligned_alloc(64, ((size_t)most(elements, 16) * 4 + 63) / 64 * 64); }

/* Where the outputs x of a row see a column x * stride + shift inside a row of `width`: first <= x < last. */
INLINE void seen_range(int64_t shift, int64_t stride, int64_t width, int64_t outputs, int64_t *first, int64_t *last) {
    *first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
    *last = width - shift <= 0 ? 0 : least(outputs, (width - shift + stride - 1) / stride);
}

/* --- convolution: an implicit matrix product, K applied while the taps are packed ------------------------------ */

/* Rows of a tile where `rows` are shared out among as few tiles as can be: 8 are 4 and 4, not 6 and 2. */
INLINE int64_t tile_rows(int64_t rows) {
    int64_t tiles = (rows + ROWS - 1) / ROWS;
    return (rows + tiles - 1) / tiles;
}

/* Weights [rows, depth] transposed, so that a tile reads them one after the other. */
static void pack_weights(const float *weight, int64_t rows, int64_t depth, float *packed) {
    for (int64_t d = 0; d < depth; d++)
        for (int64_t r = 0; r < rows; r++) *packed++ = weight[r * depth + d];
}

/* Where the pixels of a panel find one tap: side by side from `offset` on, all of them or some; at every second
 * place from there on; or each by itself. */
typedef struct {
    enum { NONE, ALL, SOME, EVERY_SECOND, SCATTERED } kind;
    int64_t offset, first, last;
    int64_t each[PIXELS]; /* -1 outside the image */
    float k[PIXELS];
} Tap;

/* The taps of PIXELS output pixels from `pixel` on, `count` of them real. `kernel` is tap 0 of the image. */
INLINE void find_taps(const Window *w, const float *kernel, int64_t pixel, int64_t count, Tap *tap) {
    int64_t pixels = w->out_height * w->out_width, y = pixel / w->out_width, x = pixel % w->out_width;
    int side_by_side = w->stride[1] == 1 && x + count <= w->out_width;
    for (int64_t i = 0; i < w->kernel[0]; i++)
        for (int64_t j = 0; j < w->kernel[1]; j++, tap++, kernel += pixels) {
            memset(tap->k, 0, sizeof tap->k);
            memcpy(tap->k, kernel + pixel, count * sizeof(float));
            if (side_by_side) {
                int64_t row = y * w->stride[0] - w->padding[0] + i * w->dilation[0];
                int64_t column = x - w->padding[1] + j * w->dilation[1];
                tap->offset = row * w->width + column;
                tap->first = most(0, -column);
                tap->last = least(count, w->width - column);
                if (row < 0 || row >= w->height || tap->first >= tap->last)
                    tap->kind = NONE;
                else
                    tap->kind = column >= 0 && column + PIXELS <= w->width ? ALL : SOME;
                continue;
            }
            if (w->stride[1] == 2 && count == PIXELS && x + PIXELS <= w->out_width) {
                int64_t row = y * w->stride[0] - w->padding[0] + i * w->dilation[0];
                int64_t column = x * 2 - w->padding[1] + j * w->dilation[1];
                tap->offset = row * w->width + column;
                tap->kind = row < 0 || row >= w->height ? NONE : EVERY_SECOND;
                if (tap->kind == NONE || (column >= 0 && column + 2 * PIXELS <= w->width)) continue;
            }
            tap->kind = SCATTERED;
            for (int64_t q = 0; q < PIXELS; q++) {
                int64_t row = (pixel + q) / w->out_width * w->stride[0] - w->padding[0] + i * w->dilation[0];
                int64_t column = (pixel + q) % w->out_width * w->stride[1] - w->padding[1] + j * w->dilation[1];
                int inside = q < count && row >= 0 && row < w->height && column >= 0 && column < w->width;
                tap->each[q] = inside ? row * w->width + column : -1;
            }
        }
}

/* Taps times K, channel by channel from `channel` on: [channels, taps, PIXELS]. */
INLINE void pack_panel(const Tap *taps, int64_t count, const float *channel, int64_t channels, int64_t plane,
                       float *panel) {
    for (int64_t c = 0; c < channels; c++, channel += plane)
        for (int64_t t = 0; t < count; t++, panel += PIXELS) {
            const Tap *tap = taps + t;
            const float *v = channel + tap->offset;
            switch (tap->kind) {
            case ALL:
                store(panel, load(v) * load(tap->k));
                store(panel + 8, load(v + 8) * load(tap->k + 8));
                break;
            case EVERY_SECOND:
                store(panel, even(load(v), load(v + 8)) * load(tap->k));
                store(panel + 8, even(load(v + 16), load(v + 24)) * load(tap->k + 8));
                break;
            case SCATTERED:
                for (int64_t q = 0; q < PIXELS; q++)
                    panel[q] = tap->each[q] < 0 ? 0.0f : channel[tap->each[q]] * tap->k[q];
                break;
            default:
                memset(panel, 0, PIXELS * sizeof(float));
                if (tap->kind == SOME)
                    for (int64_t q = tap->first; q < tap->last; q++) panel[q] = v[q] * tap->k[q];
            }
        }
}

/* out[rows, count] (+)= weights[depth, rows]^T panel[depth, PIXELS], started from `start` where given. */
INLINE void tile(int rows, int64_t depth, const float *weights, const float *panel, float *out, int64_t out_step,
                 int64_t count, const float *start) {
    v8 sum[ROWS][2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (v8){0};
    for (int64_t d = 0; d < depth; d++, weights += rows, panel += PIXELS) {
        v8 left = load(panel), right = load(panel + 8);
        for (int r = 0; r < rows; r++) {
            sum[r][0] += left * weights[r];
            sum[r][1] += right * weights[r];
        }
    }
    for (int r = 0; r < rows; r++, out += out_step) {
        if (count == PIXELS) {
            store(out, sum[r][0] + (start ? (v8){0} + start[r] : load(out)));
            store(out + 8, sum[r][1] + (start ? (v8){0} + start[r] : load(out + 8)));
            continue;
        }
        float edge[PIXELS];
        store(edge, sum[r][0]);
        store(edge + 8, sum[r][1]);
        for (int64_t q = 0; q < count; q++) out[q] = edge[q] + (start ? start[r] : out[q]);
    }
}

/* One band of output pixels of one image, all groups and output channels. `found` and `panels` are this thread's. */
FOR_EVERY_CPU
static void convolve_band(const Window *w, const float *image, const float *kernel, const float *packed,
                          const float *bias, float *out, int64_t from, int64_t to, Tap *found, float *panels) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width, plane = w->height * w->width;
    int64_t in = w->channels / w->groups, rows = w->out_channels / w->groups, depth = in * taps;
    int64_t tall = tile_rows(rows), row_tiles = (rows + tall - 1) / tall;
    int64_t panel_count = (to - from + PIXELS - 1) / PIXELS;
    int64_t step = most(1, DEPTH / taps);
    for (int64_t p = 0; p < panel_count; p++)
        find_taps(w, kernel, from + p * PIXELS, least(PIXELS, to - from - p * PIXELS), found + p * taps);
    for (int64_t g = 0; g < w->groups; g++)
        for (int64_t first = 0; first < in; first += step) {
            int64_t last = least(in, first + step), slice = (last - first) * taps;
            for (int64_t p = 0; p < panel_count; p++)
                pack_panel(found + p * taps, taps, image + (g * in + first) * plane, last - first, plane,
                           panels + p * slice * PIXELS);
            for (int64_t slab = 0; slab < row_tiles; slab += SLAB)
                for (int64_t p = 0; p < panel_count; p++)
                    for (int64_t r = slab; r < least(row_tiles, slab + SLAB); r++) {
                        int64_t pixel = from + p * PIXELS, channel = g * rows + r * tall;
                        int64_t count = least(PIXELS, to - pixel), real = least(tall, rows - r * tall);
                        const float *weights = packed + channel * depth + first * taps * real;
                        const float *panel = panels + p * slice * PIXELS;
                        float *to_out = out + channel * pixels + pixel, starts[ROWS] = {0};
                        if (bias && first == 0)
                            for (int64_t i = 0; i < real; i++) starts[i] = bias[channel + i];
                        const float *start = first == 0 ? starts : NULL;
                        switch (real) { /* a constant number of rows, so that the sums stay in registers */
                        case 6: tile(6, slice, weights, panel, to_out, pixels, count, start); break;
                        case 5: tile(5, slice, weights, panel, to_out, pixels, count, start); break;
                        case 4: tile(4, slice, weights, panel, to_out, pixels, count, start); break;
                        case 3: tile(3, slice, weights, panel, to_out, pixels, count, start); break;
                        case 2: tile(2, slice, weights, panel, to_out, pixels, count, start); break;
                        default: tile(1, slice, weights, panel, to_out, pixels, count, start);
                        }
                    }
        }
}

/* input [B, C, H, W], kernel [B, 1, kh, kw, Ho, Wo], weight [O, C/groups, kh, kw], bias [O] or null -> out.
 * Returns 0, or 1 where memory ran out. */
int pac_convolution(const Window *w, const float *input, const float *kernel, const float *weight, const float *bias,
                    float *out, int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    int64_t rows = w->out_channels / w->groups, depth = w->channels / w->groups * taps;
    int64_t tall = tile_rows(rows), row_tiles = (rows + tall - 1) / tall;
    int64_t depth_slice = most(1, DEPTH / taps) * taps;
    int64_t bands = most((pixels + BAND - 1) / BAND, (threads + w->batch - 1) / most(1, w->batch));
    int64_t band = ((pixels + bands - 1) / most(1, bands) + PIXELS - 1) / PIXELS * PIXELS;
    float *packed = buffer(w->out_channels * depth);
    int failed = packed == NULL;
    if (failed) return 1;
#pragma omp parallel num_threads(threads)
    {
        float *panels = buffer(band * depth_slice);
        Tap *found = malloc((size_t)most(1, band / PIXELS * taps) * sizeof(Tap));
        if (!panels || !found) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for
        for (int64_t n = 0; n < w->groups * row_tiles; n++) {
            int64_t row = n % row_tiles * tall, channel = n / row_tiles * rows + row;
            pack_weights(weight + channel * depth, least(tall, rows - row), depth, packed + channel * depth);
        }
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t b = 0; b < bands; b++)
                if (!failed && b * band < pixels)
                    convolve_band(w, input + n * w->channels * w->height * w->width, kernel + n * taps * pixels,
                                  packed, bias, out + n * w->out_channels * pixels, b * band,
                                  least(pixels, (b + 1) * band), found, panels);
        free(panels);
        free(found);
    }
    free(packed);
    return failed;
}

/* --- pooling and depthwise convolution: row by row ------------------------------------------------------------ */

/* Any outputs of a row, tap by tap. */
INLINE void pool_any(const Window *w, const float *channel, const float *kernel, const float *weight, float start,
                     float *out, int64_t y) {
    int64_t pixels = w->out_height * w->out_width, step = w->stride[1];
    for (int64_t x = 0; x < w->out_width; x++) out[x] = start;
    for (int64_t i = 0; i < w->kernel[0]; i++) {
        int64_t row = y * w->stride[0] - w->padding[0] + i * w->dilation[0];
        if (row < 0 || row >= w->height) continue;
        for (int64_t j = 0; j < w->kernel[1]; j++) {
            int64_t t = i * w->kernel[1] + j, shift = j * w->dilation[1] - w->padding[1], first, last;
            const float *k = kernel + t * pixels, *v = channel + row * w->width + shift;
            float f = weight ? weight[t] : 1.0f;
            seen_range(shift, step, w->width, w->out_width, &first, &last);
            for (int64_t x = first; x < last; x++) out[x] += k[x] * f * v[x * step];
        }
    }
}

/* Columns that a row of windows with stride 1 sees, padding included. */
INLINE int64_t seen_columns(const Window *w) { return w->out_width + (w->kernel[1] - 1) * w->dilation[1]; }

/* A row of at least PIXELS outputs with stride 1, PIXELS at a time in registers. `rows` holds kh padded rows. */
INLINE void pool_panels(const Window *w, const float *channel, const float *kernel, const float *weight, float start,
                        float *out, int64_t y, float *rows) {
    int64_t pixels = w->out_height * w->out_width, wide = seen_columns(w);
    int64_t first = most(0, w->padding[1]), last = least(wide, w->width + w->padding[1]); /* inside the image */
    for (int64_t i = 0; i < w->kernel[0]; i++) {
        int64_t row = y * w->stride[0] - w->padding[0] + i * w->dilation[0];
        float *padded = rows + i * wide;
        memset(padded, 0, wide * sizeof(float));
        if (row >= 0 && row < w->height && first < last)
            memcpy(padded + first, channel + row * w->width + first - w->padding[1], (last - first) * sizeof(float));
    }
    for (int64_t next = 0; next < w->out_width; next += PIXELS) {
        int64_t x = least(next, w->out_width - PIXELS); /* the last ones may overlap those before */
        v8 left = (v8){0} + start, right = left;
        const float *k = kernel + x;
        for (int64_t i = 0; i < w->kernel[0]; i++) {
            const float *v = rows + i * wide + x;
            for (int64_t j = 0; j < w->kernel[1]; j++, v += w->dilation[1], k += pixels) {
                float f = weight ? weight[i * w->kernel[1] + j] : 1.0f;
                left += load(k) * f * load(v);
                right += load(k + 8) * f * load(v + 8);
            }
        }
        store(out + x, left);
        store(out + x + 8, right);
    }
}

FOR_EVERY_CPU
static void pool_row(const Window *w, const float *channel, const float *kernel, const float *weight, float start,
                     float *out, int64_t y, float *rows) {
    if (w->stride[1] == 1 && w->out_width >= PIXELS)
        pool_panels(w, channel, kernel, weight, start, out, y, rows);
    else
        pool_any(w, channel, kernel, weight, start, out, y);
}

/* input [B, C, H, W], kernel [B, 1 or C, kh, kw, Ho, Wo], weight [C, 1, kh, kw] or null, bias [C] or null -> out.
 * Returns 0, or 1 where memory ran out. */
int pac_pooling(const Window *w, const float *input, const float *kernel, int64_t kernel_channels,
                const float *weight, const float *bias, float *out, int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *rows = buffer(w->kernel[0] * seen_columns(w));
        if (!rows) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t y = 0; y < w->out_height; y++) /* K of a row serves all channels while it is near */
                for (int64_t c = 0; c < w->channels && !failed; c++) {
                    int64_t plane = n * w->channels + c, of = kernel_channels > 1 ? plane : n;
                    pool_row(w, input + plane * w->height * w->width,
                             kernel + of * taps * pixels + y * w->out_width, weight ? weight + c * taps : NULL,
                             bias ? bias[c] : 0.0f, out + plane * pixels + y * w->out_width, y, rows);
                }
        free(rows);
    }
    return failed;
}

/* --- distances -------------------------------------------------------------------------------------------------- */

/* All taps of one row of windows: [kh, kw, Wo], from `sums` [kh * kw, Wo] of this thread. */
FOR_EVERY_CPU
static void distance_row(const Window *w, const float *guide, float *out, int64_t y, float *centre, float *sums) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width, plane = w->height * w->width;
    int64_t step = w->stride[1], across = w->out_width, middle = w->kernel[0] / 2 * w->kernel[1] + w->kernel[1] / 2;
    int64_t centre_row = y * w->stride[0] - w->padding[0] + w->kernel[0] / 2 * w->dilation[0];
    int64_t centre_shift = w->kernel[1] / 2 * w->dilation[1] - w->padding[1], begin, end;
    seen_range(centre_shift, step, w->width, across, &begin, &end);
    if (centre_row < 0 || centre_row >= w->height) begin = end = 0;
    memset(sums, 0, taps * across * sizeof(float));
    for (int64_t g = 0; g < w->channels; g++) {
        const float *f = guide + g * plane;
        memset(centre, 0, across * sizeof(float)); /* the guide counts as zero outside the image */
        if (begin < end) {
            const float *row = f + centre_row * w->width + centre_shift;
            if (step == 1)
                memcpy(centre + begin, row + begin, (end - begin) * sizeof(float));
            else
                for (int64_t x = begin; x < end; x++) centre[x] = row[x * step];
        }
        for (int64_t t = 0; t < taps; t++) {
            if (t == middle) continue;
            int64_t row = y * w->stride[0] - w->padding[0] + t / w->kernel[1] * w->dilation[0];
            int64_t shift = t % w->kernel[1] * w->dilation[1] - w->padding[1], first, last;
            float *sum = sums + t * across;
            seen_range(shift, step, w->width, across, &first, &last);
            if (row < 0 || row >= w->height || first >= last) first = last = 0;
            const float *other = f + row * w->width + shift;
            for (int64_t x = 0; x < first; x++) sum[x] += centre[x] * centre[x];
            if (step == 1)
                for (int64_t x = first; x < last; x++) {
                    float away = centre[x] - other[x];
                    sum[x] += away * away;
                }
            else
                for (int64_t x = first; x < last; x++) {
                    float away = centre[x] - other[x * step];
                    sum[x] += away * away;
                }
            for (int64_t x = last; x < across; x++) sum[x] += centre[x] * centre[x];
        }
    }
    for (int64_t t = 0; t < taps; t++)
        memcpy(out + t * pixels + y * across, sums + t * across, across * sizeof(float));
}

/* guide [B, G, H, W] -> out [B, 1, kh, kw, Ho, Wo]. Returns 0, or 1 where memory ran out. */
int pac_distance(const Window *w, const float *guide, float *out, int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *sums = buffer(taps * w->out_width), *centre = buffer(w->out_width);
        if (!sums || !centre) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t y = 0; y < w->out_height; y++)
                if (!failed)
                    distance_row(w, guide + n * w->channels * w->height * w->width, out + n * taps * pixels, y,
                                 centre, sums);
        free(sums);
        free(centre);
    }
    return failed;
}
