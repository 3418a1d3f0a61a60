/* The gradients of a convolution with respect to its input, K and its weight.
 *
 * With q_t = W_t^T g, the share of the output's gradient g that came by tap t, in every pixel and input channel:
 *     dL/dK_t = sum_channels q_t * (input under the tap)        dL/dinput, under the tap, += K_t * q_t
 * so one matrix product serves both, and of it only a few kilobytes exist at a time. dL/dW_t = g (K_t * taps)^T is the
 * other product. Threads share out the input channels, so that none writes where another does; what each found of
 * dL/dK is added up in a fixed order.
 */
#include "panels.h"

/* Of q at a time, input channels times taps: a multiple of PIXELS and of 9 taps. Their weights and the panels they are
 * multiplied with stay in the second-level cache. */
enum { PRODUCT_ROWS = LANES == 16 ? 288 : 144 };

/* A thread's share, and what it works with. */
typedef struct {
    int64_t begin, end; /* input channels */
    element *weights;   /* of these, as pack_product_weights orders them */
    float *grad_weight; /* the sums so far: tiles, as sum_weight_gradient orders them */
    float *grad_kernel; /* [panels of an image, taps, PIXELS], or null */
    float *product;     /* q: [PRODUCT_ROWS, PIXELS] */
    element *by_panel;  /* g of a band: [panels, output channels of a group, PIXELS] */
    element *by_pixel;  /* g of a band: [tiles of output channels, pixels, rows of a tile] */
    float *adapted;     /* K * taps of a band: [panels, PRODUCT_ROWS, PIXELS] */
    element *turned;    /* PIXELS rows of it: [pixels, PIXELS] */
    float *panel_lines; /* `by_panel` before its elements, which are not float32; or null */
    float *spare;       /* likewise of the others */
    Panel *panels;
    Tap *found;
} Share;

/* The channels from `first` on that are taken at a time: of one group, and no more than PRODUCT_ROWS allows. */
INLINE int64_t next_channels(const Window *w, int64_t first, int64_t end) {
    int64_t in = w->channels / w->groups, taps = w->kernel[0] * w->kernel[1];
    return least(least(end, (first / in + 1) * in), first + most(1, PRODUCT_ROWS / taps));
}

INLINE int64_t most_product_rows(const Window *w) {
    int64_t taps = w->kernel[0] * w->kernel[1], in = w->channels / w->groups;
    return most(1, least(in, PRODUCT_ROWS / taps)) * taps;
}

/* Elements of the gradient's tiles for one round of channels, padded to whole tiles. */
INLINE int64_t tiles_size(const Window *w) {
    int64_t rows = w->out_channels / w->groups, tall = tile_rows(rows);
    return (most_product_rows(w) + PIXELS - 1) / PIXELS * PIXELS * ((rows + tall - 1) / tall) * tall;
}

static int64_t rounds(const Window *w, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t first = begin; first < end; first = next_channels(w, first, end)) count++;
    return count;
}

/* W^T, tile by tile of (input channel, tap): [output channels of the group, rows of the tile]. */
static void pack_product_weights(const Window *w, const float *weight, Share *share) {
    int64_t taps = w->kernel[0] * w->kernel[1], in = w->channels / w->groups, out = w->out_channels / w->groups;
    const int64_t *step = w->weight_step;
    element *to = share->weights;
    for (int64_t first = share->begin, last; first < share->end; first = last) {
        last = next_channels(w, first, share->end);
        int64_t rows = (last - first) * taps, tall = tile_rows(rows);
        const float *group = weight + first / in * step[0] + first % in * step[2];
        for (int64_t r = 0; r < rows; r += tall) {
            int64_t from[ROWS], real = least(tall, rows - r);
            for (int64_t i = 0; i < real; i++) {
                int64_t c = (r + i) / taps, t = (r + i) % taps;
                from[i] = c * step[2] + t / w->kernel[1] * step[3] + t % w->kernel[1] * step[4];
            }
            float *lines = lines_of(to, share->spare), *line = lines;
            for (int64_t o = 0; o < out; o++)
                for (int64_t i = 0; i < real; i++) *line++ = group[o * step[1] + from[i]];
            as_elements(lines, out, real, to);
            to += steps_of(out) * real;
        }
    }
}

