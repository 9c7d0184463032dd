"""The client: the pipeline's answers from afar, errors as this package has them, restarts without errors, and the command line."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from f2edge.cli.main import run
from f2edge.client.aio import AsyncClient
from f2edge.client.messages import FrameRequest, StepMerger
from f2edge.client.sync import Client
from f2edge.decoding.parallel import StepEvent
from f2edge.engine.requests import Done, EditRequest, GenerateRequest, Timings, Token
from f2edge.errors import (
    BackendError,
    CancelledError,
    DeadlineExceededError,
    F2EdgeError,
    ImageError,
    InputError,
    PromptError,
    QueueFullError,
    ServerError,
    ServerUnavailableError,
    UnknownAttributeError,
    UnknownRegionError,
)
from f2edge.face_model import FaceModel
from f2edge.imaging.images import load_image
from f2edge.pipeline import FacePipeline
from f2edge.provenance.label import EDITED, GENERATED, read_label
from f2edge.results import GeneratedFace, GenerateOptions
from tests.support.serving import (
    SETTINGS,
    ScriptedEngine,
    ServerThread,
    asking,
    eventually,
    paper_pipeline,
    paper_served,
    photo,
    scripted,
    serving,
)

pytestmark = pytest.mark.runtime
PROMPT = "a smiling woman"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FacePipeline:
    return paper_pipeline(tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a server with the same model as ``pipeline``."""
    with serving(paper_served(paper_pipeline(tmp_path_factory.mktemp("served")))) as server, Client(server.address) as made:
        yield made


@pytest.fixture
def remote(server: ServerThread) -> Iterator[Client]:
    """Of a server with a scripted engine."""
    with Client(server.address) as made:
        yield made


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


# The pipeline's answers ------------------------------------------------------------------------------------------------------------------


def test_a_client_and_a_pipeline_are_the_same_kind_of_model(client: Client, pipeline: FacePipeline) -> None:
    models: list[FaceModel] = [client, pipeline]  # mypy holds the protocol
    assert len({(model.bundle.name, model.bundle.regions, tuple(model.bundle.schema)) for model in models}) == 1
    assert client.backend.name.startswith("paper at 127.0.0.1:")
    assert client.bundle.generation == pipeline.bundle.generation
    assert client.bundle.editing == pipeline.bundle.editing


def test_faces_steps_and_pictures_are_the_pipelines(client: Client, pipeline: FacePipeline) -> None:
    options = GenerateOptions(steps=3, order="halton")
    events: dict[FaceModel, list[StepEvent]] = {client: [], pipeline: []}
    models: tuple[FaceModel, ...] = (client, pipeline)
    ours, theirs = (
        model.generate([PROMPT, "a man"], seeds=[5, 2**63], options=options, on_step=events[model].append, preview_images=True)
        for model in models
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one.seed, one.prompt, one.options) == (other.seed, other.prompt, other.options)
        assert np.array_equal(one.codes, other.codes)
        assert same(one.image, other.image)
        assert len(one.step_ms) == 3
    assert [event.step for event in events[client]] == [event.step for event in events[pipeline]] == [1, 2, 3]
    for number, mine in enumerate(events[client]):
        later = events[pipeline][number:]  # a server that runs ahead of its caller leaves previews out; the next one stands in
        for row in range(2):
            assert any(np.array_equal(mine.codes[row], e.codes[row]) and np.array_equal(mine.proposal[row], e.proposal[row]) for e in later)
        assert [image.size for image in mine.images] == [image.size for image in events[pipeline][number].images]
    assert np.array_equal(events[client][-1].codes, events[pipeline][-1].codes)
    assert same(events[client][-1].images[1], theirs[1].image)


def test_more_faces_than_go_at_once(client: Client, pipeline: FacePipeline) -> None:
    seeds = list(range(10))
    options = GenerateOptions(steps=1)
    for one, other in zip(
        client.generate(PROMPT, seeds=seeds, options=options), pipeline.generate(PROMPT, seeds=seeds, options=options), strict=True
    ):
        assert np.array_equal(one.codes, other.codes)


def mask() -> Image.Image:
    picture = Image.new("L", (300, 200))
    picture.paste(255, (0, 0, 150, 200))
    return picture


