"""Events survive the trip to a log and back, logs survive kills and company, hooks can stop a loop."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import mmap
import multiprocessing
import sys
import threading
import time
import tracemalloc
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp import events
from interp.events import (
    BatchEnd,
    Emitter,
    Event,
    FitEnd,
    IterationEnd,
    JsonlLog,
    LensEnd,
    SlabBegin,
    Tail,
    TrainEnd,
    from_dict,
    read,
)

KINDS = sorted(
    (c for c in vars(events).values() if isinstance(c, type) and issubclass(c, Event) and c is not Event),
    key=lambda c: c.__name__,
)


def of_type(hint: object) -> st.SearchStrategy:
    """Values of a field's type hint."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(of_type(args[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), of_type(args[1]), max_size=3)
    return {
        int: st.integers(-(2**53), 2**53),
        bool: st.booleans(),
        str: st.text(max_size=20),
        float: st.floats(allow_nan=True, allow_infinity=False),
    }[hint]


def any_event(cls: type[Event]) -> st.SearchStrategy[Event]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{f.name: of_type(hints[f.name]) for f in dataclasses.fields(cls)})


def same(a: object, b: object) -> bool:
    """Equality in which NaN equals NaN and types count."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Event):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def slab(i: int) -> SlabBegin:
    return SlabBegin(slab=i, n_slabs=9, class_start=0, class_stop=8, n_pairs=16, n_inert=1)


# ------------------------------------------------------------------------------------- records


def test_the_contract_names_these_events():
    jobs = {
        "CaptureBegin BatchEnd CaptureEnd",
        "StageStep FitBegin SlabBegin IterationEnd SlabEnd FitEnd",
        "TrainBegin LensIteration LensEnd TrainEnd",
        "TaskBegin ShardEnd TaskEnd",
    }
    assert {c.__name__ for c in KINDS} == set(" ".join(jobs).split())
    assert {c.__name__ for c in KINDS if c.is_step} == {
        "BatchEnd",
        "IterationEnd",
        "LensIteration",
        "ShardEnd",
    }


@pytest.mark.parametrize("cls", KINDS, ids=lambda c: c.__name__)
@given(data=st.data())
def test_every_event_comes_back_from_json(cls, data):
    event = data.draw(any_event(cls))
    line = json.dumps(event.to_dict(), allow_nan=False)
    assert same(from_dict(json.loads(line)), event)


def test_infinities_are_written_as_null_and_read_as_nan():
    # JSON has neither, and a reader must not choke on a diverged loss.
    event = FitEnd(n_pairs=1, n_fail=0, n_polished=0, status_counts={}, seconds=math.inf)
    record = json.loads(json.dumps(event.to_dict(), allow_nan=False))
    assert record["seconds"] is None
    assert math.isnan(from_dict(record).seconds)


def test_numpy_and_torch_scalars_become_plain_numbers():
    torch = pytest.importorskip("torch")
    event = SlabBegin(
        slab=np.int64(3),
        n_slabs=torch.tensor(9),
        class_start=0,
        class_stop=np.int32(8),
        n_pairs=np.uint8(7),
        n_inert=0,
    )
    record = event.to_dict()
    assert [type(record[k]) for k in ("slab", "n_slabs", "class_stop", "n_pairs")] == [int] * 4
    assert json.loads(json.dumps(record))["slab"] == 3
    assert dataclasses.replace(slab(1), n_inert=np.float32("nan")).to_dict()["n_inert"] is None


def test_a_field_json_cannot_hold_is_refused_by_type():
    with pytest.raises(TypeError, match="got bytes"):
        dataclasses.replace(slab(1), n_inert=b"no").to_dict()


def test_events_are_frozen_and_carry_their_time():
    before = time.time()
    event = slab(1)
    assert before <= event.time <= time.time()
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.slab = 2


def test_unknown_and_incomplete_records_are_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown event 'Nonsense'.*SlabBegin"):
        from_dict({"event": "Nonsense"})
    with pytest.raises(ValueError, match="unknown event None"):
        from_dict({})
    record = slab(1).to_dict()
    del record["n_inert"]
    with pytest.raises(ValueError, match=r"SlabBegin.*n_inert"):
        from_dict(record)


def test_a_record_of_a_newer_version_is_read_without_its_new_fields():
    assert from_dict({**slab(1).to_dict(), "colour": "blue"}).slab == 1


@pytest.mark.parametrize("bad", [None, 3, "text", [1]], ids=repr)
def test_a_field_of_the_wrong_shape_is_a_value_error(bad):
    record = FitEnd(n_pairs=1, n_fail=0, n_polished=0, status_counts={}, seconds=1.0).to_dict()
    with pytest.raises(ValueError, match="FitEnd"):
        from_dict({**record, "status_counts": bad})


# ------------------------------------------------------------------------------------- emitter


def test_an_emitter_without_hooks_is_false():
    assert not Emitter(None)
    assert not Emitter([])
    assert Emitter(print)


def test_every_hook_gets_every_event_in_order():
    got: list[tuple[str, int]] = []
    emit = Emitter([lambda e: got.append(("a", e.slab)), lambda e: got.append(("b", e.slab))])
    assert emit(slab(1)) is False
    assert emit(slab(2)) is False
    assert got == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_a_stop_is_remembered_and_the_other_hooks_still_hear():
    heard = []
    emit = Emitter([lambda e: e.slab == 1, heard.append])
    assert emit(slab(0)) is False
    assert emit(slab(1)) is True
    assert emit(slab(2)) is True
    assert emit.stop is True
    assert len(heard) == 3


@pytest.mark.parametrize(("answer", "stops"), [
    (True, True), (np.True_, True), (np.False_, False), (False, False),
    (None, False), (1, False), ("yes", False), ({}, False),
], ids=repr)  # fmt: skip
def test_only_true_asks_for_a_stop(answer, stops):
    assert Emitter(lambda e: answer)(slab(0)) is stops


def test_a_writer_is_a_fine_hook():
    out = io.StringIO()
    emit = Emitter(lambda e: out.write(e.kind))  # returns a count
    assert emit(slab(1)) is False


@pytest.mark.parametrize("bad", [[print, 3], [None]], ids=repr)
def test_something_not_callable_is_refused_before_the_work_starts(bad):
    with pytest.raises(TypeError, match=r"iteration_hook: got (int|NoneType), expected a callable"):
        Emitter(bad)


def test_an_exception_in_a_hook_reaches_the_caller():
    def hook(event):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        Emitter(hook)(slab(1))


def test_a_slow_hook_is_named_in_the_log(caplog):
    def dawdler(event):
        time.sleep(0.12)

    emit = Emitter([dawdler, lambda e: None])
    emit(slab(1))
    with caplog.at_level(logging.WARNING, "interp.events"):
        emit.close()
    (record,) = caplog.records
    assert "dawdler" in record.message
    assert "0.1" in record.message


def test_waiting_in_a_gate_does_not_count_as_slow(caplog):
    class Gate:
        waited = 0.0

        def __call__(self, event):
            time.sleep(0.12)
            self.waited += 0.12

    emit = Emitter(Gate())
    emit(slab(1))
    with caplog.at_level(logging.WARNING, "interp.events"):
        emit.close()
    assert not caplog.records


# ------------------------------------------------------------------------------------ the log


def test_a_log_is_readable_after_every_event(tmp_path):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    with JsonlLog(path) as log:
        for i in range(3):
            log(slab(i))
            assert [e.slab for e in read(path)] == list(range(i + 1))


def test_a_log_is_continued_not_overwritten(tmp_path):
    for i in range(2):
        with JsonlLog(tmp_path / "log.jsonl") as log:
            log(slab(i))
    assert [e.slab for e in read(tmp_path / "log.jsonl")] == [0, 1]


def test_a_truncated_last_line_is_left_out_and_then_continued(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    with JsonlLog(path) as log:
        log(slab(0))
        log(slab(1))
    path.write_bytes(path.read_bytes()[:-20])  # killed in mid-write
    assert [e.slab for e in read(path)] == [0]

    with JsonlLog(path) as log:  # the next run must not be glued to the half line
        log(slab(2))
    with caplog.at_level(logging.WARNING, "interp.events"):
        assert [e.slab for e in read(path)] == [0, 2]
    assert "skipped a log line" in caplog.text


@pytest.mark.parametrize("junk", [b"not json\n", b'{"event":"Nope"}\n', b"[1, 2]\n", b"3\n", b"\xff\xfe\n",
                                  b'{"event":"FitEnd","status_counts":3}\n'], ids=repr)  # fmt: skip
def test_a_line_that_is_no_event_is_skipped_with_a_warning(tmp_path, caplog, junk):
    path = tmp_path / "log.jsonl"
    good = (json.dumps(slab(4).to_dict()) + "\n").encode()
    path.write_bytes(good + junk + b"\n" + good)
    with caplog.at_level(logging.WARNING, "interp.events"):
        assert [e.slab for e in read(path)] == [4, 4]
    assert "no event" in caplog.text


def test_a_line_whose_number_was_damaged_is_skipped_with_a_warning(tmp_path, caplog):
    """It is JSON and an event still: only its checksum tells."""
    path = tmp_path / "log.jsonl"
    with JsonlLog(path) as log:
        log(slab(1))
        log(slab(2))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0].replace(b'"slab":1', b'"slab":7') + lines[1])
    with caplog.at_level(logging.WARNING, "interp.events"):
        assert [e.slab for e in read(path)] == [2]
    assert "does not match its checksum" in caplog.text


def test_a_missing_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no event log at .*nowhere.*JsonlLog"):
        read(tmp_path / "nowhere")


def test_a_closed_log_refuses_events(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl")
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log(slab(1))


def _write_many(path: str, writer: int, n: int) -> None:
    with JsonlLog(path) as log:
        for i in range(n):
            log(dataclasses.replace(slab(i), class_start=writer))


def test_two_processes_may_write_one_log(tmp_path):
    path = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("spawn")
    n = 300
    writers = [context.Process(target=_write_many, args=(str(path), w, n)) for w in range(2)]
    for w in writers:
        w.start()
    for w in writers:
        w.join(60)
    found = read(path)
    assert len(found) == 2 * n  # no line torn, none lost
    for w in range(2):
        assert [e.slab for e in found if e.class_start == w] == list(range(n))


def test_two_threads_may_share_one_log(tmp_path):
    with JsonlLog(tmp_path / "log.jsonl") as log:
        threads = [threading.Thread(target=lambda: [log(slab(i)) for i in range(200)]) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(read(log.path)) == 800


# ------------------------------------------------------------------------------------ the tail


def test_a_tail_gives_each_event_once(tmp_path):
    path = tmp_path / "log.jsonl"
    tail = Tail(path)
    assert tail.poll() == []  # not there yet
    with JsonlLog(path) as log:
        log(slab(0))
        log(slab(1))
        assert [(name, e.slab) for name, e in tail.poll()] == [("log", 0), ("log", 1)]
        assert tail.poll() == []
        log(slab(2))
        assert [e.slab for _, e in tail.poll()] == [2]


def test_a_tail_waits_for_the_end_of_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    line = (json.dumps(slab(7).to_dict()) + "\n").encode()
    tail = Tail(path)
    with open(path, "ab", buffering=0) as f:
        for byte in range(len(line) - 1):
            f.write(line[byte : byte + 1])
            if byte % 16 == 0:
                assert tail.poll() == []
        f.write(b"\n" + line[:5])
        assert [e.slab for _, e in tail.poll()] == [7]
        f.write(line[5:])
        assert [e.slab for _, e in tail.poll()] == [7]


def test_a_tail_of_a_folder_finds_new_logs(tmp_path):
    tail = Tail(tmp_path)
    with JsonlLog(tmp_path / "b.jsonl") as b:
        b(slab(1))
        (tmp_path / "notes.txt").write_text("not a log\n")
        assert [(n, e.slab) for n, e in tail.poll()] == [("b", 1)]
        with JsonlLog(tmp_path / "a.jsonl") as a:
            a(slab(2))
            b(slab(3))
        assert [(n, e.slab) for n, e in tail.poll()] == [("a", 2), ("b", 3)]
    assert [f.name for f in tail.files()] == ["a.jsonl", "b.jsonl"]


def test_a_tail_left_early_goes_on_behind_the_last_event_taken(tmp_path):
    with JsonlLog(tmp_path / "a.jsonl") as a, JsonlLog(tmp_path / "b.jsonl") as b:
        for i in range(3):
            a(slab(i))
            b(slab(10 + i))
    tail, taken = Tail(tmp_path), []
    while True:
        for _, event in tail.new():
            taken.append(event.slab)
            break
        else:
            break
    assert taken == [0, 1, 2, 10, 11, 12]


def test_a_tail_holds_one_line_at_a_time(tmp_path):
    path = tmp_path / "long.jsonl"
    line = json.dumps(slab(1).to_dict()) + "\n"
    path.write_text(line * 30_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in Tail(path).new()) == 30_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000 < path.stat().st_size


def test_a_log_that_is_deleted_while_it_is_followed_is_let_go(tmp_path, monkeypatch):
    tail = Tail(tmp_path)
    with JsonlLog(tmp_path / "a.jsonl") as a, JsonlLog(tmp_path / "b.jsonl") as b:
        a(slab(1))
        b(slab(2))
    listed = tail.files()
    (tmp_path / "a.jsonl").unlink()
    monkeypatch.setattr(tail, "files", lambda: listed)  # deleted between the listing and the look into it
    assert [e.slab for _, e in tail.poll()] == [2]


def test_a_tail_starts_over_when_the_log_was_replaced(tmp_path):
    path = tmp_path / "log.jsonl"
    tail = Tail(path)
    with JsonlLog(path) as log:
        log(slab(0))
        log(slab(1))
    assert len(tail.poll()) == 2
    path.unlink()
    with JsonlLog(path) as log:
        log(slab(5))
    assert [e.slab for _, e in tail.poll()] == [5]


# ------------------------------------------------------------------------------- small helpers


def test_resident_memory_grows_with_what_is_held():
    before = events.rss_bytes()
    # Fresh pages from the system: an array might only reuse what the process holds already.
    with mmap.mmap(-1, 40_000_000) as block:
        block.write(b"x" * 40_000_000)
        assert events.rss_bytes() - before > 30_000_000


def test_bar_without_a_terminal_only_logs(caplog, capsys):
    with caplog.at_level(logging.INFO, "interp.events"), events.bar(3, "solving", "slab") as shown:
        shown.update(1)
        shown.set_postfix_str("fine")
    assert [r.message for r in caplog.records] == ["solving: 3 slab", "solving: done"]
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal_is_tqdm(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with events.bar(3, "solving", "slab") as shown:
        shown.update(3)
    assert "solving: 100%" in screen.getvalue()
    assert "3/3" in screen.getvalue()


def test_a_log_of_a_whole_run_is_small_and_ordered(tmp_path):
    """An iteration is some 400 bytes, so that a fit of 2,000 iterations stays under a megabyte."""
    sample = {int: 123456, float: 1 / 3}
    fields = {n: sample[t] for n, t in typing.get_type_hints(IterationEnd).items() if t in sample}
    with JsonlLog(tmp_path / "log.jsonl") as log:
        log(IterationEnd(**fields))
    assert Path(log.path).stat().st_size < 600


def test_the_names_in_all_exist():
    assert set(events.__all__) >= {c.__name__ for c in KINDS}
    assert all(hasattr(events, name) for name in events.__all__)
    assert {BatchEnd, LensEnd, TrainEnd} <= set(KINDS)
