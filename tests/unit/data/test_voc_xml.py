"""Reading Pascal VOC folders: encodings, faulty files, and which image belongs to which XML file."""

import codecs
import encodings.aliases
import logging
import os

import cv2
import pytest

from src.data.voc_xml import MAX_XML_BYTES, ReadOptions, decode_xml, parse_xml, read_voc
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


def xml_bytes(word, codec, declared=None):
    declaration = "" if declared is None else f'<?xml version="1.0" encoding="{declared}"?>\n'
    return (declaration + xml_of("p1.png", xml_object(word))).encode(codec)


def class_read(voc, data, **options):
    (voc / "annotations" / "p1.xml").write_bytes(data)
    return read(voc, **options).images[1].objects[0].name


@pytest.mark.parametrize(
    ("declared", "codec", "word"),
    [
        ("gb2312", "gb2312", "猫"),
        ("GB2312", "gbk", "朱镕基"),
        ("GBK", "gbk", "口罩"),
        ("cp936", "gb18030", "㐂𠮷"),
        ("gb18030", "gb18030", "𠮷"),
        ("big5", "big5", "貓"),
        ("Big5", "cp950", "碁"),
        ("big5-hkscs", "big5hkscs", "啫"),
        ("Shift_JIS", "shift_jis", "ネコ"),
        ("shift_jis", "cp932", "①髙"),
        ("EUC-JP", "euc_jp", "猫"),
        ("ISO-2022-JP", "iso2022_jp", "猫"),
        ("EUC-KR", "euc_kr", "고양이"),
        ("euc-kr", "cp949", "믜"),
        ("ISO-8859-1", "latin-1", "café"),
        ("latin1", "cp1252", "“x” €"),
        ("ISO-8859-15", "iso8859-15", "œ €"),
        ("windows-1250", "cp1250", "kočka"),
        ("windows-1251", "cp1251", "кот"),
        ("windows-1252", "cp1252", "né €"),
        ("windows-1256", "cp1256", "قطة"),
        ("KOI8-R", "koi8-r", "кот"),
        ("UTF-8", "utf-8", "猫"),
        ("UTF-8", "utf-8-sig", "猫"),
        ("utf-16", "utf-16", "猫"),
        ("UTF-16", "utf-16-be", "猫"),
        ("UTF-16", "utf-16-le", "猫"),
        ("UTF-16LE", "utf-16-le", "猫"),
        ("utf-16", "utf-16-le", "cat"),
        ("UTF-32", "utf-32", "猫"),
        ("us-ascii", "ascii", "cat"),
        (None, "utf-8", "猫"),
        (None, "utf-8-sig", "猫"),
        (None, "utf-16", "猫"),
    ],
)
def test_files_are_read_in_the_encoding_they_declare(voc, declared, codec, word):
    assert class_read(voc, xml_bytes(word, codec, declared)) == word
    # the option is for files that do not say it, or not rightly
    image = read(voc, encoding="big5").images[1]
    assert image.objects[0].name == word
    assert not image.encoding_given


def test_byte_values_by_hand(voc):
    """GB 2312 row 35, cell 8 (+ 0xa0 each), two bytes that are valid UTF-8 too; big-endian UTF-16 with its mark."""
    assert class_read(voc, xml_bytes("@", "ascii", "gb2312").replace(b"@", b"\xc3\xa8")) == "猫"
    assert class_read(voc, codecs.BOM_UTF16_BE + xml_bytes("猫", "utf-16-be", "utf-16")) == "猫"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (xml_bytes("猫", "gbk", "gb2313"), "declares the encoding 'gb2313', which Python does not know"),
        (xml_bytes("cat", "utf-8", "zlib"), "declares the encoding 'zlib', which Python does not know"),
        (xml_bytes("cat", "utf-8", "idna"), "declares the encoding 'idna', which Python does not know"),
        (xml_bytes("cat", "utf-8", ""), "declares the encoding '', which Python does not"),
        (xml_bytes("口罩", "gbk"), "declares no encoding, for which XML has UTF-8, but cannot be read so .*'utf-8'"),
        (xml_bytes("口罩", "gbk", "utf-8"), "declares the encoding 'utf-8', but cannot be read so .*'utf-8'"),
        (xml_bytes("é", "cp1252", "ascii"), "declares the encoding 'ascii', but cannot be read so"),
        (xml_bytes("é", "cp1252", "gb2312"), "declares the encoding 'gb2312', but cannot be read so .*'gb18030'"),
        # valid in the encoding declared, but other characters
        (xml_bytes("口罩", "utf-8", "gb2312"), "'gb2312', but its bytes are UTF-8 .as gb18030"),
        (xml_bytes("é", "utf-8", "ISO-8859-1"), "'ISO-8859-1', but its bytes are UTF-8 .as cp1252"),
        (xml_bytes("кот", "utf-8", "windows-1251"), "'windows-1251', but its bytes are UTF-8"),
        (xml_bytes("cat ", "utf-8", "utf-16"), "'utf-16', but (does not begin with <\\?xml|cannot be read)"),
        (xml_bytes("cat", "utf-8", "utf-16"), "'utf-16', but (does not begin with <\\?xml|cannot be read)"),
        (xml_bytes("猫", "utf-16", "utf-8"), "'utf-8', but cannot be read so"),
        (
            codecs.BOM_UTF16_LE + xml_bytes("猫", "utf-16-le", "utf-16-be"),
            "'utf-16-be', but does not begin with <\\?xml",
        ),
        (xml_bytes("cat", "utf-8-sig", "windows-1252"), "'windows-1252', but does not begin with <\\?xml"),
        (xml_bytes("猫", "utf-16")[:-1], "begins as UTF-16, but cannot be read so"),
    ],
)
def test_encodings_that_cannot_be_are_refused_by_file(voc, data, message):
    with pytest.raises(UserError, match=f"1 file cannot be used:\n.*p1.xml: .*{message}") as raised:
        class_read(voc, data)
    assert "or name the encoding of such files with --encoding=NAME" in str(raised.value)


