"""What a cluster, or what stands before it, may answer: the right thing, or one sentence; in bounded time and memory."""

import copy
import gzip
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("opensearchpy", reason="opensearch-py is an extra: pip install 'korlab[opensearch]'")

from test_sparse_opensearch import CORPUS, ENCODER, Fake, certificate, connected, served  # noqa: E402, F401

from korlab.core.errors import LabError  # noqa: E402
from korlab.sparse import opensearch as os_  # noqa: E402
from korlab.sparse import wire  # noqa: E402
from korlab.sparse.opensearch import OpenSearchError  # noqa: E402

Answer = tuple[int, str, bytes]  # status, content type, bytes
Spoil = Callable[[Answer], Answer]
JSON = "application/json; charset=UTF-8"


def said(fake: Fake, *request) -> Answer:
    """The fake's answer, without a socket between."""
    method, path, body, headers = request
    try:
        status, answer = fake.answer(method, path, headers, gzip.decompress(body).decode() if body else "")
    except KeyError:  # an index that is not there
        status, answer = 404, {"error": {"reason": "no such index"}}
    return status, JSON, b"" if answer is None else json.dumps(answer).encode()


def used(monkeypatch, spoil: Callable[[int, str, Answer], Answer] = lambda number, request, answer: answer) -> list:
    """A collection goes in, is replaced, searched in two ways and deleted; each answer may be spoilt. What came of it."""
    fake, asked = Fake(url="http://localhost:9"), []

    def exchanged(line, end, *request) -> Answer:
        asked.append(f"{request[0]} {request[1]}")
        return spoil(len(asked) - 1, asked[-1], said(fake, *request))

    monkeypatch.setattr(wire, "_exchanged", exchanged)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    service = os_.connect(os_.connection(fake.url), retries=1)
    reports = []
    for corpus in ({"d1": CORPUS["d1"]}, CORPUS):
        reports.append(os_.index_collection(service, ENCODER, corpus, "faq", progress=False))
        if reports[-1].index not in fake.aliases["faq"] or {*fake.indices[reports[-1].index]["docs"]} != {*corpus}:
            return ["wrong: it said that all is in"]
    found = [os_.search_collection(service, ENCODER, {"q1": "서울 기차", "q2": "부산"}, "faq", mode) for mode in ("sparse", "hybrid")]
    return [*reports, *found, os_.delete(service, reports[-1].index), not fake.indices]


# --- mutations --------------------------------------------------------------------------------------------------------

VALUES = [None, True, False, 0, -1, 10**30, 1e308, "5", "", "x\ny", [], {}, [[]], [{}], {"a": {}}]
BODIES = {
    "text/html": b"<html><body>502 Bad Gateway</body></html>", "application/cbor": b"\xa1eerrorfTooBig", JSON: b"5", "text/plain": b"ok",
    "application/json": b'{"count": NaN}', "application/x-ndjson": b"{}\n{}", "": b"{}", "application/yaml": b"count: 3", "image/png": b"\x89PNG",
}
RAWS = [b"", b"null", b'"x"', b"[]", b"{}", b"[" * 50_000, b"9" * 5_000, b"\xff\xfe", b'{"a": 1e999}', b'{"error": 5}', b'{"error": {"root_cause": []}}']
STATUSES = [100, 204, 206, 301, 302, 307, 400, 401, 403, 404, 408, 409, 413, 418, 429, 500, 502, 503, 504, 599]