/* g of a band, both ways. `grad` is the group's first output channel. */
INLINE void pack_gradient(const Window *w, const float *grad, int64_t panels, int64_t pixels, Share *share) {
    int64_t rows = w->out_channels / w->groups, tall = tile_rows(rows);
    float *lines = lines_of(share->by_panel, share->panel_lines);
    for (int64_t p = 0; p < panels; p++) {
        for (int64_t o = 0; o < rows; o++) {
            const Panel *panel = share->panels + p;
            const float *from = grad + o * w->out_step[1];
            float *to = lines + (p * rows + o) * PIXELS;
            if (panel->count == PIXELS && panel->placed_in_line) {
                memcpy(to, from + panel->place[0], PIXELS * sizeof(float));
                continue;
            }
            for (int64_t q = 0; q < PIXELS; q++) to[q] = q < panel->count ? from[panel->place[q]] : 0.0f;
        }
        as_elements(lines + p * rows * PIXELS, rows, PIXELS, share->by_panel + p * steps_of(rows) * PIXELS);
    }
    element *to = share->by_pixel;
    for (int64_t o = 0; o < rows; o += tall) {
        int64_t real = least(tall, rows - o);
        float *turned = lines_of(to, share->spare), *line = turned;
        for (int64_t p = 0; p < panels; p++) {
            const float *from = lines + (p * rows + o) * PIXELS;
            for (int64_t q = 0; q < least(PIXELS, pixels - p * PIXELS); q++)
                for (int64_t r = 0; r < real; r++) *line++ = from[r * PIXELS + q];
        }
        as_elements(turned, pixels, real, to);
        to += steps_of(pixels) * real;
    }
}

/* q of a panel that finds a tap side by side, or at every `second` place, to the gradients of input and K: see `share_out`.
 * `q_t` is the tap's share of the first channel, `apart` from that of the next; `inside` is null where all pixels are. */
INLINE void share_in_line(const Tap *tap, const int32_t *inside, int second, const float *q_t, int64_t apart,
                          const float *input, int64_t channels, int64_t plane, float *grad_input, float *grad_kernel) {
    vec left = get(tap->k), right = get(tap->k + LANES), sum_left = {0}, sum_right = {0};
    for (int64_t c = 0; c < channels; c++, q_t += apart) {
        const float *v = input + c * plane + tap->offset;
        vec q_left = get(q_t), q_right = get(q_t + LANES);
        sum_left += q_left * (second ? even(get(v), get(v + LANES)) : get(v));
        sum_right += q_right * (second ? even(get(v + 2 * LANES), get(v + 3 * LANES)) : get(v + LANES));
        if (grad_input) {
            float *to = grad_input + c * plane + tap->offset;
            vec add_left = q_left * left, add_right = q_right * right;
            if (inside) add_left = only(add_left, inside), add_right = only(add_right, inside + LANES);
            if (second) {
                put(to, get(to) + spread_lower(add_left));
                put(to + LANES, get(to + LANES) + spread_upper(add_left));
                put(to + 2 * LANES, get(to + 2 * LANES) + spread_lower(add_right));
                put(to + 3 * LANES, get(to + 3 * LANES) + spread_upper(add_right));
            } else {
                put(to, get(to) + add_left);
                put(to + LANES, get(to + LANES) + add_right);
            }
        }
    }
    if (grad_kernel) {
        put(grad_kernel, get(grad_kernel) + (inside ? only(sum_left, inside) : sum_left));
        float *to = grad_kernel + LANES;
        put(to, get(to) + (inside ? only(sum_right, inside + LANES) : sum_right));
    }
}

/* As `share_in_line`, where each pixel finds the tap by itself. Channel by channel: planes of a power of two share
 * cache lines, and would push each other out. */
INLINE void share_scattered(const Tap *tap, int64_t count, const float *q_t, int64_t apart, const float *input,
                            int64_t channels, int64_t plane, float *grad_input, float *grad_kernel) {
    float sums[PIXELS] = {0};
    for (int64_t c = 0; c < channels; c++, q_t += apart, input += plane) {
        for (int64_t q = 0; q < count; q++)
            if (tap->each[q] >= 0) sums[q] += q_t[q] * input[tap->each[q]];
        if (!grad_input) continue;
        for (int64_t q = 0; q < count; q++)
            if (tap->each[q] >= 0) grad_input[c * plane + tap->each[q]] += q_t[q] * tap->k[q];
    }
    for (int64_t q = 0; grad_kernel && q < count; q++) grad_kernel[q] += sums[q];
}

