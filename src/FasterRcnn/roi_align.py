"""RoIAlign over a feature pyramid: every RoI is pooled once, from the level of its size."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.FasterRcnn.graph_ops import count_up
from src.FasterRcnn.rows import map_sizes, pixel_rows, swap_last_axes
from src.FasterRcnn.sparse_product import SparseProduct, entries_of

# ops.ROIAlign leaves the output unwritten when |x1| and |x2| are both below this.
_NATIVE_MIN_X = 1e-3


def roi_levels(rois, finest_scale: int, num_levels: int):
    """Pyramid level of each RoI (Lin et al. 2017, equation 1), widths x2 - x1 + 1.

    Args:
        rois (Tensor): (..., 4) xyxy in pixels.
        finest_scale (int): RoIs with a side below 2 * finest_scale go to level 0.
        num_levels (int): levels 0 .. num_levels - 1 exist.

    Returns:
        Tensor (...) int32: floor(log2(sqrt(w * h) / finest_scale + 1e-6)), clipped to the levels that exist.
    """
    x1, y1, x2, y2 = ops.Split(-1, 4)(rois)
    area = ops.maximum(x2 - x1 + 1, 0.0) * ops.maximum(y2 - y1 + 1, 0.0)
    side = ops.reshape(ops.sqrt(area), rois.shape[:-1]) / finest_scale + 1e-6
    # Comparing with the powers of two is the logarithm's floor without its rounding.
    level = ops.zeros_like(side)
    for boundary in range(1, num_levels):
        level = level + ops.cast(side >= 2.0**boundary, level.dtype)
    return ops.cast(level, mstype.int32)


class SingleRoIExtractor(nn.Cell):
    """Pool each RoI to a fixed grid from the pyramid level of its size (He et al. 2017).

    Coordinates are mmdetection v1's, as ``ops.ROIAlign`` with ``roi_end_mode=1``: a RoI covers x1 * s .. (x2 + 1) * s
    on a level of scale s = 1 / stride, without minimum size; the centre of pixel i lies at i. Every bin averages
    sample_num x sample_num bilinear samples; samples beyond one pixel outside the map count as 0.

    Args:
        out_size (int): bins per side.
        sample_num (int): samples per bin and axis.
        featmap_strides (Sequence[int]): stride of each level pooled from, finest first.
        finest_scale (int): see :func:`roi_levels`.
        native (bool): use the device's own ``ops.ROIAlign`` (Ascend, GPU) instead of a sparse matrix product (CPU).
            THE one switch between the two; both give the same numbers.

    Inputs:
        - **rois** (Tensor) - (B, R, 4) float32 xyxy in pixels of the canvas. No gradient flows to them.
        - **features** (tuple of Tensor) - one (B, C, H_l, W_l) per stride; more, coarser ones are not pooled from.
        - **pixels** (Tensor | None) - (P, C), the features as :func:`src.FasterRcnn.rows.pixel_rows`, where others need
          these too; the sparse product makes them itself otherwise.

    Outputs:
        Tensor (B * R, C, out_size, out_size), rows in the order of the images. Padding rows pool the top left corner.
    """

    def __init__(
        self, out_size: int, sample_num: int, featmap_strides: Sequence[int], finest_scale: int, native: bool = False
    ):
        super().__init__()
        self.num_levels = len(featmap_strides)
        self.finest_scale = finest_scale
        if native:
            self.pool = _NativeRoIAlign(out_size, sample_num, featmap_strides)
        else:
            self.pool = _SparseRoIAlign(out_size, sample_num, featmap_strides)

    def construct(self, rois, features, pixels=None):
        rois = ops.stop_gradient(rois)
        levels = roi_levels(rois, self.finest_scale, self.num_levels)  # (B, R)
        return self.pool(rois, levels, features[: self.num_levels], pixels)


class _NativeRoIAlign(nn.Cell):
    """``ops.ROIAlign`` of every RoI on every level, of which the RoI's own level is kept."""

    def __init__(self, out_size: int, sample_num: int, featmap_strides: Sequence[int]):
        super().__init__()
        self.pools = [ops.ROIAlign(out_size, out_size, 1.0 / stride, sample_num) for stride in featmap_strides]

    def construct(self, rois, levels, features, pixels):
        batch, num_rois, _ = rois.shape
        image = ops.reshape(count_up(batch), (batch, 1, 1))
        image = ops.cast(ops.broadcast_to(image, (batch, num_rois, 1)), rois.dtype)  # (B, R, 1)
        # Degenerate boxes at the left border (padding among them) hit the operator's unwritten output.
        x1, y1, x2, y2 = ops.Split(2, 4)(rois)
        unwritten = ops.logical_and(ops.abs(x1) < _NATIVE_MIN_X, ops.abs(x2) < _NATIVE_MIN_X)
        x2 = ops.where(unwritten, _NATIVE_MIN_X, x2)
        rows = ops.reshape(ops.concat((image, x1, y1, x2, y2), axis=2), (-1, 5))  # (B * R, 5)
        levels = ops.reshape(levels, (-1, 1, 1, 1))
        # The operator wants one type for both, and float16 holds coordinates above 1024 to the pixel only.
        pooled = self.pools[0](ops.cast(features[0], rois.dtype), rows)  # (B * R, C, out_size, out_size)
        for level in range(1, len(self.pools)):
            pooled = ops.where(levels == level, self.pools[level](ops.cast(features[level], rois.dtype), rows), pooled)
        return pooled


