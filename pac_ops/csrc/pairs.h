/* Distances between the guide features of each window, where there is one window for every pixel: each pair once.
 *
 * The distance at offset o seen from pixel p is the one at -o seen from p + o. So half of the taps are summed, as if an
 * image were one long row of pixels, which makes an offset one number whatever the row. What comes of a pixel beside one
 * of another row is replaced: where a tap is outside the image, its guide counts as zero, and the distance is the
 * centre's own squared length.
 */
#pragma once

#include "window.h"

typedef uint32_t bits_vec __attribute__((vector_size(4 * LANES)));

enum {
    PAIR_TAPS = 4,           /* summed together; half of the taps of a square window are a multiple of it */
    PAIR_CHANNELS = 8,       /* channels whose sums stay in registers */
    PAIR_PIXELS = 1024, /* of a block: its sums stay in the nearest cache */
};

/* exp(-d / 2) for d >= 0, within 2e-7 of it; 0 from d = 174, where it is below 2^-125; a NaN stays one.
 *
 * exp(x) = 2^n exp(r) with n whole and |r| <= ln(2) / 2, exp(r) by its Taylor polynomial of degree 7 (1e-8 off). */
INLINE vec gaussian(vec d) {
    const float high = 0.693359375f, low = -2.12194440e-4f; /* of ln(2); n * high is exact */
    vec x = -0.5f * d;
    whole_vec whole = __builtin_convertvector(x * 1.44269504f - 0.5f, whole_vec); /* towards 0: the nearest, as x <= 0 */
    vec n = __builtin_convertvector(whole, vec);
    vec r = x - n * high - n * low;
    vec sum = 1.0f / 720 + r * (1.0f / 5040);
    sum = 1.0f / 24 + r * (1.0f / 120 + r * sum);
    sum = 0.5f + r * (1.0f / 6 + r * sum);
    sum = 1 + r * (1 + r * sum);
    vec power = (vec)((bits_vec)(whole + 127) << 23); /* 2^n; unsigned, as a NaN makes any number of it */
    return (vec)((whole_vec)(sum * power) & ~(x < -87));
}

/* Whether windows are centred on one pixel each, and there is one for every pixel. */
INLINE int every_pixel(const Window *w) {
    int is = 1;
    for (int axis = 0; axis < 2; axis++)
        is = is && w->kernel[axis] % 2 && w->stride[axis] == 1 && w->padding[axis] == w->kernel[axis] / 2 * w->dilation[axis];
    return is;
}

/* Half of the taps: those after the centre, row by row. */
INLINE int64_t half_taps(const Window *w) { return w->kernel[0] * w->kernel[1] / 2; }

/* How far the tap that is `number` after the centre is from it. */
INLINE void away_from_centre(const Window *w, int64_t number, int64_t *down, int64_t *across) {
    int64_t tap = half_taps(w) + 1 + number;
    *down = (tap / w->kernel[1] - w->kernel[0] / 2) * w->dilation[0];
    *across = (tap % w->kernel[1] - w->kernel[1] / 2) * w->dilation[1];
}

/* A vector of a row of `size`; of what is outside, zero. */
INLINE vec inside_of(const float *row, int64_t size, int64_t from) {
    vec found = {0};
    for (int64_t lane = 0; lane < LANES; lane++)
        if (from + lane >= 0 && from + lane < size) found[lane] = row[from + lane];
    return found;
}

/* Of a vector of pixels from `from` on, over `count` channels: the squared lengths to sums[PAIR_TAPS], the squared distances
 * to the pixels `offset` away to the others. `safe`: all of them are inside the guide's memory. */
INLINE void add_pairs(const float *guide, int64_t size, int64_t image, int64_t count, int64_t from, const int64_t *offset,
                      int safe, float *sums) {
    vec sum[PAIR_TAPS + 1];
    for (int t = 0; t <= PAIR_TAPS; t++) sum[t] = get(sums + t * PAIR_PIXELS);
    for (int64_t c = 0; c < count; c++, from += image) {
        vec centre = safe ? get(guide + from) : inside_of(guide, size, from);
#pragma GCC unroll 4
        for (int t = 0; t < PAIR_TAPS; t++) {
            vec apart = centre - (safe ? get(guide + from + offset[t]) : inside_of(guide, size, from + offset[t]));
            sum[t] += apart * apart;
        }
        sum[PAIR_TAPS] += centre * centre;
    }
    for (int t = 0; t <= PAIR_TAPS; t++) put(sums + t * PAIR_PIXELS, sum[t]);
}