/* q of a panel, [channels, taps, PIXELS], to the gradients of input and K, either of which may be null. Tap by tap, so
 * that K's sum stays in registers, and neighbouring taps do not wait for each other's writes to the same pixels. */
INLINE void share_out(const Tap *taps, int64_t tap_count, int64_t count, const float *product, const float *input,
                      int64_t channels, int64_t plane, float *grad_input, float *grad_kernel) {
    for (int64_t t = 0; t < tap_count; t++) {
        const Tap *tap = taps + t;
        const float *q_t = product + t * PIXELS;
        float *to_kernel = grad_kernel ? grad_kernel + t * PIXELS : NULL;
        int64_t apart = tap_count * PIXELS;
        switch (tap->kind) {
        case ALL: share_in_line(tap, NULL, 0, q_t, apart, input, channels, plane, grad_input, to_kernel); break;
        case SOME: share_in_line(tap, tap->inside, 0, q_t, apart, input, channels, plane, grad_input, to_kernel); break;
        case ALL_SECOND: share_in_line(tap, NULL, 1, q_t, apart, input, channels, plane, grad_input, to_kernel); break;
        case SOME_SECOND:
            share_in_line(tap, tap->inside, 1, q_t, apart, input, channels, plane, grad_input, to_kernel);
            break;
        case SCATTERED:
            share_scattered(tap, count, q_t, apart, input, channels, plane, grad_input, to_kernel);
            break;
        default: break;
        }
    }
}

/* g (K * taps)^T of a band, added to the tiles of one round: [panels of (channel, tap), tiles, rows, PIXELS]. */
INLINE void sum_weight_gradient(const Window *w, int64_t panels, int64_t pixels, int64_t product_rows, Share *share,
                                float *sums, const Panel *whole) {
    int64_t rows = w->out_channels / w->groups, tall = tile_rows(rows), steps = steps_of(pixels);
    float *lines = lines_of(share->turned, share->spare);
    for (int64_t r = 0; r < product_rows; r += PIXELS) {
        for (int64_t p = 0; p < panels; p++)
            for (int64_t q = 0; q < PIXELS; q += 8) {
                const float *from = share->adapted + (p * most_product_rows(w) + r) * PIXELS + q;
                float *to = lines + (p * PIXELS + q) * PIXELS;
                for (int64_t i = 0; i < PIXELS; i += 8) turn8(from + i * PIXELS, PIXELS, 8, to + i, PIXELS);
            }
        as_elements(lines, pixels, PIXELS, share->turned);
        for (int64_t o = 0; o < rows; o += tall, sums += tall * PIXELS)
            tile(least(tall, rows - o), steps, share->by_pixel + o * steps, share->turned, sums, PIXELS, whole, NULL);
    }
}

/* One band of output pixels of one image. `kernel` is K's first tap of the image, `input`, `grad_input` (or null) and
 * `grad` the image's first channel. */
