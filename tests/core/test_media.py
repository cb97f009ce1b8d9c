import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import time
import wave
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core import content
from app.core.media import (
    MEDIA_TYPES,
    declared,
    extension,
    extension_for_media_type,
    is_inline_safe,
    media_type,
)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png() -> bytes:
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0\xff\0\0")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def riff(kind: bytes, first: bytes, magic: bytes = b"RIFF") -> bytes:
    return magic + struct.pack("<I", 100) + kind + first + bytes(80)


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    return file.getvalue()


def ftyp(*brands: bytes) -> bytes:
    main, *compatible = brands
    box = b"ftyp" + main + b"\0\0\x02\0" + b"".join(compatible)
    return struct.pack(">I", 4 + len(box)) + box + struct.pack(">I", 8) + b"mdat" + bytes(100)


def ebml(doc_type: bytes) -> bytes:
    fields = b"\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08"
    fields += b"\x42\x82" + bytes([0x80 | len(doc_type)]) + doc_type + b"\x42\x87\x81\x04\x42\x85\x81\x02"
    return b"\x1a\x45\xdf\xa3" + bytes([0x80 | len(fields)]) + fields + b"\x18\x53\x80\x67" + bytes(100)


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


def tar(name: str, form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as made:
        member = tarfile.TarInfo(name)
        member.size = 5
        made.addfile(member, io.BytesIO(b"hello"))
    return file.getvalue()


def npy() -> bytes:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16)


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def glb() -> bytes:
    scene = b'{"asset":{"version":"2.0"}}  '
    body = struct.pack("<I4s", len(scene), b"JSON") + scene
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def bmp(header_size: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 200, 0, 0, 14 + header_size)
        + struct.pack("<I", header_size)
        + bytes(200)
    )


def ico() -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, 200, 22) + bytes(200)


def binary_stl() -> bytes:
    return b"exported by a model".ljust(80, b"\0") + struct.pack("<I", 1) + bytes(50)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path d="M0 0"/></svg>'
XML = b'<?xml version="1.0" encoding="UTF-8"?>\n'
SVG_DOCTYPE = (
    b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">\n'
)
BOM = b"\xef\xbb\xbf"
GLTF = b'{\n  "asset" : {\n "generator" : "x",\n "version" : "2.0"\n },\n "scenes" : [] }'
LONG_ID3 = b"ID3\x04\0\0\0\0\x7f\x00" + bytes(5000)
MP3_FRAME = b"\xff\xfb\x90\x64" + bytes(413)

