"""Reading Pascal VOC folders: faulty files, and which image belongs to which XML file."""

import logging
import os

import cv2
import pytest

from src.data.voc_xml import ReadOptions, read_voc
from src.model_utils.errors import UserError
from tests.unit.voc_sets import add_image, add_xml, xml_object, xml_of


@pytest.fixture
def voc(tmp_path):
    """Images p0.png ... p2.png with one box each."""
    root = tmp_path / "voc"
    for number in range(3):
        add_image(root / "images" / f"p{number}.png", number)
        add_xml(root / "annotations" / f"p{number}.xml", f"p{number}.png", xml_object())
    return root


def read(root, **options):
    return read_voc(root / "annotations", root / "images", ReadOptions(**options))


def pairs(root, **options):
    """XML file to image, both below their folders."""
    return {
        image.xml_path.relative_to(root / "annotations").as_posix(): image.file_name
        for image in read(root, **options).images
    }


# ---- encodings


def test_a_wrong_encoding_is_refused_by_file_unless_the_option_names_another(voc):
    (voc / "annotations" / "p1.xml").write_bytes(xml_of("p1.png", xml_object("口罩")).encode("gbk"))
    with pytest.raises(UserError, match=r"1 file cannot be used:\n.*p1.xml: declares no encoding, .* --encoding=NAME"):
        read(voc)
    image = read(voc, encoding="gb2312").images[1]
    assert image.objects[0].name == "口罩"
    assert image.encoding_given


def test_a_file_that_is_not_xml_is_named_with_the_encoding_of_the_option(voc):
    (voc / "annotations" / "p1.xml").write_bytes(b"<annotation><filename></annotation>")
    with pytest.raises(UserError, match=r"p1.xml: is not valid XML, read as gb18030 \(mismatched tag"):
        read(voc, encoding="gbk")


@pytest.mark.parametrize("name", ["gb2313", "zlib", "punycode", "unicode_escape"])
def test_an_option_that_is_not_an_encoding_is_refused(voc, name):
    with pytest.raises(UserError, match=f"--encoding={name}: Python knows no such encoding; expected a name such"):
        read(voc, encoding=name)


# ---- faulty files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "<annotation>\n<filename>p1.png</filename>\n<object>",
            r"is not valid XML \(no element found: line 3, column 8\)",
        ),
        ("", "is not valid XML"),
        ("<annotations/>", "its outermost element is <annotations>; in Pascal VOC's layout it is <annotation>"),
        ('<annotation xmlns="http://a.org"/>', r"its outermost element is <\{http://a.org\}annotation>"),
        (xml_of("p1.png", "<object><name>mask</name></object>"), "object 1 has no <bndbox>"),
        (xml_of("p1.png", "<object><name>mask</name><polygon/></object>"), "no <bndbox> but a <polygon>, which is not"),
        (xml_of("p1.png", xml_object("background")), "object 1 is of the class 'background'"),
        (
            xml_of("p1.png", xml_object(), xml_object(corners=("a", 1, 2, 3))),
            "object 2: <xmin> is 'a'; expected a number",
        ),
        (xml_of("p1.png", xml_object(corners=("nan", 1, 2, 3))), "object 1: <xmin> is 'nan'"),
        (xml_of("p1.png", xml_object(name="")), "object 1 has no <name>"),
        (xml_of("p1.png", width=30, height=40), r"says 30 x 40 pixels, its image .*p1\.png has 40 x 30"),
    ],
)
def test_faulty_xml_files_are_named(voc, content, message):
    (voc / "annotations" / "p1.xml").write_text(content)
    with pytest.raises(UserError, match=f"1 file cannot be used:\n.*p1.xml: .*{message}"):
        read(voc)


def test_missing_and_broken_images_are_named(voc):
    (voc / "images" / "p1.png").unlink()
    (voc / "images" / "p2.png").write_text("text")
    add_xml(voc / "annotations" / "p3.xml", "")
    with pytest.raises(UserError, match="3 files cannot be used") as raised:
        read(voc)
    assert f"p1.xml: its image, p1.png or p1.*, is not in {voc / 'images'}" in str(raised.value)
    assert "p2.xml: the image" in str(raised.value)
    assert "p3.xml: its image, p3.*, is not in" in str(raised.value)


# ---- which image


def test_contradictions_are_refused_by_file(voc):
    """Renamed: every <filename> names the next image."""
    for number in range(3):
        add_xml(voc / "annotations" / f"p{number}.xml", f"p{(number + 1) % 3}.png", xml_object())
    with pytest.raises(UserError, match="3 files cannot be used") as raised:
        read(voc)
    for number in range(3):
        assert (
            f"p{number}.xml: its <filename> names p{(number + 1) % 3}.png, but its own name is that of "
            f"p{number}.png; say with --match=filename or --match=stem which is right"
        ) in str(raised.value)