FOR_EVERY_CPU
static void convolve_band_backward(const Window *w, const float *input, const float *kernel, const float *grad,
                                   float *grad_input, int needs_weight, int64_t from, int64_t to, Share *share) {
    int64_t taps = w->kernel[0] * w->kernel[1], plane = w->height * w->width, in = w->channels / w->groups;
    int64_t out = w->out_channels / w->groups, panels = (to - from + PIXELS - 1) / PIXELS;
    Panel whole = {.count = PIXELS, .placed_in_line = 1};
    float zeros[ROWS] = {0};
    for (int64_t p = 0; p < panels; p++) {
        find_pixels(w, from + p * PIXELS, least(PIXELS, to - from - p * PIXELS), share->panels + p);
        find_taps(w, kernel, share->panels + p, share->found + p * taps);
    }
    const element *weights = share->weights;
    float *sums = share->grad_weight;
    for (int64_t first = share->begin, last, group = -1; first < share->end; first = last) {
        last = next_channels(w, first, share->end);
        int64_t rows = (last - first) * taps, tall = tile_rows(rows);
        if (group != first / in) {
            group = first / in;
            pack_gradient(w, grad + group * out * w->out_step[1], panels, to - from, share);
        }
        if (needs_weight) {
            for (int64_t p = 0; p < panels; p++)
                pack_panel(share->found + p * taps, taps, input + first * plane, last - first, plane,
                           share->adapted + p * most_product_rows(w) * PIXELS);
            sum_weight_gradient(w, panels, to - from, rows, share, sums, &whole);
            sums += tiles_size(w);
        }
        for (int64_t p = 0; p < panels && (grad_input || share->grad_kernel); p++) {
            for (int64_t o = 0; o < out; o += DEPTH) /* a panel of g at a time that stays in the first-level cache */
                for (int64_t r = 0; r < rows; r += tall)
                    tile(least(tall, rows - r), steps_of(least(DEPTH, out - o)),
                         weights + r * steps_of(out) + o / DEPTHS * least(tall, rows - r),
                         share->by_panel + (p * steps_of(out) + o / DEPTHS) * PIXELS, share->product + r * PIXELS,
                         PIXELS, &whole, o == 0 ? zeros : NULL);
            float *to_kernel = share->grad_kernel ? share->grad_kernel + (from / PIXELS + p) * taps * PIXELS : NULL;
            share_out(share->found + p * taps, taps, share->panels[p].count, share->product, input + first * plane,
                      last - first, plane, grad_input ? grad_input + first * plane : NULL, to_kernel);
        }
        weights += rows * steps_of(out);
    }
}

/* The sums of all tiles to where the weight's gradient lies. */
static void store_weight_gradient(const Window *w, const Share *share, float *grad_weight) {
    int64_t taps = w->kernel[0] * w->kernel[1], in = w->channels / w->groups, out = w->out_channels / w->groups;
    const int64_t *step = w->grad_weight_step;
    const float *sums = share->grad_weight;
    for (int64_t first = share->begin, last; first < share->end; first = last, sums += tiles_size(w)) {
        last = next_channels(w, first, share->end);
        int64_t rows = (last - first) * taps, tall = tile_rows(out), tiles = (out + tall - 1) / tall;
        float *group = grad_weight + first / in * step[0] + first % in * step[2];
        for (int64_t o = 0; o < out; o++)
            for (int64_t r = 0; r < rows; r++) {
                int64_t c = r / taps, i = r % taps / w->kernel[1], j = r % taps % w->kernel[1];
                group[o * step[1] + c * step[2] + i * step[3] + j * step[4]] =
                    sums[((r / PIXELS * tiles + o / tall) * tall + o % tall) * PIXELS + r % PIXELS];
            }
    }
}

/* What the threads found of dL/dK of one panel, added up. `grad_kernel` is its first tap of this image. */
static void add_kernel_gradient(const Window *w, const Share *shares, int64_t count, int64_t panel,
                                float *grad_kernel) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    const int64_t *step = w->grad_kernel_step;
    Panel at;
    find_pixels(w, panel * PIXELS, least(PIXELS, pixels - panel * PIXELS), &at);
    for (int64_t t = 0; t < taps; t++) {
        float *to = grad_kernel + t / w->kernel[1] * step[1] + t % w->kernel[1] * step[2];
        for (int64_t q = 0; q < at.count; q++) {
            float sum = 0;
            for (int64_t s = 0; s < count; s++) sum += shares[s].grad_kernel[(panel * taps + t) * PIXELS + q];
            to[at.row[q] * step[3] + at.column[q] * step[4]] = sum;
        }
    }
}

