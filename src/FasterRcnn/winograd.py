"""3x3 convolutions with fewer multiplications (Winograd 1980; Lavin & Gray 2016)."""

import math

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops.functional import tuple_getitem

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
                Tensor(of_data.reshape(-1, 1, size, size), mstype.float32),
                Tensor(of_filters, mstype.float32),
                Tensor(of_outputs.reshape(-1, 1, _OUT, _OUT), mstype.float32),
            )
            for of_data, of_filters, of_outputs in zip(*parts, strict=True)
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
        for piece in _pieces(x.shape, self.stride):
            maps = self.taken(x, piece, outs)
            batch, _, height, width = maps.shape
            shape = (batch, weight.shape[0], height // self.stride, width // self.stride)
            out = ()
            for of_data, of_filters, of_outputs in self.groups:
                values = self.split(self.from_pixels, of_data, ops.depend(maps, out))
                products = self.multiply(self.filters(weight, of_filters), values)
                out = self.added(out, self.join(self.to_pixels, of_outputs, products, shape, shape[2] // _OUT))
            outs += out
        return self.together(outs)

    def bprop(self, x, weight, out, dout):
        dxs, dweights = (), ()
        for piece in _pieces(x.shape, self.stride):
            dmaps = self.taken(dout, piece, dxs)
            dx = ()
            for of_data, of_filters, of_outputs in self.groups:
                products = self.split(self.to_pixels_transposed, of_outputs, ops.depend(dmaps, dx))
                # Behind the backward pass so far; the values of the forward pass would be kept otherwise.
                maps = self.taken(x, piece, products)
                values = self.split(self.from_pixels, of_data, maps)
                dfilters = self.multiply_second_transposed(products, values)
                # And the next behind these, or both pairs of large arrays would be in memory at once.
                filters = self.filters(ops.depend(weight, dfilters), of_filters)
                dvalues = self.multiply_first_transposed(filters, products)
                dx = self.added(
                    dx, self.join(self.from_pixels_transposed, of_data, dvalues, maps.shape, dmaps.shape[2] // _OUT)
                )
                dfilters = ops.reshape(dfilters, (of_filters.shape[0], -1))
                dweights += (self.transform_filters_transposed(dfilters, of_filters),)
            dxs += dx
        return self.together(dxs), ops.reshape(self.add(dweights), weight.shape)

    def added(self, total, part):
        """The total so far, nothing or one tensor, and another part."""
        return (part,) if len(total) == 0 else (tuple_getitem(total, 0) + part,)

    def taken(self, maps, piece, after):
        """Images from the first to before the last, when what they come after is computed."""
        first, last = piece
        maps = ops.depend(maps, after)
        return (
            maps
            if last - first == maps.shape[0]
            else self.slice(maps, (first, 0, 0, 0), (last - first, *maps.shape[1:]))
        )

    def together(self, pieces):
        return pieces[0] if len(pieces) == 1 else self.concat(pieces)

    def filters(self, weight, transform):
        """Every filter as V values of a group: (D, C, 3, 3) to (V, D, C)."""
        values = self.transform_filters(transform, ops.reshape(weight, (-1, 9)))
        return ops.reshape(values, (-1, *weight.shape[:2]))

    def split(self, convolve, transform, maps):
        """Every tile as V values: (B, C, H, W) to (V, C, B * tiles)."""
        batch, channels, height, width = maps.shape
        num_values = transform.shape[0]
        values = convolve(ops.reshape(maps, (-1, 1, height, width)), transform)
        values = reorder_rows(values, (batch, channels, num_values), (2, 1, 0))
        return ops.reshape(values, (num_values, channels, -1))

    def join(self, convolve, transform, values, shape, tile_rows):
        """The way back: (V, C, B * tiles) to (B, C, H, W), the shape, of so many rows of tiles."""
        batch, channels, height, width = shape
        num_values = transform.shape[0]
        values = reorder_rows(values, (num_values, channels, batch), (2, 1, 0))
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
def _pieces(shape: tuple[int, ...], stride: int) -> tuple[tuple[int, int], ...]:
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
