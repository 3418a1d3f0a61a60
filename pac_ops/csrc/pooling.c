/* Pooling and depthwise convolution: row by row. */
#include "window.h"

enum { PIXELS = 16 }; /* kept in registers at a time */

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

/* --- gradients ---------------------------------------------------------------------------------------------------- */

/* What a row of outputs adds to the gradients of its channel, any of which may be null. `kernel` and `grad_kernel` are
 * tap 0 of this row, `grad` the row; `grad_weight` has 8 sums a tap. */
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
        v8 sum = {0};
        for (; step == 1 && x + 8 <= last; x += 8) {
            v8 g = load(grad + x), k_g = load(k + x) * g;
            sum += k_g * load(v + x);
            if (to_input) store(to_input + x, load(to_input + x) + f * k_g);
            if (to_kernel) store(to_kernel + x, load(to_kernel + x) + f * g * load(v + x));
        }
        for (; x < last; x++) {
            float k_g = k[x] * grad[x];
            sum[0] += k_g * v[x * step];
            if (to_input) to_input[x * step] += f * k_g;
            if (to_kernel) to_kernel[x] += f * grad[x] * v[x * step];
        }
        if (grad_weight) store(grad_weight + 8 * t, load(grad_weight + 8 * t) + sum);
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
    float *found = shared ? buffer(count * size) : NULL, *sums = buffer(w->channels * taps * 8);
    int failed = (shared && !found) || !sums;
    if (!failed) {
        memset(sums, 0, w->channels * taps * 8 * sizeof(float));
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
                                          grad_weight ? sums + c * taps * 8 : NULL, y);
                    }
            }
            if (shared) {
#pragma omp for schedule(static)
                for (int64_t e = 0; e < size; e++)
                    for (int64_t s = 0; s < count; s++) grad_kernel[n * size + e] += found[s * size + e];
            }
        }
        for (int64_t e = 0; grad_weight && e < w->channels * taps; e++)
            for (int i = 0; i < 8; i++) grad_weight[e] += sums[e * 8 + i];
    }
    free(found);
    free(sums);
    return failed;
}