static int allocate(const Window *w, Share *share, int needs_kernel, int needs_weight) {
    int64_t taps = w->kernel[0] * w->kernel[1], out = w->out_channels / w->groups;
    int64_t panels = (w->out_height * w->out_width + PIXELS - 1) / PIXELS, near = least(panels, BAND / PIXELS);
    int64_t sums = needs_weight ? rounds(w, share->begin, share->end) * tiles_size(w) : 0;
    share->weights = (element *)buffer((share->end - share->begin) * taps * steps_of(out));
    share->grad_weight = buffer(sums);
    share->grad_kernel = needs_kernel ? buffer(panels * taps * PIXELS) : NULL;
    share->product = buffer(most_product_rows(w) * PIXELS);
    share->by_panel = (element *)buffer(BAND * steps_of(out));
    share->by_pixel = (element *)buffer(BAND * out);
    /* turn8 reads whole panels of rows, and so beyond the last */
    share->adapted = buffer((near * most_product_rows(w) + PIXELS) * PIXELS);
    share->turned = (element *)buffer(BAND * PIXELS);
    share->panel_lines = DEPTHS > 1 ? buffer(BAND * out) : NULL;
    share->spare = DEPTHS > 1 ? buffer(most(out * ROWS, BAND * PIXELS)) : NULL;
    share->panels = malloc((size_t)near * sizeof(Panel));
    share->found = malloc((size_t)(near * taps) * sizeof(Tap));
    if (!share->weights || !share->grad_weight || (needs_kernel && !share->grad_kernel) || !share->product ||
        !share->by_panel || !share->by_pixel || !share->adapted || !share->turned || !share->panels || !share->found ||
        (DEPTHS > 1 && (!share->panel_lines || !share->spare)))
        return 0;
    memset(share->grad_weight, 0, sums * sizeof(float));
    memset(share->adapted, 0, (near * most_product_rows(w) + PIXELS) * PIXELS * sizeof(float));
    return 1;
}

static void release(Share *share) {
    free(share->weights);
    free(share->grad_weight);
    free(share->grad_kernel);
    free(share->product);
    free(share->by_panel);
    free(share->by_pixel);
    free(share->adapted);
    free(share->turned);
    free(share->panel_lines);
    free(share->spare);
    free(share->panels);
    free(share->found);
}

/* input [B, C, H, W], contiguous; K, weight, `grad` (of the output) and the gradients of K and weight at the steps that
 * the window names. `grad_input`, as input, is added to; `grad_kernel` and `grad_weight` are overwritten; any may be
 * null. Returns 0, or 1 where memory ran out. */
int pac_convolution_backward(const Window *w, const float *input, const float *kernel, const float *weight,
                             const float *grad, float *grad_input, float *grad_kernel, float *grad_weight,
                             int64_t threads) {
    int64_t taps = w->kernel[0] * w->kernel[1], pixels = w->out_height * w->out_width;
    int64_t image = w->channels * w->height * w->width, panels = (pixels + PIXELS - 1) / PIXELS;
    int64_t count = most(1, least(threads, w->channels));
    Share *shares = calloc(count, sizeof(Share));
    int failed = shares == NULL;
    if (failed) return 1;
#pragma omp parallel num_threads(count)
    {
#pragma omp for schedule(static)
        for (int64_t s = 0; s < count; s++) {
            shares[s].begin = w->channels * s / count;
            shares[s].end = w->channels * (s + 1) / count;
            if (!allocate(w, shares + s, grad_kernel != NULL, grad_weight != NULL)) {
#pragma omp atomic write
                failed = 1;
            } else {
                pack_product_weights(w, weight, shares + s);
            }
        }
        for (int64_t n = 0; n < w->batch && !failed; n++) {
#pragma omp for schedule(static)
            for (int64_t s = 0; s < count; s++) {
                Share *share = shares + s;
                if (grad_kernel) memset(share->grad_kernel, 0, panels * taps * PIXELS * sizeof(float));
                for (int64_t from = 0; from < pixels; from += BAND)
                    convolve_band_backward(w, input + n * image, kernel + n * w->kernel_step[0],
                                           grad + n * w->out_step[0], grad_input ? grad_input + n * image : NULL,
                                           grad_weight != NULL, from, least(pixels, from + BAND), share);
            }
            if (grad_kernel) {
#pragma omp for schedule(static)
                for (int64_t p = 0; p < panels; p++)
                    add_kernel_gradient(w, shares, count, p, grad_kernel + n * w->grad_kernel_step[0]);
            }
        }
        if (grad_weight && !failed) {
#pragma omp for schedule(static)
            for (int64_t s = 0; s < count; s++) store_weight_gradient(w, shares + s, grad_weight);
        }
    }
    for (int64_t s = 0; s < count; s++) release(shares + s);
    free(shares);
    return failed;
}
