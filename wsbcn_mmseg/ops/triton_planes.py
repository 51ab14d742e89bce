"""Triton device code of the passes over an activation: reductions of planes, and affine maps of planes.

A plane is one channel of one image. Each reduction program reads a split of a tile of planes and writes its sums; each
map program writes a tile. :mod:`.triton_groups` has the stage in between; :mod:`.triton_kernels` launches them.
"""
import triton
import triton.language as tl

ALIGN: tl.constexpr = tl.constexpr(16)  # values; planes of odd size may start anywhere, vector loads must be aligned


@triton.jit
def merge_moments(count, mean, m2, other_count, other_mean, other_m2):
    """Merge the moments of two sets by Chan's formula. m2 is the sum of squared deviations from the mean."""
    total = count + other_count
    weight = other_count / tl.maximum(total, 1)
    delta = other_mean - mean
    return total, mean + delta * weight, m2 + other_m2 + delta * delta * count * weight


@triton.jit
def _position(program, steps, channels, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr):
    """Image, channels (BLOCK_C, 1) and step along the pixels of a program; programs are numbered in memory order."""
    blocks = tl.cdiv(channels, BLOCK_C)
    if CHANNELS_LAST:
        block, step = program % blocks, program // blocks % steps
    else:
        block, step = program // steps % blocks, program % steps
    image = program // (blocks * steps)
    return image.to(tl.int64), (block * BLOCK_C + tl.arange(0, BLOCK_C))[:, None], step