BY_CONTENT = [
    (png(), "png"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(100), "jpg"),
    (b"\xff\xd8\xff\xe1\x00\x10Exif\x00" + bytes(100), "jpg"),
    (b"\xff\xd8\xff\xdb" + bytes(100), "jpg"),
    (riff(b"WEBP", b"VP8 "), "webp"),
    (b"GIF89a\x01\x00\x01\x00\x80\x00\x00" + bytes(20), "gif"),
    (b"GIF87a\x01\x00\x01\x00\x80\x00\x00" + bytes(20), "gif"),
    (ftyp(b"avif", b"mif1", b"miaf"), "avif"),
    (ftyp(b"avis", b"msf1"), "avif"),
    (ftyp(b"mif1", b"miaf", b"avif"), "avif"),
    (ftyp(b"heic", b"mif1"), "heic"),
    (ftyp(b"heix"), "heic"),
    (ftyp(b"hevc"), "heic"),
    (ftyp(b"mif1", b"heic"), "heic"),
    (bmp(40), "bmp"),
    (bmp(124), "bmp"),
    (b"II*\0\x08\0\0\0" + bytes(50), "tiff"),
    (b"MM\0*\0\0\0\x08" + bytes(50), "tiff"),
    (ico(), "ico"),
    (ftyp(b"isom", b"iso2", b"avc1", b"mp41"), "mp4"),
    (ftyp(b"mp42", b"isom"), "mp4"),
    (ftyp(b"M4V ", b"mp42"), "mp4"),
    (ftyp(b"3gp5"), "mp4"),
    (ftyp(b"qt  ", b"qt  "), "mov"),
    (struct.pack(">I", 8) + b"wide" + struct.pack(">I", 90) + b"mdat" + bytes(90), "mov"),
    (struct.pack(">I", 500) + b"moov" + bytes(492), "mov"),
    (ftyp(b"M4A ", b"mp42"), "m4a"),
    (ebml(b"webm"), "webm"),
    (ebml(b"matroska"), "mkv"),
    (riff(b"AVI ", b"LIST"), "avi"),
    (wav(), "wav"),
    (riff(b"WAVE", b"ds64", b"RF64"), "wav"),
    (b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10) + MP3_FRAME, "mp3"),
    (b"ID3\x03\x00\x00\x00\x00\x00\x0a" + bytes(10) + MP3_FRAME, "mp3"),
    (MP3_FRAME * 2, "mp3"),
    (b"\xff\xf3\x44\xc4" + bytes(100), "mp3"),
    (b"\xff\xe3\x18\xc4" + bytes(100), "mp3"),
    (b"\xff\xf1\x50\x80" + bytes(100), "aac"),
    (b"\xff\xf9\x50\x80" + bytes(100), "aac"),
    (b"fLaC\x00\x00\x00\x22" + bytes(34), "flac"),
    (b"OggS\x00\x02" + bytes(50), "ogg"),
    (b"FORM\0\0\0\x2eAIFFCOMM" + bytes(50), "aiff"),
    (b"MThd\0\0\0\x06\0\x01\0\x02\x01\xe0MTrk", "mid"),
    (archive(a=b"x"), "zip"),
    (archive(), "zip"),
    (gzip.compress(b"x", mtime=0), "gz"),
    (bz2.compress(b"x"), "bz2"),
    (lzma.compress(b"x"), "xz"),
    (b"\x28\xb5\x2f\xfd\x04\x00" + bytes(10), "zst"),
    (b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24), "7z"),
    (tar("weights/lora.safetensors", tarfile.GNU_FORMAT), "tar"),
    (tar("weights/lora.safetensors", tarfile.PAX_FORMAT), "tar"),
    (tar("w" * 90 + "/" + "é" * 60, tarfile.PAX_FORMAT), "tar"),
    (tar("GIF89a.txt", tarfile.USTAR_FORMAT), "tar"),
    (glb(), "glb"),
    (GLTF, "gltf"),
    (b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n", "ply"),
    (b"ply\r\nformat ascii 1.0\r\n", "ply"),
    (b"Kaydara FBX Binary  \x00\x1a\x00" + bytes(20), "fbx"),
    (npy(), "npy"),
    (safetensors(), "safetensors"),
    (b"GGUF\x03\0\0\0" + bytes(20), "gguf"),
    (b"8BPS\0\x01" + bytes(20), "psd"),
    (b"\x76\x2f\x31\x01\x02\0\0\0", "exr"),
    (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "hdr"),
    (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "pdf"),
    (b"WEBVTT\n\n00:00.000 --> 00:01.000\nhello", "vtt"),
    (BOM + b"WEBVTT - a title\n", "vtt"),
    (b'{"a": 1}', "json"),
    (b'  {\n  "a": 1', "json"),
    (BOM + b'{"a": 1}', "json"),
    (b"{}", "json"),
    (b"[]\n", "json"),
    (b'["a", "b"]', "json"),
    (b"[[1, 2], [3, 4]]", "json"),
    (b"[0.125, -1e-3, 4]", "json"),
    (b"[7]", "json"),
    (b"[null, true]", "json"),
    (SVG, "svg"),
    (XML + SVG, "svg"),
    (XML + b"<!-- Created with > Inkscape -->\n\n<!-- twice --> " + SVG, "svg"),
    (XML + SVG_DOCTYPE + SVG, "svg"),
    (BOM + XML + SVG, "svg"),
    (b"<!DOCTYPE html><html><head>", "html"),
    (b"\r\n  <!doctype HTML>\n", "html"),
    (b"<html>\r\n<head><title>404 Not Found</title></head>", "html"),
    (b'<!-- a comment --><html lang="en">', "html"),
    (XML + b'<html xmlns="http://www.w3.org/1999/xhtml">', "html"),
    (b"<h1>Bad gateway</h1>", "html"),
    (b"<script>alert(1)</script>", "html"),
    (BOM + b"<HTML>", "html"),
    (XML + b"<Error><Code>NoSuchKey</Code></Error>", "xml"),
    (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "jxl"),
    (b"\xff\x0a\x7a\x1f" + bytes(20), "jxl"),
    (b"\0\0\x01\xba\x44\0\x04" + bytes(20), "mpg"),
    (b"\0\0\x01\xba\x21\0\x01" + bytes(20), "mpg"),
    (b"\0\0\x01\xb3\x16\0\xf0" + bytes(20), "mpg"),
    (b"PAR1\x15\x04" + bytes(20), "parquet"),
    (b"BLENDER-v402" + bytes(20), "blend"),
    (b"BLENDER_V279" + bytes(20), "blend"),
    (bytes(128) + b"DICM\x02\0", "dcm"),
    (b"AutoCAD Binary DXF\r\n\x1a\0\0\0", "dxf"),
    (b"wOFF\0\x01\0\0" + bytes(20), "woff"),
    (b"wOF2OTTO" + bytes(20), "woff2"),
    (b"OTTO\0\x0c\0\x80\0\x03\0\x40", "otf"),
    (b"\0\x01\0\0\0\x0f\0\x80\0\x03\0\x70", "ttf"),
    (b"\0\x01\0\0\0\x12\x01\0\0\x04\0\x20", "ttf"),
    (b"{\\rtf1\\ansi hello}", "rtf"),
    (b"#EXTM3U\n#EXT-X-VERSION:3\n", "m3u8"),
    (b"[Script Info]\nTitle: a\n", "ass"),
    (BOM + b"[Script Info]\r\n", "ass"),
    (b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + b"fLaC\0\0\0\x22" + bytes(34), "flac"),
    (b"ID3\x04\0\x10\0\0\0\x0a" + bytes(20) + b"fLaC\0\0\0\x22" + bytes(34), "flac"),
    (b"ID3\x03\0\0\0\0\x01\x00" + bytes(128) + b"\xff\xf1\x50\x80" + bytes(100), "aac"),
]

