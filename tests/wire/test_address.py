"""Addresses: what is accepted and what it means; anything else is an `AddressError` that says what would be."""

import contextlib
import enum
import os
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import name_of

from farm_executor import AddressError, FarmExecutor, end_server, ping, start_server, status
from farm_executor.launch.forms import Dask, Ray, Slurm
from farm_executor.wire.address import Address, Back, Ssh, parse_address, parse_addresses

FORMS = ('"host:port"', '"[ipv6]:port"', '"unix:/path"', '("host", port)', '"ssh://[user@]host[:port]"')


class Number(enum.IntEnum):
    PORT = 8080


@pytest.mark.parametrize(
    ("value", "address", "text"),
    [
        ("host:1", Address(host="host", port=1), "host:1"),
        ("host:65535", Address(host="host", port=65535), "host:65535"),
        ("host:00080", Address(host="host", port=80), "host:80"),
        ("host", Address(host="host", port=11111), "host:11111"),
        ("[::1]", Address(host="::1", port=11111), "[::1]:11111"),
        ("192.0.2.1", Address(host="192.0.2.1", port=11111), "192.0.2.1:11111"),
        ("192.0.2.1:80", Address(host="192.0.2.1", port=80), "192.0.2.1:80"),
        ("[::1]:80", Address(host="::1", port=80), "[::1]:80"),
        ("[fe80::1%eth0]:80", Address(host="fe80::1%eth0", port=80), "[fe80::1%eth0]:80"),
        ("[host]:80", Address(host="host", port=80), "host:80"),
        ("münchen.example:80", Address(host="münchen.example", port=80), "münchen.example:80"),
        (("host", 80), Address(host="host", port=80), "host:80"),
        (["host", 80], Address(host="host", port=80), "host:80"),
        (("::1", 80), Address(host="::1", port=80), "[::1]:80"),
        (("unix", 80), Address(host="unix", port=80), "[unix]:80"),
        (("host", Number.PORT), Address(host="host", port=8080), "host:8080"),
        ("unix:/run/farm", Address(path="/run/farm"), "unix:/run/farm"),
        ("unix:relative path", Address(path="relative path"), "unix:relative path"),
        ("unix:80", Address(path="80"), "unix:80"),
        (Address(host="host", port=80), Address(host="host", port=80), "host:80"),
    ],
)
def test_each_form_means_its_address_which_prints_as_one_that_means_the_same(value, address, text):
    assert parse_address(value) == address
    assert str(address) == text
    assert parse_address(text) == address


NO_ADDRESSES = [
    "",
    "4",
    ":80",
    "host:",
    "host:port",
    "host:port:x",
    "host:80:x",
    "host:80:80",
    "host:0",
    "host:70000",
    "host:65536",
    "host:-1",
    "host:+80",
    "host: 80",
    "host:80 ",
    "host:8_0",
    "host:8.0",
    "host:٨٠",
    "host:²",
    "host:" + "9" * 5000,
    "host:" + "0" * 5000,
    " host:80",
    "two words:80",
    "host\n:80",
    "host\0:80",
    "ho\x1bst:80",
    "a..b:80",
    ".:80",
    "x" * 64 + ".example:80",
    "\ud800:80",
    "::1:80",
    "::1",
    "[]",
    "[::1]:",
    "host/path",
    "tcp://host",
    "://",
    "hostA:1,hostB:1",
    "hostA,hostB",
    "[::1]80",
    "[::1:80",
    "[]:80",
    "[[::1]]:80",
    "ho[st:80",
    "unix:",
    "unix:\0abstract",
    "unix:/a\0b",
    "unix:\ud800",
    b"host:80",
    bytearray(b"host:80"),
    {},
    {"host": 80},
    {"host", 80},
    None,
    80,
    8.0,
    object,
    (),
    ("host",),
    ("host", "80"),
    ("host", 80.0),
    ("host", True),
    ("host", None),
    ("host", 0),
    ("host", -1),
    ("host", 70000),
    ("host", 10**5000),
    ("", 80),
    (b"host", 80),
    ("[::1]", 80),
    ("host", 80, 0, 0),
    (80, "host"),
]


