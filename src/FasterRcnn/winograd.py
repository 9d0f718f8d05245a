"""3x3 convolutions with a quarter of the multiplications (Winograd 1980; Lavin & Gray 2016)."""
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

# Outputs and inputs of a tile along one axis: F(4x4, 3x3) turns 6 x 6 pixels into 4 x 4.
_OUT, _IN = 4, 6
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


@ops.constexpr
def _reversed_axes(first: int, second: int, third: int) -> Tensor:
    """Row numbers that turn rows in the order (first, second, third) into (third, second, first), int32."""
    rows = np.arange(first * second * third).reshape(first, second, third)
    return Tensor(rows.transpose(2, 1, 0).ravel(), mstype.int32)


class _ReverseAxes(nn.Cell):
    """Turn (a, b, c, T) into (c, b, a, T), given and returned as rows (a * b * c, T).

    ``ops.transpose`` keeps a list of 64-bit indices twice as long as the data, and ``ops.gather`` has a slow gradient.
    """

    def construct(self, rows, axes):
        return ops.gather(rows, _reversed_axes(axes[0], axes[1], axes[2]), 0)

    def bprop(self, rows, axes, out, dout):
        return ops.gather(dout, _reversed_axes(axes[2], axes[1], axes[0]), 0), axes


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
        data, weights, outputs = transforms()
        self.weight_transform = Tensor(np.kron(weights, weights), mstype.float32)
        self.data_transform = Tensor(np.einsum("ia,jb->ijab", data, data).reshape(-1, 1, _IN, _IN), mstype.float32)
        self.output_transform = Tensor(np.einsum("ai,bj->ijab", outputs, outputs).reshape(-1, 1, _OUT, _OUT),
                                       mstype.float32)
        num_values = _IN * _IN
        self.to_values = ops.Conv2D(num_values, _IN, stride=_OUT, pad_mode="pad", pad=1)
        self.to_pixels = ops.Conv2DTranspose(num_values, _OUT, stride=_OUT)
        self.reverse_axes = _ReverseAxes()
        self.transform = ops.MatMul(transpose_b=True)
        self.multiply = ops.BatchMatMul()

    def construct(self, x):
        batch, channels, height, width = x.shape
        if not self.winograd or height % _OUT or width % _OUT or height * width < _MIN_PIXELS:
            return super().construct(x)
        tiles = (height // _OUT, width // _OUT)
        num_values, num_tiles = _IN * _IN, tiles[0] * tiles[1]
        values = self.to_values(ops.reshape(x, (-1, 1, height, width)), self.data_transform)
        values = self.reverse_axes(ops.reshape(values, (-1, num_tiles)), (batch, channels, num_values))
        weights = self.transform(self.weight_transform, ops.reshape(self.weight, (-1, 9)))
        products = self.multiply(ops.reshape(weights, (num_values, self.out_channels, channels)),
                                 ops.reshape(values, (num_values, channels, -1)))
        products = self.reverse_axes(ops.reshape(products, (-1, num_tiles)), (num_values, self.out_channels, batch))
        pixels = self.to_pixels(ops.reshape(products, (-1, num_values, *tiles)), self.output_transform,
                                (batch * self.out_channels, 1, height, width))
        pixels = ops.reshape(pixels, (batch, self.out_channels, height, width))
        return self.bias_add(pixels, self.bias) if self.has_bias else pixels
