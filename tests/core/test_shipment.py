import json

import pytest

from farm_executor.core.shipment import (
    MAX_FILES,
    MAX_MODULE,
    MAX_OFFER,
    MAX_PACKAGES,
    Contents,
    Difference,
    Package,
    decode_contents,
    decode_differences,
    decode_offer,
    decode_question,
    digest,
    encode_contents,
    encode_differences,
    encode_offer,
    encode_question,
)
from farm_executor.errors import RemoteProtocolError

PKG = Contents("pkg", "p", "/home/me", [("pkg/__init__.py", 0), ("pkg/data/a b.txt", 3)], ["pkg/big (9 MiB)"])
ONE = Contents("one", "m", "/home/me", [("one.py", 10)], [])


def test_what_is_encoded_is_decoded():
    offer = {"pkg": "p", "größe": "m"}, {"yaml": Package("PyYAML", "6.0")}
    assert decode_offer(encode_offer(*offer)) == offer
    differences = [Difference("PyYAML", "6.0", "5.4"), Difference("numpy", "2.1.0", "")]
    assert decode_differences(encode_differences(differences)) == differences
    assert decode_question(encode_question("pkg", "?")) == ("pkg", "?")
    assert decode_contents(encode_contents([PKG, ONE])) == [PKG, ONE]


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "pkg.sub", "pkg/sub", "/etc", "a b", ".env", "x" * 256, "a\0b\0c"],
)
def test_a_question_is_for_one_identifier(name):
    with pytest.raises(RemoteProtocolError):
        decode_question(encode_question(name, ""))


@pytest.mark.parametrize("body", [b"", b"name", b"\xff\0", b"name\0" + b"x" * 65, b"x" * 10_000])
def test_a_question_that_is_none(body):
    with pytest.raises(RemoteProtocolError):
        decode_question(body)


@pytest.mark.parametrize(
    "offer",
    [
        *(b"", b"[]", b"{}", b"[" * 100_000, b"\xff", b'{"modules": {}}', b'{"packages": {}}'),
        *(
            b'{"modules": %s, "packages": {}}' % each
            for each in [b"[]", b'{"a": "q"}', b'{"a": 1}', b'{"a.b": "m"}']
        ),
        *(b'{"modules": {}, "packages": %s}' % each for each in [b"[]", b'{"a.b": ["a", "1"]}', b'{"a": "1"}']),
        *(b'{"modules": {}, "packages": {"a": %s}}' % each for each in [b'["a"]', b'["a", 1]', b'["a\\n", "1"]']),
        *(b'{"modules": {"a": %s}, "packages": {}}' % kind for kind in (b"[]", b"{}", b"1", b'"x"')),
    ],
)
def test_an_offer_that_is_none(offer):
    with pytest.raises(RemoteProtocolError):
        decode_offer(offer)


@pytest.mark.parametrize(
    "differences",
    [
        *(
            b"",
            b"{}",
            b"\xff",
            b"[" * 100_000,
            b'[["a", "1"]]',
            b'[["a", "1", null]]',
            b'[["a", "1", "\\u001b[2J"]]',
        ),
        encode_differences([Difference("a" * 256, "1", "")]),
        encode_differences([Difference("a", "1", "")] * (MAX_PACKAGES + 1)),
    ],
)
def test_differences_that_are_none(differences):
    with pytest.raises(RemoteProtocolError):
        decode_differences(differences)


def test_an_offer_has_a_limit():
    with pytest.raises(RemoteProtocolError):
        decode_offer(encode_offer({f"n{number}": "m" for number in range(MAX_OFFER + 1)}, {}))
    with pytest.raises(RemoteProtocolError):
        decode_offer(encode_offer({}, {f"n{number}": Package("a", "1") for number in range(MAX_PACKAGES + 1)}))


@pytest.mark.parametrize(
    "path",
    [
        *("", "/etc/passwd", "pkg", "pkg/", "pkg//a.py", "pkg/../../a.py", "../pkg/a.py", "other/a.py", "pkg/.env"),
        *("./pkg/a.py", "pkg/./a.py", ".pkg.json", "pkg/a\0.py", "pkg\\a.py", "pkg/" + "a" * 1024, "pkg2/a.py", 7),
    ],
)
def test_no_file_lies_outside_its_module(path):
    data = json.dumps([PKG._replace(files=[(path, 1)])._asdict()]).encode()
    if path == "pkg":  # a file of the module's own name, as good as pkg.py
        assert decode_contents(data)
        return
    with pytest.raises(RemoteProtocolError):
        decode_contents(data)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a/b"},
        {"kind": "z"},
        {"where": 1},
        {"files": [["pkg/a.py", -1]]},
        {"files": [["pkg/a.py", "1"]]},
        {"files": [["pkg/a.py"]]},
        {"files": 7},
        {"files": [["pkg/a.py", MAX_MODULE], ["pkg/b.py", 1]]},
        {"files": [[f"pkg/{number}.py", 0] for number in range(MAX_FILES + 1)]},
        {"left_out": None},
        {"more": 1},
    ],
)
def test_contents_that_are_none(change):
    with pytest.raises(RemoteProtocolError):
        decode_contents(json.dumps([{**PKG._asdict(), **change}]).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[1]", b"[null]", b"[[]]"])
def test_a_list_of_modules_that_is_none(data):
    with pytest.raises(RemoteProtocolError):
        decode_contents(data)


def test_the_digest_tells_files_apart_and_not_their_order():
    files = [("a.py", b"12"), ("b.py", b"3")]
    assert digest(files) == digest(files[::-1])
    others = [[("a.py", b"1"), ("b.py", b"23")], [("a.py", b"12"), ("c.py", b"3")], files[:1], []]
    assert len({digest(files), *map(digest, others)}) == 5
