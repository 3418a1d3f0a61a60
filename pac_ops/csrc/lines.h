/* Convolution of few input channels, though not of many fewer than there are outputs, to rows of outputs that are whole
 * panels or nearly so: lines of the image are copied once, and K multiplies the sum of each tap. By panels, packing taps
 * times K takes a fifth of the time there. */
#pragma once

#include "panels.h"

enum {
    FEW_CHANNELS = 128,
    HIGHEST = 4, /* rows of outputs of a band */
};

/* A band: its rows of outputs, the lines that they see, and elements from line to line and from channel to channel. */
typedef struct {
    int64_t high, lines, wide, apart;
} Strip;

/* Bands of some windows; none where they are not for this. */
static Strip strip_of(const Window *w, int64_t threads) {
    int64_t in = w->channels / w->groups, rows = w->out_channels / w->groups;
    int64_t panels = parts_of(w->out_width, PIXELS);
    int64_t wide = whole_vectors(panels * PIXELS + w->kernel[1] - 1), fit = NEAR / most(1, in * wide);
    int64_t high = least(HIGHEST, least(fit - w->kernel[0] + 1, parts_of(w->batch * w->out_height, threads)));
    int is_plain = w->stride[0] == 1 && w->stride[1] == 1 && w->dilation[0] == 1 && w->dilation[1] == 1;
    int is_in_line = w->kernel_step[4] == 1 && w->out_step[3] == 1;
    int is_whole = 8 * (panels * PIXELS - w->out_width) <= w->out_width; /* little is computed for nothing */
    int is_worth_it = in <= FEW_CHANNELS && 4 * in >= 3 * rows; /* K multiplies sums of each output, not taps of inputs */
    if (!is_plain || !is_in_line || !is_whole || !is_worth_it || high < 1) return (Strip){0};
    int64_t lines = high + w->kernel[0] - 1;
    return (Strip){high, lines, wide, lines * wide + LANES}; /* planes of a power of two would share cache lines */
}

/* Weights in the order in which tiles read them: of each `tall` output channels [taps, in, rows]. */
static void pack_by_taps(const Window *w, const float *weight, int64_t tall, float *packed) {
    const int64_t *step = w->weight_step;
    int64_t rows = w->out_channels / w->groups, in = w->channels / w->groups, taps = w->kernel[0] * w->kernel[1];
#pragma omp for collapse(2)
    for (int64_t g = 0; g < w->groups; g++)
        for (int64_t r = 0; r < rows; r += tall) {
            float *to = packed + (g * rows + r) * in * taps;
            for (int64_t t = 0; t < taps; t++)
                for (int64_t c = 0; c < in; c++)
                    for (int64_t o = r; o < least(rows, r + tall); o++)
                        *to++ = weight[g * step[0] + o * step[1] + c * step[2] + t / w->kernel[1] * step[3] +
                                       t % w->kernel[1] * step[4]];
        }
}

/* The lines of a band of a group from row y of outputs on; margins are zero already. */
INLINE void copy_lines(const Window *w, const Strip *strip, const float *image, int64_t y, float *lines) {
    for (int64_t c = 0; c < w->channels / w->groups; c++, image += w->height * w->width)
        for (int64_t l = 0; l < strip->lines; l++) {
            int64_t row = y - w->padding[0] + l;
            float *to = lines + c * strip->apart + l * strip->wide + w->padding[1];
            if (row >= 0 && row < w->height)
                memcpy(to, image + row * w->width, w->width * sizeof(float));
            else
                memset(to, 0, w->width * sizeof(float));
        }
}

