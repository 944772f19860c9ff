"""Two-dimensional convolution as matrix products (im2col), forward and backward.

Notation: N batch, C input channels, H W input size, O output channels, KH KW kernel, OH OW output size, G groups.
Arrays are batch-last inside a network: x (C, H, W, N), weight (O, C/G, KH, KW), y (O, OH, OW, N).

The *columns* of x are the matrix col (C*KH*KW, OH*OW*N) whose column (oh, ow, n) lists what the window at (oh, ow) of
image n sees. Then convolution is one product,

    y = weight.reshape(O, C*KH*KW) @ col            and its gradients are
    dweight = dy @ col.T,   dcol = weight.T @ dy,   dx = the sum of all entries of dcol that came from one pixel.

col is KH*KW times larger than x. On the CPU it is therefore made in chunks of output pixels that stay in the cache, and
the chunks are spread over threads; on a GPU one chunk is normally all of it.
Source: Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing" (2006).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from .. import backend
from ..backend import Array, array_module, for_chunks, for_rows, matrix_workspace, row_sum, spans, workspace
from ..errors import ShapeError
from . import fused, winograd
from .geometry import ALL, Padding, Pair, Window, as_padding, cut, item_views, make_window, pad, pair, window_view

CHUNK = 1 << 20  # elements of col per chunk on the CPU: 4 MB in float32 stay in the cache with what is made of them
CHUNK_COLUMNS = (1024, 16_384)  # fewest and most columns in a chunk
SUMMED_WORK = 1 << 23  # multiplications below which a chunk of products that are summed may have more columns
FEW_FILTERS = 4  # channels per filter from which the forward pass scatters, measured as `_prefers_gather` is
MANY_PIXELS = 1024  # and pixels, below which it is slower
FEW_COLUMNS = 128  # columns up to which threads share the filters instead
CHUNK_GPU = 1 << 28  # elements of col per chunk on a GPU: 1 GB in float32
LONG_ROW = 1024  # elements from which adding shifted rows costs no more than adding whole ones
PAGE = 4096  # bytes: rows a multiple of this apart share cache sets
Pixels = tuple[int, int, int, int]  # output rows h0:h1 and, within one row only, columns w0:w1


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: int | Pair = 1,
    padding: Padding = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Array:
    """Convolve images in the usual layout (cross-correlation, as everywhere in deep learning).

    Args:
        x: images (N, C, H, W): NumPy, CuPy, or any array with DLPack, such as torch's.
        weight: kernels (O, C/groups, KH, KW).
        bias: one number per output channel (O,), or None.
        stride: int or (vertical, horizontal).
        padding: zeros around the image: int, (vertical, horizontal), (top, bottom, left, right), "same" or "valid".
        dilation: distance between kernel taps, int or (vertical, horizontal).
        groups: channels are cut into that many groups, convolved separately; C for a depthwise convolution.

    Returns:
        (N, O, OH, OW), OH = floor((H + padding - dilation*(KH-1) - 1) / stride) + 1.
    """
    x, weight, bias = (backend.as_array(array) for array in (x, weight, bias))
    array_module(x=x, weight=weight, bias=bias)
    if x.ndim != 4 or weight.ndim != 4 or groups < 1 or x.shape[1] != weight.shape[1] * groups:
        raise ShapeError(
            "conv2d expects x (N, C, H, W) and weight (O, C/groups, KH, KW); "
            f"received x {x.shape}, weight {weight.shape}, groups={groups}."
        )
    if weight.shape[0] % groups or (bias is not None and bias.shape != weight.shape[:1]):
        raise ShapeError(
            "conv2d expects a number of output channels O divisible by groups and a bias of shape (O,); received "
            f"weight {weight.shape}, groups={groups}, bias {None if bias is None else bias.shape}."
        )
    window = make_window(
        x.shape[2:],
        weight.shape[2:],
        pair(stride, "stride", 1),
        as_padding(padding),
        pair(dilation, "dilation", 1),
    )
    y = conv2d_forward(x.transpose(1, 2, 3, 0), weight, bias, window, groups)
    return y.transpose(3, 0, 1, 2)


def conv2d_forward(
    x: Array, weight: Array, bias: Array | None, window: Window, groups: int = 1, relu: bool = False
) -> Array:
    """Return y (O, OH, OW, N) for x (C, H, W, N), weight (O, C/G, KH, KW) and bias (O,) or None.

    With `relu` it is max(y, 0), applied while a chunk is in the cache.
    """
    xp = array_module(x=x, weight=weight, bias=bias)
    if winograd.takes(x, weight, window, groups):
        return winograd.convolve(x, winograd.transform(weight), window, bias, relu)
    mirrored = window.mirrored
    if mirrored is not None and groups == 1 and _prefers_scatter(x, weight, window):
        return _forward_by_scatter(x, weight, bias, mirrored, relu)
    filters, batch = weight.shape[0], x.shape[3]
    y = xp.empty((filters, *window.output, batch), x.dtype)
    products = y.reshape(groups, filters // groups, -1)
    matrix = weight.reshape(groups, filters // groups, -1)
    shift = None if bias is None else bias.reshape(groups, -1, 1)
    columns = Columns(x, window, groups)

    def product(col: Array, rows: slice, where: slice) -> None:
        out = products[:, rows, where]
        result = _dense(out)
        _matmul(matrix[:, rows], col, result)
        _finish(result, None if shift is None else shift[:, rows], relu, out)

    work = columns.size * max(1, filters // 16)
    if xp is np and groups == 1 and products.shape[2] <= FEW_COLUMNS:  # too few to share: share the filters instead
        col = columns.chunk((0, window.output[0], 0, window.output[1]))
        parts = spans(filters, backend.lanes() if work >= backend.INLINE_WORK else 1)
        for_chunks(len(parts), work, lambda i: product(col, slice(*parts[i]), ALL))
    else:
        chunks = columns.chunks(xp, work)
        for_chunks(len(chunks), work, lambda i: product(columns.chunk(chunks[i]), ALL, columns.range(chunks[i])))
    return y


def _prefers_scatter(x: Array, weight: Array, window: Window) -> bool:
    """Whether the filters are so few that O*KH*KW rows of products are cheaper than C*KH*KW rows of columns.

    float16 goes by columns, since each row of products would be rounded.
    """
    filters, channels = weight.shape[:2]
    inside, outside = math.prod(window.input), math.prod(window.output)
    few = window.taps > 1 and FEW_FILTERS * filters * inside <= channels * outside
    return few and outside * x.shape[3] >= MANY_PIXELS and x.dtype.itemsize > 2


def _forward_by_scatter(x: Array, weight: Array, bias: Array | None, mirrored: Window, relu: bool) -> Array:
    """Stride 1: y is what dx would be for a convolution with mirrored kernels and dy = x."""
    y = _input_gradient(x, weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], mirrored, 1)
    if bias is not None or relu:
        flat, shift = y.reshape(len(y), -1), None if bias is None else bias[:, None]

        def finish(rows: slice) -> None:
            part = flat[rows]
            _finish(part, None if shift is None else shift[rows], relu, part)

        for_rows(flat, finish, 2)
    return y


def _finish(result: Array, shift: Array | None, relu: bool, out: Array) -> None:
    """out = result + shift, then ReLU if asked for; result may be overwritten."""
    if shift is not None and relu and fused.takes(result):
        fused.bias_relu(result, shift, out)
        return
    xp = array_module(result)
    if shift is not None:
        result = xp.add(result, shift, out=result if relu else out)
    if relu:
        xp.clip(result, 0.0, math.inf, out=out)
    elif result is not out:
        xp.copyto(out, result)


def conv2d_backward(
    dy: Array,
    x: Array | None,
    weight: Array,
    window: Window,
    groups: int = 1,
    need_dx: bool = True,
    need_dw: bool = True,
) -> tuple[Array | None, Array | None]:
    """Return (dx (C, H, W, N) or None, dweight (O, C/G, KH, KW) or None) for dy (O, OH, OW, N).

    x may be None if dweight is not asked for. The gradient of the bias is `bias_gradient(dy)`.
    """
    mirrored = window.mirrored
    if mirrored is not None and winograd.takes(dy, weight, window, groups):
        dx = winograd.input_gradient(dy, weight, mirrored) if need_dx else None
        return dx, winograd.weight_gradient(dy, x, window) if need_dw else None
    if not need_dx:
        return None, _weight_gradient(dy, x, weight, window, groups) if need_dw else None
    if mirrored is not None and _prefers_gather(dy, weight, window):
        return _backward_by_gather(dy, x, weight, mirrored, groups, need_dw)
    return _backward_by_scatter(dy, x, weight, window, groups, need_dw)


def bias_gradient(dy: Array) -> Array:
    """Return the sum of dy (O, ...) over everything but the channel, in at least float32."""
    xp = array_module(dy)
    wide = xp.promote_types(dy.dtype, xp.float32)
    matrix = dy.reshape(dy.shape[0], -1)
    if xp is not np:
        return matrix.sum(axis=1, dtype=wide)
    total = xp.empty(len(matrix), wide)
    for_rows(matrix, lambda rows: row_sum(matrix[rows].astype(wide, copy=False), total[rows]))
    return total


class Columns:
    """The columns of an image, made chunk by chunk.

    With `mirrored` taps run backwards, which turns the transposed convolution of stride 1 into a plain one.
    """

    def __init__(self, x: Array, window: Window, groups: int = 1, mirrored: bool = False) -> None:
        self.window = window
        self.batch = x.shape[3]
        self.rows = x.shape[0] // groups * window.taps
        self.size = x.shape[0] * window.taps * window.output[0] * window.output[1] * self.batch
        self.xp = array_module(x)
        self.groups = groups
        if window.is_pointwise:
            self.matrix = x.reshape(groups, self.rows, -1)
            return
        self.fused = (x, mirrored) if fused.takes(x) else None
        if self.fused:
            return
        view = window_view(pad(x, window, 0.0), window, groups, window.output[0])
        self.view = view[:, :, ::-1, ::-1] if mirrored else view

    def chunks(self, xp: ModuleType, work: int, most: int = 0) -> list[Pixels]:
        """Cut the output pixels so that each chunk is one range of columns and large work is shared equally.

        `most` says how many columns a chunk may have, if these are more than usual.
        """
        (height, width), rows = self.window.output, self.rows * self.groups
        total = height * width * self.batch
        if xp is np:
            length = min(max(CHUNK // rows, CHUNK_COLUMNS[0]), max(CHUNK_COLUMNS[1], most))
            count = -(-total // length)
            if work >= backend.INLINE_WORK:
                count = -(-count // backend.lanes()) * backend.lanes()
        else:
            count = -(-total * rows // CHUNK_GPU)
        if count <= height:
            return [(h0, h1, 0, width) for h0, h1 in spans(height, count)]
        return [(h, h + 1, w0, w1) for h in range(height) for w0, w1 in spans(width, -(-count // height))]

    def range(self, pixels: Pixels) -> slice:
        """Where the chunk lies among all OH*OW*N columns."""
        h0, h1, w0, w1 = pixels
        start = (h0 * self.window.output[1] + w0) * self.batch
        return slice(start, start + (h1 - h0) * (w1 - w0) * self.batch)

    def chunk(self, pixels: Pixels, groups: slice = ALL, channels: slice = ALL) -> Array:
        """Return columns (G, K, n) of a chunk, of some groups and of some channels of each group only if asked.

        The result is scratch memory, valid until this thread asks for the next chunk.
        """
        if self.window.is_pointwise:
            part = self.matrix[groups, channels, self.range(pixels)]
            if self.xp is not np or part.strides[1] % PAGE:
                return part
            col = matrix_workspace(np, "columns", part.shape, part.dtype)
            np.copyto(col, part)
            return col
        if self.fused:
            return fused.im2col(self.fused[0], self.window, self.range(pixels), self.groups, self.fused[1])
        h0, h1, w0, w1 = pixels
        width = self.batch if self.view.ndim == 6 else 1  # of a pixel along rows
        view = self.view[groups, channels, :, :, h0:h1, w0 * width : w1 * width]
        shape = (view.shape[0], view.shape[1] * self.window.taps, (h1 - h0) * (w1 - w0) * self.batch)
        col = matrix_workspace(self.xp, "columns", shape, view.dtype)
        self.xp.copyto(*item_views(col.reshape(view.shape), view))  # cutting axes of a view gives a view
        return col


def _dense(out: Array) -> Array:
    """Return where a product for `out` is best computed: rows far apart by a power of two share cache lines."""
    return out if out.flags.c_contiguous else matrix_workspace(array_module(out), "product", out.shape, out.dtype)


def _matmul(a: Array, b: Array, out: Array) -> None:
    """out = a @ b for stacks of G matrices."""
    if len(a) == 1:
        backend.matmul(a[0], b[0], out[0])
    else:
        backend.product(a, b, out)


def _matmul_transposed(a: Array, b: Array, out: Array) -> None:
    """out = a @ b.T for stacks of G matrices, long in the axis that is summed."""
    if len(a) == 1:
        backend.matmul_transposed(a[0], b[0], out[0])
    else:
        backend.product(a, b.transpose(0, 2, 1), out)


def _weight_gradient(dy: Array, x: Array, weight: Array, window: Window, groups: int) -> Array:
    """dweight alone, for the first layer: dy @ col.T, summed over chunks."""
    xp = array_module(dy=dy, x=x, weight=weight)
    columns = Columns(x, window, groups)
    outer = dy.reshape(groups, weight.shape[0] // groups, -1)
    tall = columns.rows > outer.shape[1]  # BLAS likes the longer side first

    def product(pixels: Pixels, out: Array) -> None:
        col, part = columns.chunk(pixels), outer[:, :, columns.range(pixels)]
        _matmul_transposed(col, part, out) if tall else _matmul_transposed(part, col, out)

    shape = (groups, columns.rows, outer.shape[1]) if tall else (groups, outer.shape[1], columns.rows)
    total = _sum_over_lanes(xp, columns, shape, dy.dtype, product)
    return (total.transpose(0, 2, 1) if tall else total).reshape(weight.shape)


def _sum_over_lanes(
    xp: ModuleType,
    columns: Columns,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    product: Callable[[Pixels, Array], None],
) -> Array:
    """Sum product(chunk, out) over all chunks.

    Each lane owns a fixed run of chunks and an accumulator; lanes are added in order. So the rounding does not depend
    on which thread was faster.
    """
    chunks = columns.chunks(xp, columns.size, SUMMED_WORK // (shape[1] * shape[2]))
    lanes = spans(len(chunks), backend.lanes() if xp is np and columns.size >= backend.INLINE_WORK else 1)
    total = xp.empty(shape, dtype)
    others = workspace(xp, "lanes", (len(lanes) - 1, *shape), dtype)
    totals = [total, *others]

    def lane(index: int) -> None:
        first, last = lanes[index]
        product(chunks[first], totals[index])
        for pixels in chunks[first + 1 : last]:
            part = workspace(xp, "part", shape, dtype)
            product(pixels, part)
            totals[index] += part

    def add_lanes(rows: slice) -> None:
        for other in others:
            total[:, rows] += other[:, rows]

    for_chunks(len(lanes), columns.size, lane)
    for_rows(total[0], add_lanes, 2)
    return total


def _prefers_gather(dy: Array, weight: Array, window: Window) -> bool:
    """Whether columns of dy (O*KH*KW rows) are cheaper than columns of x (C*KH*KW rows) and a sum of shifted views.

    The constants are nanoseconds per element copied and per product, measured on one AVX-512 machine. A GPU
    always gathers: it takes the fewest launches.
    """
    if array_module(dy) is not np or window.taps == 1:
        return True
    filters, channels = weight.shape[:2]
    inside, outside = window.input[0] * window.input[1], window.output[0] * window.output[1]
    gather = filters * window.taps * inside * (0.08 + channels / 45)
    scatter = channels * window.taps * outside * (0.27 + filters / 42) + 0.1 * channels * inside
    return bool(gather <= scatter)


def _backward_by_gather(
    dy: Array, x: Array | None, weight: Array, mirrored: Window, groups: int, need_dw: bool
) -> tuple[Array, Array | None]:
    """Stride 1: dx is the convolution of dy with mirrored kernels, and dweight is those same columns times x."""
    xp = array_module(dy=dy, x=x, weight=weight)
    filters, channels, kh, kw = weight.shape  # channels of one group
    outputs = filters // groups
    dx = xp.empty((channels * groups, *mirrored.output, dy.shape[3]), dy.dtype)
    flat_dx = dx.reshape(groups, channels, -1)
    flat_x = None if x is None else x.reshape(groups, channels, -1)
    # (G, C, O*KH*KW): row c of the product wants every kernel that reads channel c
    matrix = workspace(xp, "turned weight", (groups, channels, outputs, kh, kw), weight.dtype)
    turned = weight.reshape(groups, outputs, channels, kh, kw).transpose(0, 2, 1, 3, 4)
    for_rows(turned[0], lambda rows: xp.copyto(matrix[:, rows], turned[:, rows]), 2)
    matrix = matrix.reshape(groups, channels, -1)
    columns = Columns(dy, mirrored, groups, mirrored=True)

    def product(pixels: Pixels, out: Array | None) -> None:
        col, where = columns.chunk(pixels), columns.range(pixels)
        target = flat_dx[:, :, where]
        product = _dense(target)
        _matmul(matrix, col, product)
        if product is not target:
            xp.copyto(target, product)
        if out is not None and flat_x is not None:
            _matmul_transposed(col, flat_x[:, :, where], out)

    if not need_dw:
        chunks = columns.chunks(xp, columns.size)
        for_chunks(len(chunks), columns.size, lambda index: product(chunks[index], None))
        return dx, None
    total = _sum_over_lanes(xp, columns, (groups, outputs * kh * kw, channels), dy.dtype, product)
    return dx, total.reshape(filters, kh, kw, channels).transpose(0, 3, 1, 2)


def _backward_by_scatter(
    dy: Array, x: Array | None, weight: Array, window: Window, groups: int, need_dw: bool
) -> tuple[Array, Array | None]:
    """Any stride: the two gradients one after the other, or on a thread each if they are too small to be cut."""
    array_module(dy=dy, x=x, weight=weight)
    if not need_dw:
        return _input_gradient(dy, weight, window, groups), None
    size = weight.shape[1] * groups * window.taps * window.output[0] * window.output[1] * dy.shape[3]
    gradients: list[Any] = [None, None]

    def work(index: int) -> None:
        gradients[index] = (
            _weight_gradient(dy, x, weight, window, groups) if index else _input_gradient(dy, weight, window, groups)
        )

    for_chunks(2, 0 if size >= backend.INLINE_WORK else size * max(1, weight.shape[0] // 16), work)
    return gradients[0], gradients[1]


def _input_gradient(dy: Array, weight: Array, window: Window, groups: int) -> Array:
    """dcol = weight.T @ dy, then each tap is added where it came from.

    Work is cut by input channels (by groups if there are several), so no two threads add to one place.
    """
    xp = array_module(dy)
    filters, channels, kh, kw = weight.shape  # channels of one group
    batch, (oh, ow), taps = dy.shape[3], window.output, window.taps
    dx = xp.empty((channels * groups, *window.input, batch), dy.dtype)
    outer, flat_weight = (array.reshape(groups, filters // groups, -1) for array in (dy, weight))
    size, pieces = channels * groups * taps * oh * ow * batch, 1
    if xp is np:
        lanes = backend.lanes() if size >= backend.INLINE_WORK else 1
        pieces = -(-channels * groups * taps * CHUNK_COLUMNS[0] // (2 * CHUNK * lanes)) * lanes
    blocks = spans(groups if groups > 1 else channels, pieces)

    def work(index: int) -> None:
        block = slice(*blocks[index])
        g, c = (block, slice(0, channels)) if groups > 1 else (slice(0, 1), block)
        matrix = flat_weight[g, :, c.start * taps : c.stop * taps].transpose(0, 2, 1)  # (g, c*KH*KW, o)
        block_dx = dx[g.start * channels + c.start : (g.stop - 1) * channels + c.stop]
        gathers = fused.takes(block_dx)
        pads = any(window.pads) and not gathers
        whole = (len(block_dx), *window.padded, batch)
        padded = workspace(xp, "padded gradient", whole, dy.dtype) if pads else block_dx
        if not gathers:
            padded.fill(0)
        rows = matrix.shape[0] * matrix.shape[1] * ow * batch
        for h0, h1 in spans(oh, -(-oh * rows // (CHUNK if xp is np else CHUNK_GPU))):
            part = outer[g, :, h0 * ow * batch : h1 * ow * batch]
            dcol = matrix_workspace(xp, "columns", (*matrix.shape[:2], part.shape[2]), dy.dtype)
            _matmul(matrix, part, dcol)
            if gathers:
                fused.col2im(dcol, window, (h0, h1), block_dx)
                continue
            parts = dcol.reshape(len(padded), kh, kw, h1 - h0, ow, batch)
            _add_taps(parts, window, padded[:, h0 * window.stride[0] :])
        if pads:
            cut(padded, window, block_dx)

    for_chunks(len(blocks), size, work)
    return dx


def _add_taps(parts: Array, window: Window, image: Array) -> None:
    """Add parts (C, KH, KW, h, OW, N) to the image (C, H, W, N) where they came from.

    Short rows are added whole first, over each other for every column of the window: fewer and longer runs.
    """
    xp = array_module(parts, image)
    channels, kh, kw, height, width, batch = parts.shape
    down, across = window.tap_slices(0, height), window.taps_along[1]
    if kh == 1 or width * batch >= LONG_ROW:
        for i, j in itertools.product(range(kh), range(kw)):
            target = image[:, down[i], across[j]]
            target += parts[:, i, j]
        return
    sums = workspace(xp, "sums", (channels, kw, down[-1].stop, width, batch), parts.dtype)
    apart = window.stride[0] if window.dilation[0] == 1 and kh >= window.stride[0] else 0  # first taps, side by side
    sums[:, :, apart * height :] = 0
    for i, where in enumerate(down):
        if i < apart:
            sums[:, :, where] = parts[:, i]
        else:
            target = sums[:, :, where]
            target += parts[:, i]
    for j, where in enumerate(across):
        target = image[:, : down[-1].stop, where]
        target += sums[:, j]