@pytest.mark.parametrize(
    "region", ["hair", (0.0, 0.0, 0.5, 1.0), (100, 0, 80, 90), mask(), np.eye(8, dtype=bool)], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("keep_outside", [True, False])
def test_edits_are_the_pipelines(client: Client, pipeline: FacePipeline, region: Any, keep_outside: bool) -> None:
    picture = load_image(photo((300, 200)))
    ours, theirs = (model.edit(picture, PROMPT, region, seed=3, keep_outside=keep_outside) for model in (client, pipeline))
    assert np.array_equal(ours.codes, theirs.codes)
    assert np.array_equal(ours.original_codes, theirs.original_codes)
    assert np.array_equal(ours.region, theirs.region)
    assert same(ours.image, theirs.image)


def test_words_and_reports_are_the_pipelines(client: Client, pipeline: FacePipeline, tmp_path: Path) -> None:
    picture = load_image(photo((300, 200)))
    path = tmp_path / "photo.png"
    path.write_bytes(photo((300, 200)))
    pieces: list[str] = []
    answer = client.ask(picture, "what?", max_tokens=12, on_token=pieces.append)
    local = pipeline.ask(picture, "what?", max_tokens=12)
    assert (answer.text, answer.tokens) == (local.text, local.tokens)
    assert "".join(pieces).strip() == answer.text
    assert client.describe(path.read_bytes(), max_tokens=5).text == pipeline.describe(picture, max_tokens=5).text
    assert client.analyze([picture, picture]) == pipeline.analyze([picture, picture])
    names = ["age", "hair_color"]
    assert client.analyze(str(path), attributes=names) == pipeline.analyze(picture, attributes=names)


def test_frames_are_reported_as_pictures_are(client: Client, pipeline: FacePipeline) -> None:
    picture = load_image(photo((128, 128)))
    (answer,) = client.analyze_frames([FrameRequest(picture, number=7)], attributes=["age"], include_sensitive=True)
    assert (answer.number, answer.problem, answer.dropped) == (7, "", 0)
    assert answer.reports == (pipeline.analyze(picture, attributes=["age"], include_sensitive=True)[0],)
    (answer,) = client.analyze_frames([FrameRequest(picture, faces=[(4, 4, 60, 60), (60, 60, 64, 64)])])
    assert len(answer.reports) == 2
    assert list(answer.reports[0].probabilities) == [slot.name for slot in client.schema.values() if not slot.sensitive]


def test_streams_give_the_engines_events(client: Client, pipeline: FacePipeline) -> None:
    request = GenerateRequest(PROMPT, 1, GenerateOptions(steps=4), preview_every=2)
    *progress, done = client.stream_generate(request)
    assert [event.step for event in progress if isinstance(event, StepEvent)] == [2]
    assert isinstance(done, Done)
    assert isinstance(done.result, GeneratedFace)
    assert np.array_equal(done.result.codes, pipeline.generate(PROMPT, seeds=1, options=GenerateOptions(steps=4))[0].codes)
    assert (done.steps, done.steps_planned, done.degraded) == (4, 4, False)
    *_, edited = client.stream_edit(EditRequest(load_image(photo()), PROMPT, "hair", preview_every=1))
    assert isinstance(edited, Done)
    events = list(client.stream_ask(photo(), "what?", max_tokens=4))
    assert all(isinstance(event, Token) for event in events[:-1])
    assert isinstance(events[-1], Done)


def test_the_merger_emits_steps_of_all_rows_in_order() -> None:
    def at(step: int) -> StepEvent:
        codes = np.full((1, 4), step, dtype=np.int64)
        return StepEvent(step, 3, codes, codes, 1.0)

    face = GeneratedFace(Image.new("RGB", (8, 8)), np.full(4, 3), "", 0, None, ())  # type: ignore[arg-type]
    done = Done(face, Timings(0, 0, 0), 3, 3)
    merger = StepMerger(2)
    assert merger.add(0, at(1)) == []
    assert merger.add(0, at(2)) == []
    assert merger.add(0, done) == []
    (first, second) = merger.add(1, at(2))  # the server left step 1 of this row out
    assert [event.step for event in (first, second)] == [1, 2]
    assert first.codes[:, 0].tolist() == [1, 2]
    (last,) = merger.add(1, done)
    assert (last.step, last.codes[:, 0].tolist(), len(last.images)) == (3, [3, 3], 2)


# Errors ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda c: c.generate(""), PromptError),
        (lambda c: c.ask(photo(), "what?", max_tokens=-1), InputError),
        (lambda c: c.describe(photo(), max_tokens=0), InputError),
        (lambda c: c.analyze(photo(), attributes=["\ud800"]), UnknownAttributeError),
        (lambda c: c.edit(photo(), PROMPT, "\ud800"), UnknownRegionError),
        (lambda c: c.generate(PROMPT, options=GenerateOptions(steps=10**12)), InputError),
        (lambda c: c.generate(PROMPT, options=GenerateOptions(order="\ud800")), InputError),
        (lambda c: c.ask(photo(), "what?", timeout_s=float("inf")), InputError),
        (lambda c: c.generate("\ud800"), PromptError),
        (lambda c: c.edit(photo(), "\ud800", "hair"), PromptError),
        (lambda c: c.ask(photo(), "\ud800"), PromptError),
        (lambda c: c.ask(photo(), "\x00"), PromptError),
        (lambda c: c.edit(photo(), PROMPT, "ears"), UnknownRegionError),
        (lambda c: c.edit(photo(), PROMPT, (900, 900, 1, 1)), InputError),
        (lambda c: c.analyze(photo(), attributes=["shoe_size"]), UnknownAttributeError),
        (lambda c: c.analyze(photo(), attributes=[]), InputError),
        (lambda c: c.describe(b"nothing"), ImageError),
        (lambda c: c.generate(PROMPT, options=GenerateOptions(steps=0)), InputError),
        (lambda c: c.generate(PROMPT, seeds=-1), InputError),
        (lambda c: c.generate(PROMPT, seeds=2**64), InputError),
        (lambda c: c.generate(["a", "b"], seeds=[1, 2, 3]), InputError),
        (lambda c: c.ask(photo(), "what?", timeout_s=0), InputError),
    ],
)
def test_bad_input_raises_what_the_pipeline_raises(client: Client, call: Callable[[Client], Any], kind: type[F2EdgeError]) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    assert type(caught.value) is kind


