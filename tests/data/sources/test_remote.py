"""Files and shards behind a real HTTP server that breaks, and behind S3's interface."""

import io
import json
import multiprocessing
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from moco.data import open_source
from moco.data.formats.tar import INDEX, members
from moco.data.sources import remote, shard_index
from moco.data.sources import shards as shards_module
from moco.data.sources.shards import UnreadableShardError, open_shards
from moco.runtime.errors import UserError
from tests.data.sources.http_server import Server

pytest.importorskip("aiohttp")
BLOCK = 4096
IMAGES = [np.random.default_rng(i).bytes(3000 + 100 * i) for i in range(6)]


def tar_of(images, first=0, labels=True):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i, data in enumerate(images, first):
            for name, content in [(f"{i:04}.jpg", data), *([(f"{i:04}.cls", b"%d" % (i % 2))] if labels else [])]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def index_of(tar):
    file = io.BytesIO()
    np.save(file, np.array([(m.offset, m.size, m.label) for m in members(io.BytesIO(tar))], INDEX))
    return file.getvalue()


def statistics(count):
    return json.dumps({"successes": count}).encode()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.02))
    monkeypatch.setattr(remote, "_RANGE", BLOCK)


@pytest.fixture
def server():
    one = Server()
    yield one
    one.close()


@pytest.fixture
def shards(server):
    """Two shards of three images, with indices."""
    for number in range(2):
        tar = tar_of(IMAGES[3 * number : 3 * number + 3], 3 * number)
        server.files |= {f"/{number}.tar": tar, f"/{number}.idx": index_of(tar)}
    return f"{server.url}/{{0..1}}.tar"


def streamed(shards, first=0):
    return [data for shard in range(len(shards.urls)) for _, data in shards.stream(shard, first)]


def test_images_labels_and_streams(shards):
    opened, *_ = open_shards(shards)
    assert opened.labels().tolist() == [0, 1, 0, 1, 0, 1]
    assert [opened.read(i) for i in range(6)] == IMAGES
    assert streamed(opened) == IMAGES


def test_each_index_is_read_once_and_no_shard(server, shards):
    open_shards(shards)
    assert sorted(path for _, path, _ in server.requests) == ["/0.idx", "/1.idx"]


def test_a_stream_goes_on_at_the_byte_where_it_broke(server, shards):
    opened, *_ = open_shards(shards)
    server.drops["/1.tar"] = [None, 100, None, 0, 2000]
    assert [data for _, data in opened.stream(1)] == IMAGES[3:]
    asked = server.asked("/1.tar")
    assert asked == sorted(asked)
    assert asked.count(0) == 1
    assert len(asked) - len(set(asked)) == 3  # the breaks


def test_a_stream_begins_at_an_image(server, shards):
    opened, *_ = open_shards(shards)
    assert list(opened.stream(1, 2)) == [(2, IMAGES[5])]
    assert min(server.asked("/1.tar")) > len(IMAGES[3]) + len(IMAGES[4])


def test_a_stream_without_an_index_skips(server, shards):
    server.files |= {"/1_stats.json": statistics(3)}
    del server.files["/1.idx"]
    opened, *_ = open_shards(shards)
    assert list(opened.stream(1, 1)) == [(1, IMAGES[4]), (2, IMAGES[5])]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_for_a_moment(server, shards, status):
    for path in ("/0.idx", "/0.tar"):
        server.statuses[path] = [status, status]
    opened, *_ = open_shards(shards)
    assert streamed(opened) == IMAGES


def test_a_server_that_fails_for_good_ends_in_one_line(server, shards):
    opened, *_ = open_shards(shards)
    server.statuses["/0.tar"] = [500] * 99
    with pytest.raises(UnreadableShardError, match=r"0\.tar: the server answers 500 Internal Server Error$"):
        list(opened.stream(0))
    server.statuses["/0.idx"] = [500] * 99
    with pytest.raises(UserError, match=r"0\.tar: cannot be read: the server answers 500"):
        open_shards(shards)


def test_a_connection_that_always_breaks_is_not_a_missing_file(server, shards):
    del server.files["/0.idx"]
    server.drops["/0.tar"] = [10] * 99
    with pytest.raises(UserError, match=r"0\.tar: cannot be read: ClientPayloadError"):
        open_shards(shards)


def test_a_server_that_is_not_there():
    with pytest.raises(UserError, match=r"0\.tar: cannot be read: .*[Cc]onnect"):
        open_shards("http://localhost:9/0.tar")


def test_a_shard_that_is_not_there_is_named_once(server, shards, logged):
    del server.files["/0.tar"], server.files["/0.idx"]
    opened, *_ = open_shards(shards)
    assert streamed(opened) == IMAGES[3:]
    assert [r.getMessage() for r in logged.records if "0.tar" in r.getMessage()] == [
        f"{server.url}/0.tar: there is no such file"
    ]
    assert len(server.asked("/0.tar", "HEAD")) == 1