class _SparseRoIAlign(nn.Cell):
    """RoIAlign as one sparse matrix product.

    Rows are the bins of all RoIs, columns the pixels of all levels of all images, stacked; each row holds the bilinear
    weights of its samples (4 taps each), one entry for each pixel that they touch. RoIAlign is linear in the features,
    so the product with the (pixels, channels) matrix is the pooled output and the product with the transposed matrix
    its exact gradient.
    """

    def __init__(self, out_size: int, sample_num: int, featmap_strides: Sequence[int]):
        super().__init__()
        self.out_size = out_size
        self.strides = featmap_strides
        # Offsets of the samples along one axis, in bins from the RoI's start: (i + 0.5) / sample_num.
        self.sample_offsets = Tensor((np.arange(out_size * sample_num) + 0.5) / sample_num, mstype.float32)
        self.sample_weight = 1.0 / sample_num
        self.num_taps = 2 * sample_num
        self.earlier = Tensor(np.tri(self.num_taps, k=-1), mstype.float32)
        self.product = SparseProduct()

    def construct(self, rois, levels, features, pixels):
        batch, num_rois, _ = rois.shape
        channels = features[0].shape[1]
        if pixels is None:
            pixels = pixel_rows(features)  # (P, C)
        columns, weights = self.taps(rois, levels, features)
        entries, values = entries_of(columns, weights)  # (E, 2), (E,)
        pooled = self.product(entries, values, pixels, columns.shape[0])  # (B * R * bins, C)
        pooled = ops.reshape(pooled, (batch * num_rois, self.out_size * self.out_size, channels))
        return ops.reshape(swap_last_axes(pooled), (batch * num_rois, channels, self.out_size, self.out_size))

    def taps(self, rois, levels, features):
        """Columns and weights of each bin's taps: (B * R * bins, taps * taps), int32 and float32."""
        batch, num_rois, _ = rois.shape
        width, height, scale, first_pixel = self.level_geometry(levels, features, batch)
        begin, end = ops.Split(2, 2)(rois)  # (B, R, 2)
        taps, weights = self.axis_taps(begin, end, scale, ops.Concat(2)((width, height)))
        taps_x, taps_y = ops.Split(2, 2)(taps)  # (B, R, 1, out_size * taps)
        weights_x, weights_y = ops.Split(2, 2)(weights)
        first_column = ops.expand_dims(first_pixel, 3) + taps_y * ops.expand_dims(width, 3)  # of the tap's row
        rows_shape = (batch * num_rois, self.out_size, 1, self.num_taps, 1)
        cols_shape = (batch * num_rois, 1, self.out_size, 1, self.num_taps)
        columns = ops.reshape(first_column, rows_shape) + ops.reshape(taps_x, cols_shape)
        weights = ops.reshape(weights_y, rows_shape) * ops.reshape(weights_x, cols_shape)
        taps_shape = (-1, self.num_taps * self.num_taps)
        return ops.reshape(ops.cast(columns, mstype.int32), taps_shape), ops.reshape(weights, taps_shape)

    def level_geometry(self, levels, features, batch):
        """Width, height, scale of each RoI's map and the column of its first pixel, all (B, R, 1) float32.

        Column numbers stay below 2**24 (165 images of 768 x 1280), where float32 counts exactly.
        """
        geometry = ops.gather(_maps(map_sizes(features), self.strides, batch), levels, 0)  # (B, R, 5)
        width, height, scale, first_pixel, map_size = ops.Split(2, 5)(geometry)
        image = ops.cast(ops.reshape(count_up(batch), (batch, 1, 1)), mstype.float32)
        return width, height, scale, first_pixel + image * map_size

    def axis_taps(self, begin, end, scale, size):
        """Pixels that the bins take along each axis, by number, and their weights.

        Args:
            begin, end (Tensor): (B, R, 2) first and last pixel of the RoI, x and y.
            scale (Tensor): (B, R, 1) 1 / stride of the RoI's map.
            size (Tensor): (B, R, 2) its pixels along x and y.

        Returns:
            two Tensors (B, R, 2, out_size * taps): pixel numbers (float32 without fractions) and weights, sample_num *
            2 a bin. A bin's first tap on a pixel has the weights of all its taps there, the others have 0.
        """
        size = ops.reshape(size, (*begin.shape, 1))  # (B, R, 2, 1)
        taps, weights = self.bilinear(self.samples(begin, end, scale), size)
        bins = (*begin.shape, self.out_size, 1, self.num_taps)
        taps = ops.reshape(taps, bins)
        weights = self.merge(taps, ops.reshape(weights, bins))
        shape = (*begin.shape, self.out_size * self.num_taps)
        return ops.reshape(taps, shape), ops.reshape(weights, shape)

    def samples(self, begin, end, scale):
        """Where the samples lie along each axis, (B, R, 2, out_size * sample_num), in pixels of the map."""
        axes = (*begin.shape, 1)
        begin = begin * scale  # (B, R, 2)
        bin_size = ((end + 1) * scale - begin) / self.out_size
        return ops.reshape(begin, axes) + self.sample_offsets * ops.reshape(bin_size, axes)

    def bilinear(self, position, size):
        """The two pixels beside each sample and their weights, (B, R, 2, out_size * sample_num, 2) each.

        A sample more than a pixel outside the map has weights of 0.
        """
        inside = ops.cast(ops.logical_and(position >= -1.0, position <= size), mstype.float32)
        position = ops.minimum(ops.maximum(position, 0.0), size - 1)
        low = ops.floor(position)
        high = ops.minimum(low + 1, size - 1)
        fraction = position - low
        weights = ops.stack((inside * (1 - fraction), inside * fraction), axis=-1) * self.sample_weight
        return ops.stack((low, high), axis=-1), weights

    def merge(self, taps, weights):
        """Give the weights of a bin's taps on one pixel to the first of them, 0 to the others.

        Most samples lie less than two pixels apart and share pixels, so that many weights become 0.

        Args:
            taps, weights (Tensor): (B, R, 2, out_size, 1, taps).

        Returns:
            Tensor (B, R, 2, out_size, taps).
        """
        same = ops.reshape(taps, (*taps.shape[:4], self.num_taps, 1)) == taps  # (B, R, 2, out_size, taps, taps)
        same = ops.cast(same, mstype.float32)
        first = ops.cast(ops.reduce_sum(same * self.earlier, -1) == 0, mstype.float32)
        return first * ops.reduce_sum(same * weights, -1)


@ops.constexpr
def _maps(sizes: Sequence[tuple[int, int]], strides: Sequence[int], batch: int) -> Tensor:
    """Width, height, scale, first row in ``pixel_rows`` and size of each level's map, (levels, 5) float32."""
    rows, first = [], 0
    for (height, width), stride in zip(sizes, strides, strict=True):
        rows.append((width, height, 1.0 / stride, first, height * width))
        first += batch * height * width
    return Tensor(rows, mstype.float32)
