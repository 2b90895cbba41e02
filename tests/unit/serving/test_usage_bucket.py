"""Records in a bucket: the replica's own writer, its copies in an S3, and the reader of `modelfleet usage`."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from modelfleet.infra.reading.node_hours import read_node_hours
from modelfleet.infra.reading.usage import read_usage
from modelfleet.infra.reading.usage_bucket import fetch_usage
from modelfleet.serving import usage_bucket
from modelfleet.serving.app import AppArgs, application
from modelfleet.serving.config.errors import Finding, SetupError
from modelfleet.serving.errors import WeightsError
from modelfleet.serving.node_hours import NodeHours
from modelfleet.serving.replica import VllmReplica
from modelfleet.serving.usage import UsageMeter
from modelfleet.serving.usage_bucket import QUIET_S, BucketCopy
from tests.unit.serving.conftest import HalfANode
from tests.unit.serving.test_engine_args import model
from tests.unit.serving.test_usage import Answer, ask, meter_of

PREFIX = "usage/stack=prod"
URI = f"s3://fleet/{PREFIX}"


def replica(folder: Path, name: str, *answers: Answer) -> UsageMeter:
    """A replica's meter; each request of it answers all of `answers`."""
    meter = meter_of(folder / "org--model", *answers)
    meter.replica = meter._files.name = name
    return meter


def fetched(s3: Any, folder: Path, since: datetime | None = None) -> tuple[list[dict[str, Any]], list[Finding]]:
    faults: list[Finding] = []
    began = since or datetime.now(UTC) - timedelta(hours=1)
    fetch_usage("fleet", PREFIX, began, folder, faults, s3=s3)
    return list(read_usage(folder, began, faults)), faults


def objects(s3: Any) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket="fleet").get("Contents", ())]


def test_what_a_replica_wrote_is_what_the_command_reads(s3: Any, tmp_path: Path) -> None:
    own = tmp_path / "pod"
    meter = replica(own, "r", Answer(7, ended=True))
    ask(meter)
    hours = NodeHours(own, "org/model", "r", HalfANode())
    hours.note()
    copy = BucketCopy(own, URI, "r", lambda: s3)
    copy.send()
    now = datetime.now(UTC)
    place = f"stack=prod/dt={now:%Y-%m-%d}/hour={now:%H}"
    assert objects(s3) == [f"usage/nodes/{place}/r.jsonl.gz", f"usage/{place}/org--model.r.jsonl.gz"]
    ask(meter, key="bob")
    copy.send()
    assert len(objects(s3)) == 2, "an hour of a replica is one object"
    found, faults = fetched(s3, tmp_path / "here")
    assert found == list(read_usage(own)) and [one["key"] for one in found] == ["alice", "bob"] and not faults
    since = now - timedelta(hours=1)
    assert read_node_hours(tmp_path / "here", since) == read_node_hours(own, since)
    assert read_node_hours(own, since).holdings


def test_a_round_without_news_sends_nothing(s3: Any, tmp_path: Path) -> None:
    ask(replica(tmp_path, "r", Answer(7, ended=True)))
    sent: list[str] = []
    copy = BucketCopy(tmp_path, URI, "r", lambda: s3)
    put = copy._put

    def noted(key: str, body: bytes) -> None:
        sent.append(key)
        put(key, body)

    copy._put = noted  # type: ignore[method-assign]
    copy.send()
    copy.send()
    assert len(sent) == 1


def test_the_files_of_a_killed_replica_are_sent_by_another_on_its_pod_once_they_are_quiet(
    s3: Any, tmp_path: Path
) -> None:
    ask(replica(tmp_path, "killed", Answer(7, ended=True)))
    (file,) = tmp_path.rglob("killed.jsonl")
    copy = BucketCopy(tmp_path, URI, "alive", lambda: s3)
    copy.send()
    assert objects(s3) == [], "its owner may be writing to it, and an older copy would take the place of a newer one"
    for ago, there in ((3 * 3600.0, 0), (QUIET_S + 1, 1)):
        os.utime(file, (time.time() - ago,) * 2)
        copy.send()
        assert len(objects(s3)) == there
    assert [one["replica"] for one in fetched(s3, tmp_path / "here")[0]] == ["killed"]


