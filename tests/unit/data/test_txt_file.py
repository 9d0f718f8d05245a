"""TXT annotation lists: what is read from good lines, and what is said about bad ones."""

import pytest

from src.common.wording import MAX_LISTED
from src.data import txt_file
from src.model_utils.errors import UserError


def read_txt(tmp_path, content, num_fg_classes=2):
    path = tmp_path / "anno.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return txt_file.read_txt(path, tmp_path, num_fg_classes)


def test_txt_lines_of_all_kinds(tmp_path):
    lines = (
        "\ufefffirst.jpg 1,2,3.5,4,1 5,6,7,8,2,1 \r\n"  # byte order mark, Windows line end, trailing space
        "\n"
        '"my second image.jpg"\t10,20,30,40,2\n'
        "   sub/third.jpg\n"
    ).encode()
    first, second, third = read_txt(tmp_path, lines)
    assert [item.image_id for item in (first, second, third)] == [1, 2, 3]
    assert (first.file_name, second.file_name, third.file_name) == ("first.jpg", "my second image.jpg", "sub/third.jpg")
    assert first.boxes_xyxy.tolist() == [[1, 2, 3.5, 4], [5, 6, 7, 8]]
    assert first.labels.tolist() == [1, 2]
    assert first.is_crowd.tolist() == [False, True]
    assert second.boxes_xyxy.tolist() == [[10, 20, 30, 40]]
    assert second.box_name(0) == "my second image.jpg, line 3, box 1"
    assert third.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a.jpg 1,2,3", "'1,2,3' is not a box: it has 3 parts, not 5 or 6"),
        (b"a.jpg 1,2,3,4", "it has 4 parts"),
        (b"a.jpg a,b,c,d,e,f", "'a,b,c,d,e,f' is not a box: expected four numbers"),
        (b"a.jpg 1,2,3,4,99", r"class 99 of '1,2,3,4,99' is not one of 1\.\.2"),
        (b"a.jpg 1,2,3,4,0", r"class 0 of .* is not one of 1\.\.2"),
        (b"a.jpg 1,2,3,4,1.5", "is not a box: expected four numbers"),
        (b"a.jpg 1,2,3,4,1,2", "iscrowd 2"),
        (b"my image.jpg 1,2,3,4,1", r"'image\.jpg' is not a box: it has 1 part,"),
        (b'"my image.jpg 1,2,3,4,1', "a double quote is missing"),
        (b"b\xff.jpg 1,2,3,4,1", "is not UTF-8 text"),
        (b"first.jpg 1,2,3,4,1", r"'first\.jpg' is already on line 1"),
        (b"./first.jpg", "already on line 1"),
        (b"../a.jpg 1,2,3,4,1", "outside the image folder"),
    ],
)
def test_faulty_txt_lines_are_named(tmp_path, line, reason):
    with pytest.raises(UserError, match=reason) as raised:
        read_txt(tmp_path, b"first.jpg 1,2,3,4,1\n\n" + line + b"\n")
    assert "anno.txt: 1 line cannot be read" in str(raised.value)
    assert "line 3, " in str(raised.value)


def test_many_faulty_lines_are_counted_and_the_first_shown(tmp_path):
    with pytest.raises(UserError) as raised:
        read_txt(tmp_path, "".join(f"{number}.jpg 1,2\n" for number in range(50)))
    assert "50 lines" in str(raised.value)
    assert str(raised.value).endswith("\n  and 40 more")
    assert str(raised.value).count("\n") == MAX_LISTED + 1


def test_an_empty_txt_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        read_txt(tmp_path, "\n \n")
