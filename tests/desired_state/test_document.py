"""Bytes to models: what is read, what is refused, and that nothing but a typed error ever comes out."""

from __future__ import annotations

import io
import json
import math
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from desired_state import document, tree
from schemas.base import MAX_INTEGER, parse_time
from schemas.node import NodeConfig
from schemas.probe import ProbeDocument
from schemas.refusals import AgentTooOld, DocumentError, LimitExceeded, MalformedDocument
from schemas.snapshot import SnapshotDocument
from schemas.trust import SignatureFile, TrustDocument
from tests.desired_state.network import signature_file, snapshot_text, trust_text
from tests.support import builders

FORMS = (SnapshotDocument, TrustDocument, ProbeDocument, NodeConfig)


def read(text: str | bytes) -> Any:
    """The tree of a text."""
    content = text.encode() if isinstance(text, str) else text
    return document.parse(content, file="f.yaml")[0]


# --- the core schema ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("on", "on"),
        ("12", 12),
        ("-0", 0),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0xFf", 255),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("1:30", "1:30"),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1.0.0", "1.0.0"),
        ("-", "-"),
        ("2026-01-01", "2026-01-01"),
        ("<<"),
        (str(MAX_INTEGER), MAX_INTEGER),
    ],
)
def test_plain_scalars_mean_what_the_core_schema_says(text: str, value: object) -> None:
    """YAML 1.2 core and nothing of YAML 1.1: no sexagesimals, no underscores, no `yes`, no dates."""
    found = tree.resolve(text)
    assert (type(found), found) == (type(value), value)


def test_quotes_make_text() -> None:
    """What stands in quotes or in a block is text, whatever it looks like."""
    assert read("a: '1'\nb: \"true\"\nc: |\n  null\n") == {"a": "1", "b": "true", "c": "null\n"}


def test_merge_key_is_an_ordinary_key() -> None:
    """`<<` merges nothing: it is a key like any other, and unknown to every form."""
    assert read("a: {<<: {b: 1}}") == {"a": {"<<": {"b": 1}}}


# --- refusals -----------------------------------------------------------------------------------------------------