@pytest.mark.parametrize("value", NO_ADDRESSES, ids=lambda value: repr(str(type(value)))[:20])
def test_anything_else_is_an_address_error_that_names_it_and_the_forms(value):
    with pytest.raises(AddressError) as caught:
        parse_address(value)
    text = str(caught.value)
    with contextlib.suppress(ValueError):  # a number too long to be printed
        assert repr(value)[:100] in text
    assert all(form in text for form in FORMS)
    assert len(text) < 640
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("tcp://host:1", "without a scheme"),
        ("http://host", "without a scheme"),
        ("hostA:1,hostB:1", "as a list"),
        ("hostA, hostB", "as a list"),
        ("/run/farm/socket", "unix:/path"),
        ("./socket", "unix:/path"),
        ("4", "a number of workers is given as an int"),
        ("host:", "the port is missing behind the colon"),
        ("host:http", "the port is not a number"),
        ("::1:80", "in brackets"),
    ],
)
def test_a_likely_mistake_is_told_what_to_write_instead(value, why):
    with pytest.raises(AddressError, match=why):
        parse_address(value)


def test_an_object_that_cannot_even_be_printed_is_named_by_its_type():
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    with pytest.raises(AddressError, match="Shy is no server address"):
        parse_address(Shy())


def test_port_0_is_for_servers_alone():
    assert parse_address("host:0", any_port=True) == Address(host="host", port=0)
    assert parse_address(("host", 0), any_port=True) == Address(host="host", port=0)
    with pytest.raises(AddressError):
        parse_address("host:70000", any_port=True)


# -- servers that dial ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "back", "printed"),
    [
        ("back://0.0.0.0:22222", Back("0.0.0.0", 22222), None),
        ("back://host", Back("host", 11111), "back://host:11111"),
        ("back://[::1]:22", Back("::1", 22), None),
    ],
)
def test_a_place_where_servers_are_waited_for(text, back, printed):
    (address,) = parse_addresses(text)
    assert (address.grant, address.every, address.scheme) == (back, True, "back")
    assert str(address) == (printed or text)
    assert parse_address(str(address), ssh=True) == address


@pytest.mark.parametrize(
    "text",
    [
        "back://",
        "back://:1",
        "back://host:0",
        "back://host:x",
        "back://unix:/a",
        "back://farm://a?all",
        "back://h/",
    ],
)
def test_no_such_place_is_waited_at(text):
    with pytest.raises(AddressError, match="after back:// stands a host and a port"):
        parse_addresses(text)


def test_where_a_server_is_to_listen_or_be_asked_nobody_is_waited_for():
    with pytest.raises(AddressError, match="FarmExecutor, that waits"):
        parse_address("back://host:1")


