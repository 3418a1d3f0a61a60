/* Squared distances between the guide features of each window. */
#include "window.h"

enum { TOGETHER = 4 }; /* channels summed in registers before the sum is stored */

/* sum[x] += |centre - other|^2 over TOGETHER channels that lie `apart`, for a row of outputs, 8 at a time. All rows are
 * padded to whole vectors. */
INLINE void add_squares(const float *centre, const float *other, int64_t apart, int64_t outputs, float *sum) {
    for (int64_t x = 0; x < outputs; x += 8) {
        v8 total = load(sum + x);
        for (int64_t c = 0; c < TOGETHER; c++) {
            v8 away = load(centre + c * apart + x) - load(other + c * apart + x);
            total += away * away;
        }
        store(sum + x, total);
    }
}

/* As `add_squares`, for outputs that lie `stride` columns apart. */
INLINE void add_squares_apart(const float *centre, const float *other, int64_t apart, int64_t stride, int64_t outputs,
                              float *sum) {
    for (int64_t x = 0; x < outputs; x++)
        for (int64_t c = 0; c < TOGETHER; c++) {
            float away = centre[c * apart + x * stride] - other[c * apart + x * stride];
            sum[x] += away * away;
        }
}

INLINE int64_t whole_vectors(int64_t n) { return (n + 7) / 8 * 8; }

/* What a thread works with. */
typedef struct {
    float *sums; /* [rows, taps, outputs of a row, padded to whole vectors] */
    float *seen; /* [TOGETHER, kernel height, `length`]: the rows of the guide that one row of windows sees, padded */
    int64_t length;
} Rows;

/* The columns that a row of windows sees, the whole vectors that its last tap reads included. */
INLINE int64_t row_length(const Window *w) {
    return (w->kernel[1] - 1) * w->dilation[1] + w->stride[1] * whole_vectors(w->out_width);
}

/* Rows of windows that are summed together, so that a channel is read about once: their sums stay in the nearest cache.
 * As many blocks of them for each thread. */
INLINE int64_t rows_together(const Window *w, int64_t threads) {
    int64_t fit = most(1, 4096 / (w->kernel[0] * w->kernel[1] * whole_vectors(w->out_width)));
    int64_t blocks = (w->out_height + fit - 1) / fit;
    if (w->batch % threads) blocks = (blocks + threads - 1) / threads * threads;
    return (w->out_height + blocks - 1) / blocks;
}

/* One row of the guide between its padding, which is zero since the start; so is what lies outside the image. */
INLINE void fill_row(const Window *w, const float *channel, int64_t y, int64_t length, float *to) {
    int64_t inside = most(0, least(w->width, length - w->padding[1]));
    if (y >= 0 && y < w->height)
        memcpy(to + w->padding[1], channel + y * w->width, inside * sizeof(float));
    else
        memset(to + w->padding[1], 0, inside * sizeof(float));
}

/* Of `count` channels, at most TOGETHER, to the sums of one row of windows. */
INLINE void add_channels(const Window *w, const float *guide, int64_t count, int64_t y, Rows rows, float *sums) {
    int64_t apart = w->kernel[0] * rows.length, image = w->height * w->width, top = y * w->stride[0] - w->padding[0];
    for (int64_t c = 0; c < TOGETHER; c++)
        for (int64_t i = 0; i < w->kernel[0]; i++) {
            float *row = rows.seen + c * apart + i * rows.length;
            fill_row(w, guide + c * image, c < count ? top + i * w->dilation[0] : -1, rows.length, row);
        }
    int64_t middle[2] = {w->kernel[0] / 2, w->kernel[1] / 2};
    const float *centre = rows.seen + middle[0] * rows.length + middle[1] * w->dilation[1];
    for (int64_t i = 0; i < w->kernel[0]; i++)
        for (int64_t j = 0; j < w->kernel[1]; j++) {
            if (i == middle[0] && j == middle[1]) continue;
            const float *other = rows.seen + i * rows.length + j * w->dilation[1];
            float *sum = sums + (i * w->kernel[1] + j) * whole_vectors(w->out_width);
            if (w->stride[1] == 1)
                add_squares(centre, other, apart, w->out_width, sum);
            else
                add_squares_apart(centre, other, apart, w->stride[1], w->out_width, sum);
        }
}

/* All taps of the rows of windows from `from` to `to`. */
FOR_EVERY_CPU
static void distance_rows(const Window *w, const float *guide, float *out, int64_t from, int64_t to, Rows rows) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    int64_t wide = whole_vectors(w->out_width);
    memset(rows.sums, 0, (to - from) * taps * wide * sizeof(float));
    for (int64_t g = 0; g < w->channels; g += TOGETHER)
        for (int64_t y = from; y < to; y++)
            add_channels(w, guide + g * w->height * w->width, least(TOGETHER, w->channels - g), y, rows,
                         rows.sums + (y - from) * taps * wide);
    for (int64_t y = from; y < to; y++)
        for (int64_t t = 0; t < taps; t++)
            memcpy(out + t * pixels + y * w->out_width, rows.sums + ((y - from) * taps + t) * wide,
                   w->out_width * sizeof(float));
}

/* guide [B, G, H, W] -> out [B, 1, kh, kw, Ho, Wo]. Returns 0, or 1 where memory ran out. */
int pac_distance(const Window *w, const float *guide, float *out, int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    int64_t image = w->channels * w->height * w->width, wide = whole_vectors(w->out_width), length = row_length(w);
    int64_t together = rows_together(w, threads), blocks = (w->out_height + together - 1) / together;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Rows rows = {buffer(together * taps * wide), buffer(TOGETHER * w->kernel[0] * length), length};
        if (!rows.sums || !rows.seen) {
#pragma omp atomic write
            failed = 1;
        } else {
            memset(rows.seen, 0, TOGETHER * w->kernel[0] * length * sizeof(float));
        }
#pragma omp barrier
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t b = 0; b < blocks; b++)
                if (!failed)
                    distance_rows(w, guide + n * image, out + n * taps * pixels, b * together,
                                  least(w->out_height, (b + 1) * together), rows);
        free(rows.sums);
        free(rows.seen);
    }
    return failed;
}