@pytest.mark.parametrize(
    ("word", "codec", "declared", "encoding"),
    [
        ("猫", "gbk", None, "gbk"),
        ("口罩", "gbk", None, "gb2312"),
        ("貓", "cp950", None, "big5"),
        ("cat", "cp037", None, "cp037"),
        ("猫", "gbk", "x-gbk", "gbk"),
        ("猫", "utf-16-le", "unicode", "utf-16-le"),
        ("口罩", "gbk", "utf-8", "gb18030"),
        ("口罩", "utf-8", "gb2312", "utf-8"),
        ("猫", "utf-16", "utf-8", "utf-16"),
        ("cat", "utf-8", "utf-16", "utf-8"),
    ],
)
def test_the_option_reads_files_that_do_not_declare_their_encoding_rightly(voc, word, codec, declared, encoding):
    assert class_read(voc, xml_bytes(word, codec, declared), encoding=encoding) == word
    assert read(voc, encoding=encoding).images[1].encoding_given


def test_the_option_leaves_plain_utf_8_alone(voc):
    """Two characters of three bytes: three characters in gb18030, six in cp1252, not valid in shift_jis."""
    for encoding in ("gb18030", "cp1252", "shift_jis", "utf-16-le"):
        assert class_read(voc, xml_bytes("口罩", "utf-8"), encoding=encoding) == "口罩"
        assert not read(voc, encoding=encoding).images[1].encoding_given


def test_an_option_that_does_not_help_is_said(voc):
    with pytest.raises(UserError, match="'gb2313', which Python does not know; with --encoding=big5 it cannot be read"):
        class_read(voc, xml_bytes("é", "cp1252", "gb2313"), encoding="big5")
    with pytest.raises(UserError, match=r"--encoding=cp037 it cannot be read either \(it does not begin with <\)"):
        class_read(voc, xml_bytes("猫", "gbk", "gb2313"), encoding="cp037")
    with pytest.raises(UserError, match=r"is not valid XML, read as gb18030 \(mismatched tag"):
        class_read(voc, b"<annotation><filename></annotation>", encoding="gbk")
    for name in ("gb2313", "zlib", "punycode", "unicode_escape"):
        with pytest.raises(UserError, match=f"--encoding={name}: Python knows no such encoding; expected a name such"):
            read(voc, encoding=name)


def test_no_encoding_that_python_has_ends_in_another_error():
    """Neither on text nor on noise, declared or given."""
    noise = bytes(range(256)) * 2
    for name in sorted(set(encodings.aliases.aliases.values()) | {"idna", "utf_8_sig", "undefined", "aliases", ".."}):
        for data in (xml_bytes("cat", "ascii", name), xml_bytes("cat", "ascii", name) + noise, noise):
            for encoding in ("", "gb18030", "utf-16"):
                try:
                    text, _, _ = decode_xml(data, encoding)
                except UserError as error:
                    assert len(str(error)) > 20  # noqa: PT017
                else:
                    assert isinstance(text, str)


BOMB = (
    '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>'
    "<annotation><filename>&y;</filename></annotation>"
)


@pytest.mark.parametrize(
    ("declared", "codec", "encoding"),
    [
        (None, "utf-8", ""),
        ("utf-8", "utf-8", ""),
        (None, "utf-16", ""),
        ("utf-16", "utf-16-be", ""),
        (None, "utf-16-le", ""),
        ("UTF-32", "utf-32", ""),
        ("gb2312", "gbk", ""),
        ("iso2022_jp", "iso2022_jp", ""),
        ("nonsense", "utf-8", "gb18030"),
        (None, "cp037", "cp037"),
        ("nonsense", "utf-16", "utf-16"),
    ],
)
def test_document_type_declarations_are_refused_in_every_encoding(tmp_path, declared, codec, encoding):
    declaration = f'<?xml version="1.0" encoding="{declared}"?>' if declared else '<?xml version="1.0"?>'
    path = tmp_path / "bomb.xml"
    path.write_bytes((declaration + BOMB).encode(codec))
    with pytest.raises(UserError, match="document type declaration"):
        parse_xml(path, encoding)


def test_a_declaration_of_utf_7_hides_no_document_type(tmp_path):
    """Only the declaration is in ASCII here."""
    path = tmp_path / "bomb.xml"
    path.write_bytes(b'<?xml version="1.0" encoding="utf-7"?>' + BOMB.replace("<", "+ADw-").encode())
    with pytest.raises(UserError, match="document type declaration"):
        parse_xml(path)


def test_large_files_and_what_is_not_a_file_are_refused(tmp_path):
    path = tmp_path / "large.xml"
    path.touch()
    os.truncate(path, MAX_XML_BYTES + 1)
    with pytest.raises(UserError, match="has more than 16,777,216 bytes"):
        parse_xml(path)
    os.mkfifo(tmp_path / "pipe.xml")
    (tmp_path / "link.xml").symlink_to(tmp_path / "none.xml")
    for name in ("pipe.xml", "link.xml"):
        with pytest.raises(UserError, match="is not a file, or a link to nothing"):
            parse_xml(tmp_path / name)


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
