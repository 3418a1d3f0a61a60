/* Pooling and depthwise convolution of channels-last images: vectors are of channels, so that nothing is padded or
 * shifted. */
#include "pooling.h"

enum {
    SIDE_BY_SIDE = LANES == 16 ? 4 : 2, /* outputs that share each load of a weight */
    BLOCK = 4,                          /* vectors of channels that share each load of K */
};

/* Some outputs side by side, of some vectors of channels. They see the rows of their windows from `top` to `bottom` and
 * the columns from `first` to `after`, all inside the image. `seen` is where the first output finds its first tap,
 * `kernel` its K, packed. */
INLINE void last_tile(int outputs, int vectors, const Window *w, const float *seen, const float *kernel,
                      const float *weights, const float *bias, float *out, int64_t top, int64_t bottom, int64_t first,
                      int64_t after) {
    int64_t channels = w->channels, apart = w->stride[1] * channels;
    vec sum[SIDE_BY_SIDE][BLOCK];
    for (int p = 0; p < outputs; p++)
        for (int v = 0; v < vectors; v++) sum[p][v] = bias ? get(bias + v * LANES) : (vec){0};
    for (int64_t i = top; i < bottom; i++)
        for (int64_t j = first; j < after; j++) {
            const float *at = seen + (i * w->dilation[0] * w->width + j * w->dilation[1]) * channels;
            int64_t t = i * w->kernel[1] + j;
            const float *k = kernel + t * whole_vectors(w->out_width), *weight = weights + t * channels;
            for (int p = 0; p < outputs; p++, at += apart)
                for (int v = 0; v < vectors; v++)
                    sum[p][v] += all_of(k[p]) * get(weight + v * LANES) * get(at + v * LANES);
        }
    for (int p = 0; p < outputs; p++, out += channels)
        for (int v = 0; v < vectors; v++) put(out + v * LANES, sum[p][v]);
}

/* The first tap of an axis that an output sees inside the image, and the one after the last. */
INLINE int64_t first_tap(const Window *w, int axis, int64_t output) {
    int64_t before = w->padding[axis] - output * w->stride[axis], step = w->dilation[axis];
    return before > 0 ? (before + step - 1) / step : 0;
}
INLINE int64_t after_tap(const Window *w, int axis, int64_t output, int64_t size) {
    int64_t ahead = size + w->padding[axis] - output * w->stride[axis], step = w->dilation[axis];
    return ahead > 0 ? least(w->kernel[axis], (ahead + step - 1) / step) : 0;
}

/* A row of outputs of an image, of some vectors of channels. */
INLINE void last_line(int vectors, const Window *w, const float *image, const float *kernel, const float *weights,
                      const float *bias, float *out, int64_t y) {
    int64_t top = first_tap(w, 0, y), bottom = after_tap(w, 0, y, w->height), channels = w->channels;
    image += (y * w->stride[0] - w->padding[0]) * w->width * channels;
    for (int64_t x = 0, together; x < w->out_width; x += together, kernel += together, out += together * channels) {
        const float *seen = image + (x * w->stride[1] - w->padding[1]) * channels;
        int64_t first = first_tap(w, 1, x), after = after_tap(w, 1, x, w->width), final = x + SIDE_BY_SIDE - 1;
        int whole = final < w->out_width && first == 0 && after_tap(w, 1, final, w->width) == w->kernel[1];
        together = whole ? SIDE_BY_SIDE : 1;
        if (whole)
            last_tile(SIDE_BY_SIDE, vectors, w, seen, kernel, weights, bias, out, top, bottom, 0, w->kernel[1]);
        else
            last_tile(1, vectors, w, seen, kernel, weights, bias, out, top, bottom, first, after);
    }
}

/* The same of all channels, of which the last vector may have some again. */
FOR_EVERY_CPU
static void last_row(const Window *w, const float *image, const float *kernel, const float *weights, const float *bias,
                     float *out, int64_t y) {
    for (int64_t c = 0, vectors, left = w->channels; left > 0; c += vectors * LANES, left -= vectors * LANES) {
        c += least(0, left - LANES);
        vectors = left >= 4 * LANES ? 4 : left >= 2 * LANES ? 2 : 1;
        const float *start = bias ? bias + c : NULL;
        switch (vectors) {
        case 4: last_line(4, w, image + c, kernel, weights + c, start, out + c, y); break;
        case 2: last_line(2, w, image + c, kernel, weights + c, start, out + c, y); break;
        default: last_line(1, w, image + c, kernel, weights + c, start, out + c, y);
        }
    }
}

/* input [B, H, W, C] of at least LANES channels, kernel [B, kh, kw, Ho, Wo], weight [C, 1, kh, kw] or null, bias [C] or
 * null -> out [B, Ho, Wo, C]. Returns 0, or 1 where memory ran out. */
int pac_pooling_last(const Window *w, const float *input, const float *kernel, const float *weight, const float *bias,
                     float *out, int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], channels = w->channels, wide = w->out_width;
    float *weights = buffer(taps * channels); /* tap by tap */
    int failed = !weights;
    for (int64_t t = 0; weights && t < taps; t++)
        for (int64_t c = 0; c < channels; c++) weights[t * channels + c] = weight ? weight[c * taps + t] : 1.0f;
#pragma omp parallel num_threads(threads)
    {
        float *packed = thread_buffer(taps * whole_vectors(wide), 0, &failed);
#pragma omp barrier
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t y = 0; y < w->out_height; y++) {
                if (failed) continue;
                pack_kernel(w, kernel + (n * taps * w->out_height + y) * wide, 1, packed);
                last_row(w, input + n * w->height * w->width * channels, packed, weights, bias,
                         out + (n * w->out_height + y) * wide * channels, y);
            }
        free(packed);
    }
    free(weights);
    return failed;
}