def test_the_option_says_which_is_right(voc):
    add_xml(voc / "annotations" / "p1.xml", "p2.png")
    add_xml(voc / "annotations" / "p2.xml", "p1.png")
    assert pairs(voc, match="filename") == {"p0.xml": "p0.png", "p1.xml": "p2.png", "p2.xml": "p1.png"}
    assert pairs(voc, match="stem") == {"p0.xml": "p0.png", "p1.xml": "p1.png", "p2.xml": "p2.png"}
    assert [image.found_by for image in read(voc, match="stem").images] == ["filename", "match", "match"]
    # with one of the two alone an image has two owners
    add_xml(voc / "annotations" / "p2.xml", "p2.png")
    with pytest.raises(UserError, match=r"p2\.xml: its image p2\.png already belongs to .*p1\.xml"):
        read(voc, match="filename")


def test_the_one_that_finds_an_image_is_taken(voc):
    add_image(voc / "images" / "IMG_7.png")
    (voc / "images" / "p1.png").unlink()
    add_xml(voc / "annotations" / "p1.xml", "IMG_7.png")
    add_xml(voc / "annotations" / "p2.xml", "gone.png")
    (voc / "annotations" / "p0.xml").write_text("<annotation/>")
    for match in ("", "filename", "stem"):
        images = read(voc, match=match).images
        assert [image.file_name for image in images] == ["p0.png", "IMG_7.png", "p2.png"]
        assert [image.found_by for image in images] == ["stem", "filename", "stem"]
        assert images[0].size == (40, 30)


@pytest.mark.parametrize(
    "written",
    [
        r"C:\data\IMG_7.png",
        "/data/x/IMG_7.png",
        r"..\images\IMG_7.png",
        "../../IMG_7.png",
        "./IMG_7.png",
        r"\\server\share/IMG_7.png",
        "file:///d/IMG_7.png",
        "IMG_7",
        r"C:\data\IMG_7",
        "IMG_7.PNG",
        "a/" * 40 + "IMG_7.png",
    ],
)
def test_the_last_part_of_a_foreign_path_counts(voc, written):
    (voc / "images" / "p1.png").rename(voc / "images" / "IMG_7.png")
    add_xml(voc / "annotations" / "p1.xml", written)
    assert pairs(voc)["p1.xml"] == "IMG_7.png"
    add_image(voc / "images" / "p1.png")  # and it contradicts as a plain name does
    with pytest.raises(UserError, match=r"its <filename> names IMG_7\.png, but its own name is that of p1\.png"):
        read(voc)


@pytest.mark.parametrize("written", ["..", ".", "/", "\\", "C:\\", "a/..", " ", "x" * 5000, "p1.xml"])
def test_paths_that_name_nothing_leave_it_to_the_stem(voc, written):
    add_xml(voc / "annotations" / "p1.xml", written)
    assert pairs(voc)["p1.xml"] == "p1.png"
    assert read(voc).images[1].found_by == "stem"


def test_nothing_outside_the_image_folder_is_read(voc):
    add_image(voc / "secret.png", 9)
    add_xml(voc / "annotations" / "p1.xml", "../secret.png")
    assert pairs(voc)["p1.xml"] == "p1.png"
    add_xml(voc / "annotations" / "p1.xml", str(voc / "secret.png"))
    assert pairs(voc)["p1.xml"] == "p1.png"
    (voc / "images" / "p1.png").unlink()
    (voc / "images" / "p1.png").symlink_to(voc / "secret.png")
    with pytest.raises(UserError, match=r"p1\.xml: 'p1.png' leads to .*secret\.png, outside the image folder"):
        read(voc)


@pytest.mark.parametrize(("on_disk", "written"), [("cafe\u0301", "caf\u00e9"), ("caf\u00e9", "cafe\u0301")])
def test_unicode_forms_of_one_name(voc, on_disk, written):
    add_image(voc / "images" / f"{on_disk}.png")
    add_image(voc / "images" / f"{on_disk}2.png")
    add_xml(voc / "annotations" / "other.xml", f"{written}.png")
    add_xml(voc / "annotations" / f"{written}2.xml", "")
    assert pairs(voc)["other.xml"] == f"{on_disk}.png"
    assert pairs(voc)[f"{written}2.xml"] == f"{on_disk}2.png"


def test_an_image_that_is_one_of_several_is_refused_unless_filename_says_which(voc):
    add_image(voc / "images" / "p1.jpg")
    assert pairs(voc)["p1.xml"] == "p1.png"
    add_xml(voc / "annotations" / "p1.xml", "gone.png")
    with pytest.raises(UserError, match=r"its image may be p1\.jpg or p1\.png; write the right one into <filename>"):
        read(voc)
    add_xml(voc / "annotations" / "p1.xml", "p1")
    with pytest.raises(UserError, match=r"its image may be p1\.jpg or p1\.png"):
        read(voc)