def test_a_full_queue_says_when_to_come_back(remote: Client, engine: ScriptedEngine) -> None:
    engine.refusal = QueueFullError("full", 750)
    with pytest.raises(QueueFullError) as caught:
        remote.generate(PROMPT)
    assert caught.value.retry_after_ms == 750


def test_a_failing_engine_is_the_servers_error(remote: Client, engine: ScriptedEngine) -> None:
    engine.failure = BackendError("/secret")
    with pytest.raises(ServerError, match=r"INTERNAL: internal error.*request [0-9a-f]{16}"):
        remote.generate(PROMPT)


def test_a_deadline_passes(remote: Client, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    with pytest.raises(DeadlineExceededError):
        remote.generate(PROMPT, timeout_s=0.3)
    assert eventually(lambda: not engine.open_requests)


def test_one_of_several_calls_that_fails_ends_the_others(remote: Client, engine: ScriptedEngine) -> None:
    remote.bundle  # noqa: B018  the facts are fetched before the engine is disturbed
    engine.steps, engine.step_s = 10_000, 0.01
    engine.refuse = lambda request: QueueFullError("full", 100) if getattr(request, "seed", 0) == 2 else None
    with pytest.raises(QueueFullError):
        remote.generate(PROMPT, seeds=[1, 2, 3])
    assert eventually(lambda: not engine.open_requests)


def test_one_of_several_faces_that_fails_ends_the_others(remote: Client, engine: ScriptedEngine) -> None:
    remote.bundle  # noqa: B018  the facts are fetched before the engine is disturbed
    engine.steps, engine.step_s = 10_000, 0.01
    red, *others = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]

    def refuse(request: Any) -> Exception | None:
        """The red one, once the others are at work."""
        if not same(request.images[0], red):
            return None
        assert eventually(lambda: len(engine.open_requests) == 2)
        return QueueFullError("full", 100)

    engine.refuse = refuse
    with pytest.raises(QueueFullError):
        remote.analyze([red, *others])
    assert eventually(lambda: not engine.open_requests)


def test_bad_input_among_good_starts_nothing(remote: Client, engine: ScriptedEngine) -> None:
    with pytest.raises(PromptError):
        remote.generate([PROMPT, "", PROMPT], seeds=[1, 2, 3])
    with pytest.raises(InputError):
        remote.generate([PROMPT, PROMPT], seeds=[1, -1])
    assert not engine.submitted


