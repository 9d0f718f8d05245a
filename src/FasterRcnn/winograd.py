"""3x3 convolutions with a quarter of the multiplications (Winograd 1980; Lavin & Gray 2016)."""
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.FasterRcnn.row_order import permute_rows

# Outputs and inputs of a tile along one axis: F(4x4, 3x3) turns 6 x 6 pixels into 4 x 4.
_OUT, _IN = 4, 6
_VALUES = _IN * _IN
# The points the polynomials are evaluated at, and infinity. Exact in binary, and the result's error is half that of the
# usual 0, 1, -1, 2, -2 (Barabasz et al. 2020 on the choice of points).
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
# Smaller maps gain less than the transforms cost; measured, see benchmarks/NOTES.md.
_MIN_PIXELS = 24 * 40


def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of the Toom-Cook algorithm for a filter of 3 that yields 4 outputs.

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
    weights = np.vstack([np.vander(points, 3, increasing=True) / norms[:, None], [0.0, 0.0, 1.0]])
    outputs = np.vstack([np.vander(points, _OUT, increasing=True), [0.0, 0.0, 0.0, 1.0]])
    return data, weights, outputs.T


class _Convolution(nn.Cell):
    """The algorithm itself, with its gradients written out, so that nothing but the inputs is kept for them.

    Inputs: x, Tensor (B, C, H, W), H and W divisible by 4; weights, Tensor (36, D, C), the transformed filters.
    Outputs: Tensor (B, D, H, W).
    """

    def __init__(self):
        super().__init__()
        data, _, outputs = transforms()
        self.data_transform = Tensor(np.einsum("ia,jb->ijab", data, data).reshape(-1, 1, _IN, _IN), mstype.float32)
        self.output_transform = Tensor(np.einsum("ai,bj->ijab", outputs, outputs).reshape(-1, 1, _OUT, _OUT),
                                       mstype.float32)
        # Each transform and its transpose.
        self.from_pixels = ops.Conv2D(_VALUES, _IN, stride=_OUT, pad_mode="pad", pad=1)
        self.from_pixels_transposed = ops.Conv2DTranspose(_VALUES, _IN, stride=_OUT, pad_mode="pad", pad=1)
        self.to_pixels = ops.Conv2DTranspose(_VALUES, _OUT, stride=_OUT)
        self.to_pixels_transposed = ops.Conv2D(_VALUES, _OUT, stride=_OUT)
        self.multiply = ops.BatchMatMul()
        self.multiply_first_transposed = ops.BatchMatMul(transpose_a=True)
        self.multiply_second_transposed = ops.BatchMatMul(transpose_b=True)

    def construct(self, x, weights):
        return self.join(self.to_pixels, self.output_transform, self.multiply(weights, self.values(x)), x.shape)

    def bprop(self, x, weights, out, dout):
        products = self.split(self.to_pixels_transposed, self.output_transform, dout)
        # Computed again, after the rest of the backward pass has come here: kept, they are 2.25 times as large as x.
        values = self.values(ops.depend(x, products))
        dweights = self.multiply_second_transposed(products, values)
        dvalues = self.multiply_first_transposed(weights, products)
        return self.join(self.from_pixels_transposed, self.data_transform, dvalues, x.shape), dweights

    def values(self, x):
        return self.split(self.from_pixels, self.data_transform, x)

    def split(self, convolve, transform, maps):
        """Every tile as 36 values: (B, C, H, W) to (36, C, B * tiles)."""
        batch, channels, height, width = maps.shape
        values = convolve(ops.reshape(maps, (-1, 1, height, width)), transform)
        return ops.reshape(permute_rows(values, (batch, channels, _VALUES), (2, 1, 0)), (_VALUES, channels, -1))

    def join(self, convolve, transform, values, shape):
        """The way back: (36, C, B * tiles) to (B, C, H, W)."""
        batch, _, height, width = shape
        channels = values.shape[1]
        values = ops.reshape(permute_rows(values, (_VALUES, channels, batch), (2, 1, 0)),
                             (-1, _VALUES, height // _OUT, width // _OUT))
        maps = convolve(values, transform, (batch * channels, 1, height, width))
        return ops.reshape(maps, (batch, channels, height, width))


class Conv3x3(nn.Conv2d):
    """3x3 convolution of stride 1 with padding 1; parameters and results of ``nn.Conv2d``.

    A tile of 6 x 6 pixels and the filter are each taken to 36 values, whose products, summed over channels, go back to
    4 x 4 pixels: 36 multiplications instead of 144. Both ways are convolutions of single channels with fixed weights,
    the products are 36 products of matrices, and the gradients follow from these. Results differ from those of
    the plain convolution by about 1e-5 of their spread. Maps that are small or whose sides are not divisible by 4
    are convolved plainly.

    Args:
        in_channels, out_channels (int): channels.
        winograd (bool): compute large maps as above, which pays on CPU; plainly otherwise.
        kwargs: ``has_bias``, ``weight_init`` and ``bias_init`` of ``nn.Conv2d``; without bias by default.

    Inputs: x, Tensor (B, in_channels, H, W) float32.
    Outputs: Tensor (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, winograd: bool = False, has_bias: bool = False,
                 **kwargs):
        super().__init__(in_channels, out_channels, 3, pad_mode="pad", padding=1, has_bias=has_bias, **kwargs)
        self.winograd = winograd
        _, weights, _ = transforms()
        self.weight_transform = Tensor(np.kron(weights, weights), mstype.float32)
        self.transform = ops.MatMul(transpose_b=True)
        self.convolution = _Convolution()

    def construct(self, x):
        _, channels, height, width = x.shape
        if not self.winograd or height % _OUT or width % _OUT or height * width < _MIN_PIXELS:
            return super().construct(x)
        weights = self.transform(self.weight_transform, ops.reshape(self.weight, (-1, 9)))
        out = self.convolution(x, ops.reshape(weights, (_VALUES, self.out_channels, channels)))
        return self.bias_add(out, self.bias) if self.has_bias else out