WITHOUT_SIGNATURE = [
    (b"v 0.1 0.2 0.3\nv 1 1 1\nf 1 2 3\n", "obj"),
    (b"solid cube\n facet normal 0 0 1\n", "stl"),
    (binary_stl(), "stl"),
    (b"1\n00:00:00,000 --> 00:00:01,000\nhello\n", "srt"),
    (b"a,b\n1,2\n", "csv"),
    (b"# A title\n\nwords", "md"),
    (b"words", "txt"),
    (b"{curly} words", "txt"),
    (b"[Verse 1]\nla la", "txt"),
    (b"[2024] notes", "txt"),
    (b"<3 hearts", "txt"),
    (b"BM is not a picture, it is text that goes on for a while", "txt"),
    (b"ID3 tags explained", "txt"),
    (b"The free encyclopedia", "txt"),
    (b"Get free stuff", "txt"),
    (b"the ftyp isom box", "txt"),
    (b"\xff\xfew\x00o\x00r\x00d\x00", "txt"),
    (b"\x80\x02ctorch._utils\n", "pt"),
    (b"\x08\x07\x12\x07pytorch\x1a\x032.0", "onnx"),
    (bytes(512), "bin"),
    (bytes(512), "splat"),
    (b"", "txt"),
]


@pytest.mark.parametrize(("head", "expected"), BY_CONTENT)
def test_content_tells_the_type_without_a_name_and_whatever_the_name(head: bytes, expected: str) -> None:
    assert extension(head[:512]) == expected
    for name in (expected, "png", "bin", "mp4", "exe", "zip", "tar", "safetensors"):
        assert extension(head, url_path=f"/abcd/id/out-0.{name}") == expected, name


@pytest.mark.parametrize(("head", "expected"), WITHOUT_SIGNATURE)
def test_the_name_tells_the_type_of_content_without_signature(head: bytes, expected: str) -> None:
    assert extension(head) == "bin"
    assert extension(head, url_path=f"/abcd/id/out.{expected}") == expected


@pytest.mark.parametrize("head", [b"words", b"", bytes(range(256))])
def test_content_without_signature_keeps_even_the_name_of_a_picture(head: bytes) -> None:
    assert extension(head, url_path="/abcd/id/out-0.png") == "png"


