/* Pooling and depthwise convolution: row by row. */
#include "pooling.h"

enum {
    VECTORS = LANES == 16 ? 2 : 4,  /* of outputs of a row, kept in registers at a time */
    TOGETHER = LANES == 16 ? 4 : 2, /* channels that share each load of K */
    K_NEAR = 48 << 10,              /* elements of K that stay near while all channels use them: 192 KiB */
    MOST_ROWS = 8,                  /* outputs whose windows share padded rows */
};

/* K of a band: its first element, and elements from tap to tap and from row to row. */
typedef struct {
    const float *first;
    int64_t tap, row;
} Kernel;

/* Any outputs of a row, tap by tap. */
INLINE void pool_any(const Window *w, const float *channel, const float *kernel, int64_t kernel_step,
                     const float *weight, int channels, float start, float *out, int64_t y) {
    int64_t step = w->stride[1];
    for (int64_t x = 0; x < w->out_width; x++) out[x] = start;
    for (int64_t i = 0; i < w->kernel[0]; i++) {
        int64_t row = y * w->stride[0] - w->padding[0] + i * w->dilation[0];
        if (row < 0 || row >= w->height) continue;
        for (int64_t j = 0; j < w->kernel[1]; j++) {
            int64_t t = i * w->kernel[1] + j, shift = j * w->dilation[1] - w->padding[1], first, last;
            const float *k = kernel + t * kernel_step, *v = channel + row * w->width + shift;
            float f = weight[t * channels];
            seen_range(shift, step, w->width, w->out_width, &first, &last);
            for (int64_t x = first; x < last; x++) out[x] += k[x] * f * v[x * step];
        }
    }
}

/* Rows of outputs of a band, so many that every thread gets as many bands. */
INLINE int64_t band_rows(const Window *w, int64_t threads) {
    if (w->dilation[0] > 1) return 1; /* lines between those of one window are not seen */
    int64_t highest = least(MOST_ROWS, most(1, K_NEAR / most(1, w->kernel[0] * w->kernel[1] * w->out_width)));
    int64_t share = most(1, parts_of(w->batch * w->out_height, threads));
    return parts_of(share, parts_of(share, highest));
}
/* The windows of so many, with stride 1 along a row, see these lines of the image, padded: */
INLINE int64_t seen_lines(const Window *w, int64_t rows) { return (rows - 1) * w->stride[0] + w->kernel[0]; }
/* Lines begin at whole vectors, and have one behind what is seen: a window's second vector may be there. */
INLINE int64_t seen_columns(const Window *w) {
    return whole_vectors(w->out_width + (w->kernel[1] - 1) * w->dilation[1]) + LANES;
}

/* Copy the lines into `padded`, whose margins are zero already. */
INLINE void pad_lines(const Window *w, const float *channel, int64_t y, int64_t lines, float *padded) {
    int64_t wide = seen_columns(w);
    int64_t first = most(0, w->padding[1]), count = least(wide, w->width + w->padding[1]) - first; /* inside the image */
    for (int64_t l = 0; l < lines; l++, padded += wide) {
        int64_t row = y * w->stride[0] - w->padding[0] + l * w->dilation[0], x = 0;
        int inside = row >= 0 && row < w->height;
        const float *from = channel + (inside ? row * w->width + first - w->padding[1] : 0);
        for (; x + LANES <= count; x += LANES) put(padded + first + x, inside ? get(from + x) : (vec){0});
        for (; x < count; x++) padded[first + x] = inside ? from[x] : 0.0f;
    }
}

/* Of two vectors side by side the one that begins `by` elements behind the first's begin, and which starts at p. */
INLINE vec shifted(vec first, vec second, int by, const float *p) {
#if LANES == 16 /* loads across the ends of lines take four times those at their beginnings */
    switch (by) {
    case 0: return first;
    case 1: return (vec)_mm512_alignr_epi32((__m512i)second, (__m512i)first, 1);
    case 2: return (vec)_mm512_alignr_epi32((__m512i)second, (__m512i)first, 2);
    case 3: return (vec)_mm512_alignr_epi32((__m512i)second, (__m512i)first, 3);
    case 4: return (vec)_mm512_alignr_epi32((__m512i)second, (__m512i)first, 4);
    case 5: return (vec)_mm512_alignr_epi32((__m512i)second, (__m512i)first, 5);
    case 6: return (vec)_mm512_alignr_epi32((__m512i)second, (__m512i)first, 6);
    }
#endif
    (void)first, (void)second;
    return get(p + by);
}