# -- on clusters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "slurm", "printed"),
    [
        ("slurm://", Slurm(), None),
        ("slurm://gpu", Slurm("gpu"), None),
        ("slurm://gpu,cpu-2_a.b?nodes=4&per=8", Slurm("gpu,cpu-2_a.b", nodes=4, per=8), None),
        ("slurm://?workers=5&per=2", Slurm(nodes=3, per=2), "slurm://?nodes=3&per=2"),
        (
            "slurm://?cpus=2&gpus=1&memory=1024M",
            Slurm(cpus=2, gpus=1, memory=1 << 30),
            "slurm://?cpus=2&gpus=1&memory=1G",
        ),
        ("slurm://?time=2-12:30:00&account=a&qos=b", Slurm(time="2-12:30:00", account="a", qos="b"), None),
        ("slurm://?constraint=a%26b|c", Slurm(constraint="a&b|c"), "slurm://?constraint=a%26b%7Cc"),
        ("slurm://?via=direct", Slurm(via="direct"), None),
        ("slurm://?python=~/venv/bin/python", Slurm(python="~/venv/bin/python"), None),
        ("slurm://?env=A={slot}&env=B=1,2", Slurm(env=(("A", "{slot}"), ("B", "1,2"))), None),
    ],
)
def test_servers_that_slurm_grants(text, slurm, printed):
    (address,) = parse_addresses(text)
    assert (address.grant, address.every, address.scheme) == (slurm, True, "slurm")
    assert str(address) == (printed or text)
    assert parse_address(str(address), ssh=True) == address


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("slurm://a/b", "name of a partition"),
        ("slurm://-a", "name of a partition"),
        ("slurm://a b", "name of a partition"),
        ("slurm://a\n", "name of a partition"),
        ("slurm://host:1", "name of a partition"),
        ("slurm://?dance=1", "after the question mark come"),
        ("slurm://?nodes", "after the question mark come"),
        ("slurm://?nodes=", "after the question mark come"),
        ("slurm://?nodes=1&nodes=1", "after the question mark come"),
        ("slurm://?nodes=0", "nodes= is a number"),
        ("slurm://?nodes=-1", "nodes= is a number"),
        ("slurm://?nodes=1001", "nodes= is a number"),
        ("slurm://?workers=x", "workers= is a number"),
        ("slurm://?workers=0", "workers= is a number"),
        ("slurm://?workers=1.5", "workers= is a number"),
        ("slurm://?workers=100000", "workers= is a number"),
        ("slurm://?workers=2000", "more than 1000 nodes"),
        ("slurm://?workers=2&nodes=2", "give one of them"),
        ("slurm://?memory=4", "memory= is the memory"),
        ("slurm://?memory=0G", "memory= is the memory"),
        ("slurm://?time=abc", "time= is a time"),
        ("slurm://?time=-1", "time= is a time"),
        ("slurm://?account=-a", "account= is the name"),
        ("slurm://?account=a%20b", "account= is the name"),
        ("slurm://?constraint=-a", "constraint= is features"),
        ("slurm://?python=-c", "python= is the name"),
        ("slurm://?python=a%0Ab", "python= is the name"),
        ("slurm://?python=%ff", "not UTF-8"),
        ("slurm://?env=A", "env= is NAME=VALUE"),
        ("slurm://?via=engine", "Slurm carries no bytes"),
        ("slurm://?via=tunnel", "via= is direct"),
    ],
)
def test_no_such_cluster_is_asked(text, why):
    with pytest.raises(AddressError, match=why) as caught:
        parse_addresses(text)
    assert "slurm://[partition]" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "dask", "scheduler"),
    [
        ("dask://host:8786", Dask("host", 8786), "tcp://host:8786"),
        ("dask+tls://[::1]:1?workers=4&per=2", Dask("::1", 1, tls=True, workers=4, per=2), "tls://[::1]:1"),
        ("dask://h:1?gpus=1&memory=1G&max=2", Dask("h", 1, max=2, gpus=1, memory=1 << 30), "tcp://h:1"),
        ("dask://h:1?via=engine", Dask("h", 1, via="engine"), "tcp://h:1"),
        ("dask://h:1?python=py&env=A={slot}", Dask("h", 1, python="py", env=(("A", "{slot}"),)), "tcp://h:1"),
    ],
)
def test_servers_beside_dasks(text, dask, scheduler):
    (address,) = parse_addresses(text)
    assert (address.grant, address.every, address.scheme) == (dask, True, "dask")
    assert str(address) == text
    assert parse_address(str(address), ssh=True) == address
    assert dask.cluster == scheduler


@pytest.mark.parametrize(
    "text",
    [
        *("dask://", "dask://h", "dask://h:0", "dask://h:x", "dask://:1", "dask://h:1/a", "dask://a b:1"),
        *("dask://unix:/a:1", "dask://farm://h:1", "dask+tls://", "dask://h:1?workers=0", "dask://h:1?nodes=2"),
        *("dask://h:1?per=x", "dask://h:1?per=1&per=1", "dask://h:1?env=A", "dask+ssl://h:1", "dask://h:1?gpus=1"),
        *("dask://h:1?via=", "dask://h:1?via=tunnel", "dask://h:1?via=back&via=back", "dask://h:1?workers=-1"),
    ],
)
def test_no_such_dask_is_asked(text):
    with pytest.raises(AddressError, match=r'"dask://host:port"'):
        parse_addresses(text)