@pytest.mark.parametrize("name", ["npz", "pt", "pth", "ckpt", "docx", "xlsx", "pptx", "epub", "3mf", "usdz"])
def test_a_zip_is_what_its_name_says_when_such_files_are_zips(name: str) -> None:
    assert extension(archive(a=b"x"), url_path=f"out.{name}") == name


@pytest.mark.parametrize(
    ("head", "name", "expected"),
    [
        (ftyp(b"isom", b"mp42"), "song.m4a", "m4a"),
        (ftyp(b"isom", b"mp42"), "film.mov", "mp4"),
        (b"OggS\x00\x02", "speech.opus", "opus"),
        (gzip.compress(b"x", mtime=0), "weights.tar.gz", "gz"),
        (gzip.compress(b"x", mtime=0), "weights.tgz", "tgz"),
        (b'{"scenes": [], "buffers": []}', "scene.gltf", "gltf"),
        (b'{"a": 1}\n{"a": 2}\n', "rows.jsonl", "jsonl"),
        (b'["a", "b"]', "words.txt", "txt"),
        (b'{"asset": {"id": 1, "version": 3}}', "asset.json", "json"),
        (b'<div align="center">\n\n# Title', "README.md", "md"),
        (XML + b"<!--" + b"x" * 500, "picture.svg", "svg"),
        (b"<!DOCTYPE html>", "picture.svg", "html"),
        (b"<!DOCTYPE html>", "words.txt", "html"),
        (XML + b"<Error/>", "out.png", "xml"),
        (b'{"error": "gone"}', "out.png", "json"),
        (archive(a=b"x"), "out.png", "zip"),
        (png(), "out.npz", "png"),
        (MP3_FRAME, "speech.pcm", "pcm"),
        (b"\xff\xf1\x50\x80" + bytes(100), "samples.raw", "raw"),
        (b"\xff\xff\xfe\xff" * 100, "speech.pcm", "pcm"),
        (b"\xff\xe3\x18\xc4" + bytes(100), "cloud.splat", "splat"),
        (png(), "speech.pcm", "png"),
        (wav(), "speech.raw", "wav"),
        (LONG_ID3, "song.flac", "flac"),
        (LONG_ID3, "song.aac", "aac"),
        (LONG_ID3, "song.mp3", "mp3"),
        (LONG_ID3, "song", "mp3"),
        (LONG_ID3, "song.png", "mp3"),
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + MP3_FRAME, "song.flac", "mp3"),
        (glb(), "avatar.vrm", "vrm"),
        (archive(a=b"x"), "text.odt", "odt"),
        (archive(a=b"x"), "table.xlsx", "xlsx"),
        (gzip.compress(b"x", mtime=0), "scene.blend", "blend"),
        (b'{"level": "info"}\n', "run.log", "log"),
        (b"[1, 2].map(x => x)", "code.js", "js"),
        (b"[1, 2]", "code.py", "py"),
        (b"<!DOCTYPE html>", "page.xhtml", "html"),
        (b"<div>", "notes.md", "md"),
    ],
)
def test_the_name_decides_only_among_types_that_share_a_signature(
    head: bytes, name: str, expected: str
) -> None:
    assert extension(head, url_path=name) == expected


@pytest.mark.parametrize(
    ("head", "name", "told", "expected"),
    [
        (b"words", "out", "srt", "srt"),
        (b"words", "out.exe", "txt", "txt"),
        (b"words", "out.bin", "csv", "csv"),
        (b"words", "out.obj", "txt", "obj"),
        (b"words", "out", None, "bin"),
        (b"words", "out", "bin", "bin"),
        (b"\0\1\2\3", "out", "txt", "bin"),
        (b"\0\1\2\3", "out", "onnx", "onnx"),
        (b"\0\1\2\3", "out.txt", "txt", "txt"),
        (b"", "out", "srt", "srt"),
        (png(), "out", "txt", "png"),
        (archive(a=b"x"), "out", "docx", "docx"),
        (archive(a=b"x"), "out.png", "docx", "docx"),
        (archive(a=b"x"), "out.npz", "docx", "npz"),
        (archive(a=b"x"), "out", "png", "zip"),
        (MP3_FRAME, "out", "pcm", "pcm"),
        (b'{"a": 1}', "out", "jsonl", "jsonl"),
    ],
)
def test_what_is_declared_decides_where_content_and_name_tell_nothing(
    head: bytes, name: str, told: str | None, expected: str
) -> None:
    assert extension(head, url_path=name, declared=told) == expected


