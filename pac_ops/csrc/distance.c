/* Squared distances between the guide features of each window, and their gaussians: by pairs of pixels where there is a
 * window for every pixel (`pairs.h`), else row by row. */
#include "pairs.h"

enum { CHANNELS = 8 }; /* channels summed in registers before the sum is stored */

/* What a thread works with. */
typedef struct {
    float *sums; /* [rows, taps, outputs of a row, padded to whole vectors] */
    float *seen; /* [CHANNELS, rows of the guide that these rows of windows see, `length`], padded; see `fill_row` */
    int64_t length, apart; /* of a row, of a channel */
    int64_t *read;  /* which rows `seen` holds; they may be outside the image */
    int64_t *place; /* [rows, kernel height]: where in `seen` */
} Rows;

/* Every stride-th column that a row of windows sees, the whole vectors that its last tap reads included. */
INLINE int64_t part_length(const Window *w) {
    return (w->kernel[1] - 1) * w->dilation[1] / w->stride[1] + whole_vectors(w->out_width);
}

/* Rows of windows that are summed together, so that a channel is read about once: their sums stay in the nearest cache.
 * As many blocks of them for each thread. */
INLINE int64_t rows_together(const Window *w, int64_t threads) {
    int64_t fit = most(1, 4096 / (w->kernel[0] * w->kernel[1] * whole_vectors(w->out_width)));
    int64_t blocks = (w->out_height + fit - 1) / fit;
    if (w->batch % threads) blocks = (blocks + threads - 1) / threads * threads;
    return (w->out_height + blocks - 1) / blocks;
}

/* One row of the guide between its padding, which is zero since the start; so is what lies outside the image. Columns that
 * are `stride` apart lie side by side: of [stride, part] the first row has columns 0, stride, 2 * stride of the padded row.
 * So a tap sees all its outputs in vectors. */
INLINE void fill_row(const Window *w, const float *channel, int64_t y, float *to) {
    int64_t stride = w->stride[1], part = part_length(w);
    int64_t inside = most(0, least(w->width, stride * part - w->padding[1]));
    const float *from = channel + y * w->width;
    if (y < 0 || y >= w->height) {
        memset(to, 0, stride * part * sizeof(float));
        return;
    }
    if (stride == 1) {
        memcpy(to + w->padding[1], from, inside * sizeof(float));
        return;
    }
    for (int64_t f = 0; f < stride; f++) {
        int64_t begin = (w->padding[1] + f) / stride, x = 0, i = 0;
        float *line = to + (w->padding[1] + f) % stride * part + begin;
        /* Most strides are 2. Behind the row there is padding, as far as there is room for whole vectors. */
        for (; stride == 2 && x < inside && begin + i + LANES <= part; x += 2 * LANES, i += LANES) {
            vec left = get_up_to(from + x, inside - x), right = get_up_to(from + x + LANES, inside - x - LANES);
            put(line + i, f ? odd(left, right) : even(left, right));
        }
        for (x += f; x < inside; x += stride) line[i++] = from[x];
    }
}

/* Each row of the guide that the rows of windows from `from` to `to` see, once. Returns how many. */
INLINE int64_t rows_read(const Window *w, int64_t from, int64_t to, Rows rows) {
    int64_t count = 0;
    for (int64_t y = from; y < to; y++)
        for (int64_t i = 0; i < w->kernel[0]; i++) {
            int64_t read = y * w->stride[0] - w->padding[0] + i * w->dilation[0], at = 0;
            while (at < count && rows.read[at] != read) at++;
            if (at == count) rows.read[count++] = read;
            *rows.place++ = at;
        }
    return count;
}

/* |centre - other|^2 over CHANNELS channels to the sums of one row of windows, whose taps read the rows at these places
 * of `seen`. All rows are padded to whole vectors. */
