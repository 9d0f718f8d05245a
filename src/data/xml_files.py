"""XML files that may come from anywhere: in which encoding they are read, and what is refused.

A file is read as it declares, and as UTF-8 where it declares nothing, which is XML's own rule. A declaration that
Python does not know or that the bytes contradict is refused; only an encoding that the user names overrules it.
"""

import codecs
import re
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from src.model_utils.errors import UserError

MAX_XML_BYTES = 16 << 20
_MAX_DECLARATION_BYTES = 1024
_DECLARATION = re.compile(r"""\s*<\?xml\s[^>]*?\bencoding\s*=\s*["']([^"'<>]*)["']""")
# How a file begins that is not in a superset of ASCII, with a byte order mark or without; the longer ones first.
_SIGNATURES = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    *(("<".encode(codec), codec) for codec in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")),
)
# What programs write under these names has characters that only the superset knows: browsers read them so too
# (encoding.spec.whatwg.org). One codec for all files of a name, or the same word could be read as two classes.
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "cp950",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "iso8859-1": "cp1252",
}
# Codecs of Python that are not the encoding of a document; some take quadratic time.
_NO_CHARSETS = ("idna", "punycode", "raw-unicode-escape", "unicode-escape")


def parse_xml(path: Path, encoding: str = "") -> tuple[ElementTree.Element, bool]:
    """Parse an XML file that may come from anywhere: document type declarations are refused in every encoding.

    Entities are declared there, and a few lines of nested ones fill the memory.

    Args:
        path (Path): the file, of at most MAX_XML_BYTES.
        encoding (str): see `decode_xml`.

    Returns:
        tuple[ElementTree.Element, bool]: the root, and whether `encoding` was used.

    Raises:
        UserError: with line and column; does not name the file.
    """
    try:
        if not path.is_file():
            raise UserError("is not a file, or a link to nothing")
        with path.open("rb") as stream:
            data = stream.read(MAX_XML_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from error
    if len(data) > MAX_XML_BYTES:
        raise UserError(f"has more than {MAX_XML_BYTES:,} bytes")
    text, codec, encoding_given = decode_xml(data, encoding)
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(text, True)  # of a string both parsers leave the declared encoding aside
        return ElementTree.fromstring(text), encoding_given
    except (expat.ExpatError, ElementTree.ParseError, UnicodeEncodeError) as error:
        raise UserError(f"is not valid XML{'' if codec == 'utf-8' else ', read as ' + codec} ({error})") from error


def _refuse_doctype(*_: object) -> None:
    raise UserError("has a document type declaration (<!DOCTYPE ...>); VOC annotations need none, remove it")


def decode_xml(data: bytes, encoding: str = "") -> tuple[str, str, bool]:
    """Decode an XML file as it declares.

    Args:
        data (bytes): the file.
        encoding (str): for a file that declares no encoding and is not plainly UTF-8, or whose declaration Python
            does not know or its bytes contradict; every other file is read as it declares. "" refuses such files,
            but a file without a declaration that can be read as UTF-8 is read so.

    Returns:
        tuple[str, str, bool]: the text, Python's name of the codec, and whether it is that of `encoding`.

    Raises:
        UserError: says which encoding was tried and what to do; does not name the file.
    """
    signature = next((codec for start, codec in _SIGNATURES if data.startswith(start)), "")
    head = data[:_MAX_DECLARATION_BYTES].decode(signature or "latin-1", errors="ignore")
    declaration = _DECLARATION.match(head.removeprefix("\ufeff"))
    if declaration:
        tried, stated = declaration[1], f"declares the encoding {declaration[1]!r}"
    elif signature:
        tried, stated = signature, f"begins as {signature.upper()}"
    else:
        tried, stated = "utf-8", "declares no encoding, for which XML has UTF-8"
    text, problem = "", ""
    try:
        text, codec = _decode(data, tried, signature, declared=bool(declaration))
        if declaration or signature or not encoding:
            return text, codec, False
    except UserError as error:
        problem = f"{stated}, {error}"
        if not encoding:
            raise UserError(
                f'{problem}. Correct its first line, <?xml version="1.0" encoding="..."?>, or name '
                "the encoding of such files with --encoding=NAME"
            ) from error
    try:
        given = data.decode(charset(encoding)).removeprefix("\ufeff")
        if not given.lstrip().startswith("<"):
            raise UnicodeError("it does not begin with <")
    except UnicodeError as error:
        if problem:
            raise UserError(f"{problem}; with --encoding={encoding} it cannot be read either ({error})") from error
        return text, "utf-8", False
    if not problem and len(text) < len(given):  # see _decode
        return text, "utf-8", False
    return given, charset(encoding), True


def charset(name: str) -> str:
    """Python's codec for the name of an encoding, its superset in place of a narrow one; "" where there is none."""
    try:
        "<".encode(name)  # LookupError also for a codec of bytes, such as zlib
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        return ""
    return "" if codec in _NO_CHARSETS else _SUPERSETS.get(codec, codec)


def _decode(data: bytes, name: str, signature: str, *, declared: bool) -> tuple[str, str]:
    """Text and codec; the UserErrors go on from "declares the encoding NAME, "."""
    codec = charset(name)
    if not codec:
        raise UserError("which Python does not know")
    if signature.startswith(codec):  # "UTF-16" does not say which byte comes first, the bytes do
        codec = signature
    try:
        text = data.decode(codec)
    except UnicodeError as error:
        raise UserError(f"but cannot be read so ({error})") from error
    text = text.removeprefix("\ufeff")
    if declared and not text.lstrip().startswith("<?xml"):
        raise UserError("but does not begin with <?xml when it is read so")
    # Text of other encodings is hardly ever valid UTF-8 by chance; where it is, as one short word in gb2312 can be,
    # it does not become shorter.
    try:
        if len(data.decode("utf-8").removeprefix("\ufeff")) < len(text):
            raise UserError(f"but its bytes are UTF-8 (as {codec} they would be other characters)")
    except UnicodeDecodeError:
        pass
    return text, codec
