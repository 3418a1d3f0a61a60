/* Squared distances between the guide features of each window. */
#include "window.h"

typedef int32_t i8 __attribute__((vector_size(32)));

/* sum[x] += (centre[x] - other[x + shift])^2 for a row of outputs, 8 at a time; `other`, a row of `width`, counts as zero
 * outside. Whole vectors are read, so 8 floats before and after `other` must be readable; `centre` and `sum` are padded
 * to whole vectors. */
INLINE void add_squares(const float *centre, const float *other, int64_t shift, int64_t width, int64_t outputs,
                        float *sum) {
    const i8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int64_t x = 0; x < outputs; x += 8) {
        int64_t column = x + shift;
        v8 here = load(centre + x), there = {0};
        if (column >= 0 && column + 8 <= width) {
            there = load(other + column);
        } else if (column > -8 && column < width) {
            i8 at = lane + (int32_t)column, inside = (at >= 0) & (at < (int32_t)width);
            there = (v8)((i8)load(other + column) & inside);
        }
        v8 away = here - there;
        store(sum + x, load(sum + x) + away * away);
    }
}

/* As `add_squares`, for any stride. */
INLINE void add_squares_apart(const float *centre, const float *other, int64_t shift, int64_t stride, int64_t width,
                              int64_t outputs, float *sum) {
    for (int64_t x = 0; x < outputs; x++) {
        int64_t column = x * stride + shift;
        float away = centre[x] - (column >= 0 && column < width ? other[column] : 0.0f);
        sum[x] += away * away;
    }
}

/* What a thread works with. */
typedef struct {
    float *sums;   /* [rows, taps, outputs of a row, padded to whole vectors] */
    float *centre; /* outputs of a row */
    float *other;  /* a row of the guide with 8 floats before and after */
} Rows;

INLINE int64_t whole_vectors(int64_t n) { return (n + 7) / 8 * 8; }

/* Rows of windows that are summed together, so that a channel is read about once: their sums stay in the nearest cache. */
INLINE int64_t rows_together(const Window *w) {
    return most(1, 4096 / (w->kernel[0] * w->kernel[1] * whole_vectors(w->out_width)));
}

/* Of one channel, to the sums of one row of windows. `start` and `stop` are where the whole guide starts and ends. */
INLINE void add_channel(const Window *w, const float *channel, int64_t y, Rows rows, float *sums, const float *start,
                        const float *stop) {
    int64_t step = w->stride[1], across = w->out_width, wide = whole_vectors(across), first, last;
    int64_t top = y * w->stride[0] - w->padding[0], centre = top + w->kernel[0] / 2 * w->dilation[0];
    int64_t centre_shift = w->kernel[1] / 2 * w->dilation[1] - w->padding[1];
    seen_range(centre_shift, step, w->width, across, &first, &last);
    if (centre < 0 || centre >= w->height) first = last = 0;
    memset(rows.centre, 0, wide * sizeof(float)); /* the guide counts as zero outside the image */
    const float *row = channel + centre * w->width + centre_shift;
    for (int64_t x = first; x < last; x++) rows.centre[x] = row[x * step];
    for (int64_t i = 0; i < w->kernel[0]; i++) {
        int64_t at = top + i * w->dilation[0];
        int inside = at >= 0 && at < w->height;
        const float *other = inside ? channel + at * w->width : rows.other + 8;
        if (inside && (other - start < 8 || stop - other < w->width + 8)) {
            memcpy(rows.other + 8, other, w->width * sizeof(float));
            other = rows.other + 8;
        }
        for (int64_t j = 0; j < w->kernel[1]; j++) {
            if (i == w->kernel[0] / 2 && j == w->kernel[1] / 2) continue;
            int64_t shift = j * w->dilation[1] - w->padding[1];
            float *sum = sums + (i * w->kernel[1] + j) * wide;
            if (step == 1)
                add_squares(rows.centre, other, shift, inside ? w->width : 0, across, sum);
            else
                add_squares_apart(rows.centre, other, shift, step, inside ? w->width : 0, across, sum);
        }
    }
}

/* All taps of the rows of windows from `from` to `to`. */
FOR_EVERY_CPU
static void distance_rows(const Window *w, const float *guide, float *out, int64_t from, int64_t to, Rows rows,
                          const float *start, const float *stop) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    int64_t wide = whole_vectors(w->out_width);
    memset(rows.sums, 0, (to - from) * taps * wide * sizeof(float));
    for (int64_t g = 0; g < w->channels; g++)
        for (int64_t y = from; y < to; y++)
            add_channel(w, guide + g * w->height * w->width, y, rows, rows.sums + (y - from) * taps * wide, start, stop);
    for (int64_t y = from; y < to; y++)
        for (int64_t t = 0; t < taps; t++)
            memcpy(out + t * pixels + y * w->out_width, rows.sums + ((y - from) * taps + t) * wide,
                   w->out_width * sizeof(float));
}

/* guide [B, G, H, W] -> out [B, 1, kh, kw, Ho, Wo]. Returns 0, or 1 where memory ran out. */
int pac_distance(const Window *w, const float *guide, float *out, int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    int64_t image = w->channels * w->height * w->width;
    int64_t together = rows_together(w), blocks = (w->out_height + together - 1) / together;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        int64_t wide = whole_vectors(w->out_width);
        Rows rows = {buffer(together * taps * wide), buffer(wide), buffer(w->width + 16)};
        if (!rows.sums || !rows.centre || !rows.other) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t b = 0; b < blocks; b++)
                if (!failed)
                    distance_rows(w, guide + n * image, out + n * taps * pixels, b * together,
                                  least(w->out_height, (b + 1) * together), rows, guide, guide + w->batch * image);
        free(rows.sums);
        free(rows.centre);
        free(rows.other);
    }
    return failed;
}