REFUSED = [
    pytest.param("a: &x 1", "f.yaml:1: a: the anchor &x", id="anchor"),
    pytest.param("a: &x {b: 1}", "f.yaml:1: a: the anchor &x", id="anchor-on-mapping"),
    pytest.param("&k a: 1", "f.yaml:1: the anchor &k", id="anchor-on-key"),
    pytest.param("b: 1\na: *x", "f.yaml:2: a: the alias *x", id="alias"),
    pytest.param("a: !!str 1", "f.yaml:1: a: the tag", id="tag"),
    pytest.param("a: ! 1", "f.yaml:1: a: the tag", id="non-specific-tag"),
    pytest.param("a: !!python/object/apply:os.system [id]", "f.yaml:1: a: the tag", id="tag-that-constructs"),
    pytest.param("!!map {a: 1}", "f.yaml:1: the tag", id="tag-on-root"),
    pytest.param("%TAG ! tag:x,2000:\n---\na: 1", "f.yaml:1: directives", id="tag-directive"),
    pytest.param("%YAML 1.1\n---\na: 1", "f.yaml:1: directives", id="yaml-1.1"),
    pytest.param("a:\n  b: 1\n  c: 2\n  b: 3", "f.yaml:4: a: the key 'b' stands twice", id="duplicate-key"),
    pytest.param('a: 1\n"a": 2', "f.yaml:2: the key 'a' stands twice", id="duplicate-key-in-quotes"),
    pytest.param("a: {1: 2}", "f.yaml:1: a: a key must be text", id="number-key"),
    pytest.param("a: {true: 2}", "f.yaml:1: a: a key must be text", id="boolean-key"),
    pytest.param("a: {~: 2}", "f.yaml:1: a: a key must be text", id="null-key"),
    pytest.param("? [a]\n: 1", "f.yaml:1: a key must be text", id="sequence-key"),
    pytest.param("a: 1\n---\nb: 1", "f.yaml:2: a file holds one document", id="two-documents"),
    pytest.param("", "f.yaml:1: is empty", id="empty"),
    pytest.param("# only words\n", "f.yaml:1: is empty", id="comment-only"),
    pytest.param("---\n...\n", "f.yaml:1: is empty", id="null-document"),
    pytest.param("a: .nan", "f.yaml:1: a: a number must be finite", id="nan"),
    pytest.param("a: [-.inf]", "f.yaml:1: a[0]: a number must be finite", id="infinity"),
    pytest.param("a: 1e999", "f.yaml:1: a: a number must be finite", id="overflow"),
    pytest.param("a: 9007199254740992", "f.yaml:1: a: a whole number must lie", id="integer"),
    pytest.param("a: " + "9" * 5000, "f.yaml:1: a: a number has at most", id="endless-integer"),
    pytest.param(b"a: 1\nb: \xff", "f.yaml:2: is not UTF-8", id="not-utf-8"),
    pytest.param("\ufeffa: 1", "f.yaml:1: a byte order mark", id="byte-order-mark"),
    pytest.param("a: 1".encode("utf-16"), "f.yaml:1: is not UTF-8", id="utf-16"),
    pytest.param("a: 1\nb: \x1b[2J", "f.yaml:2: the control character U+001B", id="escape-sequence"),
    pytest.param('a: "\\e[2J"', "f.yaml:1: a: the control character U+001B", id="hidden-escape-sequence"),
    pytest.param("a: \u202e1", "f.yaml:1: the control character U+202E", id="bidirectional-override"),
    pytest.param("a: x\x85b: y", "f.yaml:1: the control character U+0085", id="line-break-of-yaml-1.1"),
    pytest.param("a:\n  b: [1\nc: 2", "f.yaml:3: a.b: is not YAML: did not find", id="unclosed"),
    pytest.param("a: b: c", "f.yaml:1: is not YAML: mapping values", id="syntax"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_ambiguous_or_hostile_yaml_is_refused_with_its_place(text: str | bytes, message: str) -> None:
    """I11: every refusal names file, line and field, and is a `MalformedDocument`."""
    with pytest.raises(MalformedDocument) as caught:
        read(text)
    assert caught.value.message.startswith(message)


def nested(depth: int, opening: str, closing: str) -> bytes:
    """A document nested `depth` levels below its root."""
    return b"a: " + (opening * depth + closing * depth).encode()


LIMITS = [
    pytest.param(b"a: " + b"x" * 2**20, id="bytes"),
    pytest.param(nested(tree.MAX_DEPTH, "[", "]"), id="sequences"),
    pytest.param(nested(tree.MAX_DEPTH, "{a: ", "}"), id="mappings"),
    pytest.param(nested(100_000, "[", "]"), id="deep-sequences"),
    pytest.param(b"a: '" + b"x" * (tree.MAX_SCALAR + 1) + b"'", id="scalar"),
]


@pytest.mark.parametrize("content", LIMITS)
def test_limits_hold(content: bytes) -> None:
    """I11: size, depth and length are bounded, each with `LimitExceeded`."""
    with pytest.raises(LimitExceeded):
        read(content)


def test_limits_are_not_off_by_one() -> None:
    """Exactly the limit is still read."""
    assert read(nested(tree.MAX_DEPTH - 1, "[", "]"))
    assert read(b"a: '" + b"x" * tree.MAX_SCALAR + b"'")
    assert document.parse(b"a: 1", file="f", limit=4)


def test_number_of_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """I11: many small values are as bounded as few large ones, in both languages."""
    monkeypatch.setattr(tree, "MAX_NODES", 10)
    assert read("[1, 2, 3, 4, 5, 6, 7, 8, 9]")
    with pytest.raises(LimitExceeded, match="nodes"):
        read("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]")
    with pytest.raises(LimitExceeded, match="nodes"):
        document.parse_json(b"[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]", file="f")


def test_billion_laughs_is_refused_before_it_grows() -> None:
    """An alias bomb ends at its first anchor."""
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(MalformedDocument, match=r":1: a: the anchor"):
        read(bomb)


# --- JSON ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "finite"),
        ('{"a": 9007199254740992}', "whole number"),
        ('{"a": ' + "9" * 5000 + "}", "whole number"),
        ('{"a": 1', "f.json:1: is not JSON"),
        ('{"a": 1} x', "f.json:1: is not JSON"),
        ('{"a": "\\ud800"}', "f.json: a: the control character U+D800"),
        ('{"a": "\\u001b"}', "f.json: a: the control character U+001B"),
        ('{"\\u0000": 1}', "the control character U+0000"),
        ("", "f.json:1: is not JSON"),
    ],
)
def test_hostile_json_is_refused(text: str, message: str) -> None:
    """JSON documents follow the rules of YAML documents."""
    with pytest.raises(MalformedDocument) as caught:
        document.parse_json(text.encode(), file="f.json")
    assert message in caught.value.message