/* Of the pixels from `from` to `to`: PAIR_TAPS of the taps after the centre, the one with number `first` and those that
 * follow, and in the centre's place what a tap outside the image has. */
FOR_EVERY_CPU
static void pairs_of_block(const Window *w, const float *guide, int as_gaussian, float *out, int64_t from, int64_t to,
                           int64_t first, float *sums) {
    int64_t image = w->height * w->width, size = w->channels * image, half = half_taps(w);
    int64_t offset[PAIR_TAPS], low = 0, high = 0;
    for (int t = 0; t < PAIR_TAPS; t++) {
        int64_t down, across;
        away_from_centre(w, least(first + t, half - 1), &down, &across);
        offset[t] = down * w->width + across;
        low = least(low, offset[t]);
        high = most(high, offset[t]);
    }
    memset(sums, 0, (PAIR_TAPS + 1) * PAIR_PIXELS * sizeof(float));
    for (int64_t g = 0; g < w->channels; g += PAIR_CHANNELS) {
        int64_t count = least(PAIR_CHANNELS, w->channels - g);
        for (int64_t p = from; p < to; p += LANES) {
            int64_t start = g * image + p, end = start + (count - 1) * image + LANES;
            if (start + low >= 0 && end + high <= size)
                add_pairs(guide, size, image, count, start, offset, 1, sums + p - from);
            else
                add_pairs(guide, size, image, count, start, offset, 0, sums + p - from);
        }
    }
    for (int t = 0; t <= PAIR_TAPS; t++) {
        if (t < PAIR_TAPS && first + t >= half) continue;
        float *plane = out + (t == PAIR_TAPS ? half : half + 1 + first + t) * image;
        for (int64_t p = from; p < to; p += LANES) {
            vec found = get(sums + t * PAIR_PIXELS + p - from);
            put_some(plane + p, as_gaussian ? gaussian(found) : found, least(LANES, to - p));
        }
    }
}

/* One row of a tap: from what is there for it, and where its pixel is outside the image from `outside`. */
INLINE void mend_row(const Window *w, int64_t y, int64_t down, int64_t across, const float *there, const float *outside,
                     float *row) {
    int64_t first = 0, last = 0;
    if (y + down >= 0 && y + down < w->height) seen_range(across, 1, w->width, w->width, &first, &last);
    if (first >= last) first = last = 0; /* no column sees one of the image */
    memcpy(row, outside, first * sizeof(float));
    if (there != row) memcpy(row + first, there + first, (last - first) * sizeof(float));
    memcpy(row + last, outside + last, (w->width - last) * sizeof(float));
}

/* All taps of a row, from what `pairs_of_block` left for the whole image. */
static void mend_rows(const Window *w, int as_gaussian, float *out, int64_t y) {
    int64_t image = w->height * w->width, half = half_taps(w);
    float *centre = out + half * image + y * w->width;
    for (int64_t t = 0; t < half; t++) {
        int64_t down, across;
        away_from_centre(w, t, &down, &across);
        float *after = centre + (1 + t) * image, *before = centre - (1 + t) * image;
        mend_row(w, y, -down, -across, after - down * w->width - across, centre, before);
        mend_row(w, y, down, across, after, centre, after);
    }
    for (int64_t x = 0; x < w->width; x++) centre[x] = as_gaussian ? 1.0f : 0.0f;
}

/* guide [B, G, H, W] -> out [B, 1, kh, kw, H, W]. Returns 0, or 1 where memory ran out. */
static int pair_distances(const Window *w, const float *guide, int as_gaussian, float *out, int64_t threads) {
    int64_t image = w->height * w->width, blocks = (image + PAIR_PIXELS - 1) / PAIR_PIXELS, half = half_taps(w);
    if (w->batch % threads) blocks = (blocks + threads - 1) / threads * threads;
    int64_t pixels = whole_vectors((image + blocks - 1) / blocks), of_guide = w->channels * image;
    int64_t of_out = (2 * half + 1) * image;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *sums = thread_buffer((PAIR_TAPS + 1) * PAIR_PIXELS, 0, &failed);
#pragma omp barrier
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t b = 0; b < blocks; b++)
                for (int64_t first = 0; !failed && first < most(1, half); first += PAIR_TAPS)
                    pairs_of_block(w, guide + n * of_guide, as_gaussian, out + n * of_out, b * pixels,
                                   least(image, (b + 1) * pixels), first, sums);
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t y = 0; y < w->height; y++)
                if (!failed) mend_rows(w, as_gaussian, out + n * of_out, y);
        free(sums);
    }
    return failed;
}
