/* Convolution as an implicit matrix product: panels of output pixels, where they find their taps, and the tiles that
 * multiply them. */
#pragma once

#include "window.h"

enum {
    ROWS = 6,    /* of a tile of the matrix product: output channels. 6 x 16 fills the registers of AVX2 */
    PIXELS = 16, /* of a tile, side by side: a panel */
    DEPTH = 384, /* products summed in a tile at a time, backward: a panel then stays in the first-level cache */
    BAND = 256,  /* output pixels whose panels are packed at a time, backward: 384 KiB, near the core */
    SLAB = 12,   /* tiles of rows that share a panel before the next one: their weights stay in the second level */
};

INLINE v8 even(v8 a, v8 b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }

/* Rows of a tile where `rows` are shared out among as few tiles as can be: 8 are 4 and 4, not 6 and 2. */
INLINE int64_t tile_rows(int64_t rows) {
    int64_t tiles = (rows + ROWS - 1) / ROWS;
    return (rows + tiles - 1) / tiles;
}

/* PIXELS output pixels, `count` of them real: their rows and columns, and where each lies in a channel of the output. */
typedef struct {
    int64_t count, row[PIXELS], column[PIXELS], place[PIXELS];
    int in_one_row, placed_in_line;
} Panel;

static void find_pixels(const Window *w, int64_t pixel, int64_t count, Panel *panel) {
    int64_t y = pixel / w->out_width, x = pixel % w->out_width;
    panel->count = count;
    panel->in_one_row = x + count <= w->out_width;
    for (int64_t q = 0; q < PIXELS; q++) {
        panel->row[q] = y;
        panel->column[q] = x;
        panel->place[q] = y * w->out_step[2] + x * w->out_step[3];
        if (++x == w->out_width) x = 0, y++;
    }
    panel->placed_in_line = panel->place[count - 1] - panel->place[0] == count - 1;
}

/* Where the pixels of a panel find one tap: side by side from `offset` on, all of them or some; at every second
 * place from there on; or each by itself. */
typedef struct {
    enum { NONE, ALL, SOME, EVERY_SECOND, SCATTERED } kind;
    int64_t offset, first, last;
    int64_t each[PIXELS]; /* -1 outside the image */
    float k[PIXELS];
} Tap;

/* The taps of a panel. `kernel` is K's first tap of this image. */
INLINE void find_taps(const Window *w, const float *kernel, const Panel *panel, Tap *tap) {
    int64_t count = panel->count, y = panel->row[0], x = panel->column[0];
    int64_t along = w->kernel_step[4], from_k = y * w->kernel_step[3] + x * along;
    int k_in_line = along == 1 && (panel->in_one_row || w->kernel_step[3] == w->out_width);
    for (int64_t i = 0; i < w->kernel[0]; i++)
        for (int64_t j = 0; j < w->kernel[1]; j++, tap++) {
            const float *k = kernel + i * w->kernel_step[1] + j * w->kernel_step[2];
            memset(tap->k, 0, sizeof tap->k);
            tap->offset = 0;
            if (k_in_line)
                memcpy(tap->k, k + from_k, count * sizeof(float));
            else
                for (int64_t q = 0; q < count; q++)
                    tap->k[q] = k[panel->row[q] * w->kernel_step[3] + panel->column[q] * along];
            int64_t down = i * w->dilation[0] - w->padding[0], across = j * w->dilation[1] - w->padding[1];
            if (panel->in_one_row && w->stride[1] == 1) {
                int64_t row = y * w->stride[0] + down, column = x + across;
                tap->offset = row * w->width + column;
                tap->first = most(0, -column);
                tap->last = least(count, w->width - column);
                if (row < 0 || row >= w->height || tap->first >= tap->last)
                    tap->kind = NONE;
                else
                    tap->kind = count == PIXELS && column >= 0 && column + PIXELS <= w->width ? ALL : SOME;
                continue;
            }
            if (panel->in_one_row && w->stride[1] == 2 && count == PIXELS) {
                int64_t row = y * w->stride[0] + down, column = x * 2 + across;
                tap->offset = row * w->width + column;
                tap->kind = row < 0 || row >= w->height ? NONE : EVERY_SECOND;
                if (tap->kind == NONE || (column >= 0 && column + 2 * PIXELS <= w->width)) continue;
            }
            tap->kind = SCATTERED;
            for (int64_t q = 0; q < PIXELS; q++) {
                int64_t row = panel->row[q] * w->stride[0] + down, column = panel->column[q] * w->stride[1] + across;
                int inside = q < count && row >= 0 && row < w->height && column >= 0 && column < w->width;
                tap->each[q] = inside ? row * w->width + column : -1;
            }
        }
}