@pytest.mark.parametrize("depth", [tree.MAX_DEPTH + 1, 5_000, 100_000])
def test_deep_json_is_refused(depth: int) -> None:
    """I11: neither a little nor very much too deep ends in anything but `LimitExceeded`."""
    with pytest.raises(LimitExceeded, match="deeper"):
        document.parse_json(b"[" * depth + b"]" * depth, file="f")


def test_json_becomes_the_same_tree_as_yaml() -> None:
    """Both readers give tuples, plain numbers and text."""
    text = b'{"a": [1, 2.5, "x", null, true, {"b": []}]}'
    assert document.parse_json(text, file="f")[0] == read(text) == {"a": (1, 2.5, "x", None, True, {"b": ()})}


# --- models -------------------------------------------------------------------------------------------------------


def snapshot_yaml(text: str = "", header: str = "") -> bytes:
    """A snapshot as people write it; `text` is its spec."""
    return f"""\
apiVersion: reconcile/v1alpha1
kind: Snapshot
metadata:
  network: testnet
  sequence: 1
  trustVersion: 1
  issuedAt: "2026-01-01T00:00:00Z"
  expiresAt: "2026-02-01T00:00:00Z"
{header}spec:
{text or "  models: []"}
""".encode()


def test_a_document_is_read_into_its_model() -> None:
    """The whole way from bytes to a frozen model, extensions with sequences in them included."""
    found = document.load(snapshot_yaml("  extensions: {x: [1, [2]]}"), SnapshotDocument, file="s.yaml")
    assert found.metadata.sequence == 1
    assert found.spec.extensions == {"x": [1, [2]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  modles: []", "s.yaml:10: spec.modles: is not a known field"),
        ("  policy:\n    gc:\n      grace: 1w", "s.yaml:12: spec.policy.gc.grace: expected a duration"),
        ("  models:\n    - name: m", "s.yaml:11: spec.models[0].version: is missing (and 2 more)"),
        ("  runtimes:\n    - {name: r, engine: llamacpp}", "s.yaml:11: spec.runtimes[0].version: is missing"),
        (
            "  runtimes:\n    - name: r\n      engine: llamacpp\n      version: '1'\n      engineArgs: {threads: 0}",
            "s.yaml:14: spec.runtimes[0].engineArgs.threads: Input should be greater than or equal to 1, got '0'",
        ),
        ("  policy: {gc: {allow_empty: true}}", "s.yaml:10: spec.policy.gc.allow_empty: is not a known field"),
        ("  retry: text", "s.yaml:10: spec.retry: Input should be a valid tuple, got 'text'"),
    ],
)
def test_errors_name_file_line_and_field(text: str, message: str) -> None:
    """I11: the first mistake of the file is named with its place, and the others are counted."""
    with pytest.raises(MalformedDocument) as caught:
        document.load(snapshot_yaml(text), SnapshotDocument, file="s.yaml")
    assert caught.value.message.startswith(message)