def ways(value, path=()) -> Iterator[tuple]:
    """To every value inside an answer; of a list the first two."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(min(len(value), 2)) if isinstance(value, list) else ():
        yield from ways(value[key], (*path, key))


def changed(raw: bytes, path: tuple, change: Callable) -> bytes:
    """An answer with another value in it."""
    new = copy.deepcopy(json.loads(raw))
    holder = new
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return json.dumps(new).encode()


def doubled(holder, key) -> None:
    """What stands here, once more."""
    if isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[f"{key}2"] = holder[key]


def put(value) -> Callable:
    return lambda holder, key: holder.__setitem__(key, value)


def spoils(status: int, raw: bytes) -> Iterator[Answer]:
    """All that may stand in the place of an answer."""
    yield from ((status, kind, body) for kind, body in BODIES.items())
    yield from ((status, JSON, body) for body in RAWS)
    yield from ((other, kind, body) for other in STATUSES for kind, body in ((JSON, raw), (JSON, b'{"error": {"reason": "no"}}'), ("text/html", b"<p>")))
    if raw:
        yield from ((status, JSON, raw[:size]) for size in range(1, len(raw), 1 + len(raw) // 6))
        for path in ways(json.loads(raw)):
            yield from ((status, JSON, changed(raw, path, put(value))) for value in VALUES)
            yield from ((status, JSON, changed(raw, path, change)) for change in (lambda holder, key: holder.pop(key), doubled))


@pytest.fixture(scope="module")
def mutations() -> list[tuple[int, str, Answer]]:
    """(which request, its name, what is answered), of each kind of request the first and the last."""
    with pytest.MonkeyPatch.context() as patch:
        heard: dict[str, list] = {}

        def listen(number: int, request: str, answer: Answer) -> Answer:
            kind = " ".join("…" if "faq-" in part else part for part in request.replace("/", " / ").split())
            heard.setdefault(kind, []).append((number, request, answer))
            return answer

        assert used(patch, listen)[-2:] == [True, True]
    picked = {number: (number, request, answer) for group in heard.values() for number, request, answer in (group[0], group[-1])}
    return [(number, request, spoilt) for number, request, (status, _, raw) in picked.values() for spoilt in spoils(status, raw)]


def fates(monkeypatch, mutations: list) -> Counter:
    """What becomes of the work when one answer is another."""
    right, done = used(monkeypatch), Counter[str]()
    for number, request, spoilt in mutations:
        what = f" of {spoilt} to {request}"
        try:
            after = used(monkeypatch, lambda place, asked, answer: spoilt if place == number else answer)
        except LabError as error:
            one = "\n" not in str(error) and len(str(error)) < 700 and "localhost" not in str(error)
            done["refused" if one else f"no sentence: {error}{what}"] += 1
        except Exception as error:
            done[f"raw {type(error).__name__}: {error}{what}"] += 1
        else:
            wrong = any(str(one).startswith("wrong") for one in after)
            done[f"wrong{what}" if wrong else "the same" if after == right else "another, in its type"] += 1
    return done


FATES = {"refused", "the same", "another, in its type"}


def test_no_answer_is_a_traceback_or_a_silent_loss(monkeypatch, mutations):
    done = fates(monkeypatch, mutations[:: len(mutations) // 120])
    assert set(done) <= FATES and done["refused"] > 60, done


@pytest.mark.slow
def test_every_answer_in_every_way(monkeypatch, mutations):
    done = fates(monkeypatch, mutations)
    print(len(mutations), dict(done))
    assert set(done) <= FATES and len(mutations) > 2_151, {what: count for what, count in done.items() if what not in FATES}


# --- over a socket ----------------------------------------------------------------------------------------------------


@contextmanager
def raw(*pieces: bytes, pause: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends these bytes to everybody, whatever is asked: its address, and what it was asked."""
    server, heard, over = socket.create_server(("127.0.0.1", 0)), list[bytes](), threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                line, _ = server.accept()
                with line:
                    heard.append(line.recv(65_536))
                    for piece in pieces:
                        line.sendall(piece)
                        over.wait(pause)
            except OSError:  # the client went away
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.getsockname()[1]}", heard
    finally:
        over.set()
        socket.create_connection(server.getsockname()).close()
        thread.join()
        server.close()


def http(body: bytes, *headers: str, status: str = "200 OK", kind: str = JSON) -> bytes:
    """An answer as it is sent."""
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers, "", ""]).encode() + body


