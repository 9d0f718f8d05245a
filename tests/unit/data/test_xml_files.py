"""XML files in many encodings: what is read, what is refused, and what the user may overrule."""

import codecs
import encodings.aliases
import os

import pytest

from src.data.xml_files import MAX_XML_BYTES, decode_xml, parse_xml
from src.model_utils.errors import UserError


def xml_bytes(word, codec, declared=None):
    declaration = "" if declared is None else f'<?xml version="1.0" encoding="{declared}"?>\n'
    return (declaration + f"<annotation><name>{word}</name></annotation>").encode(codec)


@pytest.fixture
def parse(tmp_path):
    """Parses content as a file: the word in it, and whether the encoding of the option was used."""

    def parse_content(data, encoding=""):
        path = tmp_path / "a.xml"
        path.write_bytes(data)
        root, encoding_given = parse_xml(path, encoding)
        return root.findtext("name"), encoding_given

    return parse_content


@pytest.mark.parametrize(
    ("declared", "codec", "word"),
    [
        # names that stand for a superset, with a character that only this has
        ("GB2312", "gbk", "朱镕基"),
        ("cp936", "gb18030", "㐂𠮷"),
        ("Big5", "cp950", "碁"),
        ("shift_jis", "cp932", "①髙"),
        ("euc-kr", "cp949", "믜"),
        ("latin1", "cp1252", "“x” €"),
        # several bytes, several bytes with a state, single bytes
        ("big5-hkscs", "big5hkscs", "啫"),
        ("EUC-JP", "euc_jp", "猫"),
        ("ISO-2022-JP", "iso2022_jp", "猫"),
        ("ISO-8859-15", "iso8859-15", "œ €"),
        ("windows-1251", "cp1251", "кот"),
        ("KOI8-R", "koi8-r", "кот"),
        ("us-ascii", "ascii", "cat"),
        # Unicode, with a byte order mark or without
        ("UTF-8", "utf-8", "猫"),
        ("UTF-8", "utf-8-sig", "猫"),
        ("utf-16", "utf-16", "猫"),
        ("UTF-16", "utf-16-be", "猫"),
        ("utf-16", "utf-16-le", "cat"),
        ("UTF-16LE", "utf-16-le", "猫"),
        ("UTF-32", "utf-32", "猫"),
        (None, "utf-8", "猫"),
        (None, "utf-8-sig", "猫"),
        (None, "utf-16", "猫"),
    ],
)
def test_files_are_read_in_the_encoding_they_declare(parse, declared, codec, word):
    data = xml_bytes(word, codec, declared)
    assert parse(data) == (word, False)
    assert parse(data, "big5") == (word, False)  # the option is for files that do not say it, or not rightly


def test_byte_values_by_hand(parse):
    """GB 2312 row 35, cell 8 (+ 0xa0 each), two bytes that are valid UTF-8 too; big-endian UTF-16 with its mark."""
    assert parse(xml_bytes("@", "ascii", "gb2312").replace(b"@", b"\xc3\xa8")) == ("猫", False)
    assert parse(codecs.BOM_UTF16_BE + xml_bytes("猫", "utf-16-be", "utf-16")) == ("猫", False)


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
def test_encodings_that_cannot_be_are_refused(parse, data, message):
    with pytest.raises(UserError, match=message) as raised:
        parse(data)
    assert "or name the encoding of such files with --encoding=NAME" in str(raised.value)


@pytest.mark.parametrize(
    ("word", "codec", "declared", "encoding"),
    [
        ("口罩", "gbk", None, "gb2312"),
        ("cat", "cp037", None, "cp037"),
        ("猫", "gbk", "x-gbk", "gbk"),
        ("猫", "utf-16-le", "unicode", "utf-16-le"),
        ("口罩", "gbk", "utf-8", "gb18030"),
        ("口罩", "utf-8", "gb2312", "utf-8"),
        ("猫", "utf-16", "utf-8", "utf-16"),
        ("cat", "utf-8", "utf-16", "utf-8"),
    ],
)
def test_the_option_reads_files_that_do_not_declare_their_encoding_rightly(parse, word, codec, declared, encoding):
    assert parse(xml_bytes(word, codec, declared), encoding) == (word, True)


@pytest.mark.parametrize("encoding", ["gb18030", "cp1252", "shift_jis", "utf-16-le"])
def test_the_option_leaves_plain_utf_8_alone(parse, encoding):
    """Two characters of three bytes: three characters in gb18030, six in cp1252, not valid in shift_jis."""
    assert parse(xml_bytes("口罩", "utf-8"), encoding) == ("口罩", False)


def test_an_option_that_does_not_help_is_said(parse):
    with pytest.raises(UserError, match="'gb2313', which Python does not know; with --encoding=big5 it cannot be read"):
        parse(xml_bytes("é", "cp1252", "gb2313"), "big5")
    with pytest.raises(UserError, match=r"--encoding=cp037 it cannot be read either \(it does not begin with <\)"):
        parse(xml_bytes("猫", "gbk", "gb2313"), "cp037")


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
        (None, "utf-16-le", ""),
        ("UTF-32", "utf-32", ""),
        ("gb2312", "gbk", ""),
        ("iso2022_jp", "iso2022_jp", ""),
        ("nonsense", "utf-8", "gb18030"),
        (None, "cp037", "cp037"),
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