def test_the_first_mistake_in_the_file_is_named_first() -> None:
    """Whatever order fields are checked in, people read from top to bottom."""
    content = snapshot_yaml("  policy: {x: 1}\n  models: 3\n  assignments: 4")
    with pytest.raises(MalformedDocument, match=r"s.yaml:10: spec.policy.x: .* \(and 2 more\)"):
        document.load(content, SnapshotDocument, file="s.yaml")


def test_an_address_is_not_repeated_in_an_error() -> None:
    """A repository's address may carry a password: errors are shown and kept."""
    content = b"""\
apiVersion: reconcile/v1alpha1
kind: Node
network: testnet
repositories: [{url: "http://user:secret@example.org/"}]
trust: {digest: "blake3:%s"}
stateDir: /tmp/x
""" % (b"0" * 64)
    with pytest.raises(MalformedDocument, match=r"n.yaml:4: repositories\[0\].url") as caught:
        document.load(content, NodeConfig, file="n.yaml")
    assert "secret" not in str(caught.value)


LONG = {
    "stateDir": ("/" + "x" * 4094, "/" + "x" * 4095),
    "account": ("a@" + "b" * 253, "a@" + "b" * 254),
    "url": ("https://" + "x" * 2040, "https://" + "x" * 2041),
}
"""Texts of a node's configuration: the longest that is taken, and one that is too long."""


@pytest.mark.parametrize("field", LONG)
def test_long_texts_are_bounded_beside_their_pattern(field: str) -> None:
    """Paths, accounts and addresses have a length, though no pattern counts it (I11)."""
    fits, exceeds = LONG[field]
    assert read_node(**{field: fits})
    with pytest.raises(MalformedDocument, match="at most"):
        read_node(**{field: exceeds})


@pytest.mark.parametrize("account", ["a b@c", "a@b c", "@", "a@", "0x" + "1" * 39, "0x" + "1" * 41])
def test_an_account_is_an_address_or_a_mailbox(account: str) -> None:
    """Neither white space nor half an address."""
    assert read_node(account="0x" + "1" * 40).account
    with pytest.raises(MalformedDocument):
        read_node(account=account)


def read_node(**fields: str) -> NodeConfig:
    """A node's configuration with some of its texts given."""
    texts = {"stateDir": "/tmp/x", "account": "a@b", "url": "https://example.org/", **fields}
    content = f"""\
apiVersion: reconcile/v1alpha1
kind: Node
network: testnet
repositories: [{{url: "{texts["url"]}"}}]
trust: {{digest: "blake3:{"0" * 64}"}}
stateDir: "{texts["stateDir"]}"
account: "{texts["account"]}"
"""
    return document.load(content.encode(), NodeConfig, file="n.yaml")


@pytest.mark.parametrize(
    "time", ["2026-01-31T24:00:00Z", "2026-01-31T23:59:60Z", "2026-02-30T00:00:00Z", "2026-01-31T12:00:00.5Z"]
)
def test_a_time_that_no_clock_shows_is_refused(time: str) -> None:
    """Every version of Python reads the same: no hour of 24, no leap second, no thirtieth of February."""
    assert parse_time("2026-01-31T23:59:58Z") == datetime(2026, 1, 31, 23, 59, 58, tzinfo=UTC)
    with pytest.raises(ValueError, match=r"must be in|out of range|expected a time"):
        parse_time(time)


def test_json_models_name_the_field() -> None:
    """Signature files: the field is named, though JSON has no lines worth naming."""
    content = signature_file(snapshot_text(), 11, signature="0x00")
    with pytest.raises(MalformedDocument, match=r"^sig.json: signature: String should match"):
        document.load_json(content, SignatureFile, file="sig.json")