def test_a_file_of_any_suffix_that_filename_names_is_taken(voc):
    (voc / "images" / "p1.png").rename(voc / "images" / "p1")
    (voc / "images" / "p2.png").rename(voc / "images" / "p2.data")
    add_xml(voc / "annotations" / "p1.xml", "p1")
    add_xml(voc / "annotations" / "p2.xml", "p2.data")
    assert pairs(voc) == {"p0.xml": "p0.png", "p1.xml": "p1", "p2.xml": "p2.data"}
    assert read(voc).left_out == []


# ---- folders


def test_suffixes_in_any_case_and_folders_in_folders(voc):
    (voc / "annotations" / "p1.xml").rename(voc / "annotations" / "p1.XML")
    add_image(voc / "images" / "a" / "b" / "q.JPEG")
    add_xml(voc / "annotations" / "a" / "b" / "q.Xml", "q.JPEG")
    add_image(voc / "images" / "flat.tiff")
    add_xml(voc / "annotations" / "a" / "flat.xml", "flat.tiff")  # the image folder itself
    add_image(voc / "images" / "a" / "p0.png")
    add_xml(voc / "annotations" / "a" / "p0.xml", "p0.png")  # its own folder first
    assert pairs(voc) == {
        "p0.xml": "p0.png",
        "p1.XML": "p1.png",
        "p2.xml": "p2.png",
        "a/b/q.Xml": "a/b/q.JPEG",
        "a/flat.xml": "flat.tiff",
        "a/p0.xml": "a/p0.png",
    }
    assert [image.name for image in read(voc).images] == ["a/b/q", "a/flat", "a/p0", "p0", "p1", "p2"]


def test_folders_in_filename_count_where_they_exist(voc):
    """The XML files all lie in one folder."""
    add_image(voc / "images" / "a" / "q.png")
    add_image(voc / "images" / "b" / "q.png")
    add_xml(voc / "annotations" / "a_q.xml", "a/q.png")
    add_xml(voc / "annotations" / "b_q.xml", r"D:\set\images\b\q.png")
    assert pairs(voc) | {"a_q.xml": "a/q.png", "b_q.xml": "b/q.png"} == pairs(voc)


def test_hidden_files_and_folders_are_left_out(voc):
    add_image(voc / "images" / ".thumbs" / "p7.png")
    add_image(voc / "images" / "._p0.png")
    (voc / "annotations" / "._p0.xml").write_bytes(b"\x00\x05\x16\x07")  # as macOS leaves them in archives
    add_xml(voc / "annotations" / ".old" / "p0.xml", "p1.png")
    assert sorted(pairs(voc)) == ["p0.xml", "p1.xml", "p2.xml"]
    assert read(voc).left_out == []


def test_xml_files_and_images_may_share_a_folder(voc):
    for path in (voc / "annotations").iterdir():
        path.rename(voc / "images" / path.name)
    data = read_voc(voc / "images", voc / "images")
    assert [image.file_name for image in data.images] == ["p0.png", "p1.png", "p2.png"]
    assert data.left_out == []


def test_links_to_folders_are_named_and_links_to_images_counted_once(voc, caplog):
    (voc / "images" / "loop").symlink_to(voc / "images")
    (voc / "images" / "again.png").symlink_to(voc / "images" / "p0.png")
    (voc / "annotations" / "loop").symlink_to(voc / "annotations")
    with caplog.at_level(logging.WARNING):
        data = read(voc)
    assert len(data.images) == 3
    assert data.left_out == []
    assert f"links to folders are not followed: {voc / 'images' / 'loop'}" in caplog.text
    assert f"links to folders are not followed: {voc / 'annotations' / 'loop'}" in caplog.text


def test_file_names_that_are_not_utf_8_are_refused(voc):
    """As archives from Windows leave them."""
    (voc / "images" / "p1.png").rename(voc / "images" / os.fsdecode(b"\xc3\xa8\xbf.png"))
    with pytest.raises(UserError, match=r"the file name '.*\\udcbf\.png' is not UTF-8; rename it"):
        read(voc)


def test_images_without_xml_files(voc):
    add_image(voc / "images" / "a" / "q.jpg", 7)
    add_image(voc / "images" / "w.webp", 7)
    assert read(voc).left_out == ["a/q.jpg", "w.webp"]
    data = read(voc, keep_unlabelled=True)
    assert data.left_out == []
    kept = data.images[3:]
    assert [(image.name, image.file_name, image.objects, image.xml_path) for image in kept] == [
        ("a/q", "a/q.jpg", (), None),
        ("w", "w.webp", (), None),
    ]
    assert cv2.imread(str(kept[0].path))[0, 0].tolist() == [7, 7, 7]