@pytest.mark.parametrize(
    ("text", "ray", "cluster"),
    [
        ("ray://host:10001", Ray("host", 10001), "ray://host:10001"),
        ("ray://[::1]:1?workers=4&per=2", Ray("::1", 1, workers=4, per=2), "ray://[::1]:1"),
        ("ray://auto?cpus=2&gpus=1&memory=4G", Ray("", 0, cpus=2, gpus=1, memory=4 << 30), "auto"),
        ("ray://auto?min=1&max=3&idle=5", Ray("", 0, min=1, max=3, idle=5), "auto"),
        ("ray://auto?via=direct", Ray("", 0, via="direct"), "auto"),
        ("ray://auto?python=py&env=A=1&env=B=2", Ray("", 0, python="py", env=(("A", "1"), ("B", "2"))), "auto"),
    ],
)
def test_servers_on_ray(text, ray, cluster):
    (address,) = parse_addresses(text)
    assert (address.grant, address.every, address.scheme) == (ray, True, "ray")
    assert str(address) == text
    assert parse_address(str(address), ssh=True) == address
    assert ray.cluster == cluster


@pytest.mark.parametrize(
    "text",
    [
        *(
            "ray://",
            "ray://h",
            "ray://h:0",
            "ray://auto:1",
            "ray://:1",
            "ray://auto/x",
            "ray://h:1/a",
            "ray://a b:1",
        ),
        *("ray://auto?workers=0", "ray://auto?workers=-1", "ray://h:1?nodes=2", "ray://h:1?memory=4", "ray://-h"),
        *("ray://auto?min=1", "ray://auto?idle=9", "ray://auto?via=x"),
        *(
            "ray://auto?max=2&workers=2",
            "ray://auto?max=1&min=2",
            "ray://auto?per=1&per=1",
            "ray://auto?env=A",
            "ray://auto?python=-c",
            "ray://h:1?python=a%0Ab",
            "ray+x://h:1",
        ),
    ],
)
def test_no_such_ray_is_asked(text):
    with pytest.raises(AddressError, match=r'"ray://host:port"'):
        parse_addresses(text)


def test_a_cluster_grants_servers_to_an_executor_alone():
    with pytest.raises(AddressError, match="granted to FarmExecutor"):
        parse_address("slurm://")