def test_leaving_a_stream_early_stops_the_work(remote: Client, engine: ScriptedEngine) -> None:
    engine.steps, engine.step_s = 10_000, 0.01
    for event in remote.stream_generate(GenerateRequest(PROMPT, preview_every=1)):
        assert isinstance(event, StepEvent)
        break
    assert eventually(lambda: not engine.open_requests)


def test_a_server_on_this_machine_is_asked_past_every_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(scripted(ScriptedEngine())) as server:
        port = server.address.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost"):
            with Client(f"{host}:{port}") as client:
                assert client.bundle.name == "scripted"


def test_nobody_there() -> None:
    start = time.monotonic()
    with (
        Client("127.0.0.1:9", connect_s=0.3) as client,
        pytest.raises(ServerUnavailableError, match=r"no server answers at 127.0.0.1:9 within 0.3 s"),
    ):
        client.generate(PROMPT)
    assert time.monotonic() - start < 5


def test_a_restart_is_noticed_by_nobody() -> None:
    """Clients that ask all the time, and a server that is replaced under them: no call fails, none is lost."""
    thread = ServerThread(SETTINGS, scripted(ScriptedEngine(steps=4, step_s=0.01))).start()
    settings = replace(SETTINGS, port=int(thread.address.rpartition(":")[2]))
    with asking(settings.target) as asked:
        for _ in range(3):
            assert asked.more(8)
            assert thread.stop(10.0)
            thread = ServerThread(settings, scripted(ScriptedEngine(steps=4, step_s=0.01))).start()
        assert asked.more(8)
    thread.stop()
    assert asked.errors == []


# asyncio ---------------------------------------------------------------------------------------------------------------------------------


def test_the_asyncio_client_says_the_same(client: Client) -> None:
    picture = load_image(photo((300, 200)))

    async def ask_all() -> tuple[Any, ...]:
        async with AsyncClient(client.connection) as remote:
            faces = await asyncio.gather(*(remote.generate(PROMPT, seeds=seed) for seed in (1, 2)))
            steps = [event async for event in remote.stream_generate(GenerateRequest(PROMPT, 1, preview_every=1))]
            edited = await remote.edit(picture, PROMPT, "hair", seed=4)
            answer = await remote.ask(picture, "what?", max_tokens=6)
            words = await remote.describe(picture, max_tokens=6)
            (report,) = await remote.analyze(picture)

            async def frames() -> AsyncIterator[FrameRequest]:
                yield FrameRequest(picture, number=3)

            seen = [frame async for frame in remote.analyze_frames(frames(), attributes=["age"], include_sensitive=True)]
            with pytest.raises(PromptError):
                await remote.generate("")
            return faces, steps, edited, answer, words, report, seen

    faces, steps, edited, answer, words, report, seen = asyncio.run(ask_all())
    assert [face.codes.tolist() for (face,) in faces] == [client.generate(PROMPT, seeds=seed)[0].codes.tolist() for seed in (1, 2)]
    assert isinstance(steps[0], StepEvent)
    assert isinstance(steps[-1], Done)
    assert np.array_equal(edited.codes, client.edit(picture, PROMPT, "hair", seed=4).codes)
    assert answer.text == client.ask(picture, "what?", max_tokens=6).text
    assert words.text == client.describe(picture, max_tokens=6).text
    assert report == client.analyze(picture)[0]
    assert [(frame.number, len(frame.reports)) for frame in seen] == [(3, 1)]


def test_cancelling_a_task_stops_the_work(remote: Client, engine: ScriptedEngine) -> None:
    engine.steps, engine.step_s = 10_000, 0.01

    async def main() -> None:
        async with AsyncClient(remote.connection) as other:
            task = asyncio.create_task(other.generate(PROMPT))
            assert await asyncio.to_thread(eventually, lambda: bool(engine.open_requests))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert eventually(lambda: not engine.open_requests)


