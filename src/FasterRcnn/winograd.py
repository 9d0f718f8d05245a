"""3x3 convolutions with fewer multiplications (Winograd 1980; Lavin & Gray 2016)."""

import math

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.FasterRcnn.graph_ops import after
from src.FasterRcnn.rows import reorder_rows

# Outputs of a tile along one axis.
_OUT = 4
# Where polynomials are evaluated, besides infinity, by taps of the filter. For 3 the error is half that of the usual
# 0, 1, -1, 2, -2 (measured; on the choice of points see Barabasz et al. 2020); B and A below are exact in float32.
_POINTS = {3: (0.0, 0.75, -0.75, 1.5, -1.5), 2: (0.5, -0.5, 1.5, -1.5)}
# Smaller results gain little, and every use compiles longer; see benchmarks/NOTES.md.
_MIN_OUTPUTS = 400_000
# More values at once, 64 MiB, are computed image by image, and where one image has more, in thirds of them.
_MAX_VALUES = 2**24
_THIRDS = 3


def toom_cook(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of the Toom-Cook algorithm for filters of 2 or 3 that yield 4 outputs (Lavin & Gray 2016, section 3).

    With data d (V,) and filter g (taps,), ``A.T @ ((G @ g) * (B.T @ d))`` is the correlation of both, (4,): a product
    of polynomials is the product of their values at V points, interpolated; here transposed.

    Returns:
        B.T (V, V), G (V, taps) and A.T (4, V), float64; V is taps + 3.
    """
    points, size = np.array(_POINTS[taps]), taps + _OUT - 1
    others = [np.delete(points, i) for i in range(size - 1)]
    # Lagrange's polynomials, lowest power first; the last row, of infinity, is the one with all points as roots.
    data = np.zeros((size, size))
    data[:-1, :-1] = [np.poly(roots)[::-1] for roots in others]
    data[-1] = np.poly(points)[::-1]
    norms = np.array([np.prod(point - roots) for point, roots in zip(points, others, strict=True)])
    infinity = np.eye(taps)[-1]
    filters = np.vstack([np.vander(points, taps, increasing=True) / norms[:, None], infinity])
    outputs = np.vstack([np.vander(points, _OUT, increasing=True), np.eye(_OUT)[-1]])
    return data, filters, outputs.T


def transforms(stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices as in :func:`toom_cook` for a filter of 3 that moves by a stride of 1 or 2 and yields 4 outputs.

    At stride 2 the first and last tap see every other pixel, which is a filter of 2 with 5 values; the middle one sees
    the 4 pixels in between.

    Returns:
        B.T (V, D), G (V, 3) and A.T (4, V), float64: V values of D pixels, 6 of 6 or 9 of 9.
    """
    if stride == 1:
        return toom_cook(3)
    outer_data, outer_filters, outer_outputs = toom_cook(2)
    data, filters = np.zeros((9, 9)), np.zeros((9, 3))
    data[:5, ::2], data[5:, 1::2] = outer_data, np.eye(_OUT)
    filters[:5, ::2], filters[5:, 1] = outer_filters, 1.0
    return data, filters, np.hstack([outer_outputs, np.eye(_OUT)])


class Conv3x3(nn.Conv2d):
    """3x3 convolution with padding 1; parameters and results of ``nn.Conv2d``.

    A tile of 6 x 6 pixels and the filter are each taken to 36 values, whose products, summed over channels, go back to
    4 x 4 pixels: 36 multiplications instead of 144; at stride 2, a tile of 9 x 9 and 81 values. Results differ from
    those of the plain convolution by about 1e-5 of their spread, gradients too. The plain one computes results of fewer
    than 400,000 values an image, and maps with a side that 4 * stride does not divide.

    Args:
        in_channels, out_channels (int): channels.
        stride (int): 1 or 2.
        winograd (bool): compute as above, which pays on CPU, in time at stride 1, in memory at both; plainly otherwise.
        has_bias (bool): add a bias per channel.
        weight_init, bias_init: see ``nn.Conv2d``.

    Inputs: x, Tensor (B, in_channels, H, W); float32, without ``winograd`` any floating type.
    Outputs: Tensor (B, out_channels, H / stride, W / stride), sides rounded up.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        winograd: bool = False,
        *,
        has_bias: bool = False,
        weight_init=None,
        bias_init=None,
    ):
        super().__init__(
            in_channels,
            out_channels,
            3,
            stride,
            pad_mode="pad",
            padding=1,
            has_bias=has_bias,
            weight_init=weight_init,
            bias_init=bias_init,
        )
        self.winograd = winograd

    def construct(self, x):
        out = self.convolved(x, self.weight)
        return self.bias_add(out, self.bias) if self.has_bias else out

    def convolved(self, x, weight):
        """The convolution with another weight of the same shape, without bias."""
        if _pays(self.winograd, x.shape, self.stride[0], self.out_channels):
            return _BY_VALUES[_kind(x.shape, self.stride[0])](x, weight)
        return self.conv2d(x, weight)


class _ByValues(nn.Cell):
    """The algorithm itself.

    Its gradients are written out, so that only x and the weight are kept for them and not the values, which are 2.25
    times as large as x, 1.27 times at stride 2.

    Results are sums over values, so that not all of these need to be in memory at once.

    Args:
        stride (int): 1 or 2.
        groups (int): parts of the values that are computed one after the other, 1 or 3.

    Inputs: x, Tensor (B, C, H, W), H and W divisible by 4 * stride; weight, Tensor (D, C, 3, 3).
    Outputs: Tensor (B, D, H / stride, W / stride).
    """

    def __init__(self, stride: int, groups: int):
        super().__init__()
        data, filters, outputs = transforms(stride)
        size, step = len(data), _OUT * stride
        self.stride = stride
        both_axes = np.kron(data, data), np.kron(filters, filters), np.kron(outputs, outputs).T
        parts = [np.split(matrix, groups) for matrix in both_axes]
        # Of every group the transforms of data, filters and outputs.
        self.groups = tuple(
            (
                Tensor(data_transform.reshape(-1, 1, size, size), mstype.float32),
                Tensor(filter_transform, mstype.float32),
                Tensor(output_transform.reshape(-1, 1, _OUT, _OUT), mstype.float32),
            )
            for data_transform, filter_transform, output_transform in zip(*parts, strict=True)
        )
        # Transforms are convolutions of single channels with a tile's stride; below each, its transpose.
        channels = size**2 // groups
        self.from_pixels = ops.Conv2D(channels, size, stride=step, pad_mode="pad", pad=1)
        self.from_pixels_transposed = ops.Conv2DTranspose(channels, size, stride=step, pad_mode="pad", pad=1)
        self.to_pixels = ops.Conv2DTranspose(channels, _OUT, stride=_OUT)
        self.to_pixels_transposed = ops.Conv2D(channels, _OUT, stride=_OUT)
        self.transform_filters = ops.MatMul(transpose_b=True)
        self.transform_filters_transposed = ops.MatMul(transpose_a=True)
        self.slice = ops.Slice()
        self.concat = ops.Concat(0)
        self.add = ops.AddN()
        self.multiply = ops.BatchMatMul()
        self.multiply_first_transposed = ops.BatchMatMul(transpose_a=True)
        self.multiply_second_transposed = ops.BatchMatMul(transpose_b=True)

    def construct(self, x, weight):
        outs = ()
        for images in _parts(x.shape, self.stride):
            maps = self.slice_after(x, images, outs)
            batch, _, height, width = maps.shape
            shape = (batch, weight.shape[0], height // self.stride, width // self.stride)
            out = None
            for data_transform, filter_transform, output_transform in self.groups:
                values = self.to_values(self.from_pixels, data_transform, after(maps, out))  # (V, C, B * tiles)
                products = self.multiply(self.filter_values(weight, filter_transform), values)  # (V, D, B * tiles)
                part = self.from_values(self.to_pixels, output_transform, products, shape, shape[2] // _OUT)
                out = self.accumulate(out, part)  # (B, D, H / stride, W / stride)
            outs += (out,)
        return self.joined(outs)

    def bprop(self, x, weight, out, dout):
        dxs, dweights = (), ()
        for images in _parts(x.shape, self.stride):
            dmaps = self.slice_after(dout, images, dxs)
            dx = None
            for data_transform, filter_transform, output_transform in self.groups:
                products = self.to_values(self.to_pixels_transposed, output_transform, after(dmaps, dx))
                # Or the values of the forward pass would be kept.
                maps = self.slice_after(x, images, products)
                values = self.to_values(self.from_pixels, data_transform, maps)  # (V, C, B * tiles)
                dfilters = self.multiply_second_transposed(products, values)  # (V, D, C)
                # Or both pairs of large arrays would be in memory at once.
                filters = self.filter_values(after(weight, dfilters), filter_transform)  # (V, D, C)
                dvalues = self.multiply_first_transposed(filters, products)  # (V, C, B * tiles)
                tile_rows = dmaps.shape[2] // _OUT
                part = self.from_values(self.from_pixels_transposed, data_transform, dvalues, maps.shape, tile_rows)
                dx = self.accumulate(dx, part)  # (B, C, H, W)
                dfilters = ops.reshape(dfilters, (filter_transform.shape[0], -1))
                dweights += (self.transform_filters_transposed(dfilters, filter_transform),)
            dxs += (dx,)
        return self.joined(dxs), ops.reshape(self.add(dweights), weight.shape)

    def accumulate(self, total, part):
        """The sum of the parts so far, None before the first, and another part."""
        return part if total is None else total + part

    def slice_after(self, maps, images, done):
        """Images from the first to before the last, not before what is done."""
        first, last = images
        maps = after(maps, done)
        if last - first == maps.shape[0]:
            return maps
        return self.slice(maps, (first, 0, 0, 0), (last - first, *maps.shape[1:]))

    def joined(self, parts):
        """All images again."""
        return parts[0] if len(parts) == 1 else self.concat(parts)

    def filter_values(self, weight, transform):
        """Every filter as V values of a group: (D, C, 3, 3) to (V, D, C)."""
        values = self.transform_filters(transform, ops.reshape(weight, (-1, 9)))
        return ops.reshape(values, (-1, *weight.shape[:2]))

    def to_values(self, convolve, transform, maps):
        """Every tile as V values: (B, C, H, W) to (V, C, B * tiles)."""
        batch, channels, height, width = maps.shape
        num_values = transform.shape[0]
        values = convolve(ops.reshape(maps, (-1, 1, height, width)), transform)  # (B * C, V, tile rows, tile columns)
        values = reorder_rows(values, (batch, channels, num_values), (2, 1, 0))  # (V * C * B, tiles)
        return ops.reshape(values, (num_values, channels, -1))

    def from_values(self, convolve, transform, values, shape, tile_rows):
        """The way back: (V, C, B * tiles) to (B, C, H, W), the shape, of so many rows of tiles."""
        batch, channels, height, width = shape
        num_values = transform.shape[0]
        values = reorder_rows(values, (num_values, channels, batch), (2, 1, 0))  # (B * C * V, tiles)
        values = ops.reshape(values, (batch * channels, num_values, tile_rows, -1))
        maps = convolve(values, transform, (batch * channels, 1, height, width))
        return ops.reshape(maps, shape)


@ops.constexpr
def _pays(winograd: bool, shape: tuple[int, ...], stride: int, out_channels: int) -> bool:
    """Whether maps (B, C, H, W) are convolved by values. One question: each takes time to compile."""
    height, width = shape[2:]
    divisible = height % (_OUT * stride) == 0 and width % (_OUT * stride) == 0
    return winograd and divisible and out_channels * height * width >= _MIN_OUTPUTS * stride**2


@ops.constexpr
def _kind(shape: tuple[int, ...], stride: int) -> int:
    """Key of the algorithm for maps (B, C, H, W) in ``_BY_VALUES``."""
    return stride * (_THIRDS if _image_values(shape, stride) > _MAX_VALUES else 1)


@ops.constexpr
def _parts(shape: tuple[int, ...], stride: int) -> tuple[tuple[int, int], ...]:
    """First image and the one after the last of every part that is computed at once: all, or each image alone."""
    batch = shape[0]
    if batch * _image_values(shape, stride) <= _MAX_VALUES:
        return ((0, batch),)
    return tuple((image, image + 1) for image in range(batch))


def _image_values(shape: tuple[int, ...], stride: int) -> int:
    # Of x, not of the result; here both have as many channels.
    return math.prod(shape[1:]) * len(transforms(stride)[0]) ** 2 // (_OUT * stride) ** 2


# By stride times groups. Shared by all convolutions: these have no state, and MindSpore reads each cell's Python anew.
_BY_VALUES = {stride * groups: _ByValues(stride, groups) for stride in (1, 2) for groups in (1, _THIRDS)}