/* Taps times K, channel by channel from `channel` on: [channels, taps, PIXELS]. */
INLINE void pack_panel(const Tap *taps, int64_t count, const float *channel, int64_t channels, int64_t plane,
                       float *panel) {
    for (int64_t c = 0; c < channels; c++, channel += plane)
        for (int64_t t = 0; t < count; t++, panel += PIXELS) {
            const Tap *tap = taps + t;
            const float *v = channel + tap->offset;
            switch (tap->kind) {
            case ALL:
                store(panel, load(v) * load(tap->k));
                store(panel + 8, load(v + 8) * load(tap->k + 8));
                break;
            case EVERY_SECOND:
                store(panel, even(load(v), load(v + 8)) * load(tap->k));
                store(panel + 8, even(load(v + 16), load(v + 24)) * load(tap->k + 8));
                break;
            case SCATTERED:
                for (int64_t q = 0; q < PIXELS; q++)
                    panel[q] = tap->each[q] < 0 ? 0.0f : channel[tap->each[q]] * tap->k[q];
                break;
            default:
                memset(panel, 0, PIXELS * sizeof(float));
                if (tap->kind == SOME)
                    for (int64_t q = tap->first; q < tap->last; q++) panel[q] = v[q] * tap->k[q];
            }
        }
}

/* out[rows, pixels] (+)= weights[depth, rows]^T taps[depth, PIXELS], started from `start` where given. */
INLINE void tile_of(int rows, int64_t depth, const float *weights, const float *taps, float *out, int64_t out_step,
                 const Panel *panel, const float *start) {
    v8 sum[ROWS][2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (v8){0};
    for (int64_t d = 0; d < depth; d++, weights += rows, taps += PIXELS) {
        v8 left = load(taps), right = load(taps + 8);
        for (int r = 0; r < rows; r++) {
            sum[r][0] += left * weights[r];
            sum[r][1] += right * weights[r];
        }
    }
    for (int r = 0; r < rows; r++, out += out_step) {
        if (panel->count == PIXELS && panel->placed_in_line) {
            float *to = out + panel->place[0];
            store(to, sum[r][0] + (start ? (v8){0} + start[r] : load(to)));
            store(to + 8, sum[r][1] + (start ? (v8){0} + start[r] : load(to + 8)));
            continue;
        }
        float edge[PIXELS];
        store(edge, sum[r][0]);
        store(edge + 8, sum[r][1]);
        for (int64_t q = 0; q < panel->count; q++) {
            float *to = out + panel->place[q];
            *to = edge[q] + (start ? start[r] : *to);
        }
    }
}

/* `tile_of` with a constant number of rows, so that the sums stay in registers. */
INLINE void tile(int64_t rows, int64_t depth, const float *weights, const float *taps, float *out, int64_t out_step,
                 const Panel *panel, const float *start) {
    switch (rows) {
    case 6: tile_of(6, depth, weights, taps, out, out_step, panel, start); break;
    case 5: tile_of(5, depth, weights, taps, out, out_step, panel, start); break;
    case 4: tile_of(4, depth, weights, taps, out, out_step, panel, start); break;
    case 3: tile_of(3, depth, weights, taps, out, out_step, panel, start); break;
    case 2: tile_of(2, depth, weights, taps, out, out_step, panel, start); break;
    default: tile_of(1, depth, weights, taps, out, out_step, panel, start);
    }
}