def test_a_server_without_ranges_is_named(server, shards):
    opened, *_ = open_shards(shards)
    server.ranges = False
    with pytest.raises(UserError, match=r"0\.tar: the server ignores HTTP Range requests"):
        list(opened.stream(0))
    with pytest.raises(UserError, match=r"0\.tar: the server ignores HTTP Range requests"):
        opened.read(1)


def test_statistics_without_an_index(server, shards, logged):
    for number in range(2):
        del server.files[f"/{number}.idx"]
        server.files[f"/{number}_stats.json"] = statistics(3)
    opened, *_ = open_shards(shards)
    assert (opened.counts.tolist(), opened.labels()) == ([3, 3], None)
    assert not any("tar" in path for _, path, _ in server.requests)
    assert streamed(opened) == IMAGES
    assert [opened.read(i) for i in range(6)] == IMAGES
    assert open_source(f"shards:{shards}").labelled is False


@pytest.mark.parametrize("first", [b"", tar_of(IMAGES[:3])[:5000], tar_of([]), b"<html>" * 999])
def test_a_first_shard_that_is_damaged(server, shards, first, logged):
    server.files["/0.tar"] = first
    del server.files["/0.idx"]
    opened, *_ = open_shards(shards)
    whole = 1 if len(first) == 5000 else 0
    assert [opened.read(i) for i in range(len(opened))] == IMAGES[:whole] + IMAGES[3:]
    assert opened.labels().tolist() == [0, 1, 0, 1][1 - whole :]
    assert sum("/0.tar" in r.getMessage() for r in logged.records) == (first != tar_of([]))


def test_labels_of_some(server, shards, logged):
    del server.files["/0.idx"]
    server.files["/0_stats.json"] = statistics(3)
    assert open_shards(shards)[0].labels().tolist() == [-1, -1, -1, 1, 0, 1]
    assert sum("3 of 6 images have no label" in r.getMessage() for r in logged.records) == 1


def test_ranks_share_the_work(server, monkeypatch):
    """Two ranks, each a thread: manifest and indices are read once, and both get the same of it."""
    tars = [tar_of([data], i) for i, data in enumerate(IMAGES)]
    server.files |= {f"/{i}.tar": tar for i, tar in enumerate(tars)}
    server.files |= {f"/{i}.idx": index_of(tar) for i, tar in enumerate(tars)}
    listed = [{"name": f"{i}.tar", "images": 1} for i in range(6)]
    manifest = {"format": "moco shards", "version": 1, "classes": None, "splits": {"train": {"shards": listed}}}
    server.files["/manifest.json"] = json.dumps(manifest).encode()
    own, met, given = threading.local(), threading.Barrier(2, timeout=20), [None, None]

    def gather_objects(value):
        given[own.rank] = value
        met.wait()
        values = list(given)
        met.wait()
        return values

    def on_main(act):
        return gather_objects(None if own.rank else act())[0]

    def opened(rank):
        own.rank = rank
        return [open_shards(spec)[0] for spec in (server.url, f"{server.url}/{{0..5}}.tar")]

    monkeypatch.setattr(shard_index, "rank", lambda: own.rank)
    monkeypatch.setattr(shard_index, "world_size", lambda: 2)
    monkeypatch.setattr(shard_index, "gather_objects", gather_objects)
    monkeypatch.setattr(shards_module, "on_main", on_main)
    with ThreadPoolExecutor(2) as pool:
        for packed, unpacked in pool.map(opened, range(2)):
            for one in (packed, unpacked):
                assert (one.counts.tolist(), one.labels().tolist()) == ([1] * 6, [0, 1] * 3)
    # Once for the manifest, once for the pattern.
    assert sorted(path for _, path, _ in server.requests) == sorted(
        [f"/{i}.idx" for i in range(6)] * 2 + ["/manifest.json"]
    )


def _read_all(url, queue):
    queue.put(streamed(open_shards(url)[0]) == IMAGES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_a_process_that_was_forked(shards):
    streamed(open_shards(shards)[0])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    other = context.Process(target=_read_all, args=(shards, queue), daemon=True)
    other.start()
    assert queue.get(timeout=30)
    other.join(10)


def test_s3(monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("bucket")
        for number in range(2):
            tar = tar_of(IMAGES[3 * number : 3 * number + 3], 3 * number)
            files.pipe(f"bucket/{number}.tar", tar)
            if number:
                files.pipe(f"bucket/{number}.idx", index_of(tar))
        files.pipe("bucket/0_stats.json", statistics(3))
        for spelling in ("s3://bucket", "s3://bucket/*.tar", "s3://bucket/{0..1}.tar"):
            opened, *_ = open_shards(spelling)
            assert opened.labels().tolist() == [-1, -1, -1, 1, 0, 1]
            assert streamed(opened) == IMAGES
            assert list(opened.stream(1, 2)) == [(2, IMAGES[5])]
            assert opened.read(1) == IMAGES[1]
        with pytest.raises(UserError, match="no images in 1 shards"):
            open_shards("s3://bucket/9.tar")
    finally:
        server.stop()
