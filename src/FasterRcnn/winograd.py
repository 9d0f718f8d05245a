"""3x3 convolutions with a quarter of the multiplications (Winograd 1980; Lavin & Gray 2016)."""
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.FasterRcnn.rows import reorder_rows

# Outputs and inputs of a tile along one axis: F(4x4, 3x3) turns 6 x 6 pixels into 4 x 4.
_OUT, _IN = 4, 6
_VALUES = _IN * _IN
# Where polynomials are evaluated, besides infinity. The error is half that of the usual 0, 1, -1, 2, -2 (measured; on
# the choice of points see Barabasz et al. 2020), and B and A below have no rounding in float32.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
# Smaller maps gain little, whether of 64 channels or 512, and every use compiles longer; see benchmarks/NOTES.md.
_MIN_PIXELS = 48 * 80


def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of the Toom-Cook algorithm for a filter of 3 that yields 4 outputs (Lavin & Gray 2016, section 3).

    With data d (6,) and filter g (3,), ``A.T @ ((G @ g) * (B.T @ d))`` is the correlation of both, (4,): a product of
    polynomials is the product of their values at 6 points, interpolated; here transposed.

    Returns:
        B.T (6, 6), G (6, 3) and A.T (4, 6), float64.
    """
    points = np.array(_POINTS)
    others = [np.delete(points, i) for i in range(_IN - 1)]
    # Lagrange's polynomials, lowest power first; the last row, of infinity, is the one with all points as roots.
    data = np.zeros((_IN, _IN))
    data[:-1, :-1] = [np.poly(roots)[::-1] for roots in others]
    data[-1] = np.poly(points)[::-1]
    norms = np.array([np.prod(point - roots) for point, roots in zip(points, others, strict=True)])
    filters = np.vstack([np.vander(points, 3, increasing=True) / norms[:, None], [0.0, 0.0, 1.0]])
    outputs = np.vstack([np.vander(points, _OUT, increasing=True), [0.0, 0.0, 0.0, 1.0]])
    return data, filters, outputs.T


class Conv3x3(nn.Conv2d):
    """3x3 convolution of stride 1 with padding 1; parameters and results of ``nn.Conv2d``.

    A tile of 6 x 6 pixels and the filter are each taken to 36 values, whose products, summed over channels, go back to
    4 x 4 pixels: 36 multiplications instead of 144. Results differ from those of the plain convolution by about 1e-5 of
    their spread, gradients too. Maps of fewer than 48 x 80 pixels, and those with a side that 4 does not divide, are
    convolved plainly.

    Args:
        in_channels, out_channels (int): channels.
        winograd (bool): compute as above, which pays on CPU; plainly otherwise.
        has_bias (bool): add a bias per channel.
        weight_init, bias_init: see ``nn.Conv2d``.

    Inputs: x, Tensor (B, in_channels, H, W); float32, without ``winograd`` any floating type.
    Outputs: Tensor (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, winograd: bool = False, *, has_bias: bool = False,
                 weight_init=None, bias_init=None):
        super().__init__(in_channels, out_channels, 3, pad_mode="pad", padding=1, has_bias=has_bias,
                         weight_init=weight_init, bias_init=bias_init)
        self.winograd = winograd

    def construct(self, x):
        if _pays(self.winograd, x.shape):
            filters = _TRANSFORM_FILTERS(_filter_transform(), ops.reshape(self.weight, (-1, 9)))
            out = _CONVOLVE(x, ops.reshape(filters, (_VALUES, self.out_channels, self.in_channels)))
        else:
            out = self.conv2d(x, self.weight)
        return self.bias_add(out, self.bias) if self.has_bias else out


class _Convolution(nn.Cell):
    """The algorithm on filters that are transformed already.

    Its gradients are written out, so that only x is kept for them and not its 36 values per tile, 2.25 times as large.

    Inputs: x, Tensor (B, C, H, W), H and W divisible by 4; filters, Tensor (36, D, C).
    Outputs: Tensor (B, D, H, W).
    """

    def __init__(self):
        super().__init__()
        data, _, outputs = transforms()
        self.data_transform = Tensor(np.einsum("ia,jb->ijab", data, data).reshape(-1, 1, _IN, _IN), mstype.float32)
        self.output_transform = Tensor(np.einsum("ai,bj->ijab", outputs, outputs).reshape(-1, 1, _OUT, _OUT),
                                       mstype.float32)
        # Both transforms are convolutions of single channels with a tile's stride; below each, its transpose.
        self.from_pixels = ops.Conv2D(_VALUES, _IN, stride=_OUT, pad_mode="pad", pad=1)
        self.from_pixels_transposed = ops.Conv2DTranspose(_VALUES, _IN, stride=_OUT, pad_mode="pad", pad=1)
        self.to_pixels = ops.Conv2DTranspose(_VALUES, _OUT, stride=_OUT)
        self.to_pixels_transposed = ops.Conv2D(_VALUES, _OUT, stride=_OUT)
        self.multiply = ops.BatchMatMul()
        self.multiply_first_transposed = ops.BatchMatMul(transpose_a=True)
        self.multiply_second_transposed = ops.BatchMatMul(transpose_b=True)

    def construct(self, x, filters):
        values = self.split(self.from_pixels, self.data_transform, x)
        return self.join(self.to_pixels, self.output_transform, self.multiply(filters, values), x.shape)

    def bprop(self, x, filters, out, dout):
        products = self.split(self.to_pixels_transposed, self.output_transform, dout)
        # "depend" puts this behind the backward pass so far; the values of the forward pass would be kept otherwise.
        values = self.split(self.from_pixels, self.data_transform, ops.depend(x, products))
        dfilters = self.multiply_second_transposed(products, values)
        # And the next behind these, or both pairs of large arrays would be in memory at once.
        dvalues = self.multiply_first_transposed(filters, ops.depend(products, dfilters))
        return self.join(self.from_pixels_transposed, self.data_transform, dvalues, x.shape), dfilters

    def split(self, convolve, transform, maps):
        """Every tile as 36 values: (B, C, H, W) to (36, C, B * tiles)."""
        batch, channels, height, width = maps.shape
        values = convolve(ops.reshape(maps, (-1, 1, height, width)), transform)
        return ops.reshape(reorder_rows(values, (batch, channels, _VALUES), (2, 1, 0)), (_VALUES, channels, -1))

    def join(self, convolve, transform, values, shape):
        """The way back: (36, C, B * tiles) to (B, C, H, W)."""
        batch, _, height, width = shape
        channels = values.shape[1]
        values = reorder_rows(values, (_VALUES, channels, batch), (2, 1, 0))
        values = ops.reshape(values, (-1, _VALUES, height // _OUT, width // _OUT))
        maps = convolve(values, transform, (batch * channels, 1, height, width))
        return ops.reshape(maps, (batch, channels, height, width))


@ops.constexpr
def _pays(winograd: bool, shape: tuple[int, ...]) -> bool:
    """Whether maps (B, C, H, W) are convolved by the algorithm. One question: each takes time to compile."""
    height, width = shape[2:]
    return winograd and height % _OUT == 0 and width % _OUT == 0 and height * width >= _MIN_PIXELS


@ops.constexpr
def _filter_transform() -> Tensor:
    """G for both axes at once, (36, 9)."""
    _, filters, _ = transforms()
    return Tensor(np.kron(filters, filters), mstype.float32)


# One for all convolutions: it has no state, and MindSpore reads the Python of each cell anew.
_CONVOLVE = _Convolution()
_TRANSFORM_FILTERS = ops.MatMul(transpose_b=True)