/* `vectors` vectors of outputs, the last of `last` outputs, of some channels whose padded lines are `apart`, as taps of
 * K are `step`. `columns` are those of the window where they are known here, and side by side; else 0. */
INLINE void pool_tile(int columns, int channels, int vectors, int64_t last, const Window *w, const float *lines,
                      int64_t apart, const float *kernel, int64_t step, const float *weight, const float *bias,
                      float *out) {
    int64_t pixels = w->out_height * w->out_width, wide = seen_columns(w), width = columns ? columns : w->kernel[1];
    vec sum[TOGETHER][VECTORS], seen[TOGETHER][VECTORS + 1];
    for (int c = 0; c < channels; c++)
        for (int v = 0; v < vectors; v++) sum[c][v] = all_of(bias ? bias[c] : 0.0f);
    for (int64_t i = 0; i < w->kernel[0]; i++, lines += wide) {
        for (int c = 0; columns && c < channels; c++)
            for (int v = 0; v <= vectors; v++) seen[c][v] = get(lines + c * apart + v * LANES);
#pragma GCC unroll 7
        for (int64_t j = 0; j < width; j++, kernel += step, weight += channels)
            for (int v = 0; v < vectors; v++) {
                const float *at = lines + v * LANES;
                vec k = get(kernel + v * LANES);
                for (int c = 0; c < channels; c++, at += apart)
                    sum[c][v] += k * (all_of(weight[c]) * (columns ? shifted(seen[c][v], seen[c][v + 1], (int)j, at)
                                                                   : get(at + j * w->dilation[1])));
            }
    }
    for (int c = 0; c < channels; c++)
        for (int v = 0; v < vectors; v++)
            put_up_to(out + c * pixels + v * LANES, sum[c][v], v + 1 < vectors ? LANES : last);
}

/* A row of outputs. */
INLINE void pool_tiles(int columns, int channels, const Window *w, const float *lines, int64_t apart,
                       const float *kernel, int64_t step, const float *weight, const float *bias, float *out) {
    int64_t x = 0, wide = w->out_width;
    for (; x + VECTORS * LANES <= wide; x += VECTORS * LANES)
        pool_tile(columns, channels, VECTORS, LANES, w, lines + x, apart, kernel + x, step, weight, bias, out + x);
    int64_t rest = wide - x, last = rest % LANES ? rest % LANES : LANES;
    switch (parts_of(rest, LANES)) {
#if LANES == 8
    case 4: pool_tile(columns, channels, 4, last, w, lines + x, apart, kernel + x, step, weight, bias, out + x); break;
    case 3: pool_tile(columns, channels, 3, last, w, lines + x, apart, kernel + x, step, weight, bias, out + x); break;
#endif
    case 2: pool_tile(columns, channels, 2, last, w, lines + x, apart, kernel + x, step, weight, bias, out + x); break;
    case 1: pool_tile(columns, channels, 1, last, w, lines + x, apart, kernel + x, step, weight, bias, out + x); break;
    }
}
INLINE void pool_row(int channels, const Window *w, const float *lines, int64_t apart, const float *kernel,
                     int64_t step, const float *weight, const float *bias, float *out) {
    switch (LANES == 16 && w->dilation[1] == 1 ? w->kernel[1] : 0) {
    case 3: pool_tiles(3, channels, w, lines, apart, kernel, step, weight, bias, out); break;
    case 5: pool_tiles(5, channels, w, lines, apart, kernel, step, weight, bias, out); break;
    case 7: pool_tiles(7, channels, w, lines, apart, kernel, step, weight, bias, out); break;
    default: pool_tiles(0, channels, w, lines, apart, kernel, step, weight, bias, out);
    }
}