# --- the envelope -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["reconcile/v1alpha2", "reconcile/v1beta1", "reconcile/v1", "reconcile/v2alpha1"])
def test_a_newer_form_is_not_malformed(version: str) -> None:
    """An old agent says that it is old, and not that the document is wrong, whatever else has changed in it."""
    content = snapshot_yaml("  new: {a: 1}").replace(b"reconcile/v1alpha1", version.encode())
    with pytest.raises(AgentTooOld, match=version):
        document.load(content, SnapshotDocument, file="s.yaml", agent_version="0.1.0")


@pytest.mark.parametrize("version", ["reconcile/v1alpha0", "other/v2", "reconcile/v1gamma1", "1"])
def test_a_foreign_form_is_malformed(version: str) -> None:
    """What is no newer form of ours is simply wrong."""
    content = snapshot_yaml().replace(b"reconcile/v1alpha1", f'"{version}"'.encode())
    with pytest.raises(MalformedDocument, match=r"s.yaml:1: apiVersion"):
        document.load(content, SnapshotDocument, file="s.yaml")


def test_requirement_is_read_before_anything_unknown() -> None:
    """`requires` is met or not before unknown fields count as mistakes."""
    content = snapshot_yaml("  new: 1", header='requires: {agent: ">=2"}\n')
    with pytest.raises(AgentTooOld, match=r">=2, and this is 1.9"):
        document.load(content, SnapshotDocument, file="s.yaml", agent_version="1.9")
    with pytest.raises(MalformedDocument, match="new: is not a known field"):
        document.load(content, SnapshotDocument, file="s.yaml", agent_version="2.1.dev1+local")


def test_requirement_must_be_a_specifier() -> None:
    """A requirement that cannot be understood is a mistake, and not met by anything."""
    content = snapshot_yaml(header='requires: {agent: ">=two"}\n')
    with pytest.raises(MalformedDocument, match=r"requires.agent"):
        document.load(content, SnapshotDocument, file="s.yaml", agent_version="1.0")


@pytest.mark.parametrize("content", [b"[]", b"text", b"kind: Snapshot", b"apiVersion: [1]\nkind: Snapshot"])
def test_without_an_envelope_it_is_malformed(content: bytes) -> None:
    """Whatever has no envelope is no document."""
    with pytest.raises(MalformedDocument):
        document.load(content, SnapshotDocument, file="s.yaml")


# --- held together with another reader ----------------------------------------------------------------------------

# Names that YAML 1.1 or ruamel would take for something else are left out here; the core schema's table is above.
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cn", "Cf")), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=15
)


def as_lists(value: Any) -> Any:
    """A tree as other readers would give it."""
    if isinstance(value, tuple):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {name: as_lists(item) for name, item in value.items()}
    return value


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type, all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    if isinstance(left, float):
        return math.isclose(left, right, rel_tol=0, abs_tol=0)
    return bool(left == right)


def ruamel(content: bytes) -> Any:
    """What ruamel.yaml's pure parser, in YAML 1.2, reads."""
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 2)
    return reader.load(content)


def ruamel_text(value: Any) -> bytes:
    """What ruamel.yaml writes for people: block style, plain scalars where it thinks they may be."""
    writer = YAML()
    writer.version = (1, 2)
    writer.allow_unicode = True
    stream = io.BytesIO()
    writer.dump(value, stream)
    return stream.getvalue()


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(WORDS, TREES, min_size=1, max_size=4))
def test_what_ruamel_writes_we_read_as_ruamel_does(value: dict[str, Any]) -> None:
    """Differential: on generated documents, the reader that verifies and the one that edits agree."""
    content = ruamel_text(value)
    assert same(as_lists(read(content)), ruamel(content))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(WORDS, TREES, max_size=4))