def test_a_closed_client_cancels(remote: Client, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            remote.ask(photo(), "what?")
        except F2EdgeError as error:
            raised.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert eventually(lambda: len(engine.submitted) == 1)
    remote.close()
    worker.join(10)
    assert [type(error) for error in raised] == [CancelledError]
    assert eventually(lambda: not engine.open_requests)


# The command line -------------------------------------------------------------------------------------------------------------------------


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    table: dict[str, Any] = json.loads(capsys.readouterr().out)
    return table


def test_every_verb_asks_the_server(
    client: Client, pipeline: FacePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    at = ("--server", client.connection.target)
    made = document(capsys, "generate", PROMPT, "--seed", "7", "--count", "2", "--save-steps", "steps", *at)
    faces = pipeline.generate(PROMPT, seeds=[7, 8])
    assert [row["tokens"] for row in made["faces"]] == [face.codes.tolist() for face in faces]
    assert made["backend"].startswith("paper at ")
    assert same(load_image("face-2.png"), faces[1].image)
    assert len(list(Path("steps").iterdir())) == 4
    label = read_label("face-1.png")
    assert label is not None
    assert (label.source_type, label.bundle) == (GENERATED, pipeline.bundle.name)
    edited = document(capsys, "edit", "face-1.png", "a man", "-r", "0,0,1,0.5", "--seed", "1", *at)
    assert edited["tokens"] == pipeline.edit(faces[0].image, "a man", (0, 0, 1, 0.5), seed=1).codes.tolist()
    label = read_label("edited.png")
    assert label is not None
    assert label.source_type == EDITED
    assert document(capsys, "describe", "face-1.png", *at)["answer"] == pipeline.describe(faces[0].image).text
    assert document(capsys, "ask", "face-1.png", "what?", *at)["answer"] == pipeline.ask(faces[0].image, "what?").text
    report = document(capsys, "analyze", "face-1.png", "--attributes", "hair_color", *at)["attributes"]
    best = pipeline.analyze(faces[0].image, attributes=["hair_color"])[0].best
    assert {name: row["value"] for name, row in report.items()} == best
    assert document(capsys, "info", *at)["bundle"]["name"] == pipeline.bundle.name


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", PROMPT, "--server", "127.0.0.1:9"], 1, "no server answers at 127.0.0.1:9"),
        (["generate", PROMPT, "--server", "somewhere else"], 2, "give host:port"),
        (["generate", PROMPT, "--server", "127.0.0.1"], 2, "give host:port"),
        (["generate", PROMPT, "--server", "http://127.0.0.1:9"], 2, "give host:port"),
        (["generate", PROMPT, "--server", "127.0.0.1:99999"], 2, "give host:port"),
        (["generate", PROMPT, "--server", "127.0.0.1:port"], 2, "give host:port"),
        (["generate", PROMPT, "--server", "h\udce9:9"], 2, "give host:port"),
        (["generate", PROMPT, "--server", "127.0.0.1:9", "--threads", "2"], 2, "leave out --bundle"),
        (["top", "127.0.0.1:9", "--once"], 1, "no metrics at http://127.0.0.1:9/metrics"),
        (["top", "nowhere"], 2, "give HOST:PORT"),
        (["serve", "--host", "0.0.0.0"], 2, "needs TLS"),
        (["serve", "--tls-cert", "x.pem"], 2, "both --tls-cert and --tls-key"),
        (["serve", "--port", "99999"], 2, "--port 99999"),
        (["serve", "--port", "0", "--backend", "magic"], 2, "--backend 'magic': unknown"),
        (["serve", "--port", "0", "--threads", "0"], 2, "--threads 0"),
        (["serve", "--grace", "inf"], 2, "grace_s must lie in 0 …"),
        (["token", "no/name"], 2, "use letters"),
    ],
)
def test_a_command_line_that_cannot_work(
    arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("f2edge.cli.options.CONNECT_S", 0.3)
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


def test_an_address_in_use_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(None) as server:
        from f2edge.server.lifecycle import FaceServer

        async def second() -> None:
            await FaceServer(replace(SETTINGS, port=int(server.address.rpartition(":")[2]))).start()

        with pytest.raises(InputError, match="cannot be bound"):
            asyncio.run(second())


def test_pictures_travel_small(remote: Client, engine: ScriptedEngine) -> None:
    """A photograph is sent as the model sees it."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 1200, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    remote.ask(buffer.getvalue() if len(buffer.getvalue()) < 4 << 20 else noise, "what?")
    assert engine.submitted[0][0].image.size == (32, 32)


def test_what_became_of_the_words_crosses_the_wire(server: ServerThread) -> None:
    with Client(server.address) as client:
        face = client.generate(PROMPT)[0]
    assert face.unmatched == ("pirate", "eye patch")
    assert face.wording.corrected == {"galsses": "glasses"}
