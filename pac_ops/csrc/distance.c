/* Squared distances between the guide features of each window. */
#include "window.h"

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