/* `rows` rows of outputs from y on, of one or TOGETHER channels. `weight` is theirs, packed; `out` is row y. */
FOR_EVERY_CPU
static void pool_band(int channels, const Window *w, const float *channel, Kernel kernel, const float *weight,
                      const float *bias, float *out, int64_t y, int64_t rows, float *padded) {
    int64_t plane = w->height * w->width, wide = w->out_width;
    if (w->stride[1] > 1) {
        for (int c = 0; c < channels; c++)
            for (int64_t r = 0; r < rows; r++)
                pool_any(w, channel + c * plane, kernel.first + r * kernel.row, kernel.tap, weight + c, channels,
                         bias ? bias[c] : 0.0f, out + (c * w->out_height + r) * wide, y + r);
        return;
    }
    int64_t lines = seen_lines(w, rows), apart = lines * seen_columns(w), down = w->stride[0] * seen_columns(w);
    for (int c = 0; c < channels; c++) pad_lines(w, channel + c * plane, y, lines, padded + c * apart);
    for (int64_t r = 0; r < rows; r++, kernel.first += kernel.row, out += wide)
        if (channels == TOGETHER)
            pool_row(TOGETHER, w, padded + r * down, apart, kernel.first, kernel.tap, weight, bias, out);
        else
            pool_row(1, w, padded + r * down, apart, kernel.first, kernel.tap, weight, bias, out);
}

/* K of a band of rows of a plane of `planes`: where it lies, or packed where that serves several channels, or where
 * whole vectors read there would go beyond its end. */
INLINE Kernel kernel_of(const Window *w, const float *kernel, int64_t plane, int64_t planes, int64_t y, int64_t rows,
                        float *packed) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width, wide = w->out_width;
    int64_t begin = plane * taps * pixels + y * wide, whole = whole_vectors(wide);
    int64_t after = begin + (taps - 1) * pixels + (rows - 1) * wide + whole;
    int serves_several = planes == w->batch && w->channels > 1;
    if (w->stride[1] > 1 || (!serves_several && after <= planes * taps * pixels))
        return (Kernel){kernel + begin, pixels, wide};
    pack_kernel(w, kernel + begin, rows, packed);
    return (Kernel){packed, whole, taps * whole};
}

/* input [B, C, H, W], kernel [B, 1 or C, kh, kw, Ho, Wo], weight [C, 1, kh, kw] or null, bias [C] or null -> out.
 * Returns 0, or 1 where memory ran out. */
int pac_pooling(const Window *w, const float *input, const float *kernel, int64_t kernel_channels,
                const float *weight, const float *bias, float *out, int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width, wide = w->out_width;
    int64_t high = band_rows(w, threads);
    int64_t shared = kernel_channels == 1 ? w->channels / TOGETHER * TOGETHER : 0; /* channels that are taken together */
    float *weights = buffer(w->channels * taps); /* of those tap by tap: [shared / TOGETHER, taps, TOGETHER] */
    int failed = !weights;
    for (int64_t c = 0; weights && c < w->channels; c++)
        for (int64_t t = 0; t < taps; t++) {
            int64_t at = c < shared ? (c / TOGETHER * taps + t) * TOGETHER + c % TOGETHER : c * taps + t;
            weights[at] = weight ? weight[c * taps + t] : 1.0f;
        }
#pragma omp parallel num_threads(threads)
    {
        int64_t lines = TOGETHER * seen_lines(w, high) * seen_columns(w);
        float *padded = thread_buffer(lines + high * taps * whole_vectors(wide), lines, &failed);
#pragma omp barrier
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t y = 0; y < w->out_height; y += high) {
                int64_t rows = least(high, w->out_height - y);
                Kernel band = {0};
                for (int64_t c = 0, together; c < w->channels && !failed; c += together) {
                    together = c < shared ? TOGETHER : 1;
                    int64_t plane = n * w->channels + c, of = kernel_channels > 1 ? plane : n;
                    if (c == 0 || kernel_channels > 1)
                        band = kernel_of(w, kernel, of, w->batch * kernel_channels, y, rows, padded + lines);
                    pool_band((int)together, w, input + plane * w->height * w->width, band, weights + c * taps,
                              bias ? bias + c : NULL, out + plane * pixels + y * wide, y, rows, padded);
                }
            }
        free(padded);
    }
    free(weights);
    return failed;
}

/* --- gradients ---------------------------------------------------------------------------------------------------- */

/* What a row of outputs adds to the gradients of its channel, any of which may be null. `kernel` and `grad_kernel` are
 * tap 0 of this row, `grad` the row; `grad_weight` has LANES sums a tap. */