ABOUT = b'{"version": {"number": "3.3.0", "distribution": "opensearch"}}'
PACKED = gzip.compress(ABOUT)
TROUBLES = {
    "whole": (http(ABOUT, f"Content-Length: {len(ABOUT)}"), None),
    "whole, packed": (http(PACKED, "Content-Encoding: gzip", f"Content-Length: {len(PACKED)}"), None),
    "whole, in chunks": (http(b"%x\r\n%s\r\n0\r\n\r\n" % (len(ABOUT), ABOUT), "Transfer-Encoding: chunked"), None),
    "whole, to the end": (http(ABOUT), None),
    "shorter than said": (http(ABOUT, "Content-Length: 999"), "no answer from the cluster at KORLAB_OPENSEARCH_URL (IncompleteRead)"),
    "a chunk that is none": (http(b"zz\r\n", "Transfer-Encoding: chunked"), "no answer from the cluster"),
    "nothing": (b"", "no answer from the cluster"),
    "no HTTP": (b"220 mail.example ESMTP\r\n", "answered GET / with what cannot be used (BadStatusLine): does its address lead to OpenSearch"),
    "another packing": (http(b"x", "Content-Encoding: br"), "it is packed as 'br', which was not asked for"),
    "broken packing": (http(PACKED[:-9], "Content-Encoding: gzip"), "what it is packed in does not end where it should"),
    "no packing": (http(ABOUT, "Content-Encoding: gzip"), "incorrect header check"),
    "too many headers": (http(ABOUT, *[f"x{i}: y" for i in range(200)]), "(HTTPException)"),
    "too long": (http(gzip.compress(bytes(65 << 20), 1), "Content-Encoding: gzip"), "it is longer than 64 MiB, so ask for fewer hits"),
    "a page": (http(b"<html>", kind="text/html"), "it is 'text/html' and no JSON; is it OpenSearch, and what stands before it?"),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_what_is_sent_is_read_whole_or_refused(name):
    answer, sentence = TROUBLES[name]
    with raw(answer) as (url, _):
        if sentence is None:
            assert os_.connect(os_.connection(url)).version == (3, 3, 0)
            return
        with pytest.raises(OpenSearchError) as caught:
            os_.connect(os_.connection(url))
    assert sentence in str(caught.value) and url.split("//")[1] not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("start", [b"", http(b"", f"Content-Length: {len(ABOUT)}")], ids=["from the first byte", "in the body"])
def test_a_server_that_drips_is_not_waited_for(start):
    """Each byte comes in good time, all of them would take an hour."""
    began = time.monotonic()
    with raw(start, *[b"H"] * 1000, pause=0.05) as (url, _), pytest.raises(OpenSearchError, match="GET / took more than 0.4 seconds"):
        os_.connect(os_.connection(url), seconds=0.4)
    assert time.monotonic() - began < 20  # on a busy machine; a timeout from byte to byte would never end


def test_a_password_follows_no_redirect():
    with raw(http(ABOUT, "Content-Length: 62")) as (other, there):
        with raw(http(b"", f"Location: {other}/", "Content-Length: 0", status="307 Temporary Redirect")) as (url, here):
            with pytest.raises(OpenSearchError, match="sends GET / elsewhere .status 307., where no password follows") as caught:
                os_.connect(os_.connection(url, "lab", "very-secret"))
    assert b"uthorization: Basic" in here[0] and not any(there) and "very-secret" not in str(caught.value) and other not in str(caught.value)


def test_https_that_is_none_is_no_matter_of_certificates(certificate, tmp_path):  # noqa: F811
    with raw(http(ABOUT)) as (url, _), pytest.raises(OpenSearchError, match="cannot be reached by https .* is its address one of http"):
        os_.connect(os_.connection(url.replace("http:", "https:")))
    with served(Fake(), certificate) as running, pytest.raises(OpenSearchError, match="KORLAB_OPENSEARCH_URL"):
        os_.connect(os_.connection(running.url.replace("https:", "http:")))
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(OpenSearchError, match="KORLAB_OPENSEARCH_CA names a file without a certificate"):
        os_.connection("https://localhost", ca=str(tmp_path / "ca.pem"))
    assert ssl.create_default_context(cafile=certificate[0]).get_ca_certs()


def test_a_bulk_answer_that_leaves_a_document_out_is_no_success(monkeypatch):
    """The client library's own helper took what was not named for stored."""
    with served(Fake()) as fake:
        real = fake.bulk
        monkeypatch.setattr(fake, "bulk", lambda text: {**(answer := real(text)), "items": answer["items"][:-1]})
        with pytest.raises(OpenSearchError, match="answered for other documents than the 4 that were sent"):
            os_.index_collection(connected(fake), ENCODER, CORPUS, "faq", progress=False)
        assert "faq" not in fake.aliases


def test_a_note_of_another_making_is_named(monkeypatch):
    """What the index says of itself comes from the cluster as well."""
    with served(Fake()) as fake:
        service = connected(fake)
        name = os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False).index
        note = fake.indices[name]["mappings"]["_meta"]["korlab"]
        for spoilt, what in ((note | {"layout": {"field": "rank_features", "new": 1}}, "'new' was unexpected"), ({"keys": note["keys"]}, "required")):
            fake.indices[name]["mappings"]["_meta"]["korlab"] = spoilt
            with pytest.raises(OpenSearchError, match=f"what {name} says of its making cannot be used .note: .*{what}.*index the collection again"):
                os_.search_collection(service, ENCODER, {"q": "서울"}, "faq")


def test_many_hits_are_asked_for_in_several_requests():
    with served(Fake()) as fake:
        service = connected(fake)
        os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
        found = os_.search_collection(service, ENCODER, {f"q{i}": "부산" for i in range(5)}, "faq", k=10_000)
        assert [len(r[3].splitlines()) // 2 for r in fake.requests("_msearch")] == [2, 2, 1] and all(hits[0].id == "d2" for hits in found.values())