@pytest.mark.parametrize(
    ("content_type", "disposition", "url", "expected"),
    [
        ("text/plain; charset=utf-8", None, "", "txt"),
        ("application/x-subrip", None, "", "srt"),
        ("text/csv", None, "", "csv"),
        ("model/obj", None, "", "obj"),
        ("application/octet-stream", None, "", None),
        ("binary/octet-stream", None, "", None),
        (None, None, "", None),
        (None, 'attachment; filename="a b.srt"', "", "srt"),
        ("text/plain", "attachment; filename=scene.OBJ", "", "obj"),
        ("text/plain", "inline; FileName = words.md ; size=5", "", "md"),
        ("text/plain", "attachment; filename=\"fallback\"; filename*=UTF-8''%E2%82%AC.csv", "", "csv"),
        ("text/plain", "attachment; filename*=UTF-8''x%2Esrt", "", "srt"),
        ("text/plain", 'attachment; filename="a\\"b.vtt"', "", "vtt"),
        ("text/plain", 'attachment; filename="x.exe"', "", "txt"),
        ("text/plain", "attachment", "", "txt"),
        ("text/plain", 'attachment; filename="unclosed.srt', "", "srt"),
        ("text/plain", None, "https://cdn.test/a/b.srt?sig=c.png", "srt"),
        ("text/plain", 'attachment; filename="a.csv"', "https://cdn.test/b.srt", "csv"),
        ("application/octet-stream", None, "https://cdn.test/b.bin", None),
        ("x\udce9", "filename=\udce9.srt", "", "srt"),
        ("text/plain", "attachment; filename*=\"UTF-8''a%20b.srt\"", "", "srt"),
        ("text/plain", "attachment; filename='a.srt'", "", "srt"),
        ("text/plain", "attachment; filename=“a.srt”", "", "srt"),
        ("text/plain", 'attachment; filename="a.srt."', "", "srt"),
        ("text/plain", "attachment; filename=a%2Esrt", "", "srt"),
        ("text/plain", "attachment; filename=\"noext\"; filename*=utf-8'en'A.SRT", "", "srt"),
        ("text/plain", 'form-data; name="x.csv"; filename="C:\\\\dir\\\\a.srt"', "", "srt"),
        ("text/plain", "attachment; filename=\"a.txt\"; filename*=UTF-8''a.srt", "", "srt"),
        ("text/x-subrip; charset=utf-8", None, "", "srt"),
        ("text/comma-separated-values", None, "", "csv"),
        ("application/x-tgif", None, "", "obj"),
        ("application/x-font-woff", None, "", "woff"),
        ("audio/x-midi", None, "", "mid"),
    ],
)
def test_what_an_answer_declares_is_an_extension_of_the_table(
    content_type: str | None, disposition: str | None, url: str, expected: str | None
) -> None:
    assert declared(content_type, disposition, url) == expected


@given(st.text() | st.text(alphabet="filename*=\"';\\. ", max_size=300))
def test_any_disposition_gives_an_extension_of_the_table_or_none(disposition: str) -> None:
    assert declared(None, disposition) in {*MEDIA_TYPES, None}