/* `rows` output channels of `count` pixels side by side, of which `lines` has the first tap and `kernel` K. */
INLINE void strip_tile(int rows, const Window *w, const Strip *strip, const float *lines, const float *kernel,
                       const float *weights, const float *bias, float *out, int64_t count) {
    int64_t in = w->channels / w->groups;
    vec total[ROWS][2];
    for (int r = 0; r < rows; r++) total[r][0] = total[r][1] = all_of(bias ? bias[r] : 0.0f);
    for (int64_t i = 0; i < w->kernel[0]; i++)
        for (int64_t j = 0; j < w->kernel[1]; j++) {
            vec sum[ROWS][2];
            for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (vec){0};
            const float *at = lines + i * strip->wide + j, *k = kernel + i * w->kernel_step[1] + j * w->kernel_step[2];
            for (int64_t c = 0; c < in; c++, at += strip->apart, weights += rows) {
                vec left = get(at), right = get(at + LANES);
                for (int r = 0; r < rows; r++) {
                    sum[r][0] += left * weights[r];
                    sum[r][1] += right * weights[r];
                }
            }
            vec left = get_up_to(k, count), right = get_up_to(k + LANES, count - LANES);
            for (int r = 0; r < rows; r++) {
                total[r][0] += left * sum[r][0];
                total[r][1] += right * sum[r][1];
            }
        }
    for (int r = 0; r < rows; r++, out += w->out_step[1]) {
        put_up_to(out, total[r][0], count);
        put_up_to(out + LANES, total[r][1], count - LANES);
    }
}

/* `strip_tile` with a constant number of rows. */
INLINE void strip_rows(int64_t rows, const Window *w, const Strip *strip, const float *lines, const float *kernel,
                       const float *weights, const float *bias, float *out, int64_t count) {
    switch (rows) {
#define CALL(n) \
    case n: strip_tile(n, w, strip, lines, kernel, weights, bias, out, count); break;
        ALL_ROWS(CALL)
#undef CALL
    }
}

/* A band of an image, from row y of outputs on. */
FOR_EVERY_CPU
static void convolve_strip(const Window *w, const Strip *strip, const float *image, const float *kernel,
                           const float *weights, const float *bias, float *out, int64_t y, float *lines) {
    int64_t rows = w->out_channels / w->groups, in = w->channels / w->groups, taps = w->kernel[0] * w->kernel[1];
    int64_t tall = tile_rows(rows), bottom = least(w->out_height, y + strip->high);
    for (int64_t g = 0; g < w->groups; g++) {
        copy_lines(w, strip, image + g * in * w->height * w->width, y, lines);
        for (int64_t row = y; row < bottom; row++)
            for (int64_t x = 0; x < w->out_width; x += PIXELS)
                for (int64_t o = g * rows; o < (g + 1) * rows; o += tall)
                    strip_rows(least(tall, (g + 1) * rows - o), w, strip, lines + (row - y) * strip->wide + x,
                               kernel + row * w->kernel_step[3] + x, weights + o * in * taps, bias ? bias + o : NULL,
                               out + o * w->out_step[1] + row * w->out_step[2] + x, least(PIXELS, w->out_width - x));
    }
}

/* A convolution by lines. Returns 0, or 1 where memory ran out. */
static int convolve_lines(const Window *w, const Strip *strip, const float *input, const float *kernel,
                          const float *weight, const float *bias, float *out, int64_t threads) {
    int64_t in = w->channels / w->groups, held = in * strip->apart, bands = parts_of(w->out_height, strip->high);
    float *packed = buffer(w->out_channels * in * w->kernel[0] * w->kernel[1]);
    int failed = !packed;
#pragma omp parallel num_threads(threads)
    {
        float *lines = thread_buffer(held, held, &failed);
#pragma omp barrier
        if (!failed) pack_by_taps(w, weight, tile_rows(w->out_channels / w->groups), packed);
        /* Bands beside each other write to the same pages of memory, for which threads would wait for each other. */
#pragma omp for collapse(2) schedule(dynamic, most(1, w->batch * bands / (8 * threads)))
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t b = 0; b < bands; b++)
                if (!failed)
                    convolve_strip(w, strip, input + n * w->channels * w->height * w->width,
                                   kernel + n * w->kernel_step[0], packed, bias, out + n * w->out_step[0],
                                   b * strip->high, lines);
        free(lines);
    }
    free(packed);
    return failed;
}
