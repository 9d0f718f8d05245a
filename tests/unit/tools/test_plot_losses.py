"""Loss logs as images."""

import cv2
import pytest

from src.model_utils.errors import UserError
from src.tools.plot_losses import main, read_losses

LINE = (
    "epoch: {} step: {}, rpn_loss: 0.12054, rcnn_loss: 0.40601, rpn_cls_loss: 0.04025, rpn_reg_loss: 0.08032, "
    "rcnn_cls_loss: 0.25854, rcnn_reg_loss: 0.14746, total_loss: {}\n"
)


@pytest.mark.parametrize("end", ["", ", lr: 0.000250"])
def test_reads_every_loss_of_the_published_line(tmp_path, end):
    """Also of the first release, which wrote no learning rate."""
    log = tmp_path / "loss_0.log"
    log.write_text(LINE.format(1, 1, f"0.52655{end}") + LINE.format(1, 2, f"0.5{end}"))
    losses = read_losses(log)
    assert list(losses) == [
        "rpn_loss",
        "rcnn_loss",
        "rpn_cls_loss",
        "rpn_reg_loss",
        "rcnn_cls_loss",
        "rcnn_reg_loss",
        "total_loss",
    ]
    assert losses["total_loss"].tolist() == [0.52655, 0.5]
    assert losses["rpn_reg_loss"].tolist() == [0.08032, 0.08032]


@pytest.mark.parametrize("num_lines", [1, 5, 60])
def test_draws_an_image_beside_the_log(tmp_path, num_lines):
    log = tmp_path / "loss_0.log"
    log.write_text("".join(LINE.format(1, step, 1 / step) for step in range(1, num_lines + 1)))
    assert main([str(log)]) == 0
    image = cv2.imread(str(tmp_path / "loss_0.png"))
    assert image.shape[0] >= 400
    assert len(set(map(tuple, image.reshape(-1, 3).tolist()))) > 10  # lines in several colours


@pytest.mark.parametrize("text", [None, "", "no loss here\n"])
def test_a_log_without_losses_is_refused_by_name(tmp_path, text):
    log = tmp_path / "loss_0.log"
    if text is not None:
        log.write_text(text)
    with pytest.raises(UserError, match=str(log)):
        read_losses(log)