def test_json_is_yaml(value: dict[str, Any]) -> None:
    """Differential: every JSON text means the same to the YAML reader, to the JSON reader and to Python's."""
    content = json.dumps(value, ensure_ascii=False).encode()
    expected = json.loads(content)
    assert same(as_lists(read(content)), expected)
    assert same(as_lists(document.parse_json(content, file="f")[0]), expected)


PIECES_OF_YAML = st.sampled_from(
    [
        *"aq01:-,[]{}#&*!|>'\"%@`?~.\n\n \t",
        "  ",
        "- ",
        ": ",
        "a: ",
        "\n  ",
        "---\n",
        "true",
        "null",
        "1.5",
        "\\x41",
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES_OF_YAML, max_size=25).map("".join))
def test_no_scrap_of_yaml_means_two_things(text: str) -> None:
    """Differential: what both readers accept they understand alike. Either may be the stricter one.

    Not generated are plain scalars to which ruamel gives meanings that the core schema does not have: `<<`, `0b1`,
    `1_0` and dates.
    """
    content = ("k:\n  " + text.replace("\n", "\n  ")).encode()
    try:
        found = read(content)
        other = ruamel(content)
    except (DocumentError, YAMLError):
        return
    assert same(as_lists(found), other)


# --- fuzzing ------------------------------------------------------------------------------------------------------


def only_typed(content: bytes) -> None:
    """Read as everything that there is; nothing but a typed error may come out."""
    for form in FORMS:
        try:
            document.load(content, form, file="f", limit=2**16, agent_version="1.0")
        except (DocumentError, AgentTooOld) as error:
            assert str(error)  # noqa: PT017 - any other exception fails the test by itself
    try:
        document.load_json(content, SignatureFile, file="f")
    except (DocumentError, AgentTooOld) as error:
        assert str(error)  # noqa: PT017 - as above


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_only_typed_errors(content: bytes) -> None:
    """I11: whatever bytes a repository holds."""
    only_typed(content)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_documents_give_only_typed_errors(data: st.DataObject) -> None:
    """I11: real documents with bytes changed, cut out or put in."""
    base = data.draw(
        st.sampled_from(
            [snapshot_text(), trust_text(), snapshot_yaml(), signature_file(b"x", 1, signature="0x" + "1" * 130)]
        )
    )
    start = data.draw(st.integers(0, len(base)))
    end = data.draw(st.integers(start, min(len(base), start + 20)))
    only_typed(base[:start] + data.draw(st.binary(max_size=8) | st.text(max_size=8).map(str.encode)) + base[end:])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spec", "runtimes", 0, "name"), "Main", "must be a name: lower-case letters, digits and -, at most 63"),
        (("spec", "models", 0, "manifest", "digest"), "blake3:12", "must be a digest: blake3: and 64 hexadecimal"),
        (("spec", "assignments", 0, "serve", 0), "tiny", "must be NAME:VERSION"),
        (("spec", "models", 0, "sources", 0), "somewhere", "must be an address: SCHEME://"),
    ],
)
def test_people_are_told_a_form_in_words(path: tuple[Any, ...], value: str, said: str) -> None:
    """A pattern is for programs: whoever corrects the file reads what it should look like."""
    written = json.loads(builders.snapshot().to_json())
    place = written
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(MalformedDocument, match=re.escape(said)) as caught:
        document.load(json.dumps(written).encode(), SnapshotDocument, file="s.yaml")
    assert "pattern" not in caught.value.message


def test_the_cause_is_told_and_not_what_follows_from_it() -> None:
    """Of a list whose only item is wrong, what is wrong with the item: not that the list were too short."""
    written = json.loads(builders.snapshot().to_json())
    written["spec"]["assignments"][0]["serve"] = [7]
    with pytest.raises(MalformedDocument) as caught:
        document.load(json.dumps(written).encode(), SnapshotDocument, file="s.yaml")
    assert "spec.assignments[0].serve[0]: " in caught.value.message
    assert "more)" not in caught.value.message