FOR_EVERY_CPU
static void pool_row_backward(const Window *w, const float *input, const float *kernel, const float *weight,
                              const float *grad, float *grad_input, float *grad_kernel, float *grad_weight, int64_t y) {
    int64_t pixels = w->out_height * w->out_width, step = w->stride[1];
    for (int64_t t = 0; t < w->kernel[0] * w->kernel[1]; t++) {
        int64_t row = y * w->stride[0] - w->padding[0] + t / w->kernel[1] * w->dilation[0], first, last;
        int64_t shift = t % w->kernel[1] * w->dilation[1] - w->padding[1];
        if (row < 0 || row >= w->height) continue;
        seen_range(shift, step, w->width, w->out_width, &first, &last);
        const float *k = kernel + t * pixels, *v = input + row * w->width + shift;
        float *to_input = grad_input ? grad_input + row * w->width + shift : NULL;
        float *to_kernel = grad_kernel ? grad_kernel + t * pixels : NULL;
        float f = weight ? weight[t] : 1.0f;
        int64_t x = first;
        vec sum = {0};
        for (; step == 1 && x + LANES <= last; x += LANES) {
            vec g = get(grad + x), k_g = get(k + x) * g;
            sum += k_g * get(v + x);
            if (to_input) put(to_input + x, get(to_input + x) + f * k_g);
            if (to_kernel) put(to_kernel + x, get(to_kernel + x) + f * g * get(v + x));
        }
        for (; x < last; x++) {
            float k_g = k[x] * grad[x];
            sum[0] += k_g * v[x * step];
            if (to_input) to_input[x * step] += f * k_g;
            if (to_kernel) to_kernel[x] += f * grad[x] * v[x * step];
        }
        if (grad_weight) put(grad_weight + LANES * t, get(grad_weight + LANES * t) + sum);
    }
}

/* input [B, C, H, W], kernel [B, 1 or C, kh, kw, Ho, Wo], weight [C, 1, kh, kw] or null, grad [B, C, Ho, Wo], all
 * contiguous, and gradients like them, of zeros, any of which may be null. Threads share out the channels; what each
 * found of the gradient of a K that all channels share is added up in a fixed order.
 * Returns 0, or 1 where memory ran out. */
int pac_pooling_backward(const Window *w, const float *input, const float *kernel, int64_t kernel_channels,
                         const float *weight, const float *grad, float *grad_input, float *grad_kernel,
                         float *grad_weight, int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width, size = taps * pixels;
    int64_t count = most(1, least(threads, w->channels));
    int shared = grad_kernel && kernel_channels == 1;
    float *found = shared ? buffer(count * size) : NULL, *sums = buffer(w->channels * taps * LANES);
    int failed = (shared && !found) || !sums;
    if (!failed) {
        memset(sums, 0, w->channels * taps * LANES * sizeof(float));
#pragma omp parallel num_threads(count)
        for (int64_t n = 0; n < w->batch; n++) {
#pragma omp for schedule(static)
            for (int64_t s = 0; s < count; s++) {
                if (shared) memset(found + s * size, 0, size * sizeof(float));
                for (int64_t y = 0; y < w->out_height; y++) /* K of a row serves all channels while it is near */
                    for (int64_t c = w->channels * s / count; c < w->channels * (s + 1) / count; c++) {
                        int64_t plane = n * w->channels + c, of = kernel_channels > 1 ? plane : n;
                        float *to_kernel = shared ? found + s * size : grad_kernel ? grad_kernel + of * size : NULL;
                        pool_row_backward(w, input + plane * w->height * w->width,
                                          kernel + of * size + y * w->out_width, weight ? weight + c * taps : NULL,
                                          grad + plane * pixels + y * w->out_width,
                                          grad_input ? grad_input + plane * w->height * w->width : NULL,
                                          to_kernel ? to_kernel + y * w->out_width : NULL,
                                          grad_weight ? sums + c * taps * LANES : NULL, y);
                    }
            }
            if (shared) {
#pragma omp for schedule(static)
                for (int64_t e = 0; e < size; e++)
                    for (int64_t s = 0; s < count; s++) grad_kernel[n * size + e] += found[s * size + e];
            }
        }
        for (int64_t e = 0; grad_weight && e < w->channels * taps; e++)
            for (int i = 0; i < LANES; i++) grad_weight[e] += sums[e * LANES + i];
    }
    free(found);
    free(sums);
    return failed;
}
