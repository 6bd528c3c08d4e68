"""The tree and the signed checkpoint, against published vectors and against what their definitions say.

Vectors: the eight leaves that Certificate Transparency's own implementations test by (RFC 6962), and the signed note of
the C2SP signed-note libraries.
"""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit import chained as leaf
from gateway.trail.merkle import EMPTY, Tree, consistency, included, inclusion, root_of
from gateway.trail.note import Checkpoint, NoteError, PublicKey, Signer, verified

_ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
_LEAVES = [leaf(bytes.fromhex(entry)) for entry in _ENTRIES]
_ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
_SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
_NOTE = (
    _TEXT + "\n\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


@pytest.mark.parametrize("size", _ROOTS)
def test_the_published_roots(size: int) -> None:
    assert root_of(_LEAVES[:size]).hex() == _ROOTS[size]


def _defined(leaves: list[bytes]) -> bytes:
    """The root as RFC 6962 defines it, by recursion."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + _defined(leaves[:split]) + _defined(leaves[split:])).digest()


def _numbered(size: int) -> list[bytes]:
    return [leaf(str(number).encode()) for number in range(size)]


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_tree_grown_in_parts_is_the_tree_of_all(size: int, part: int) -> None:
    leaves = _numbered(size)
    tree = Tree()
    tree.extend(leaves[:part])
    tree.extend(leaves[part:])
    assert (tree.size, tree.root) == (size, _defined(leaves))


@given(st.data())
def test_every_leaf_is_proved_and_no_other_is(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 150))
    index = data.draw(st.integers(0, size - 1))
    leaves = _numbered(size)
    root, proof = root_of(leaves), inclusion(leaves, index)
    assert included(leaves[index], index, size, proof, root)
    assert not included(leaf(b"another"), index, size, proof, root)
    assert not included(leaves[index], size, size, proof, root)
    assert not included(leaves[index], index, size, [*proof, leaf(b"more")], root)
    if proof:
        assert not included(leaves[index], index, size, proof[:-1], root)
        bent = data.draw(st.integers(0, len(proof) - 1))
        assert not included(leaves[index], index, size, [*proof[:bent], leaf(b"x"), *proof[bent + 1 :]], root)


def test_the_published_consistency_proof() -> None:
    # RFC 6962, 2.1.3: of the tree of seven leaves, PROOF(6, D) = [i, j, k] with roots of its subtrees.
    leaves = _LEAVES[:7]
    assert consistency(leaves, 6) == [root_of(leaves[4:6]), leaves[6], root_of(leaves[:4])]
    assert consistency(leaves, 4) == [root_of(leaves[4:])]
    assert consistency(leaves, 7) == []


def test_the_published_note() -> None:
    signer = Signer.parse(_SIGNER)
    assert signer.sign(_TEXT) == _NOTE
    assert signer.text() == _SIGNER
    public = PublicKey.parse(str(signer.public))
    assert verified(_NOTE, public) == _TEXT


@given(st.integers(0, len(_NOTE.encode()) - 1), st.integers(1, 255))
def test_no_byte_of_a_note_can_be_changed(place: int, change: int) -> None:
    public = Signer.parse(_SIGNER).public
    raw = bytearray(_NOTE.encode())
    raw[place] ^= change
    try:
        bent = raw.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(NoteError):
        verified(bent, public)


def test_a_signature_of_somebody_else_is_passed_over_but_is_not_enough() -> None:
    ours, other = Signer.generate("ours"), Signer.generate("ours")
    both = ours.sign(_TEXT) + other.sign(_TEXT).rpartition("\n\n")[2]
    assert verified(both, other.public) == _TEXT
    with pytest.raises(NoteError, match="not signed by ours"):
        verified(ours.sign(_TEXT), other.public)


@pytest.mark.parametrize(
    "text", ["", "x", "name+00000000+AAAA", "two words+0+x", "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"]
)
def test_a_key_that_is_none_is_said_to_be(text: str) -> None:
    with pytest.raises(NoteError):
        PublicKey.parse(text)
    with pytest.raises(NoteError):
        Signer.parse("PRIVATE+KEY+" + text)
    with pytest.raises(NoteError):
        Signer.parse(text)


def test_no_key_shows_itself() -> None:
    signer = Signer.generate("here")
    assert signer.seed.hex() not in repr(signer)
    assert repr(signer.seed) not in repr(signer)
    with pytest.raises(NoteError):
        Signer.generate("with space")


def test_a_checkpoint_is_read_back() -> None:
    made = Checkpoint(origin="trail", size=7, root=root_of(_LEAVES[:7]), at="2030-01-31T12:30:00.000Z", tips={"b": 3, "a": 9})
    assert Checkpoint.parse(made.text()) == made
    assert made.text().splitlines()[:2] == ["trail", "7"]


@pytest.mark.parametrize(
    "text", ["", "trail\n7\n", "trail\n07\nAAAA\nat x\n", "trail\n7\n?\nat x\n", "trail\n7\nAAAA\n", "t\n-1\nAAAA\nat x\n"]
)
def test_what_is_no_checkpoint_is_said_to_be_none(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)