@triton.jit
def _tile(image, channel, tile, images, channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offsets (BLOCK_C, BLOCK_P) of a tile of planes, masks of those to read and of those inside, and their number.

    Tiles of contiguous planes begin at the aligned offset before the plane, and end at the one after it.
    """
    step = tile * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    if CHANNELS_LAST:
        lead, end = 0, pixels
        offsets = (image * pixels + step) * channels + channel
        read = (channel < channels) & (step < pixels)
    else:
        start = (image * channels + channel) * pixels
        aligned = start // ALIGN * ALIGN
        lead = (start - aligned).to(tl.int32)
        end = lead + pixels
        offsets = aligned + step
        read = ((channel < channels) & (step < (end + ALIGN - 1) // ALIGN * ALIGN)
                & (offsets < images.to(tl.int64) * channels * pixels))
    inside = (channel < channels) & (step >= lead) & (step < end)
    # A sum of `inside` would give the same numbers, but the compiler chooses a bad layout for it
    count = tl.maximum(tl.minimum(end, tile * BLOCK_P + BLOCK_P) - tl.maximum(lead, tile * BLOCK_P), 0)
    return offsets, read, inside, count.to(tl.float32)


@triton.jit(do_not_specialize=['images', 'pixels', 'tiles', 'splits'])
def moments_kernel(x, partials, images, channels, pixels, tiles, splits, CHANNELS_LAST: tl.constexpr,
                    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Count, mean and m2 of every split: partials (B, splits, 3, C)."""
    image, channel, split = _position(tl.program_id(0), splits, channels, CHANNELS_LAST, BLOCK_C)
    count = tl.zeros((BLOCK_C, 1), tl.float32)
    mean = tl.zeros((BLOCK_C, 1), tl.float32)
    m2 = tl.zeros((BLOCK_C, 1), tl.float32)
    for tile in range(split * tiles, split * tiles + tiles):
        offsets, read, inside, tile_count = _tile(image, channel, tile, images, channels, pixels, CHANNELS_LAST,
                                                  BLOCK_P)
        values = tl.load(x + offsets, read).to(tl.float32)
        tile_mean = tl.sum(tl.where(inside, values, 0), 1, keep_dims=True) / tl.maximum(tile_count, 1)
        centered = tl.where(inside, values - tile_mean, 0)
        tile_m2 = tl.sum(centered * centered, 1, keep_dims=True)
        count, mean, m2 = merge_moments(count, mean, m2, tile_count, tile_mean, tile_m2)
    out = partials + (image * splits + split) * 3 * channels + channel
    tl.store(out, count, channel < channels)
    tl.store(out + channels, mean, channel < channels)
    tl.store(out + 2 * channels, m2, channel < channels)


@triton.jit
def _passed(gradients, values, mean, scale, shift):
    """Gradients, 0 where the output of ReLU is 0. NaN passes, as in torch."""
    return tl.where(scale * (values - mean) + shift <= 0, 0.0, gradients)


@triton.jit(do_not_specialize=['images', 'pixels', 'tiles', 'splits'])
def dots_kernel(dy, x, planes, coefficients, images, channels, pixels, tiles, splits, CHANNELS_LAST: tl.constexpr,
                 BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, RELU: tl.constexpr):
    """Sums of dy and of dy (x - m) over every split, (B, splits, 2, C), stored after the coefficients."""
    image, channel, split = _position(tl.program_id(0), splits, channels, CHANNELS_LAST, BLOCK_C)
    stride = images.to(tl.int64) * channels
    mean = tl.load(planes + image * channels + channel, channel < channels)
    if RELU:
        scale = tl.load(planes + 2 * stride + image * channels + channel, channel < channels)
        shift = tl.load(planes + 3 * stride + image * channels + channel, channel < channels)
    sums = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    dots = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for tile in range(split * tiles, split * tiles + tiles):
        offsets, read, inside, _ = _tile(image, channel, tile, images, channels, pixels, CHANNELS_LAST, BLOCK_P)
        gradients = tl.load(dy + offsets, read).to(tl.float32)
        values = tl.load(x + offsets, read).to(tl.float32)
        if RELU:
            gradients = _passed(gradients, values, mean, scale, shift)
        sums += tl.where(inside, gradients, 0)
        dots += tl.where(inside, gradients * (values - mean), 0)
    out = coefficients + 3 * stride + (image * splits + split) * 2 * channels + channel
    tl.store(out, tl.sum(sums, 1, keep_dims=True), channel < channels)
    tl.store(out + channels, tl.sum(dots, 1, keep_dims=True), channel < channels)


@triton.jit
def _map_tile(images, channels, pixels, FLAT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALIGNED: tl.constexpr,
              BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offsets of a program's values, their mask, and the planes they belong to, for :func:`_of_plane`.

    Flat programs take aligned blocks of a contiguous tensor whose planes have at least BLOCK_P values, so that a block
    overlaps at most two: the first where ``chosen``, else the second. In the other programs each row is a plane, and
    ``chosen`` is true for rows that exist.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    if FLAT:
        planes = images.to(tl.int64) * channels
        start = program.to(tl.int64) * BLOCK_P
        step = tl.arange(0, BLOCK_P)
        offsets = start + step
        mask = offsets < planes * pixels
        first = start // pixels
        second = tl.minimum(first + 1, planes - 1)
        chosen = step < (first + 1) * pixels - start
    else:
        if ALIGNED:  # every plane starts aligned; the compiler recognizes it in this form
            pixels = pixels // ALIGN * ALIGN
        image, channel, tile = _position(program, tl.cdiv(pixels, BLOCK_P), channels, CHANNELS_LAST, BLOCK_C)
        pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
        first = image * channels + channel
        second, chosen = first, channel < channels
        mask = chosen & (pixel < pixels)
        if CHANNELS_LAST:
            offsets = (image * pixels + pixel) * channels + channel
        else:
            offsets = first * pixels + pixel
    return offsets, mask, first, second, chosen


@triton.jit
def _of_plane(values, first, second, chosen, FLAT: tl.constexpr):
    """For each value, the entry of its plane in ``values`` (B, C)."""
    if FLAT:
        number = tl.where(chosen, tl.load(values + first), tl.load(values + second))
    else:
        number = tl.load(values + first, chosen)
    return number


@triton.jit(do_not_specialize=['images', 'pixels'])
def affine_kernel(x, planes, y, images, channels, pixels, FLAT: tl.constexpr, CHANNELS_LAST: tl.constexpr,
                   ALIGNED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, RELU: tl.constexpr):
    """y = a (x - m) + d, or its ReLU."""
    offsets, mask, first, second, chosen = _map_tile(images, channels, pixels, FLAT, CHANNELS_LAST, ALIGNED, BLOCK_C,
                                                       BLOCK_P)
    stride = images.to(tl.int64) * channels
    values = tl.load(x + offsets, mask).to(tl.float32)
    mean = _of_plane(planes, first, second, chosen, FLAT)
    scale = _of_plane(planes + 2 * stride, first, second, chosen, FLAT)
    shift = _of_plane(planes + 3 * stride, first, second, chosen, FLAT)
    result = scale * (values - mean) + shift
    if RELU:
        result = tl.where(result <= 0, 0.0, result)
    tl.store(y + offsets, result, mask)


@triton.jit(do_not_specialize=['images', 'pixels'])
def affine2_kernel(dy, x, planes, coefficients, dx, images, channels, pixels, FLAT: tl.constexpr,
                    CHANNELS_LAST: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
                    RELU: tl.constexpr):
    """dx = A dy + B (x - m) + C; with ReLU, dy is masked first."""
    offsets, mask, first, second, chosen = _map_tile(images, channels, pixels, FLAT, CHANNELS_LAST, ALIGNED, BLOCK_C,
                                                       BLOCK_P)
    stride = images.to(tl.int64) * channels
    gradients = tl.load(dy + offsets, mask).to(tl.float32)
    values = tl.load(x + offsets, mask).to(tl.float32)
    mean = _of_plane(planes, first, second, chosen, FLAT)
    scale_dy = _of_plane(coefficients, first, second, chosen, FLAT)
    scale_x = _of_plane(coefficients + stride, first, second, chosen, FLAT)
    constant = _of_plane(coefficients + 2 * stride, first, second, chosen, FLAT)
    if RELU:
        scale = _of_plane(planes + 2 * stride, first, second, chosen, FLAT)
        shift = _of_plane(planes + 3 * stride, first, second, chosen, FLAT)
        gradients = _passed(gradients, values, mean, scale, shift)
    tl.store(dx + offsets, scale_dy * gradients + scale_x * (values - mean) + constant, mask)