# -- over ssh ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ssh", "printed"),
    [
        ("ssh://host", Ssh("host"), None),
        ("ssh://host.example:2222", Ssh("host.example", port=2222), None),
        ("ssh://me@host", Ssh("host", user="me"), None),
        ("ssh://me@[::1]:22", Ssh("::1", user="me", port=22), None),
        ("ssh://[::1]", Ssh("::1"), None),
        ("ssh://[fe80::1%eth0]", Ssh("fe80::1%eth0"), None),
        ("ssh://me%40example@host", Ssh("host", user="me@example"), None),
        ("ssh://me@example@host", Ssh("host", user="me@example"), "ssh://me%40example@host"),
        ("ssh://host?workers=4", Ssh("host", workers=4), None),
        ("ssh://host?workers=04", Ssh("host", workers=4), "ssh://host?workers=4"),
        ("ssh://host?python=~/venv/bin/python", Ssh("host", python="~/venv/bin/python"), None),
        ("ssh://host?python=a%20b&workers=2", Ssh("host", workers=2, python="a b"), None),
        ("ssh://host?python=c++=1", Ssh("host", python="c++=1"), "ssh://host?python=c%2B%2B%3D1"),
        ("ssh://host?python=%26%3F%25", Ssh("host", python="&?%"), None),
        ("ssh://host?env=A={slot}&env=B=1%262", Ssh("host", env=(("A", "{slot}"), ("B", "1&2"))), None),
    ],
)
def test_an_address_over_ssh_means_its_parts_and_prints_as_one_that_means_the_same(text, ssh, printed):
    address = parse_address(text, ssh=True)
    assert address == Address(grant=ssh)
    assert not address.is_local
    if printed or "workers=2" not in text:
        assert str(address) == (printed or text)
    assert parse_address(str(address), ssh=True) == address
    assert parse_addresses([text, "host:1"]) == [address, Address(host="host", port=1)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ssh://", "host"),
        ("ssh://@host", "user"),
        ("ssh://me@", "host"),
        ("ssh://host/", "host"),
        ("ssh://host/path", "host"),
        ("ssh://-oProxyCommand=true", "host"),
        ("ssh://-l@host", "user"),
        ("ssh://%2Dl@host", "user"),
        ("ssh://$(reboot)", "host"),
        ("ssh://`reboot`", "host"),
        ("ssh://a;b", "host"),
        ("ssh://a'b", "host"),
        ("ssh://a b", "host"),
        ("ssh://a\nb", "host"),
        ("ssh://%68ost", "host"),
        ("ssh://a%27b@host", "user"),
        ("ssh://a%0Ab@host", "user"),
        ("ssh://%ff@host", "UTF-8"),
        ("ssh://host:0", "port"),
        ("ssh://host:70000", "port"),
        ("ssh://host:", "port"),
        ("ssh://host:ssh", "port"),
        ("ssh://::1", "brackets"),
        ("ssh://[::1", "brackets"),
        ("ssh://[::1]22", "brackets"),
        ("ssh://[host]", "IPv6"),
        ("ssh://[]", "IPv6"),
        ("ssh://[::1%$(id)]", "zone"),
        ("ssh://[::1%a;b]", "zone"),
        ("ssh://[::1%a b]", "zone"),
        ("ssh://[::1%]", "zone"),
        ("ssh://[%eth0]", "IPv6"),
        ("ssh://host?workers=0", "workers"),
        ("ssh://host?workers=-1", "workers"),
        ("ssh://host?workers=many", "workers"),
        ("ssh://host?workers=" + "9" * 5000, "workers"),
        ("ssh://host?workers=", "workers=NUMBER"),
        ("ssh://host?workers=1&workers=2", "workers=NUMBER"),
        ("ssh://host?wokers=1", "workers=NUMBER"),
        ("ssh://host?python", "python=PATH"),
        ("ssh://host?python=-c", "python"),
        ("ssh://host?python=a%00b", "python"),
        ("ssh://host?python=a%0Ab", "python"),
        ("ssh://host?&", "workers=NUMBER"),
        ("ssh://host?env=A", "env is NAME=VALUE"),
        ("ssh://host?env==1", "env is NAME=VALUE"),
    ],
)
def test_what_is_none_over_ssh_is_an_address_error_that_says_why(text, why):
    with pytest.raises(AddressError) as caught:
        parse_addresses(text)
    reason = str(caught.value).partition(" is no server address: ")[2].partition("; the forms are ")[0]
    assert why in reason


def test_where_a_server_is_to_listen_or_to_be_asked_it_cannot_be_over_ssh():
    with pytest.raises(AddressError, match="farm-executor launch"):
        parse_address("ssh://host")


# -- one or many --------------------------------------------------------------------------------------------

ONE, TWO = Address(host="one", port=1), Address(host="two", port=2)


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("one:1", [ONE]),
        (("one", 1), [ONE]),
        (ONE, [ONE]),
        (["one:1"], [ONE]),
        (("one:1", "two:2"), [ONE, TWO]),
        (["two:2", ("one", 1)], [TWO, ONE]),
        ((("one", 1), ("two", 2)), [ONE, TWO]),
        (["one:1", "two:2", ("one", 1), "one:01"], [ONE, TWO]),
        ({"one:1"}, [ONE]),
        (iter(["one:1", "two:2"]), [ONE, TWO]),
        ((f"{name}:{port}" for name, port in (("one", 1), ("two", 2))), [ONE, TWO]),
    ],
)
def test_a_lone_address_is_one_and_an_iterable_gives_each_once_in_order(value, addresses):
    assert parse_addresses(value) == addresses