def test_a_bucket_that_is_away_is_said_once_and_made_good_later(
    s3: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ray.serve")
    meter = replica(tmp_path, "r", Answer(7, ended=True))
    ask(meter)
    copy = BucketCopy(tmp_path, URI, "r", lambda: s3)
    put = copy._put

    def away(key: str, body: bytes) -> None:
        raise EndpointConnectionError(endpoint_url="https://s3")

    copy._put = away  # type: ignore[method-assign]
    copy.send()
    copy.send()
    assert caplog.text.count("usage is not copied to s3://fleet") == 1
    copy._put = put  # type: ignore[method-assign]
    copy.send()
    assert "copied to the bucket again" in caplog.text and len(fetched(s3, tmp_path / "here")[0]) == 1


def test_it_copies_as_long_as_the_replica_lives(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(usage_bucket, "SEND_EVERY_S", 0.001)
    copy, rounds = BucketCopy(tmp_path, URI, "r", lambda: s3), iter([RuntimeError("odd"), None])
    second = asyncio.Event()

    async def life() -> None:
        loop = asyncio.get_running_loop()

        def send() -> None:
            if (error := next(rounds, None)) is not None:
                raise error
            loop.call_soon_threadsafe(second.set)

        copy.send = send  # type: ignore[method-assign]
        running = asyncio.create_task(copy.run())
        await asyncio.wait_for(second.wait(), 20)
        running.cancel()

    asyncio.run(life())
    assert "odd" in caplog.text


def test_only_the_hours_asked_for_are_fetched(s3: Any, tmp_path: Path) -> None:
    for hour in ("dt=2026-11-29/hour=23", "dt=2026-11-30/hour=15", "dt=2026-11-30/hour=16", "dt=2026-12-01/hour=00"):
        for stack in ("prod", "production"):
            s3.put_object(Bucket="fleet", Key=f"usage/stack={stack}/{hour}/m.r.jsonl.gz", Body=gzip.compress(b""))
    s3.put_object(Bucket="fleet", Key=f"{PREFIX}/dt=2026-12-02/notes.txt", Body=b"")
    fetched(s3, tmp_path, datetime(2026, 11, 30, 16, 30, tzinfo=UTC))
    assert sorted(path.parent.name for path in tmp_path.rglob("*.jsonl")) == ["hour=00", "hour=16"]


def test_an_object_that_is_cut_counts_as_far_as_it_goes_and_is_named(s3: Any, tmp_path: Path) -> None:
    meter = replica(tmp_path / "pod", "r", Answer(7, ended=True))
    for number in range(200):
        ask(meter, request_id=os.urandom(9).hex() + str(number))
    BucketCopy(tmp_path / "pod", URI, "r", lambda: s3).send()
    (key,) = objects(s3)
    body = s3.get_object(Bucket="fleet", Key=key)["Body"].read()
    for damaged, least in ((body[: len(body) // 2], 20), (b"no gzip at all", 0)):
        s3.put_object(Bucket="fleet", Key=key, Body=damaged)
        found, faults = fetched(s3, tmp_path / str(least))
        assert least <= len(found) < 200
        assert [fault.file for fault in faults] == [f"s3://fleet/{key}"]


def test_a_bucket_that_cannot_be_read_is_one_message(s3: Any, tmp_path: Path) -> None:
    s3.delete_bucket(Bucket="fleet")
    with pytest.raises(SetupError, match="s3://fleet/usage/stack=prod: S3 returned NoSuchBucket; allow s3:ListBucket"):
        fetched(s3, tmp_path)


def test_an_application_hands_the_address_to_its_replicas_which_copy_there(
    s3: Any, usage_records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the plan's arguments to a replica's whole life; it fails to start, and what it held is in the bucket."""
    args = AppArgs.model_validate({"model": model().model_dump(mode="json"), "usage": URI})
    bound = application(VllmReplica, args)._bound_deployment
    assert bound.init_kwargs == {"usage": URI}
    assert application(VllmReplica, AppArgs(model=args.model))._bound_deployment.init_kwargs == {}
    for name in ("bind_to_node_address_only", "prepare", "_import_engine"):  # for a process of its own
        monkeypatch.setattr(f"modelfleet.serving.replica.{name}", lambda *_: None)
    monkeypatch.setattr("modelfleet.serving.replica.check_versions", lambda **_: None)

    def fails(*_: Any) -> None:
        raise WeightsError("no weights")

    monkeypatch.setattr("modelfleet.serving.replica.resolve", fails)
    replica = VllmReplica(*bound.init_args, **bound.init_kwargs)
    with pytest.raises(WeightsError):
        asyncio.run(replica._start())
    (key,) = objects(s3)
    assert key.startswith("usage/nodes/stack=prod/dt=")


def test_the_last_words_wait_for_a_copy_that_is_on_its_way(tmp_path: Path) -> None:
    """Its thread goes on when its task is cancelled, and would put an older hour over the last one."""
    own, sent, goes_on, begun = tmp_path / "pod", [], Event(), Event()

    class Slow:
        def put_object(self, *, Body: bytes, **_: Any) -> None:
            if not begun.is_set():
                begun.set()
                goes_on.wait(10)
            sent.append(len(gzip.decompress(Body)))

    meter = replica(own, "r", Answer(7, ended=True))
    ask(meter)
    copy = BucketCopy(own, URI, "r", Slow)
    first = Thread(target=copy.send)
    first.start()
    begun.wait(10)
    ask(meter, key="bob")
    last = Thread(target=copy.last_words)
    last.start()
    time.sleep(0.1)
    assert not sent
    goes_on.set()
    first.join(10)
    last.join(10)
    assert len(sent) == 2 and sent[0] < sent[1]


GUIDE = Path(__file__).parents[3] / "docs" / "keys.md"
#: Athena's types (https://docs.aws.amazon.com/athena/latest/ug/data-types.html), and those of JSON in them.
TYPES = {"string": str, "int": int, "bigint": int}


def test_the_table_for_athena_has_the_fields_of_real_records_and_finds_their_objects(s3: Any, tmp_path: Path) -> None:
    """The guide's statements: the columns against a real object, the query in SQLite, which has this part of SQL."""
    table, query = re.search(r"```sql\n(.*?;)\n\n(.*?;)\n```", GUIDE.read_text(), re.S).groups()  # type: ignore[union-attr]
    columns, partitions = (
        dict(re.findall(r"`?(\w+)`? (string|int|bigint)\b", part)) for part in table.split("PARTITIONED BY")
    )
    meter = replica(tmp_path / "pod", "r", Answer(7, ended=True), Answer(2, ended=True))
    for _ in range(3):
        ask(meter, request_id="again")
    BucketCopy(tmp_path / "pod", URI, "r", lambda: s3).send()
    (key,) = objects(s3)
    lines = gzip.decompress(s3.get_object(Bucket="fleet", Key=key)["Body"].read()).splitlines()
    records = [record for record in map(json.loads, lines) if record.get("record", "usage") == "usage"]
    records.append({**records[-1], "completion_tokens": 10_000, "written": f"{records[-1]['written'][:10]}T00:00:00"})
    for record in records:
        assert set(columns) <= set(record), "a column that no record has is NULL in each row"
        assert all(isinstance(record[name], (TYPES[kind], type(None))) for name, kind in columns.items())

    template = re.search(r"'storage.location.template' = 's3://BUCKET/(.*?)'", table)[1]  # type: ignore[index]
    place = re.fullmatch(re.sub(r"\$\{(\w+)\}", r"(?P<\1>[^/]+)", template) + "[^/]+", key)
    assert place is not None and set(place.groupdict()) == set(partitions)
    assert datetime.fromisoformat(place["dt"]) and place["hour"] == f"{int(place['hour']):02}"
    assert place["stack"] == "prod" and "'projection.stack.values' = 'prod'" in table

    with closing(sqlite3.connect(":memory:")) as athena:
        names = [*columns, *partitions]
        athena.execute(f"CREATE TABLE usage_lines ({', '.join(f'`{name}`' for name in names)})")
        for record in records:
            row = {**record, **place.groupdict()}
            athena.execute(
                f"INSERT INTO usage_lines VALUES ({', '.join('?' * len(names))})", [row[one] for one in names]
            )
        first, last = place["dt"], str((datetime.fromisoformat(place["dt"]) + timedelta(days=2)).date())
        query = re.sub(r"(>=|<) '[0-9-]+'", lambda found: f"{found[1]} '{first if found[1] == '>=' else last}'", query)
        found = athena.execute(query).fetchall()
    counted = list(read_usage(tmp_path / "pod"))
    assert len(counted) == 3 and found == [(None, "org/model", sum(one["completion_tokens"] for one in counted))]
