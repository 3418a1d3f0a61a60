/* A map and its halves: functional/pyramid.py says what they are. All tensors are contiguous. */
#include "window.h"

typedef struct {
    int64_t planes, height, width;             /* of the map */
    int64_t half_height, half_width;           /* of its half */
    int64_t enlarged_height, enlarged_width;   /* of the half, enlarged, whose first rows and columns count */
    int64_t first;                             /* of the map's rows, where a part of them begins */
} Halving;

/* Of three rows, weighed 1 2 1, every second pixel, weighed so with those beside it, at the edge with itself. `row` has
 * a pixel beyond either end. */
FOR_EVERY_CPU
static void halve_row(const float *restrict above, const float *restrict here, const float *restrict below, int64_t width,
                      float *restrict row, int64_t half_width, float *restrict out) {
    for (int64_t x = 0; x < width; x++) row[x + 1] = (above[x] + below[x]) * 0.25f + here[x] * 0.5f;
    row[0] = row[1];
    row[width + 1] = row[width + 2] = row[width];
    for (int64_t x = 0; x < half_width; x++) out[x] = (row[2 * x] + row[2 * x + 2]) * 0.25f + row[2 * x + 1] * 0.5f;
}

/* [planes, H, W] -> [planes, H // 2 + 1, W // 2 + 1]. Returns 0, or 1 where memory ran out. */
int pac_halve(const Halving *e, const float *map, float *out, int64_t threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *row = buffer(e->width + 3);
#pragma omp for collapse(2)
        for (int64_t p = 0; p < e->planes; p++)
            for (int64_t y = 0; y < e->half_height; y++) {
                if (!row) {
#pragma omp atomic write
                    failed = 1;
                    continue;
                }
                const float *rows[3];
                for (int64_t i = 0; i < 3; i++)
                    rows[i] = map + (p * e->height + most(0, least(2 * y + i - 1, e->height - 1))) * e->width;
                halve_row(rows[0], rows[1], rows[2], e->width, row, e->half_width,
                          out + (p * e->half_height + y) * e->half_width);
            }
        free(row);
    }
    return failed;
}

/* What a row of the map has beyond two rows of its half, their mean enlarged plainly, and what an enlarged row has. */
FOR_EVERY_CPU
static void detail_row(const float *restrict enlarged, const float *restrict map, const float *restrict upper,
                       const float *restrict lower, int64_t width, float *restrict mean, int64_t half_width,
                       float *restrict out) {
    for (int64_t x = 0; x < half_width; x++) mean[x] = (upper[x] + lower[x]) * 0.5f;
    for (int64_t x = 0; x < width / 2; x++) {
        out[2 * x] = enlarged[2 * x] + (map[2 * x] - mean[x]);
        out[2 * x + 1] = enlarged[2 * x + 1] + (map[2 * x + 1] - (mean[x] + mean[x + 1]) * 0.5f);
    }
    if (width % 2) out[width - 1] = enlarged[width - 1] + (map[width - 1] - mean[width / 2]);
}

/* Rows of a half, enlarged, and what the map has there beyond its half enlarged plainly: [planes, H, W]. `half` begins at
 * its row first // 2. Returns 0, or 1 where memory ran out. */
int pac_with_detail(const Halving *e, const float *enlarged, const float *map, const float *half, float *out,
                    int64_t threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *mean = buffer(e->half_width);
#pragma omp for collapse(2)
        for (int64_t p = 0; p < e->planes; p++)
            for (int64_t y = 0; y < e->height; y++) {
                if (!mean) {
#pragma omp atomic write
                    failed = 1;
                    continue;
                }
                int64_t below = e->first % 2 + y, row = p * e->height + y;
                const float *halves = half + p * e->half_height * e->half_width;
                detail_row(enlarged + (p * e->enlarged_height + y) * e->enlarged_width, map + row * e->width,
                           halves + below / 2 * e->half_width, halves + (below + 1) / 2 * e->half_width, e->width, mean,
                           e->half_width, out + row * e->width);
            }
        free(mean);
    }
    return failed;
}