@pytest.mark.parametrize(
    "value",
    [
        [],
        (),
        set(),
        iter([]),
        b"host:80",
        bytearray(b"host:80"),
        {},
        {"host:80": 1},
        object(),
        "",
        "host:",
        "host:port:x",
        "host:70000",
        ("host", 70000),
        ("host", True),
        ["host", 80],
        ["host:80", None],
        ["host:80", "host:"],
        [["host:80"]],
        memoryview(b"host:80"),
    ],
    ids=name_of,
)
def test_a_farm_of_what_are_no_addresses_is_refused_at_once_with_the_forms(value):
    threads = threading.active_count()
    with pytest.raises(AddressError) as caught:
        FarmExecutor(value)
    assert all(form in str(caught.value) for form in FORMS)
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("host:70000", "'host:70000'"),
        ({"host:80": 1}, "{'host:80': 1}"),
        (b"host:80", "b'host:80'"),
        (["host:80", "other:"], "'other:'"),
    ],
)
def test_the_error_names_the_one_that_is_wrong(value, named):
    with pytest.raises(AddressError, match="is no server address") as caught:
        FarmExecutor(value)
    assert str(caught.value).startswith(named)


def test_an_empty_list_is_told_how_to_have_a_farm_on_this_machine():
    with pytest.raises(AddressError, match="None for a farm on this machine"):
        FarmExecutor([])


@pytest.mark.parametrize("port", [70000, -1, "80", None])
@pytest.mark.parametrize("ask", [ping, status, end_server, start_server])
def test_every_function_that_takes_host_and_port_refuses_what_are_none(ask, port):
    with pytest.raises(AddressError):
        ask("127.0.0.1", port)


# -- whatever is given --------------------------------------------------------------------------------------

pieces = st.text() | st.sampled_from(
    [
        "[",
        "]",
        ":",
        "::1",
        "[::1]",
        "host",
        "unix:",
        "unix",
        "80",
        "70000",
        " ",
        "%",
        ".",
        "@",
        "%40",
        "?",
        "workers=",
    ]
)
texts = st.lists(pieces, max_size=6).map("".join)
ports = st.integers(0, 70000).map(str)
likely = st.one_of(
    st.tuples(texts, ports).map(":".join),
    st.tuples(texts, st.integers(-1, 70000)),
    texts.map("unix:".__add__),
    texts.map("ssh://".__add__),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | likely,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


def check(address: Address) -> None:
    assert parse_address(str(address), ssh=True) == address
    assert [bool(address.path), bool(address.host), bool(address.ssh)].count(True) == 1
    if address.path:
        assert b"\0" not in os.fsencode(address.path)
    elif address.ssh:
        for name in (address.ssh.host, address.ssh.user):
            assert name[:1] != "-"
            assert not set(name) & set("'`\"$\\;&<>|(){} \n\0")
    else:
        assert 1 <= address.port <= 65535
        assert address.host.encode("idna")
    assert address.is_local in (True, False)


@given(texts | likely)
@example("[a]:[b]:1")
@example(("[a]", 1))
@example(("a]:[b", 1))
@example(("unix:", 1))
@example("xn--:1")
@example("ssh://me%40@[::1]:22?workers=1&python=a%25b")
def test_any_text_is_an_address_error_or_an_address_that_prints_as_itself(value):
    try:
        address = parse_address(value, ssh=True)
    except AddressError as error:
        assert len(str(error)) < 800
    else:
        check(address)


@given(anything)
def test_any_object_is_an_address_error_or_addresses(value):
    try:
        addresses = parse_addresses(value)
    except AddressError:
        return
    assert addresses
    assert len(set(addresses)) == len(addresses)
    for address in addresses:
        check(address)


# -- local --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "unix:/path"])
def test_loopback_and_unix_sockets_are_local(text):
    assert parse_address(text).is_local


@pytest.mark.parametrize(
    "text", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "host:1", "127.0.0.1.example:1", "[::ffff:192.0.2.1]:1", "0:1"]
)
def test_all_else_may_be_reached_by_others(text):
    assert not parse_address(text).is_local