def test_a_hostile_disposition_is_read_in_time_that_grows_with_its_size_alone() -> None:
    for piece in (
        'filename="',
        "filename=",
        "filename*=a'",
        "filename = ",
        'filename="\\',
        " " * 50,
        "filename\t",
    ):
        began = time.process_time()
        declared(None, piece * (65536 // len(piece)))
        assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("url_path", "expected"),
    [
        ("/abcd/id/out.PNG", "png"),
        ("/abcd/id/out.JPEG", "jpg"),
        ("/abcd/id/out.jpe", "jpg"),
        ("/abcd/id/out.tif", "tiff"),
        ("/abcd/id/out.htm", "html"),
        ("/abcd/id/out.png?name=x.mp4", "png"),
        ("/abcd/id/out.png#x.mp4", "png"),
        ("/abcd/id/out?name=x.mp4", "bin"),
        ("/abcd/id/out%2Epng", "png"),
        ("/abcd/id/out.%70ng", "png"),
        ("/abcd/id/a%20b%2Fc.png", "png"),
        ("/abcd/id/%E2%82%AC.wav", "wav"),
        ("/abcd/id/%FF.wav", "wav"),
        ("https://replicate.delivery/abcd/id/out-0.webp", "webp"),
        ("out.png/", "bin"),
        ("/x.png/out", "bin"),
        ("out", "bin"),
        ("png", "bin"),
        ("out.", "bin"),
        (".png", "png"),
        ("out.exe", "bin"),
        ("out.php", "bin"),
        ("out.png.exe", "bin"),
        ("out.png%00.exe", "bin"),
        ("out.png\n", "bin"),
        ("out." + "g" * 5000, "bin"),
        ("%", "bin"),
        ("\ud800.png", "png"),
    ],
)
def test_a_name_is_read_from_the_end_of_the_path(url_path: str, expected: str) -> None:
    assert extension(b"", url_path=url_path) == expected


@given(
    st.binary(max_size=600)
    | st.sampled_from([head for head, _ in BY_CONTENT]).flatmap(
        lambda head: st.integers(0, len(head)).map(lambda end: head[:end])
    ),
    st.text(st.characters(exclude_categories=()))
    | st.sampled_from(sorted(MEDIA_TYPES)).map("/a/b.{}".format),
)
@settings(deadline=None, max_examples=300)
def test_any_bytes_and_any_name_give_a_type_of_the_table(head: bytes, url_path: str) -> None:
    assert extension(head, url_path=url_path) in MEDIA_TYPES


@pytest.mark.parametrize(
    "piece", [b"<!--", b"<?", b"{", b"[", b'{"asset":{', b"<!-- -->", b"\x1aE\xdf\xa3", b" "]
)
def test_endless_repetition_does_not_hang_the_search(piece: bytes) -> None:
    assert extension(piece * 1_000_000) in MEDIA_TYPES


def test_every_signature_leads_to_a_type_of_the_table() -> None:
    for signatures in (content._BINARY, content._TEXT, content._MARKUP):
        assert {found for _, found in signatures} <= set(MEDIA_TYPES)


def test_every_type_of_the_table_can_be_had_by_its_name_and_by_its_media_type() -> None:
    for name in MEDIA_TYPES:
        assert extension(b"", url_path=f"/a/out.{name.upper()}") == name
        back = extension_for_media_type(media_type(name))
        assert back is not None
        assert media_type(back) == media_type(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("png", "image/png"),
        ("jpg", "image/jpeg"),
        ("mp3", "audio/mpeg"),
        ("glb", "model/gltf-binary"),
        ("safetensors", "application/octet-stream"),
        ("bin", "application/octet-stream"),
        ("", "application/octet-stream"),
        ("exe", "application/octet-stream"),
    ],
)
def test_a_type_has_one_media_type(name: str, expected: str) -> None:
    assert media_type(name) == expected


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        ("image/png", "png"),
        ("image/jpeg", "jpg"),
        ("image/jpg", "jpg"),
        ("IMAGE/PNG", "png"),
        (" text/plain ; charset=utf-8", "txt"),
        ("text/plain;charset=US-ASCII", "txt"),
        ("audio/x-wav", "wav"),
        ("audio/mp3", "mp3"),
        ("application/gzip", "gz"),
        ("application/octet-stream", "bin"),
        ("application/x-msdownload", None),
        ("image", None),
        ("png", None),
        ("", None),
        (";", None),
    ],
)
def test_a_media_type_leads_back_to_an_extension(media: str, expected: str | None) -> None:
    assert extension_for_media_type(media) == expected


@given(st.text())
def test_any_media_type_gives_an_extension_of_the_table_or_none(media: str) -> None:
    assert extension_for_media_type(media) in {*MEDIA_TYPES, None}


def test_only_what_cannot_run_in_our_origin_is_shown_there() -> None:
    shown = {name for name in MEDIA_TYPES if is_inline_safe(name)}
    assert shown >= {"png", "jpg", "webp", "gif", "avif", "mp4", "mov", "webm", "wav", "mp3", "m4a", "txt"}
    assert not shown & {"svg", "html", "xml", "pdf", "json", "md", "csv", "bin", "zip", "gltf", "glb", "vtt"}
    assert not is_inline_safe("js")
    assert not is_inline_safe("")