INLINE void add_channels(const Window *w, const int64_t *place, Rows rows, float *sums) {
    int64_t middle[2] = {w->kernel[0] / 2, w->kernel[1] / 2}, wide = whole_vectors(w->out_width);
    int64_t stride = w->stride[1], part = part_length(w), apart = w->dilation[1];
    const float *centre_row = rows.seen + place[middle[0]] * rows.length + middle[1] * apart % stride * part +
                              middle[1] * apart / stride;
    for (int64_t x = 0; x < wide; x += LANES) {
        vec centre[CHANNELS];
        for (int64_t c = 0; c < CHANNELS; c++) centre[c] = get(centre_row + c * rows.apart + x);
        for (int64_t i = 0; i < w->kernel[0]; i++)
            for (int64_t j = 0; j < w->kernel[1]; j++) {
                if (i == middle[0] && j == middle[1]) continue;
                const float *other = rows.seen + place[i] * rows.length + j * apart % stride * part + j * apart / stride;
                float *sum = sums + (i * w->kernel[1] + j) * wide + x;
                vec total = get(sum);
                for (int64_t c = 0; c < CHANNELS; c++) {
                    vec away = centre[c] - get(other + c * rows.apart + x);
                    total += away * away;
                }
                put(sum, total);
            }
    }
}

/* All taps of the rows of windows from `from` to `to`. */
FOR_EVERY_CPU
static void distance_rows(const Window *w, const float *guide, int as_gaussian, float *out, int64_t from, int64_t to,
                          Rows rows) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width, image = w->height * w->width;
    int64_t wide = whole_vectors(w->out_width), count = rows_read(w, from, to, rows);
    memset(rows.sums, 0, (to - from) * taps * wide * sizeof(float));
    for (int64_t g = 0; g < w->channels; g += CHANNELS) {
        for (int64_t c = g; c < g + CHANNELS; c++)
            for (int64_t r = 0; r < count; r++)
                fill_row(w, guide + c * image, c < w->channels ? rows.read[r] : -1,
                         rows.seen + (c - g) * rows.apart + r * rows.length);
        for (int64_t y = 0; y < to - from; y++)
            add_channels(w, rows.place + y * w->kernel[0], rows, rows.sums + y * taps * wide);
    }
    for (int64_t y = from; y < to; y++)
        for (int64_t t = 0; t < taps; t++) {
            float *row = rows.sums + ((y - from) * taps + t) * wide;
            for (int64_t x = 0; as_gaussian && x < wide; x += LANES) put(row + x, gaussian(get(row + x)));
            memcpy(out + t * pixels + y * w->out_width, row, w->out_width * sizeof(float));
        }
}

/* As `distances`, for all windows. */
static int row_distances(const Window *w, const float *guide, int as_gaussian, float *out, int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    int64_t image = w->channels * w->height * w->width, wide = whole_vectors(w->out_width), length = w->stride[1] * part_length(w);
    int64_t together = rows_together(w, threads), blocks = (w->out_height + together - 1) / together;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        int64_t most_read = together * w->kernel[0];
        Rows rows = {buffer(together * taps * wide), buffer(CHANNELS * most_read * length), length,
                     most_read * length, malloc(most_read * sizeof(int64_t)), malloc(most_read * sizeof(int64_t))};
        if (!rows.sums || !rows.seen || !rows.read || !rows.place) {
#pragma omp atomic write
            failed = 1;
        } else {
            memset(rows.seen, 0, CHANNELS * rows.apart * sizeof(float));
        }
#pragma omp barrier
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t b = 0; b < blocks; b++)
                if (!failed)
                    distance_rows(w, guide + n * image, as_gaussian, out + n * taps * pixels, b * together,
                                  least(w->out_height, (b + 1) * together), rows);
        free(rows.sums);
        free(rows.seen);
        free(rows.read);
        free(rows.place);
    }
    return failed;
}

/* guide [B, G, H, W] -> out [B, 1, kh, kw, Ho, Wo]. Returns 0, or 1 where memory ran out. */
INLINE int distances(const Window *w, const float *guide, int as_gaussian, float *out, int64_t threads) {
    return (every_pixel(w) ? pair_distances : row_distances)(w, guide, as_gaussian, out, threads);
}

int pac_distance(const Window *w, const float *guide, float *out, int64_t threads) {
    return distances(w, guide, 0, out, threads);
}

int pac_gaussian(const Window *w, const float *guide, float *out, int64_t threads) {
    return distances(w, guide, 1, out, threads);
}
