/* The gradient of squared distances with respect to the guide, for one type of numbers: REAL, and OF(name).
 *
 * With a_t = 2 g_t (f_i - f_t), g the gradient of a window's distances, tap t adds a_t to its centre's gradient and -a_t to
 * that of the pixel it sees. Threads share out the channels, a few of which are padded at a time. */

typedef struct {
    int64_t columns, plane; /* of a padded channel */
    REAL *guide, *grad;     /* [channels, padded rows, columns] */
    REAL *centre;           /* [channels, outputs of a row]: what a row's windows add to their centres */
} OF(Padded);

/* A row of windows of `count` channels. The stride is an argument so that it can be a constant. */
INLINE void OF(pull_row)(const Window *w, int64_t count, int64_t step, const REAL *grad, int64_t y, OF(Padded) p) {
    int64_t middle[2] = {w->kernel[0] / 2, w->kernel[1] / 2}, pixels = w->out_height * w->out_width, wide = w->out_width;
    int64_t top = y * w->stride[0] * p.columns, down = w->dilation[0] * p.columns, across = w->dilation[1];
    int64_t at_centre = top + middle[0] * down + middle[1] * across;
    memset(p.centre, 0, count * wide * sizeof(REAL));
    for (int64_t i = 0; i < w->kernel[0]; i++)
        for (int64_t j = 0; j < w->kernel[1]; j++) {
            if (i == middle[0] && j == middle[1]) continue;
            const REAL *g = grad + (i * w->kernel[1] + j) * pixels + y * wide;
            for (int64_t c = 0; c < count; c++) {
                const REAL *f_i = p.guide + c * p.plane + at_centre, *f_t = p.guide + c * p.plane + top + i * down + j * across;
                REAL *restrict to = p.grad + c * p.plane + top + i * down + j * across, *restrict sum = p.centre + c * wide;
                for (int64_t x = 0; x < wide; x++) {
                    REAL pull = 2 * g[x] * (f_i[x * step] - f_t[x * step]);
                    sum[x] += pull;
                    to[x * step] -= pull;
                }
            }
        }
    for (int64_t c = 0; c < count; c++)
        for (int64_t x = 0; x < wide; x++) p.grad[c * p.plane + at_centre + x * step] += p.centre[c * wide + x];
}

FOR_EVERY_CPU
static void OF(pull_channels)(const Window *w, int64_t count, const REAL *grad, const REAL *guide, REAL *grad_guide,
                              OF(Padded) p) {
    int64_t image = w->height * w->width, inside = w->padding[0] * p.columns + w->padding[1];
    memset(p.grad, 0, count * p.plane * sizeof(REAL));
    for (int64_t c = 0; c < count; c++)
        for (int64_t y = 0; y < w->height; y++)
            memcpy(p.guide + c * p.plane + inside + y * p.columns, guide + c * image + y * w->width, w->width * sizeof(REAL));
    for (int64_t y = 0; y < w->out_height; y++)
        if (w->stride[1] == 1)
            OF(pull_row)(w, count, 1, grad, y, p);
        else
            OF(pull_row)(w, count, w->stride[1], grad, y, p);
    for (int64_t c = 0; c < count; c++)
        for (int64_t y = 0; y < w->height; y++)
            memcpy(grad_guide + c * image + y * w->width, p.grad + c * p.plane + inside + y * p.columns, w->width * sizeof(REAL));
}

/* grad [B, 1, kh, kw, Ho, Wo], guide [B, G, H, W], contiguous -> grad_guide, like it. Returns 0, or 1 where memory ran
 * out. */
int OF(pac_distance_backward)(const Window *w, const REAL *grad, const REAL *guide, REAL *grad_guide, int64_t threads) {
    int64_t image = w->height * w->width, per_image = w->kernel[0] * w->kernel[1] * w->out_height * w->out_width;
    int64_t together = most(1, least(TOGETHER, w->batch * w->channels / threads)); /* fewer where threads were idle */
    int64_t groups = (w->channels + together - 1) / together, failed = 0;
    int64_t columns = w->width + 2 * w->padding[1], plane = (w->height + 2 * w->padding[0]) * columns;
#pragma omp parallel num_threads(least(threads, most(1, w->batch * groups)))
    {
        REAL *room = malloc(together * (2 * plane + w->out_width) * sizeof(REAL));
        OF(Padded) p = {columns, plane, room, room + together * plane, room + 2 * together * plane};
        if (!room) {
#pragma omp atomic write
            failed = 1;
        } else {
            memset(p.guide, 0, together * plane * sizeof(REAL)); /* the padding stays zero */
        }
#pragma omp barrier
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < w->batch; n++)
            for (int64_t group = 0; group < groups; group++) {
                int64_t first = group * together, at = (n * w->channels + first) * image;
                if (!failed)
                    OF(pull_channels)(w, least(together, w->channels - first), grad + n * per_image, guide + at,
                                      grad_guide + at, p);
            }
        free(room);
    }
    return (int)failed;
}
